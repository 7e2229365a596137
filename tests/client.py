"""A raw client: sends exactly these bytes, in one of several ways, and reads exactly what comes back.

with Client(gateway.port) as client:
    client.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n", bytewise=True)
    response = client.read_response()
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from types import TracebackType

from tests.strict import Malformed, Message, parse_response

__all__ = ["Client", "get", "request"]

TIMEOUT_S = 60  # of every blocking call: only ever ends a hang
SINGLE_BYTES = 1500  # how much of a long message goes out byte by byte, at its front and at its end


class Client:
    """One connection to the gateway."""

    def __init__(
        self, port: int, *, tls: ssl.SSLContext | None = None, name: str = "localhost", window: int = 0
    ) -> None:
        sock = socket.socket(socket.AF_INET)
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        sock.settimeout(TIMEOUT_S)
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = tls.wrap_socket(sock, server_hostname=name) if tls else sock
        self.closed = False  # the gateway has ended its side
        self.was_reset = False
        self.unread = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes, *, bytewise: bool = False) -> bool:
        """True if the gateway took everything; False if it had closed before (then read what it said)."""
        try:
            if bytewise:
                self._send_bytewise(data)
            else:
                self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def read_response(self, method: str = "GET") -> Message:
        """The next final response with its interim ones. Raises `Malformed` if it is none, or is cut."""
        while (parsed := parse_response(self.unread, method, closed=self.closed)) is None:
            if self.closed:
                raise Malformed(
                    "connection reset" if self.was_reset else "connection closed without a response"
                )
            self._receive()
        message, self.unread = parsed
        return message

    def read_exactly(self, size: int) -> bytes:
        """Exactly so many bytes, as they stand on the wire."""
        while len(self.unread) < size and not self.closed:
            self._receive()
        data, self.unread = self.unread[:size], self.unread[size:]
        assert len(data) == size, f"connection ended after {data!r}, expected {size} bytes"
        return data

    def read_until(self, marker: bytes) -> bytes:
        """Everything up to and with the marker."""
        while marker not in self.unread:
            assert not self.closed, f"connection ended before {marker!r}: {self.unread!r}"
            self._receive()
        end = self.unread.index(marker) + len(marker)
        data, self.unread = self.unread[:end], self.unread[end:]
        return data

    def read_to_end(self) -> bytes:
        """Everything until the gateway ends the connection; `was_reset` says how it did."""
        while not self.closed:
            self._receive()
        data, self.unread = self.unread, b""
        return data

    def is_idle(self, wait_s: float = 0.05) -> bool:
        """True if the connection stays open and silent for so long."""
        if self.unread or self.closed:
            return False
        self.sock.settimeout(wait_s)
        try:
            self._receive()
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(TIMEOUT_S)
        return False

    def half_close(self) -> None:
        """Ends the sending side; reading goes on."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Ends the connection."""
        with contextlib.suppress(OSError):
            self.sock.close()

    def _receive(self) -> None:
        try:
            data = self.sock.recv(262144)
        except (ConnectionResetError, BrokenPipeError):
            self.was_reset = True
            data = b""
        if not data:
            self.closed = True
        self.unread += data

    def _send_bytewise(self, data: bytes) -> None:
        # A pause lets the gateway read each byte by itself; it is a chance, not a promise, and no test
        # relies on it.
        pause = threading.Event()
        middle = data[SINGLE_BYTES:-SINGLE_BYTES] if len(data) > 2 * SINGLE_BYTES else b""
        for at in range(len(data)):
            if middle and at == SINGLE_BYTES:
                self.sock.sendall(middle)
            if SINGLE_BYTES <= at < SINGLE_BYTES + len(middle):
                continue
            self.sock.sendall(data[at : at + 1])
            pause.wait(0.00005)


def request(
    target: str = "/",
    method: str = "GET",
    *fields: str,
    body: bytes = b"",
    host: str | None = "gateway.test",
    version: str = "1.1",
) -> bytes:
    """The bytes of a request. A body brings its Content-Length along unless the fields say how it is
    framed.
    """
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += fields
    framed = any(line.lower().startswith(("content-length:", "transfer-encoding:")) for line in fields)
    if body and not framed:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(port: int, target: str = "/", *fields: str, method: str = "GET", body: bytes = b"") -> Message:
    """The answer to one request on its own connection."""
    with Client(port) as client:
        client.send(request(target, method, *fields, body=body))
        return client.read_response(method)
