"""One HTTP/1.1 message as it arrives, checked against the body it must have.

Reads what gateways send to clients and to upstreams in these benchmarks: a head, then a body with
Content-Length, a chunked one (RFC 9112 section 7.1, without trailers) or none. The framing may differ from
that of the sender, the bytes may not.
"""

from __future__ import annotations

__all__ = ["Message"]

CRLF = b"\r\n"


class Message:
    """A message whose body must be `expected`; None accepts every body. `body_bytes` of it have arrived. A
    response must have this status; 0 is for requests.

    `feed` raises RuntimeError for another status, for other bytes, for more and for less than expected, and
    for a malformed chunk. `start` and `fields` (names and values in lower case) are set when the head has
    arrived.
    """

    __slots__ = (
        "_expected",
        "_held",
        "_is_chunked",
        "_is_last",
        "_left",
        "_status",
        "body_bytes",
        "fields",
        "is_complete",
        "start",
    )

    def __init__(self, expected: bytes | None = b"", status: int = 0) -> None:
        self._expected = expected
        self._status = b"%d" % status if status else b""
        self.begin()

    def begin(self) -> None:
        """Waits for the head of the next message."""
        self.start = b""
        self.fields: dict[bytes, bytes] = {}
        self.body_bytes = 0
        self.is_complete = False
        self._held = b""  # an incomplete head, or an incomplete line between two chunks
        self._left = 0  # of the body, or of the chunk and the CRLF after it
        self._is_chunked = False
        self._is_last = False

    def feed(self, data: bytes | memoryview) -> bytes:
        """Takes what has arrived; returns what follows the end of the message."""
        if not self.start:
            head, found, rest = (self._held + bytes(data)).partition(CRLF + CRLF)
            if not found:
                self._held = head
                return b""
            self._held = b""
            self._read_head(head)
            data = rest
        if self._is_chunked:
            return self._feed_chunks(self._held + bytes(data))
        taken = data[: self._left]
        self._take(taken)
        self._left -= len(taken)
        if not self._left:
            self._end()
        return bytes(data[len(taken) :])

    def _read_head(self, head: bytes) -> None:
        self.start, *lines = head.split(CRLF)
        if self._status and self.start.split(b" ")[1:2] != [self._status]:
            got, wanted = self.start.decode(errors="replace"), self._status.decode()
            raise RuntimeError(f"the response is {got!r}, not {wanted}")
        for line in lines:
            name, _, value = line.partition(b":")
            self.fields[name.lower()] = value.strip().lower()
        self._is_chunked = self.fields.get(b"transfer-encoding") == b"chunked"
        self._left = 0 if self._is_chunked else int(self.fields.get(b"content-length", b"0"))

    def _feed_chunks(self, data: bytes) -> bytes:
        while True:
            if self._left > 2:
                part = data[: self._left - 2]
                self._take(part)
            elif self._left:
                part = data[: self._left]
            else:
                line, found, rest = data.partition(CRLF)
                if not found:
                    self._held = data
                    return b""
                try:
                    size = int(line.partition(b";")[0], 16)
                except ValueError:
                    raise RuntimeError(f"{line[:40]!r} is no size of a chunk") from None
                self._left, self._is_last, data = size + 2, size == 0, rest
                continue
            self._left -= len(part)
            data = data[len(part) :]
            if self._is_last and not self._left:
                self._end()
                return data
            if not data:
                self._held = b""
                return b""

    def _take(self, part: bytes | memoryview) -> None:
        if self._expected is not None and not self._expected.startswith(part, self.body_bytes):
            sent = self._expected[self.body_bytes :][:40]
            got = bytes(part[:40])
            raise RuntimeError(f"byte {self.body_bytes} of the body: {got!r} arrived, {sent!r} was sent")
        self.body_bytes += len(part)

    def _end(self) -> None:
        if self._expected is not None and self.body_bytes != len(self._expected):
            raise RuntimeError(f"{self.body_bytes} of {len(self._expected)} bytes of the body arrived")
        self.is_complete = True
