"""The cost of bytes in transit: server-sent events, WebSocket messages and large bodies in both directions.

Every load counts units that arrived whole and with the bytes that were sent; see both_ends.py. Compared with
nginx and HAProxy as bare proxies. nginx buffers bodies, by default in files when they are larger than some
pages, and is measured with and without; events and tunnels need it without.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.gateway import servers
from benchmarks.gateway.both_ends import BothEnds, Exchange, Side
from benchmarks.gateway.ladder import Ladder, Peers
from benchmarks.gateway.load import Counts, Origin
from benchmarks.gateway.message import Message
from benchmarks.gateway.servers import LOAD_CORE, Server, pinned

__all__ = ["BODIES", "STREAMS", "Bodies", "Events", "Messages", "proxied"]

EVENTS_PER_STREAM = 100
EVENT = 'data: {"index":%04d,"delta":"one of the tokens of a chat completion, and some fields"}\n\n'
EVENT_BODY = "".join(EVENT % number for number in range(EVENTS_PER_STREAM)).encode()
EVENT_BYTES = len(EVENT % 0)
EVENT_CHUNKS = [
    b"%x\r\n%b\r\n" % (EVENT_BYTES, EVENT_BODY[start : start + EVENT_BYTES])
    for start in range(0, len(EVENT_BODY), EVENT_BYTES)
]
EVENT_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"

# RFC 6455: the handshake of section 4, and text frames of 64 bytes, masked on the way to the server only.
SOCKET_KEY = base64.b64encode(b"fastgate's bench")
SOCKET_ACCEPT = base64.b64encode(hashlib.sha1(SOCKET_KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
SOCKET_HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n\r\n" % SOCKET_ACCEPT
)
MESSAGE = b"a message of 64 bytes, as a chat or a game sends: 0123456789 abc"
MASK = b"\x5a\x01\xc3\x7e"
FRAME_UP = b"\x81\xc0" + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(MESSAGE))
FRAME_DOWN = b"\x81\x40" + MESSAGE
assert len(MESSAGE) == 64

SMALL_STREAMS, LARGE_STREAMS = 64, 16
CHUNK_BYTES = 16_384


class BothEndsLoad(ABC):
    """A load whose clients and upstream are in this process. `unit` is what is counted, `count` how many
    clients there are.
    """

    unit: str
    count: int
    program: str | None = None

    @abstractmethod
    def exchange(self, number: int, client: Side) -> Exchange:
        """What this client and its upstream say to each other."""

    def drive(self, server: Server, origin: Origin, seconds: float) -> Counts:
        """Load for so long."""
        assert isinstance(origin, BothEnds)
        with pinned(LOAD_CORE), origin.conversation(server.port, self.exchange, self.count) as conversation:
            began = time.monotonic()
            units = conversation.run(seconds=seconds)
            return Counts(units, time.monotonic() - began)

    @contextlib.contextmanager
    def one_by_one(self, server: Server, origin: Origin) -> Iterator[Callable[[int], None]]:
        """A function that makes so many units happen, one after the other, on one connection."""
        assert isinstance(origin, BothEnds)
        with origin.conversation(server.port, self.exchange, 1) as conversation:

            def talk(units: int) -> None:
                conversation.run(units=units)

            yield talk


class _Response(Exchange):
    """An exchange whose client checks one HTTP response after the other."""

    def __init__(self, number: int, client: Side, body: bytes) -> None:
        super().__init__(number, client)
        self.response = Message(body, 200)

    def client_received(self, data: memoryview) -> None:
        if self.is_done:
            raise RuntimeError(f"{bytes(data[:40])!r} arrived without a request")
        rest = self.response.feed(data)
        if rest:
            raise RuntimeError(f"{rest[:40]!r} arrived after the response")


class _EventStream(_Response):
    def __init__(self, number: int, client: Side) -> None:
        super().__init__(number, client, EVENT_BODY)
        self._received = 0
        self._request = (
            b"GET /streams/%d HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n" % number
        )

    def begin_unit(self) -> None:
        if self._received:
            self.respond(EVENT_CHUNKS[self._received])
        else:
            self.client.send(self._request)

    def request_arrived(self) -> None:
        self.respond(EVENT_HEAD + EVENT_CHUNKS[0])

    def client_received(self, data: memoryview) -> None:
        super().client_received(data)
        if self.response.is_complete:
            self.response.begin()
            self._received = 0
            self.is_done = True
        elif self.response.body_bytes == (self._received + 1) * EVENT_BYTES:
            self._received += 1
            if self._received == EVENTS_PER_STREAM:  # the end of the stream belongs to its last event
                self.respond_last(LAST_CHUNK)
            else:
                self.is_done = True


@dataclass(frozen=True)
class Events(BothEndsLoad):
    """Streams of 100 events in chunks. Each is sent when the client has received the one before."""

    unit: str = "event"
    count: int = SMALL_STREAMS

    def exchange(self, number: int, client: Side) -> Exchange:
        return _EventStream(number, client)


class _Socket(Exchange):
    def __init__(self, number: int, client: Side) -> None:
        super().__init__(number, client)
        self._head = Message(None, 101)
        self._at_client = self._at_upstream = b""
        self._request = (
            b"GET /sockets/%d HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n" % (number, SOCKET_KEY)
        )

    def begin_unit(self) -> None:
        self.client.send(FRAME_UP if self._head.start else self._request)

    def request_arrived(self) -> None:
        self.respond(SOCKET_HEAD)

    def client_received(self, data: memoryview) -> None:
        received = bytes(data)
        if not self._head.start:
            received = self._head.feed(data)
            if not self._head.start:
                return
            self.client.send(FRAME_UP)
        self._at_client = self._checked(self._at_client + received, FRAME_DOWN)
        self.is_done = self._at_client == FRAME_DOWN
        if self.is_done:
            self._at_client = b""

    def upstream_received(self, data: memoryview) -> None:
        self._at_upstream = self._checked(self._at_upstream + bytes(data), FRAME_UP)
        if self._at_upstream == FRAME_UP:
            self._at_upstream = b""
            self.respond(FRAME_DOWN)

    def _checked(self, received: bytes, sent: bytes) -> bytes:
        if self.is_done or not sent.startswith(received):
            raise RuntimeError(f"the frame {received[:80]!r} arrived, {sent!r} was sent")
        return received


@dataclass(frozen=True)
class Messages(BothEndsLoad):
    """WebSockets: a message of 64 bytes to the upstream, and its echo to the client."""

    unit: str = "message"
    count: int = SMALL_STREAMS

    def exchange(self, number: int, client: Side) -> Exchange:
        return _Socket(number, client)


def _noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def _chunked(body: bytes) -> bytes:
    parts = (body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES))
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + LAST_CHUNK


class _Transfer(_Response):
    def __init__(self, number: int, client: Side, up: bytes, framed: bytes, down: bytes) -> None:
        super().__init__(number, client, down)
        self.request_body = up
        how = b"Content-Length: %d" % len(up) if framed is up else b"Transfer-Encoding: chunked"
        kind = b"Content-Type: application/octet-stream"
        self._request = (
            b"POST /bodies/%d HTTP/1.1\r\nHost: bench\r\n%b\r\n%b\r\n\r\n" % (number, kind, how) + framed
        )
        self._response = b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: %d\r\n\r\n" % (kind, len(down)) + down

    def begin_unit(self) -> None:
        self.response.begin()
        self.client.send(self._request)

    def request_arrived(self) -> None:
        self.respond_last(self._response)

    def client_received(self, data: memoryview) -> None:
        super().client_received(data)
        if self.response.is_complete:
            self.is_done = True


@dataclass(frozen=True)
class Bodies(BothEndsLoad):
    """Requests with so many bytes up and down."""

    up_bytes: int
    down_bytes: int
    is_chunked: bool = False
    unit: str = "request"
    count: int = LARGE_STREAMS

    def exchange(self, number: int, client: Side) -> Exchange:
        up = _noise(self.up_bytes)
        return _Transfer(number, client, up, _chunked(up) if self.is_chunked else up, _noise(self.down_bytes))


def proxied(origin: int) -> dict[str, Any]:
    """One route to this port and nothing else."""
    return {"routes": [{"path": "/{rest...}", "upstream": f"http://127.0.0.1:{origin}"}]}


NGINX_PROXY = "proxy_pass http://origin; proxy_http_version 1.1;"
NGINX_KEPT = 'proxy_set_header Connection "";'
NGINX_UPGRADE = 'proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
NGINX_UNBUFFERED = "proxy_buffering off; proxy_request_buffering off;"


# Without it HAProxy waits for more after each chunk, up to the 200 ms of TCP_CORK.
HAPROXY_PROXY = "option http-no-delay\n  default_backend origin"


def _relayed(*nginx: tuple[str, str]) -> Callable[[int], Peers]:
    """nginx with each of these, HAProxy and the gateway, all as bare proxies."""

    def peers(origin: int) -> Peers:
        def with_nginx(more: str) -> Callable[[], Server]:
            return lambda: servers.nginx(f"{NGINX_PROXY} {more}", origin=origin)

        return {
            **{name: with_nginx(more) for name, more in nginx},
            "haproxy": lambda: servers.haproxy(HAPROXY_PROXY, origin=origin),
            "fastgate": lambda: servers.fastgate(proxied(origin)),
        }

    return peers


_BUFFERED_AND_NOT = _relayed(("nginx", NGINX_KEPT), ("nginx unbuffered", f"{NGINX_KEPT} {NGINX_UNBUFFERED}"))

#: The bodies that are measured: what is said of each, and its bytes.
BODIES: dict[str, tuple[str, Bodies]] = {
    "upload-100k": ("request body of 100 kB, response of 64 bytes", Bodies(100_000, 64)),
    "upload-1m": ("request body of 1 MB, response of 64 bytes", Bodies(1_000_000, 64)),
    "upload-1m-chunked": ("request body of 1 MB in chunks", Bodies(1_000_000, 64, is_chunked=True)),
    "download-100k": ("response body of 100 kB", Bodies(64, 100_000)),
    "download-1m": ("response body of 1 MB", Bodies(64, 1_000_000)),
}

STREAMS: dict[str, Ladder] = {
    **{name: Ladder(what, _BUFFERED_AND_NOT, load, origin=BothEnds) for name, (what, load) in BODIES.items()},
    "events": Ladder(
        f"server-sent events of {EVENT_BYTES} bytes, {EVENTS_PER_STREAM} per stream",
        _relayed(("nginx", f"{NGINX_KEPT} {NGINX_UNBUFFERED}")),
        Events(),
        origin=BothEnds,
    ),
    "websocket": Ladder(
        "WebSocket messages of 64 bytes and their echoes",
        _relayed(("nginx", NGINX_UPGRADE)),
        Messages(),
        origin=BothEnds,
    ),
}
