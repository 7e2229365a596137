"""A worker process: one uvloop, one data plane, the listening sockets of its slot.

Forked with everything that the supervisor has imported; creates its own loop, freezes the config into a plan,
waits for the supervisor's command, listens. After that it only follows messages: another plan (prepared
first, used on commit, so that all workers take it or none; canceled when it is obsolete), drain, reopened
logs. It writes a heartbeat, by which the supervisor detects a hung worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import uvloop

from fastgate.certificates import CertificateError
from fastgate.server.loader import problem_of
from fastgate.server.proxied_tls import ProxiedTls
from fastgate.server.sockets import BACKLOG, has_waiting
from fastgate.server.tls import TlsContexts
from fastgate.settings import ConfigError
from fastgate.state.channel import (
    Abort,
    Channel,
    ChannelClosed,
    Closed,
    Commit,
    Drain,
    Lend,
    Message,
    Prepare,
    Prepared,
    Problem,
    Ready,
    ReopenLogs,
    Retire,
    Return,
    bounded,
)
from fastgate.state.descriptors import DescriptorWatch, raise_descriptor_limit
from fastgate.state.host import Seat
from fastgate.state.journal import Journal, JournalHandler

__all__ = ["Plan", "Plane", "Runtime", "WorkerOrders", "run_worker"]

HEARTBEAT_S = 0.5

QUEUE_LINGER_S = 0.1
"""How long a closing listener still accepts after new handshakes are refused, so that the last packet of
handshakes in progress (half a round trip) still finds it.
"""

DRAIN_POLL_S = 0.02

CERTIFICATES_S = 5.0
"""Interval between checks of the certificate files (one stat each)."""

CANCEL_LIMIT_S = 2.0
"""How long a canceled build of a plan may take to end."""

CLOSE_LIMIT_S = 10.0
"""How long the plugins of an unused plan may take to close."""

SCAN_RELOADS = 64
"""Number of plans between full garbage collections; requests in flight at that moment wait for it."""


@dataclass(slots=True, frozen=True)
class WorkerOrders:
    """The arguments of a forked worker."""

    channel: Channel
    seat: Seat
    sockets: list[tuple[int, socket.socket]]  # (index of the listener in the config, socket)
    memory: Any  # memory shared by all processes (fastgate.state.memory.HostMemory)
    seats: int
    version: int
    config_fd: int
    config_size: int
    journal: Journal


class Plan(Protocol):
    """The result of freezing a config."""

    @property
    def requests(self) -> int:
        """Requests in flight that began with it."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Plane(Protocol):
    """The data plane as the worker drives it (fastgate.proxy.dataplane.DataPlane)."""

    active_requests: int
    open_connections: int

    def install(self, plan: Any) -> None: ...

    def connection(self, listener: Any) -> asyncio.BaseProtocol: ...

    def begin_drain(self, close_tunnels: bool = True) -> None: ...

    def abort(self) -> None: ...

    def reopen_logs(self) -> None: ...

    def close(self) -> None: ...


class Runtime(Protocol):
    """The factories of a worker's parts; `fastgate.server.runtime` has the real ones."""

    def plane(self, loop: asyncio.AbstractEventLoop, orders: WorkerOrders) -> Plane: ...

    def decode(self, blob: bytes) -> Any: ...

    def listener(self, config: Any, index: int) -> Any: ...

    def tls(self, listener: Any) -> TlsContexts | None: ...

    def freeze(self, config: Any, plane: Any, previous: Any) -> Awaitable[Any]: ...


def run_worker(runtime: Runtime, orders: WorkerOrders) -> None:
    """Runs until the worker has drained. Exit status 0 then; any exception is a crash."""
    raise_descriptor_limit()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_Worker(runtime, orders, loop).run())
    finally:
        with contextlib.suppress(RuntimeError):  # a plugin may have stopped the loop for good
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def read_config(fd: int, size: int) -> bytes:
    """The config in the memfd, which is closed. Read by position: all processes share one file offset."""
    try:
        parts = []
        done = 0
        while done < size:
            part = os.pread(fd, size - done, done)
            if not part:
                raise EOFError(f"config: expected {size} bytes, got {done}")
            parts.append(part)
            done += len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


_Door = tuple[int, socket.socket, asyncio.AbstractServer]  # listener index, socket, its server


