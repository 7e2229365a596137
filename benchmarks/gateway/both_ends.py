"""A load that is both ends of the gateway: its clients and its upstream, in this process.

Sending the next event only when the client has received the one before needs both ends in one place. It
keeps events from merging in a socket buffer, however slow the gateway is at that moment, and every byte is
checked at the end where it arrives. One epoll loop on the load core costs about as much per unit as a gateway
(events 9.9 and 9.1 us, messages 14.4 and 15.1, 1 MB up 730 and 670), most of it in the kernel.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from benchmarks.gateway.message import Message

__all__ = ["BothEnds", "Conversation", "Exchange", "Side"]

BUFFER_BYTES = 256 * 1024
# Without any event for so long, a response is lost. No busy machine pauses a process for as long.
STALL_S = 60.0


class Side:
    """One socket of the load, and what it has still to send."""

    __slots__ = ("_epoll", "_pending", "exchange", "message", "sock")

    def __init__(self, sock: socket.socket, epoll: select.epoll) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.exchange: Exchange | None = None
        self.message: Message | None = None  # the request that is arriving, on the side of the upstream
        self._epoll = epoll
        self._pending = memoryview(b"")
        epoll.register(sock, select.EPOLLIN)

    def send(self, data: bytes) -> None:
        """Sends now what the kernel accepts, and the rest later. One message at a time."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._pending = memoryview(data)[sent:]
            self._epoll.modify(self.sock, select.EPOLLIN | select.EPOLLOUT)

    def send_pending(self) -> None:
        """Sends what is left over."""
        with contextlib.suppress(BlockingIOError):
            self._pending = self._pending[self.sock.send(self._pending) :]
        if not self._pending:
            self._epoll.modify(self.sock, select.EPOLLIN)

    def close(self) -> None:
        """Ends the connection."""
        self._epoll.unregister(self.sock)
        self.sock.close()


class Exchange(ABC):
    """What one client and its upstream say to each other. The conversation calls `begin_unit` when the next
    unit may begin and is told with `is_done` that it has ended; a mismatch is a RuntimeError.
    """

    #: The body of the client's requests.
    request_body = b""

    def __init__(self, number: int, client: Side) -> None:
        self.number = number
        self.client = client
        self.upstream: Side | None = None
        self.is_done = True

    @abstractmethod
    def begin_unit(self) -> None:
        """Sends what the next unit begins with."""

    @abstractmethod
    def request_arrived(self) -> None:
        """Responds: the whole request has arrived at the upstream."""

    @abstractmethod
    def client_received(self, data: memoryview) -> None:
        """Checks what has arrived at the client."""

    def upstream_received(self, data: memoryview) -> None:
        """Checks what has arrived at the upstream after the request."""
        raise RuntimeError(f"{bytes(data[:40])!r} arrived after the request")

    def respond(self, data: bytes) -> None:
        """Sends from the upstream. RuntimeError when its connection was closed."""
        if self.upstream is None:
            raise RuntimeError("the gateway closed the connection to the upstream")
        self.upstream.send(data)

    def respond_last(self, data: bytes) -> None:
        """Sends the end of the response. From now on the connection may carry another request: a gateway may
        reuse it before the client has read what came over it.
        """
        self.respond(data)
        if self.upstream is not None:
            self.upstream.exchange = None
            self.upstream = None


class BothEnds:
    """The upstream, and what its clients are made with. Listens from the start, so that gateways can be
    configured; it accepts while a conversation runs, and keeps their idle connections from one to the next.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._sides: dict[int, Side] = {}
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> BothEnds:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._sides.values():
            side.close()
        self._listener.close()
        self._epoll.close()

    @contextlib.contextmanager
    def conversation(
        self, port: int, exchange: Callable[[int, Side], Exchange], count: int
    ) -> Iterator[Conversation]:
        """So many clients of the gateway at this port, each with an exchange of its own."""
        exchanges = []
        try:
            for number in range(count):
                side = Side(socket.create_connection(("127.0.0.1", port), STALL_S), self._epoll)
                self._sides[side.sock.fileno()] = side
                side.exchange = exchange(number, side)
                exchanges.append(side.exchange)
            yield Conversation(self, exchanges)
        finally:
            for made in exchanges:
                self._close(made.client)
                if made.upstream is not None:
                    self._close(made.upstream)

    def step(self, exchanges: list[Exchange]) -> list[Exchange]:
        """Waits for something to arrive and passes it on; the exchanges that ended a unit with it."""
        happened = self._epoll.poll(STALL_S)
        if not happened:
            waiting = [made.number for made in exchanges if not made.is_done]
            raise RuntimeError(f"nothing arrived for {STALL_S:g} s; streams {waiting[:5]} wait")
        ended = []
        for descriptor, mask in happened:
            if descriptor == self._listener.fileno():
                self._accept()
                continue
            side = self._sides.get(descriptor)
            if side is None:
                continue
            if mask & select.EPOLLOUT:
                side.send_pending()
            if not mask & ~select.EPOLLOUT:
                continue
            try:
                count = side.sock.recv_into(self._buffer)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                count = 0
            made = side.exchange
            if not count:
                self._ended(side)
            elif made is None:
                self._request(side, exchanges, self._buffer[:count])
            elif made.client is not side:
                made.upstream_received(self._buffer[:count])
            else:
                made.client_received(self._buffer[:count])
                if made.is_done:
                    ended.append(made)
        return ended

    def _request(self, side: Side, exchanges: list[Exchange], data: memoryview) -> None:
        # All exchanges of a conversation have the same request body, so it is known before the request is.
        if side.message is None:
            side.message = Message(exchanges[0].request_body)
        rest = side.message.feed(data)
        if rest:
            raise RuntimeError(f"{rest[:40]!r} arrived after the request")
        if side.message.is_complete:
            number = int(side.message.start.split(b" ")[1].rpartition(b"/")[2])
            made = side.exchange = exchanges[number]
            side.message = None
            made.upstream = side
            made.request_arrived()

    def _ended(self, side: Side) -> None:
        made = side.exchange
        self._close(side)
        if side.message is not None:
            raise RuntimeError("the gateway closed the upstream's connection within a request")
        if made is None:
            return
        if made.client is side:
            raise RuntimeError(f"the gateway closed the connection of client {made.number}")
        if not made.is_done:
            raise RuntimeError(f"the gateway closed the upstream's connection of stream {made.number}")
        made.upstream = None

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock = self._listener.accept()[0]
                self._sides[sock.fileno()] = Side(sock, self._epoll)

    def _close(self, side: Side) -> None:
        if self._sides.get(side.sock.fileno()) is side:
            del self._sides[side.sock.fileno()]
            side.close()


class Conversation:
    """Exchanges that are under load."""

    def __init__(self, ends: BothEnds, exchanges: list[Exchange]) -> None:
        self._ends = ends
        self._exchanges = exchanges

    def run(self, *, seconds: float = 0.0, units: int = 0) -> int:
        """Lets units begin for so long, or so many of them, and waits for the end of each. Returns how many
        there were: nothing that was begun is left out of the figure.
        """
        until = time.monotonic() + seconds
        begun = done = 0
        waiting = list(self._exchanges)
        while True:
            for made in waiting:
                if begun >= units if units else time.monotonic() >= until:
                    break
                made.is_done = False
                begun += 1
                made.begin_unit()
            if done == begun:
                return done
            waiting = self._ends.step(self._exchanges)
            done += len(waiting)
