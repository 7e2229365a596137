"""Whether the realtime clock was set, and by how much.

Expiry that people state (of keys, tokens, responses) is in realtime; everything that waits runs on the
monotonic clock, which is never set. Their difference changes only if the realtime clock is set;
slewing by NTP (at most 0.5 ms a second, adjtimex(2)) stays far below the tolerance between two looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["ClockWatch"]

TOLERANCE_NS = 1_000_000_000


class ClockWatch:
    """Compares the two clocks at every look."""

    def __init__(
        self,
        offset_ns: int = 0,
        realtime_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`offset_ns`: what an earlier process has found last; 0 when there was none."""
        self._realtime_ns = realtime_ns
        self._monotonic_ns = monotonic_ns
        self.offset_ns = offset_ns or self._read()

    def _read(self) -> int:
        return self._realtime_ns() - self._monotonic_ns()

    def look(self) -> int:
        """By how many ns the realtime clock was set since the last look; 0 when it was not."""
        now_ns = self._read()
        step_ns, self.offset_ns = now_ns - self.offset_ns, now_ns
        return step_ns if abs(step_ns) > TOLERANCE_NS else 0