class _Worker:
    def __init__(self, runtime: Runtime, orders: WorkerOrders, loop: asyncio.AbstractEventLoop) -> None:
        self._runtime = runtime
        self._orders = orders
        self._loop = loop
        self._channel = orders.channel
        self._seat = orders.seat
        self._journal = orders.journal
        logging.getLogger().addHandler(JournalHandler(orders.journal))
        self._plane = runtime.plane(loop, orders)
        self._config: Any = None
        self._plan: Any = None
        self._version = 0  # of the plan in use
        self._left: list[tuple[int, Any]] = []  # version and plan: replaced, but may still have requests
        self._next: tuple[int, Any, Any] | None = None  # version, config, plan: prepared, not committed
        self._servers: list[_Door] = []
        self._lent: dict[int, list[_Door]] = {}  # by the slot for which it accepts
        self._tls: dict[int, TlsContexts] = {}  # by listener index
        self._building: asyncio.Task[None] | None = None
        self._wanted = 0  # the version to build; a plan of any other version is discarded
        self._inbox: asyncio.Queue[tuple[Message, int | None] | BaseException | None] = asyncio.Queue()
        self._installed = 0
        self._beat_due_ns = 0
        self._descriptors = DescriptorWatch(orders.journal)

    async def run(self) -> None:
        self._beat()
        self._loop.add_reader(self._channel.fileno(), self._read)
        self._loop.add_signal_handler(signal.SIGTERM, self._say, Retire())
        self._loop.add_signal_handler(signal.SIGUSR1, self._plane.reopen_logs)
        self._build(self._orders.version, self._orders.config_fd, self._orders.config_size)
        while True:
            received = await self._inbox.get()
            if received is None:
                return  # the supervisor is gone, and the kernel is about to kill this process
            if isinstance(received, BaseException):
                raise received
            message, fd = received
            match message:
                case Prepare():
                    assert fd is not None
                    await self._abort()
                    self._build(message.version, fd, message.size)
                case Commit():
                    await self._commit(message.version)
                case Abort():
                    if message.version == self._wanted:
                        await self._abort()
                case Drain():
                    await self._abort()
                    await self._drain(message.limit_ns, message.closing)
                    return
                case Lend():
                    assert fd is not None
                    self._lent.setdefault(message.slot, []).append(
                        await self._serve(message.listener, socket.socket(fileno=fd))
                    )
                case Return():
                    for entry in self._lent.pop(message.slot, []):
                        self._servers.remove(entry)
                        entry[2].close()
                case ReopenLogs():
                    self._plane.reopen_logs()
                case _:
                    self._journal.warning("unexpected message", message=type(message).__name__)

    def _read(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                self._inbox.put_nowait(received)
        except ChannelClosed:
            self._loop.remove_reader(self._channel.fileno())
            self._inbox.put_nowait(None)

    def _say(self, message: Message) -> None:
        self._channel.send(message)

    def _beat(self) -> None:
        now_ns = time.monotonic_ns()
        self._seat.heartbeat_ns = now_ns
        if self._beat_due_ns:
            self._seat.loop_lag_ns = max(0, now_ns - self._beat_due_ns)
        self._beat_due_ns = now_ns + int(HEARTBEAT_S * 1e9)
        self._tell_oldest()
        self._descriptors.look()
        self._loop.call_later(HEARTBEAT_S, self._beat)

    def _tell_oldest(self) -> None:
        """Writes the oldest plan that a request still uses to shared memory: values that only older plans
        used may be freed."""
        if self._version:
            self._left = [(version, plan) for version, plan in self._left if plan.requests]
            self._seat.oldest_version = self._left[0][0] if self._left else self._version

    def _build(self, version: int, fd: int, size: int) -> None:
        """Starts to build the plan of this config. As a task: this worker must be able to cancel it even if a
        plugin hangs in `start`."""
        self._wanted = version
        blob = read_config(fd, size)
        self._building = self._loop.create_task(self._prepare(version, blob))
        self._building.add_done_callback(self._built)

    def _built(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._inbox.put_nowait(error)

    async def _prepare(self, version: int, blob: bytes) -> None:
        """Builds the plan of this config while the current one is in use, and reports the result."""
        # The objects of a plan are long-lived; the collector would scan them repeatedly while it grows.
        gc.disable()
        problems: list[Problem] = []
        plan = None
        try:
            config = self._runtime.decode(blob)
            self._prepare_tls(config)
            plan = await self._runtime.freeze(config, self._plane, self._plan)
            await plan.start()
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                gc.enable()
                await self._close_unused(plan)
                raise
            # A plugin's build or start failed, with any kind of exception: the config names the plugin, so
            # the config is refused, and this worker continues with its current one.
            problems = _problems_of(error)
        if problems or version != self._wanted:
            gc.enable()
            await self._close_unused(plan)
        else:
            self._next = version, config, plan
        if version == self._wanted:
            self._say(Prepared(version, bounded(problems)))

    def _prepare_tls(self, config: Any) -> None:
        """Reads the certificates, or those that have changed. Raises CertificateError."""
        for index in {index for index, _socket in self._orders.sockets}:
            contexts = self._tls.get(index)
            if contexts is None:
                contexts = self._runtime.tls(self._runtime.listener(config, index))
                if contexts is not None:
                    self._tls[index] = contexts
            elif contexts.changed():
                contexts.reload()

    def _look_at_certificates(self) -> None:
        """Loads certificates that were renewed in place, as every ACME client does."""
        self._loop.call_later(CERTIFICATES_S, self._look_at_certificates)
        for contexts in self._tls.values():
            try:
                if contexts.changed():
                    contexts.reload()
                    self._journal.info("certificates taken up", names=list(contexts.names()))
            except CertificateError as error:
                self._journal.warning("certificates left as they were", problem=str(error))

    async def _commit(self, version: int) -> None:
        if self._next is None or self._next[0] != version:
            self._journal.warning("nothing prepared to commit", version=version)
            return
        if self._plan is not None:
            self._left.append((self._version, self._plan))
        self._version, self._config, self._plan = self._next
        self._next = None
        self._plane.install(self._plan)
        self._tell_oldest()
        self._settle()
        if not self._servers:
            await self._listen()
        self._seat.heartbeat_ns = time.monotonic_ns()
        self._say(Ready(version))

    async def _abort(self) -> None:
        """Cancels the plan that is being built, or discards the one that was built and not committed."""
        self._wanted = 0
        building, self._building = self._building, None
        if building is not None and not building.done():
            building.cancel()
            await asyncio.wait([building], timeout=CANCEL_LIMIT_S)
        if self._next is not None:
            _version, _config, plan = self._next
            self._next = None
            gc.enable()
            await self._close_unused(plan)

    async def _close_unused(self, plan: Any) -> None:
        if plan is None:
            return
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await plan.close()
        except Exception as error:
            self._journal.warning("a plan that is not used did not close", problem=repr(error))

    async def _listen(self) -> None:
        for index, listening in self._orders.sockets:
            await self._serve(index, listening)
        if self._tls:
            self._look_at_certificates()

    async def _serve(self, index: int, listening: socket.socket) -> _Door:
        """Accepts from this socket of the listener with this index."""
        listener = self._runtime.listener(self._config, index)
        options: dict[str, Any] = {"backlog": getattr(listener, "backlog", BACKLOG)}
        factory = _factory(self._plane, listener)
        if index in self._tls:
            context, limit_s = self._tls[index].context, listener.tls.handshake_timeout_ns / 1e9
            if listener.proxy_protocol:
                factory = partial(_proxied, self._loop, factory, context, limit_s)
            else:
                options |= {"ssl": context, "ssl_handshake_timeout": limit_s}
        server = await self._loop.create_server(factory, sock=listening, **options)
        self._servers.append((index, listening, server))
        return self._servers[-1]

    def _settle(self) -> None:
        """Exempts the plan from garbage collection: it lives as long as the worker, and scanning 5 000
        routes delays requests by 40 ms.

        Old plans are freed when their last reference goes. Reference cycles that a plugin left in one are
        only found by a full collection: before the first request, and then every SCAN_RELOADS plans.
        """
        if self._installed % SCAN_RELOADS == 0:
            gc.unfreeze()
            gc.collect()
        self._installed += 1
        gc.freeze()
        gc.enable()

    async def _drain(self, limit_ns: int, closing: list[int]) -> None:
        deadline_ns = time.monotonic_ns() + limit_ns
        for index, _socket, server in self._servers:
            if index not in closing:
                server.close()  # another worker accepts from the same queue
        self._say(Closed())
        await self._empty_queues(
            [sock for index, sock, _server in self._servers if index in closing], deadline_ns
        )
        for _index, _socket, server in self._servers:
            server.close()
        # A connection accepted in this iteration of the loop is registered with the plane in the next one.
        await asyncio.sleep(DRAIN_POLL_S)
        # If every listener closes, the gateway stops, and tunnels are closed immediately. If another
        # generation takes over, they stay open here until the limit.
        self._plane.begin_drain(close_tunnels=all(index in closing for index, _, _ in self._servers))
        while self._plane.open_connections and time.monotonic_ns() < deadline_ns:
            await asyncio.sleep(DRAIN_POLL_S)
        if self._plane.open_connections:
            self._journal.warning(
                "drain limit reached",
                connections=self._plane.open_connections,
                requests=self._plane.active_requests,
            )
            self._plane.abort()
            await asyncio.sleep(0)
        if self._plan is not None:
            await self._plan.close()
        self._plane.close()

    async def _empty_queues(self, sockets: list[socket.socket], deadline_ns: int) -> None:
        """Accepts until the queues are empty. The supervisor has made sure that no new connections arrive."""
        if not sockets:
            return
        linger_until_ns = min(deadline_ns, time.monotonic_ns() + int(QUEUE_LINGER_S * 1e9))
        while time.monotonic_ns() < linger_until_ns or (
            has_waiting(sockets) and time.monotonic_ns() < deadline_ns
        ):
            await asyncio.sleep(DRAIN_POLL_S)


def _problems_of(error: BaseException) -> list[Problem]:
    """The problems for which a plan cannot be built: every ConfigError separately, anything else as an
    exception of a plugin."""
    if isinstance(error, ConfigError):
        return [problem_of(error)]
    if isinstance(error, BaseExceptionGroup):
        return [problem for inner in error.exceptions for problem in _problems_of(inner)]
    return [Problem(text=f"the plan cannot be built: {error!r}")]


def _factory(plane: Plane, listener: Any) -> Callable[[], asyncio.BaseProtocol]:
    return lambda: plane.connection(listener)


def _proxied(
    loop: asyncio.AbstractEventLoop,
    factory: Callable[[], asyncio.BaseProtocol],
    context: ssl.SSLContext,
    limit_s: float,
) -> ProxiedTls:
    return ProxiedTls(loop, cast(asyncio.Protocol, factory()), context, limit_s)
