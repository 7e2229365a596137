"""The controller process: the admin API on uvicorn, and the line to the supervisor.

It may die at any time without a request noticing: workers do not know it, and all it shows lies in shared
memory or comes again with its next start. Forked by the supervisor, so it begins with plain module state and
imports the web framework only here, which no worker ever does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import uvicorn

from fastgate.caching.tiers import purge
from fastgate.control.app import build_app
from fastgate.control.clockwatch import ClockWatch
from fastgate.control.connections import AdminConnection, AdminConnections
from fastgate.control.explain import Explain
from fastgate.control.keyring import Keyring
from fastgate.control.state import State
from fastgate.control.view import ReloadTable, View
from fastgate.state.channel import (
    ChannelClosed,
    ConfigInstalled,
    ControllerOrders,
    ReloadResult,
    Stop,
)
from fastgate.state.descriptors import DescriptorWatch, raise_descriptor_limit
from fastgate.state.journal import Journal, JournalHandler

__all__ = ["run_controller"]

FINISH_LIMIT_S = 2
"""Time limit of calls in flight when this process exits; below the supervisor's own limit."""

HEARTBEAT_S = 0.5


def run_controller(
    orders: ControllerOrders, explain: Explain | None = None, start_state: int | None = None
) -> None:
    """Serves the admin API until the supervisor says stop. `explain` works out what a request would meet.
    `start_state`: the version of the State document that the operator chose at the start.
    """
    raise_descriptor_limit()
    logging.getLogger().addHandler(JournalHandler(Journal("controller")))
    asyncio.run(_Controller(orders, explain, start_state).run())


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: this process is stopped by a message. SIGTERM sent to the whole group must not end it before
        the workers.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield


class _Controller:
    def __init__(self, orders: ControllerOrders, explain: Explain | None, start_state: int | None) -> None:
        self._orders = orders
        self._channel = orders.channel
        self._view = View(orders.table, orders.memory)
        self._view.last_reload = orders.last_reload
        blob = _read(orders.config_fd, orders.size)
        self._view.install(blob, orders.version, orders.digest, orders.config_realtime_ns, orders.state)
        self._reloads = ReloadTable()
        self._journal = Journal("controller")
        self._descriptors = DescriptorWatch(self._journal)
        self._clock = ClockWatch(orders.table.clock_offset_ns)
        self._keyring = Keyring(orders.memory, Journal("controller"))
        self._view.parts["store"] = self._keyring.health
        self._view.pending_changes = self._keyring.pending_changes
        self._view.blockers.append(self._keyring.outage)
        self._state = State(self._keyring, self._view, self._reloads, self._channel.send, start_state)
        self._view.parts["state"] = self._state.health
        app = build_app(self._view, self._reloads, self._channel.send, self._keyring, self._state, explain)
        self._server = _Server(
            uvicorn.Config(
                app,
                http=partial(AdminConnection, among=AdminConnections(orders.memory.metrics)),  # type: ignore[arg-type]
                loop="none",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=FINISH_LIMIT_S,
            )
        )

    async def run(self) -> None:
        self._beat()
        # The keys first: workers hold requests with keys they do not know until then.
        assert self._view.config is not None
        await self._keyring.start(self._view.config)
        self._state.installed()
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._hear)
        tasks = [
            asyncio.create_task(self._keyring.run()),
            asyncio.create_task(self._state.run()),
            asyncio.create_task(self._view.watch_rate()),
        ]
        try:
            await self._server.serve(sockets=[self._orders.listening])
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self._keyring.close()

    def _beat(self) -> None:
        """Shows the supervisor that the loop turns."""
        self._orders.table.controller_heartbeat_ns = time.monotonic_ns()
        self._descriptors.look()
        self._look_at_clock()
        asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)

    def _look_at_clock(self) -> None:
        step_ns = self._clock.look()
        self._orders.table.clock_offset_ns = self._clock.offset_ns
        if not step_ns:
            return
        self._journal.warning("the clock was set", by_s=round(step_ns / 1e9, 3))
        self._keyring.clock_stepped()
        if step_ns < 0:
            # Their age was measured by a clock that went on differently: they would be fresh for longer.
            try:
                purge(self._orders.memory.epochs, "all", b"")
            except TimeoutError as error:
                self._journal.error("cached responses were not dropped", problem=str(error))

    def _hear(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                message, fd = received
                match message:
                    case ConfigInstalled():
                        assert fd is not None
                        blob = _read(fd, message.size)
                        self._view.install(
                            blob, message.version, message.digest, message.realtime_ns, message.state
                        )
                        assert self._view.config is not None
                        self._keyring.install(self._view.config)
                        self._state.installed()
                    case ReloadResult():
                        self._view.last_reload = message
                        self._reloads.answer(message)
                    case Stop():
                        self._server.should_exit = True
        except ChannelClosed:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._server.should_exit = True


def _read(fd: int, size: int) -> bytes:
    """The config in the memfd. By position, because all processes share its offset."""
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)
