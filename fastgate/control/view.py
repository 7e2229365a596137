"""The controller's view of the gateway: the config in effect, the processes, the counts, the last reload.

Facts come from shared memory when they are asked for; the config comes from the supervisor with every change.
Nothing here is kept that could disagree with its source.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from fastgate._core.shm.counters import RouteCounts
from fastgate.config import Config, decode
from fastgate.state.channel import ReloadResult
from fastgate.state.host import DRAINING, EMPTY, READY, SERVING, STOPPING, WORKER_STATES, HostTable
from fastgate.state.memory import HostMemory

__all__ = ["ReloadTable", "View", "iso_time"]

PHASES = {0: "starting", SERVING: "serving", STOPPING: "draining"}


RATE_SPAN_S = 60.0
RATE_STEP_S = 5.0
"""The rate of the last minute, looked at in twelve steps."""


class _RouteName(msgspec.Struct):
    name: str = ""


_decode_name = msgspec.msgpack.Decoder(_RouteName).decode


class View:
    """The state of the gateway, to be read by the metrics and the API."""

    def __init__(self, table: HostTable, memory: HostMemory) -> None:
        self.table = table
        self.memory = memory
        self.counters = memory.counters
        self.config: Config | None = None
        self.version = 0
        self.state_version = 0
        self.digest = ""
        self.config_realtime_ns = 0
        self.route_names: list[str] = []
        self.last_reload: ReloadResult | None = None
        self.parts: dict[str, Callable[[], dict[str, Any]]] = {}
        """What else has a word in `health`, by name: `{"status": "healthy", …}`."""
        self.blockers: list[Callable[[], str]] = []
        """What else may say why requests should go elsewhere; "" is no reason."""
        self.pending_changes: Callable[[], list[dict[str, Any]]] = list
        """What is in effect and would not be after a loss of power."""
        self._past_names: dict[str, None] = {}
        self._totals: deque[tuple[float, int]] = deque(maxlen=int(RATE_SPAN_S / RATE_STEP_S))

    def install(self, blob: bytes, version: int, digest: str, realtime_ns: int, state: int) -> None:
        """Takes the config that is in use from now on."""
        # Routes that are gone keep their counts: a total must not shrink when a config changes.
        self._past_names.update(dict.fromkeys(self.route_names))
        self.config = decode(blob)
        self.route_names = [_decode_name(raw).name for raw in self.config.routes]
        for name in self.route_names:
            self._past_names.pop(name, None)
        self.version = version
        self.state_version = state
        self.digest = digest
        self.config_realtime_ns = realtime_ns

    def route_counts(self) -> list[RouteCounts]:
        """The counts of every route, present and past, that was asked for at least once."""
        return self.counters.read_touched([*self.route_names, *self._past_names])

    def unmatched(self) -> RouteCounts:
        """The counts of requests that no route matched."""
        counts = self.counters.read(None)
        assert counts is not None
        return counts

    def total(self) -> RouteCounts:
        """Everything that was counted since the start, in one."""
        total = self.unmatched()
        for counts in self.route_counts():
            total.merge(counts)
        return total

    async def watch_rate(self) -> None:
        """Notes the number of requests every few seconds, for `requests_per_s`. Runs until cancelled."""
        while True:
            self._totals.append((time.monotonic(), sum(self.total().responses)))
            await asyncio.sleep(RATE_STEP_S)

    def requests_per_s(self, total: int) -> float:
        """The mean rate of the last minute, or since this process started when that is shorter."""
        if not self._totals:
            return 0.0
        at, before = self._totals[0]
        elapsed_s = time.monotonic() - at
        return (total - before) / elapsed_s if elapsed_s > 0 else 0.0

    def is_ready(self) -> bool:
        """False also when a part says that what it is for would be refused."""
        return self.table.is_ready() and not any(says() for says in self.blockers)

    def phase(self) -> str:
        return PHASES[self.table.phase]

    def workers(self) -> list[dict[str, Any]]:
        """One entry for each living worker."""
        now_ns = time.monotonic_ns()
        found = []
        for seat in self.table.occupied():
            counts = self.counters.worker_counts(seat.index)
            found.append(
                {
                    "pid": seat.pid,
                    "slot": seat.slot,
                    "state": WORKER_STATES[seat.state],
                    "generation": seat.generation,
                    "config_version": seat.config_version,
                    "started": iso_time(seat.started_realtime_ns),
                    "heartbeat_age_ms": max(0, now_ns - seat.heartbeat_ns) // 1_000_000,
                    "loop_lag_ms": seat.loop_lag_ns // 1_000_000,
                    "connections": counts["connections_open"],
                    "in_flight": counts["requests_active"],
                    "tunnels": counts["tunnels_open"],
                }
            )
        return found

    def worker_total(self, name: str, *, is_gauge: bool) -> int:
        """A figure of the workers, summed: a gauge over the living, a count over all that ever were."""
        return sum(
            self.counters.worker_counts(seat.index)[name]
            for seat in self.table.seats
            if not is_gauge or seat.state != EMPTY
        )

    def health(self) -> dict[str, Any]:
        """Each part with its own verdict; `status` is `healthy`, `degraded` (serves, but not as set up), or
        `unhealthy`.
        """
        table = self.table
        ready, wanted = table.count(READY), table.workers_wanted
        parts: dict[str, Any] = {
            "workers": {
                "status": "healthy" if ready >= wanted else "degraded" if ready else "unhealthy",
                "ready": ready,
                "wanted": wanted,
                "draining": table.count(DRAINING),
            },
            "config": {
                "status": "healthy" if self.last_reload is None or self.last_reload.applied else "degraded",
                "version": self.version,
                "last_reload": reload_text(self.last_reload),
            },
            "controller": {"status": "healthy", "restarts": table.controller_restarts},
            **{name: tell() for name, tell in self.parts.items()},
        }
        verdicts = {part["status"] for part in parts.values()}
        if self.phase() != "serving" or "unhealthy" in verdicts:
            status = "unhealthy"
        else:
            status = "degraded" if "degraded" in verdicts else "healthy"
        return {"status": status, "phase": self.phase(), "components": parts}


class ReloadTable:
    """Requests reloads from the supervisor and returns to each caller the result of its own."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[ReloadResult]] = {}
        # Not 1: a response to a controller that died must not be taken for one to its successor.
        self._next_id = os.getpid() << 32 | 1

    def open(self) -> tuple[int, asyncio.Future[ReloadResult]]:
        request_id, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[ReloadResult] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        future.add_done_callback(lambda _: self._waiting.pop(request_id, None))
        return request_id, future

    def answer(self, result: ReloadResult) -> None:
        future = self._waiting.pop(result.id, None)
        if future is not None and not future.done():
            future.set_result(result)


def reload_text(result: ReloadResult | None) -> str:
    if result is None:
        return "none"
    return f"applied as version {result.version}" if result.applied else "refused"


def iso_time(realtime_ns: int) -> str | None:
    """UTC to the second, or None for never."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(realtime_ns / 1e9)) if realtime_ns else None
