"""What a worker lends to its parts, without a worker: loop, wheel, counters. One test, one loop.

async def scenario(context: PlanContext) -> None: ...

run(scenario)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import uvloop

from fastgate._core.pipeline.wheel import TimerWheel
from fastgate._core.shm.counters import Counters
from fastgate._core.shm.shm import SharedMemory

__all__ = ["PlanContext", "run", "until"]

LIMIT_S = 120  # of a whole scenario: only ever ends a hang

UNTIL_S = 60  # of one event: only ever ends a hang

T = TypeVar("T")


class PlanContext:
    """The stand-in for a data plane."""

    slot = 0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(20_000_000, time.monotonic_ns())
        self.counters = Counters(SharedMemory(Counters.size(1, 64)), 1, 64)
        self._tick()

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(0.02, self._tick)
        self.wheel.turn(time.monotonic_ns())

    def close(self) -> None:
        self._ticker.cancel()


async def until(holds: Callable[[], object]) -> None:
    """Returns once it holds; the loop goes on meanwhile."""
    deadline = time.monotonic() + UNTIL_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {UNTIL_S} s in vain"
        await asyncio.sleep(0.001)


def run(scenario: Callable[[PlanContext], Awaitable[T]]) -> T:
    """What the scenario returns."""

    async def bounded() -> T:
        context = PlanContext()
        try:
            return await asyncio.wait_for(scenario(context), LIMIT_S)
        finally:
            # The end of TLS takes an answer of the peer; what failed to connect closes at the next turn.
            await until(lambda: context.counters.worker_counts(0)["upstream_open"] == 0)
            await asyncio.sleep(0.01)
            context.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())
