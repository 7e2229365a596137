"""A scriptable raw upstream: exact bytes out, exact bytes recorded, and every way a peer can misbehave.

Each accepted connection runs the script in its own thread with a `Peer`: blocking calls, so that a script
reads from top to bottom like the exchange it stands for. The script may be replaced between connections
(`upstream.script = ...`).

    def truncated(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 10\\r\\n\\r\\nhalf")
        peer.close()

    with Upstream(truncated) as upstream, Gateway(config(upstream.url)) as gateway: ...

A request that does not fit the strict grammar fails the test when the block ends, and so does any other
exception of a script.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType

from tests.strict import Malformed, Message, parse_head, parse_request

__all__ = ["OK", "Disconnected", "Peer", "Upstream", "answer", "echo"]

TIMEOUT_S = 60  # of every blocking call: only ever ends a hang
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Disconnected(Exception):
    """The gateway closed or reset the connection while the script was reading. It ends a script normally."""


class Peer:
    """One accepted connection, seen from the upstream."""

    def __init__(self, upstream: Upstream, sock: socket.socket, number: int) -> None:
        self.upstream = upstream
        self.sock = sock
        self.number = number  # 0 for the first connection the upstream accepted
        self.received = bytearray()  # everything that ever arrived
        self.requests: list[Message] = []
        self._recorded = upstream.requests  # `forget` puts another list in its place
        self.ended = threading.Event()  # set when the gateway has closed its side or reset the connection
        self._unread = b""

    def read_some(self, size: int = 65536) -> bytes:
        """What is there, at least one byte. Raises `Disconnected` at the end."""
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        return self._receive(size)

    def read_exactly(self, size: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._unread) < size:
            self._unread += self._receive()
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    def read_until(self, marker: bytes) -> bytes:
        """Everything up to and with the marker."""
        while marker not in self._unread:
            self._unread += self._receive()
        end = self._unread.index(marker) + len(marker)
        data, self._unread = self._unread[:end], self._unread[end:]
        return data

    def read_head(self) -> Message:
        """The head of the next request, strictly parsed; its body stays unread."""
        head = parse_head(self.read_until(b"\r\n\r\n"), request=True)
        assert head is not None
        self.requests.append(head[0])
        self._recorded.append(head[0])
        return head[0]

    def read_request(self) -> Message:
        """The next whole request, strictly parsed."""
        while (parsed := parse_request(self._unread)) is None:
            self._unread += self._receive()
        message, self._unread = parsed
        self.requests.append(message)
        self._recorded.append(message)
        return message

    def read_to_end(self) -> bytes:
        """Everything until the gateway closes its side."""
        while True:
            try:
                self._unread += self._receive()
            except Disconnected:
                data, self._unread = self._unread, b""
                return data

    def wait_closed(self) -> bool:
        """True once the gateway has closed or reset the connection; what it sends before is recorded, not
        returned.
        """
        while True:
            try:
                self._receive()
            except Disconnected:
                return True
            except TimeoutError:
                return False

    def send(self, data: bytes) -> None:
        """Writes all of it."""
        try:
            self.sock.sendall(data)
        except OSError as error:
            self.ended.set()
            raise Disconnected from error

    def send_bytewise(self, data: bytes) -> None:
        """Writes one byte per segment."""
        pause = threading.Event()
        for at in range(len(data)):
            self.send(data[at : at + 1])
            pause.wait(0.00005)

    def half_close(self) -> None:
        """Ends the sending side; reading goes on."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends the connection cleanly."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _receive(self, size: int = 65536) -> bytes:
        try:
            data = self.sock.recv(size)
        except TimeoutError:
            raise
        except OSError as error:
            self.ended.set()
            raise Disconnected from error
        if not data:
            self.ended.set()
            raise Disconnected
        if len(self.received) < 1 << 20:  # of a long stream only the first MiB is kept
            self.received += data
        return data


Script = Callable[[Peer], None]


def answer(response: bytes = OK) -> Script:
    """A script that gives this answer to every whole request, on as many requests as come."""

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            peer.send(response)

    return script


def echo(peer: Peer) -> None:
    """Answers every request with its own body."""
    while True:
        request = peer.read_request()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body)
        peer.send(head if request.method == b"HEAD" else head + request.body)


class Upstream:
    """A listening socket and the threads behind it. `requests` and `peers` hold what came, in order."""

    def __init__(
        self, script: Script | None = None, *, path: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.script: Script = script or answer()
        self.peers: list[Peer] = []
        self.requests: list[Message] = []
        self.failures: list[BaseException] = []
        self.arrived = threading.Condition()
        self._tls = tls
        self._threads: list[threading.Thread] = []
        self._socks: set[socket.socket] = set()  # also those whose TLS handshake is not done
        self._closing = False
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            self.port: int = self._listener.getsockname()[1]
            self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen(512)
            self.port = 0
            self.url = f"unix:{path}"

    def __enter__(self) -> Upstream:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self.failures:
            raise AssertionError(f"upstream script failed: {self.failures!r}") from self.failures[0]
        if error is not None and self.failures:
            error.add_note(f"upstream script failed: {self.failures!r}")

    def wait_for_peers(self, count: int, timeout_s: float = TIMEOUT_S) -> list[Peer]:
        """The connections accepted so far, once there are at least so many."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.peers) >= count, timeout_s), (
                f"{len(self.peers)} connections reached the upstream, expected {count}"
            )
            return list(self.peers)

    def forget(self) -> None:
        """Ends every connection and forgets what was recorded, for the next test on the same gateway."""
        for peer in self.peers:
            peer.close()
        with self.arrived:
            self.peers, self.requests, self.failures = [], [], []

    def stop_listening(self) -> None:
        """New connections are refused from now on; accepted ones go on."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        """Ends everything and waits for the threads."""
        self.stop_listening()
        self._threads[0].join(TIMEOUT_S)  # accepts: nothing is added from here on
        for sock in list(self._socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        for peer in self.peers:
            peer.sock.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._socks.add(sock)
            self._start(self._run, sock)

    def _run(self, sock: socket.socket) -> None:
        failures = self.failures
        sock.settimeout(TIMEOUT_S)
        if self._tls is not None:
            plain = sock
            try:
                sock = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                self._socks.add(sock)
                sock.do_handshake()
            except OSError:
                sock.close()
                return
            finally:
                self._socks.discard(plain)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.arrived:
            peer = Peer(self, sock, len(self.peers))
            self.peers.append(peer)
            self.arrived.notify_all()
        try:
            self.script(peer)
        except Disconnected:
            pass
        except (Malformed, TimeoutError, AssertionError) as error:
            # A connection that has served and then was idle is no hang: its test waits for something else.
            idle = isinstance(error, TimeoutError) and peer.requests and not peer._unread
            if not self._closing and not idle:
                failures.append(error)
        except OSError as error:
            if not self._closing and sock.fileno() >= 0:
                failures.append(error)
        except Exception as error:
            failures.append(error)
        finally:
            self._socks.discard(sock)
            peer.close()
