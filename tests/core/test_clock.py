"""The clocks agree with the interpreter's own, so that times from either may be mixed."""

from __future__ import annotations

import time

from fastgate._core import monotonic_ns, realtime_ns


def test_monotonic_is_the_interpreters_clock_and_never_goes_back() -> None:
    before = time.monotonic_ns()

    readings = [monotonic_ns() for _ in range(1000)]

    assert before <= readings[0]
    assert readings == sorted(readings)
    assert readings[-1] <= time.monotonic_ns()


def test_realtime_is_unix_time() -> None:
    before = time.time_ns()

    now_ns = realtime_ns()

    assert before <= now_ns <= time.time_ns()
