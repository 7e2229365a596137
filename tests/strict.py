"""A strict HTTP/1.1 message parser for tests: what the gateway sends must fit the grammar to the byte.

Owns the reading of one request or one response from bytes. It forgives nothing: lone CR or LF, obs-fold,
spaces around names, upper limits of chunk sizes, two framings at once are all `Malformed`. It is
deliberately small and slow, so that it shares no idea and no fault with the parser under test. Sources: RFC
9112 §2-7, RFC 9110 §5.

`parse_request` and `parse_response` return None while the message is incomplete, and otherwise the message
and the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["Malformed", "Message", "parse_head", "parse_request", "parse_response"]

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]+) HTTP/1\.([01])")
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2}) ([\t \x21-\x7e\x80-\xff]*)")
# Bytes 0x80-0xFF are obs-text: legal inside a value and at its edges, but for NEL (0x85) and NBSP (0xA0).
# Some parsers trim these, so the gateway relays no value that begins or ends with one.
EDGE = rb"[!-~\x80-\x84\x86-\x9f\xa1-\xff]"
FIELD_LINE = re.compile(
    rb"(" + TOKEN + rb"):[ \t]*((?:" + EDGE + rb"(?:[\t \x21-\x7e\x80-\xff]*" + EDGE + rb")?)?)[ \t]*"
)
CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[ \t]*;[ \t]*" + TOKEN + rb"(?:=(?:" + TOKEN + rb'|"[^"\r\n]*"))?)*)'
)


class Malformed(Exception):
    """The bytes are no HTTP/1.1 message: where, and what was found."""


@dataclass
class Message:
    """One request or response as it stood on the wire. `raw` holds exactly its bytes, framing included."""

    version: int = 1
    method: bytes = b""
    target: bytes = b""
    status: int = 0
    phrase: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    framing: str = "none"  # none | length | chunked | close
    chunks: list[bytes] = field(default_factory=list)
    interim: list[Message] = field(default_factory=list)
    raw: bytes = b""

    def values(self, name: str) -> list[bytes]:
        """Every value of this field, in order."""
        wanted = name.lower().encode()
        return [value for key, value in self.headers if key.lower() == wanted]

    def get(self, name: str) -> bytes | None:
        """The only value of this field, None without one. Two are `Malformed`: the caller expected one."""
        values = self.values(name)
        if len(values) > 1:
            raise Malformed(f"{name} occurs {len(values)} times: {values}")
        return values[0] if values else None

    def listed(self, name: str) -> list[bytes]:
        """The members of a list field, lower-cased, over all its lines."""
        return [
            member.strip().lower()
            for value in self.values(name)
            for member in value.split(b",")
            if member.strip()
        ]

    @property
    def keeps_alive(self) -> bool:
        """True if this message leaves its connection open by what it says."""
        options = self.listed("connection")
        if b"close" in options:
            return False
        return self.version == 1 or b"keep-alive" in options


def parse_head(data: bytes, *, request: bool) -> tuple[Message, bytes] | None:
    """The message with its framing not yet applied, and what follows its head."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    lines = data[:end].split(b"\r\n")
    message = Message()
    if request:
        match = REQUEST_LINE.fullmatch(lines[0])
        if match is None:
            raise Malformed(f"request line {lines[0]!r}")
        message.method, message.target, version = match.groups()
    else:
        match = STATUS_LINE.fullmatch(lines[0])
        if match is None:
            raise Malformed(f"status line {lines[0]!r}")
        version, status, message.phrase = match.groups()
        message.status = int(status)
    message.version = int(version)
    message.headers = _fields(lines[1:])
    message.raw = data[: end + 4]
    return message, data[end + 4 :]


def parse_request(data: bytes) -> tuple[Message, bytes] | None:
    """The first request in data and the rest; None while it is incomplete; `Malformed` when it is none."""
    head = parse_head(data, request=True)
    if head is None:
        return None
    message, rest = head
    hosts = message.values("host")
    if len(hosts) > 1 or (message.version == 1 and len(hosts) != 1):
        raise Malformed(f"host occurs {len(hosts)} times")
    return _body(message, data, rest, default="none")


