"""The controller as the supervisor sees it: one process with the admin socket, restarted when it ends.

Its code is passed in as a function, because the server package does not import the control plane. The
supervisor owns the admin socket and listens on it, so a call during a restart of the controller waits for the
next one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from fastgate.server.loader import LoadedConfig
from fastgate.server.process import exit_text, fork_child
from fastgate.server.reactor import Reactor, Timer
from fastgate.server.sockets import BACKLOG, Listener
from fastgate.state.channel import (
    Channel,
    ChannelClosed,
    ConfigInstalled,
    ControllerOrders,
    Message,
    ReloadRequest,
    ReloadResult,
    Stop,
)
from fastgate.state.host import HostTable
from fastgate.state.journal import Journal

__all__ = ["Controller"]

STOP_LIMIT_NS = 3_000_000_000
"""Time from the request to exit until the kill: enough for a scrape of 10 000 routes in flight."""

START_LIMIT_NS = 60_000_000_000
"""From fork to the first heartbeat; the controller checks the store meanwhile."""

NICE = 5
"""Scrapes and reports get their CPU time after the requests."""

REPLACE_LIMIT_NS = 120_000_000_000
"""How long a controller whose admin address is gone waits for the reloads that it requested: two of the
longest.
"""

PAUSE_FIRST_NS, PAUSE_CAP_NS = 200_000_000, 5_000_000_000
"""The first death is followed by an immediate restart, each further one within PAUSE_CAP_NS by twice the
previous pause.
"""


class Controller:
    """The controller's process and its admin listener."""

    def __init__(
        self,
        reactor: Reactor,
        table: HostTable,
        journal: Journal,
        control: Callable[[ControllerOrders], None] | None,
        on_message: Callable[[Message], None],
    ) -> None:
        self._reactor = reactor
        self._table = table
        self._journal = journal
        self._control = control
        self._on_message = on_message
        self.memory: Any = None  # shared, mapped before the first start
        self.config: LoadedConfig | None = None
        self.last_reload: ReloadResult | None = None
        self.listener: Listener | None = None
        self.pid = 0
        self._channel: Channel | None = None
        self._forked_ns = 0
        self._deaths = 0
        self._is_leaving = False
        self._kill_timer: Timer | None = None
        self._asked: set[int] = set()  # reloads whose result it waits for
        self._replace_timer: Timer | None = None

    def address(self) -> str | None:
        """The admin address with its real port, or None when there is no admin listener."""
        return self.listener.bound_address() if self.listener is not None else None

    def listen(self, listener: Listener | None) -> None:
        """Serves this admin listener from now on; a controller on another one finishes first."""
        old, self.listener = self.listener, listener
        if listener is old:
            return
        if old is not None:
            old.close()
        if listener is not None:
            listener.sockets[0].listen(BACKLOG)
        # Later, because the old controller must first respond to the caller of the reload.
        if self._replace_timer is None:
            self._replace_timer = self._reactor.after(REPLACE_LIMIT_NS, self._replace)
        self._replace_if_answered()

    def tell(self, message: Message, fd: int | None = None) -> None:
        """Sends a message; a controller that does not read is killed and restarted."""
        if self._channel is not None and not self._channel.send(message, fd):
            self.kill()
        if isinstance(message, ReloadResult):
            self._asked.discard(message.id)
            self._replace_if_answered()

    def tell_config(self, config: LoadedConfig) -> None:
        self.config = config
        self.tell(
            ConfigInstalled(config.version, config.size, config.digest, config.realtime_ns, config.state),
            config.fd,
        )

    def stop(self) -> None:
        """Ends it for good; idempotent. `gone` follows."""
        self._control = None
        self._ask_to_end()

    def _ask_to_end(self) -> None:
        self._is_leaving = True
        if self._kill_timer is None:
            self._kill_timer = self._reactor.after(STOP_LIMIT_NS, self.kill)
            self.tell(Stop())

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def kill_hung(self, now_ns: int, limit_ns: int) -> None:
        """Kills a controller without a recent heartbeat, which restarts it. Called once a second."""
        if not self.pid:
            return
        shown_ns = self._table.controller_heartbeat_ns
        if now_ns - max(shown_ns, self._forked_ns) > (limit_ns if shown_ns else START_LIMIT_NS):
            self._table.controller_hangs += 1
            self._journal.warning("controller hangs, killed", controller=self.pid)
            self.kill()

    def close(self) -> None:
        if self.listener is not None:
            self.listener.close()

    def gone(self, status: int) -> None:
        """Its process was reaped. Starts another one unless it was stopped."""
        self._close_channel()
        self._asked.clear()
        if self._replace_timer is not None:
            self._replace_timer.cancel()
            self._replace_timer = None
        self.pid = self._table.controller_pid = 0
        was_told, self._is_leaving = self._is_leaving, False
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None
        pause_ns = 0
        if not was_told:
            self._table.controller_restarts += 1
            lived_ns = time.monotonic_ns() - self._forked_ns
            self._deaths = 1 if lived_ns > PAUSE_CAP_NS else self._deaths + 1
            if self._deaths > 1:
                pause_ns = min(PAUSE_FIRST_NS << min(self._deaths - 2, 20), PAUSE_CAP_NS)
            pause_ms = pause_ns // 1_000_000
            self._journal.warning("controller died", status=exit_text(status), restart_in_ms=pause_ms)
        self._reactor.after(pause_ns, self._fork)

    def _replace_if_answered(self) -> None:
        if self._replace_timer is not None and not self._asked:
            self._replace_timer.cancel()
            self._replace_timer = self._reactor.after(0, self._replace)

    def _replace(self) -> None:
        self._replace_timer = None
        if self.pid:
            self._ask_to_end()
        else:
            self._fork()

    def _fork(self) -> None:
        if self._control is None or self.listener is None or self.config is None or self.pid:
            return
        control, listening = self._control, self.listener.sockets[0]
        ours, theirs = Channel.pair()
        orders = ControllerOrders(
            channel=theirs,
            listening=listening,
            table=self._table,
            memory=self.memory,
            version=self.config.version,
            digest=self.config.digest,
            size=self.config.size,
            config_fd=self.config.fd,
            config_realtime_ns=self.config.realtime_ns,
            last_reload=self.last_reload,
            state=self.config.state,
        )
        keep = [theirs.fileno(), listening.fileno(), self.config.fd]
        try:
            self.pid = fork_child("fastgate-ctl", keep, lambda: control(orders), nice=NICE)
        except OSError as error:
            ours.close()
            self._journal.warning("cannot fork the controller yet", problem=str(error))
            self._reactor.after(PAUSE_CAP_NS, self._fork)
            return
        finally:
            theirs.close()
        self._table.controller_pid = self.pid
        self._table.controller_heartbeat_ns = 0
        self._forked_ns = time.monotonic_ns()
        self._channel = ours
        self._reactor.watch(ours, self._read)

    def _read(self) -> None:
        try:
            while self._channel is not None and (received := self._channel.receive()):
                if isinstance(received[0], ReloadRequest):
                    self._asked.add(received[0].id)
                self._on_message(received[0])
        except ChannelClosed:
            self._close_channel()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._reactor.unwatch(self._channel)
            self._channel.close()
            self._channel = None
