"""A small TCP proxy that breaks connections on command: delay, cut, reset, stall, half-open.

    with Upstream() as upstream, FaultProxy(upstream.port) as link, Gateway(config(link.url)) as gateway:
        link.stall()                     # bytes towards the gateway stop, the connection stays
        assert get(gateway.port).status == 504

A fault holds for every connection, the open ones and those to come, until `heal()`. `after` lets so many
bytes of the answer pass first. Directions are the gateway's: *answers* come from the upstream, *requests* go
to it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

__all__ = ["FaultProxy", "deaf_listener"]

BLOCK_BYTES = 65536


@dataclass(eq=False)
class _Link:
    gateway: socket.socket
    upstream: socket.socket
    answered: int = 0  # bytes that have passed towards the gateway
    ended: set[socket.socket] = field(default_factory=set)


class FaultProxy:
    """Forwards to a port of this host, from one thread, until it is told to misbehave."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._fault = ""
        self._after = 0
        self._delay_s = 0.0
        self._links: dict[socket.socket, _Link] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._running = True
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FaultProxy:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        self._wake_write.send(b"x")
        self._thread.join()
        for link in set(self._links.values()):
            self._drop(link)
        for sock in (self._listener, self._wake_read, self._wake_write):
            sock.close()
        self._selector.close()

    def delay(self, seconds: float) -> None:
        """Every block of an answer waits so long."""
        self._set("", 0, seconds)

    def cut(self, *, after: int = 0) -> None:
        """Answers end after so many bytes, cleanly as TCP sees it."""
        self._set("cut", after)

    def reset(self, *, after: int = 0) -> None:
        """Answers end after so many bytes with a TCP reset."""
        self._set("reset", after)

    def stall(self, *, after: int = 0) -> None:
        """Answers stop after so many bytes; the connection stays open."""
        self._set("stall", after)

    def black_hole(self) -> None:
        """Nothing is read in either direction: what half-open connections to a vanished host look like."""
        self._set("hole", 0)

    def heal(self) -> None:
        """From now on everything passes."""
        self._set("", 0)

    def _set(self, fault: str, after: int, delay_s: float = 0.0) -> None:
        with self._lock:
            self._fault, self._after, self._delay_s = fault, after, delay_s
        self._wake_write.send(b"x")

    def _run(self) -> None:
        while self._running:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._wake_read:
                    sock.recv(100)
                    self._listen_again()
                elif sock is self._listener:
                    self._accept()
                elif sock in self._links:
                    self._forward(sock, self._links[sock])

    def _accept(self) -> None:
        gateway, _ = self._listener.accept()
        upstream = socket.create_connection(("127.0.0.1", self._upstream_port))
        link = _Link(gateway, upstream)
        for sock in (gateway, upstream):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._links[sock] = link
            self._selector.register(sock, selectors.EVENT_READ)

    def _forward(self, source: socket.socket, link: _Link) -> None:
        fault, after, delay_s = self._fault, self._after, self._delay_s
        to_gateway = source is link.upstream
        target = link.gateway if to_gateway else link.upstream
        if fault == "hole" or (fault == "stall" and to_gateway and link.answered >= after):
            self._selector.unregister(source)  # until the next command; the kernel's queues fill up
            return
        limit = after - link.answered if fault and to_gateway else BLOCK_BYTES
        if fault in ("cut", "reset") and to_gateway and limit <= 0:
            self._end(link, fault)
            return
        try:
            data = source.recv(min(BLOCK_BYTES, limit))
        except OSError:
            data = b""
        if not data:
            link.ended.add(source)
            self._selector.unregister(source)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)
            if len(link.ended) == 2:
                self._drop(link)
            return
        if delay_s and to_gateway:
            time.sleep(delay_s)
        try:
            target.sendall(data)
        except OSError:
            self._drop(link)
            return
        if to_gateway:
            link.answered += len(data)
            if fault in ("cut", "reset") and link.answered >= after:
                self._end(link, fault)

    def _end(self, link: _Link, fault: str) -> None:
        if fault == "reset":
            link.gateway.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._drop(link)

    def _drop(self, link: _Link) -> None:
        for sock in (link.gateway, link.upstream):
            self._links.pop(sock, None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            sock.close()

    def _listen_again(self) -> None:
        for sock, link in self._links.items():
            if sock not in link.ended:
                with contextlib.suppress(KeyError):
                    self._selector.register(sock, selectors.EVENT_READ)


@contextlib.contextmanager
def deaf_listener() -> Iterator[int]:
    """A port on which connecting neither succeeds nor fails: its queue is full and nobody accepts."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port: int = listener.getsockname()[1]
    waiting = []
    try:
        for _ in range(8):  # Linux takes backlog + 1 and drops the rest
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            waiting.append(sock)
        yield port
    finally:
        for sock in [*waiting, listener]:
            sock.close()