def parse_response(data: bytes, method: str = "GET", *, closed: bool = False) -> tuple[Message, bytes] | None:
    """The first final response in data, with its interim ones, and the rest.

    None while it is incomplete. `closed` says that the peer has ended its side: this ends a close-delimited
    body, and a body with any other framing that has not ended is `Malformed`.
    """
    interim: list[Message] = []
    rest = data
    while True:
        head = parse_head(rest, request=False)
        if head is None:
            if closed and rest:
                raise Malformed(f"connection closed within a response head: {rest[:200]!r}")
            return None
        message, after = head
        if message.status >= 200 or message.status == 101:
            break
        if message.values("content-length") or message.values("transfer-encoding"):
            raise Malformed(f"interim response {message.status} with a framing field")
        interim.append(message)
        rest = after
    message.interim = interim
    if (
        message.status in (101, 204, 304)
        or method == "HEAD"
        or (method == "CONNECT" and 200 <= message.status < 300)
    ):
        if message.status in (101, 204) and message.values("transfer-encoding"):
            raise Malformed(f"{message.status} with Transfer-Encoding")
        _framing(message, "none")
        message.framing = "none"
        return message, after
    done = _body(message, rest, after, default="close", closed=closed)
    if done is None and closed:
        raise Malformed(f"connection closed within a response body: {rest[-200:]!r}")
    return done


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    fields = []
    for line in lines:
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise Malformed(f"field line {line!r}")
        fields.append((match[1], match[2]))
    return fields


def _framing(message: Message, default: str) -> tuple[str, int]:
    encodings = message.values("transfer-encoding")
    lengths = message.values("content-length")
    if encodings and lengths:
        raise Malformed("both Content-Length and Transfer-Encoding")
    if encodings:
        if len(encodings) != 1 or encodings[0].lower() != b"chunked":
            raise Malformed(f"Transfer-Encoding {encodings!r}")
        if message.version == 0:
            raise Malformed("Transfer-Encoding in an HTTP/1.0 message")
        return "chunked", 0
    if lengths:
        if len(lengths) != 1 or re.fullmatch(rb"[0-9]{1,18}", lengths[0]) is None:
            raise Malformed(f"Content-Length {lengths!r}")
        return "length", int(lengths[0])
    return default, 0


def _body(
    message: Message, data: bytes, rest: bytes, *, default: str, closed: bool = False
) -> tuple[Message, bytes] | None:
    message.framing, length = _framing(message, default)
    if message.framing == "length":
        if len(rest) < length:
            return None
        message.body, rest = rest[:length], rest[length:]
    elif message.framing == "close":
        if not closed:
            return None
        message.body, rest = rest, b""
    elif message.framing == "chunked":
        after = _chunks(message, rest)
        if after is None:
            return None
        rest = after
    message.raw = data[: len(data) - len(rest)]
    return message, rest


def _chunks(message: Message, rest: bytes) -> bytes | None:
    at = 0
    while True:
        end = rest.find(b"\r\n", at)
        if end < 0:
            return None
        match = CHUNK_LINE.fullmatch(rest[at:end])
        if match is None:
            raise Malformed(f"chunk size line {rest[at:end]!r}")
        size = int(match[1], 16)
        at = end + 2
        if size == 0:
            break
        if len(rest) < at + size + 2:
            return None
        if rest[at + size : at + size + 2] != b"\r\n":
            raise Malformed(f"chunk of {size} bytes is followed by {rest[at + size : at + size + 2]!r}")
        message.chunks.append(rest[at : at + size])
        at += size + 2
    message.body = b"".join(message.chunks)
    if rest[at : at + 2] == b"\r\n":
        return rest[at + 2 :]
    end = rest.find(b"\r\n\r\n", at)
    if end < 0:
        return None
    message.trailers = _fields(rest[at:end].split(b"\r\n"))
    return rest[end + 4 :]
