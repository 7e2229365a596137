"""The cost of a client's connection: one per request, TLS that is kept alive, and TLS handshakes.

All with a fixed response of 64 bytes and no upstream, so that the figure is the connection's alone. wrk loads
plain connections and those that are kept alive. It resumes TLS sessions and has no option against it, so the
handshakes come from a client of our own, which checks whether the session of each connection was resumed. All
peers issue two tickets per full handshake, the default of OpenSSL, and sign with ECDSA on P-256.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.gateway import servers
from benchmarks.gateway.both_ends import STALL_S
from benchmarks.gateway.ladder import Ladder, Peers
from benchmarks.gateway.load import Counts, Origin, Traffic, tls_client
from benchmarks.gateway.message import Message
from benchmarks.gateway.servers import BODY, LOAD_CORE, Server, pinned

__all__ = ["CLOSING", "CONNECTIONS", "Handshakes", "fixed", "fixed_peers"]

REQUEST = b"GET /orders/123 HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
CLOSING = Traffic("GET", headers={"Connection": "close"})


class _Connection:
    """One connection: handshake, request, response, end."""

    def __init__(self, port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        sock = socket.create_connection(("127.0.0.1", port), STALL_S)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = context.wrap_socket(
            sock, server_hostname="localhost", do_handshake_on_connect=False, session=session
        )
        self._is_resumed = session is not None
        self._has_asked = False
        self._response = Message(BODY.encode(), 200)

    def go_on(self) -> bool:
        """Does what can be done without waiting. True when the whole response has arrived."""
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self._has_asked:
                self.sock.do_handshake()
                if self.sock.session_reused != self._is_resumed:
                    was = "resumed" if self.sock.session_reused else "not resumed"
                    raise RuntimeError(f"the TLS session was {was}")
                self._has_asked = True
                self.sock.sendall(REQUEST)
            while not self._response.is_complete:
                data = self.sock.recv(16_384)
                if not data:
                    raise RuntimeError("the connection was closed before the end of the response")
                self._response.feed(data)
            return True
        return False


@dataclass(frozen=True)
class Handshakes:
    """A TLS 1.3 connection for each request, with a full or a resumed handshake."""

    is_resumed: bool = False
    unit: str = "handshake"
    program: str | None = None
    count: int = 16

    def drive(self, server: Server, _origin: Origin, seconds: float) -> Counts:
        """So many connections at a time, for so long; each that was begun is waited for."""
        with pinned(LOAD_CORE), self._connecting(server) as connect:
            began = time.monotonic()
            units = connect(self.count, lambda _: time.monotonic() < began + seconds)
            return Counts(units, time.monotonic() - began)

    @contextlib.contextmanager
    def one_by_one(self, server: Server, _origin: Origin) -> Iterator[Callable[[int], None]]:
        """A function that makes so many connections, one after the other."""
        with self._connecting(server) as connect:

            def talk(units: int) -> None:
                connect(1, lambda begun: begun < units)

            yield talk

    @contextlib.contextmanager
    def _connecting(self, server: Server) -> Iterator[Callable[[int, Callable[[int], bool]], int]]:
        context = tls_client()
        session = _ticket(server, context) if self.is_resumed else None

        def connect(count: int, may_begin: Callable[[int], bool]) -> int:
            waiting: set[_Connection] = set()
            begun = done = 0
            with selectors.EpollSelector() as selector:
                try:
                    while True:
                        while len(waiting) < count and may_begin(begun):
                            made = _Connection(server.port, context, session)
                            waiting.add(made)
                            selector.register(made.sock, selectors.EVENT_READ, made)
                            begun += 1
                            made.go_on()
                        if not waiting:
                            return done
                        for made in _happened(selector):
                            if made.go_on():
                                selector.unregister(made.sock)
                                made.sock.close()
                                waiting.remove(made)
                                done += 1
                finally:
                    for made in waiting:
                        made.sock.close()

        yield connect


def _happened(selector: selectors.BaseSelector) -> list[_Connection]:
    happened = selector.select(STALL_S)
    if not happened:
        raise RuntimeError(f"nothing arrived for {STALL_S:g} s")
    return [key.data for key, _ in happened]


def _ticket(server: Server, context: ssl.SSLContext) -> ssl.SSLSession:
    made = _Connection(server.port, context, None)
    with made.sock, selectors.EpollSelector() as selector:
        selector.register(made.sock, selectors.EVENT_READ, made)
        while not made.go_on():  # the tickets come before the response
            _happened(selector)
        session = made.sock.session
    if session is None or not session.has_ticket:
        raise RuntimeError("the handshake gave no session ticket")
    return session


def fixed() -> dict[str, Any]:
    """One route that responds with 64 bytes."""
    reply = {"headers": {"Content-Type": "application/json"}, "body": BODY}
    return {"routes": [{"path": "/{rest...}", "respond": reply}]}


def fixed_peers(*, is_tls: bool = False) -> Peers:
    """nginx, HAProxy and the gateway with this response, in TLS or without."""
    quoted = BODY.replace('"', '\\"')
    return {
        "nginx": lambda: servers.nginx(f"return 200 '{BODY}';", is_tls=is_tls),
        "haproxy": lambda: servers.haproxy(
            f'http-request return status 200 content-type application/json string "{quoted}"', is_tls=is_tls
        ),
        "fastgate": lambda: servers.fastgate(fixed(), is_tls=is_tls),
    }


def _tls(_: int) -> Peers:
    return fixed_peers(is_tls=True)


CONNECTIONS: dict[str, Ladder] = {
    "connect": Ladder("fixed response, a connection for each request", lambda _: fixed_peers(), CLOSING),
    "tls": Ladder("fixed response over TLS, kept alive", _tls, Traffic("GET")),
    "tls-handshake": Ladder("fixed response, a full TLS handshake for each request", _tls, Handshakes()),
    "tls-resumed": Ladder(
        "fixed response, a resumed TLS handshake for each request", _tls, Handshakes(is_resumed=True)
    ),
}
