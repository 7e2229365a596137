"""One breaker in shared memory, several processes, some killed. FASTGATE_SOAK=1 runs thousands of rounds."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from fastgate._core import CircuitBreaker, SharedMemory, monotonic_ns

ROUNDS = 4000 if os.environ.get("FASTGATE_SOAK") == "1" else 60
MS = 1_000_000
S = 1_000 * MS


def fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def joined(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_four_processes_trip_one_breaker_once() -> None:
    shared = SharedMemory(4096)
    options: dict[str, Any] = {"failure_threshold": 1000, "memory": shared, "offset": 192}
    breaker = CircuitBreaker(**options)

    def fail() -> None:
        mine = CircuitBreaker(**options)
        for _ in range(5000):
            if mine.allow(10):
                mine.record(False, now_ns=10)

    assert joined([fork(fail) for _ in range(4)]) == [0] * 4

    assert breaker.state == "open"
    assert breaker.opened_total == 1


def test_four_processes_share_the_half_open_permits() -> None:
    shared, results = SharedMemory(CircuitBreaker.SIZE), SharedMemory(4)
    granted = memoryview(results)
    options: dict[str, Any] = {"failure_threshold": 1, "half_open_permits": 7, "memory": shared}
    breaker = CircuitBreaker(**options)
    for round_ in range(20):
        breaker.trip(round_ * 100 * S)

        def probe(index: int, now_ns: int = round_ * 100 * S + 50 * S) -> None:
            mine = CircuitBreaker(**options)
            granted[index] = sum(mine.allow(now_ns) for _ in range(200))

        assert joined([fork(lambda index=index: probe(index)) for index in range(4)]) == [0] * 4  # type: ignore[misc]
        assert sum(granted) == 7
        breaker.reset(round_ * 100 * S + 60 * S)


def test_four_processes_lose_no_result_of_the_window() -> None:
    shared = SharedMemory(CircuitBreaker.SIZE)
    options: dict[str, Any] = {"failure_threshold": None, "failure_ratio": 1.0, "memory": shared}

    def count() -> None:
        mine = CircuitBreaker(**options)
        for index in range(4000):
            mine.record(index % 2, now_ns=index * MS // 2)

    assert joined([fork(count) for _ in range(4)]) == [0] * 4

    assert CircuitBreaker(**options).window(4000 * MS // 2) == (16000, 8000, 0)


def abuse(breaker: CircuitBreaker, seed: int) -> None:
    """Everything a worker may be doing when it is killed: half of the permits are never given back."""
    rng = random.Random(seed)
    while True:
        ticket = breaker.acquire()
        if ticket and rng.random() < 0.5:
            breaker.record(rng.random() < 0.5, rng.randrange(10 * MS), ticket=ticket)
        elif rng.random() < 0.01:
            breaker.reset()


@pytest.mark.parametrize(
    "policy",
    [
        {"failure_threshold": 2},
        {"failure_threshold": 3, "failure_ratio": 0.5, "min_calls": 4, "window_s": 0.01},
        {"failure_threshold": 3, "adaptive": True, "adaptive_calls": 10, "min_calls": 4, "window_s": 0.01},
    ],
    ids=["in a row", "window", "adaptive"],
)
def test_a_process_killed_at_any_moment_never_leaves_it_stuck(policy: dict[str, Any]) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    shared = SharedMemory(CircuitBreaker.SIZE)
    options: dict[str, Any] = {
        **policy,
        "recovery_timeout_s": 0.001,
        "permit_timeout_s": 0.002,
        "max_recovery_timeout_s": 0.004,
        "backoff": "exponential",
        "half_open_permits": 2,
        "success_threshold": 3,
        "memory": shared,
    }
    breaker = CircuitBreaker(**options)

    for _ in range(ROUNDS // 3):
        pids = [fork(lambda: abuse(CircuitBreaker(**options), rng.randrange(2**32))) for _ in range(2)]
        time.sleep(rng.random() * 0.004)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert joined(pids) == [-signal.SIGKILL] * 2

        now_ns = monotonic_ns() + 10 * MS  # past the longest open time and past every permit
        for _ in range(3):
            ticket = breaker.acquire(now_ns)
            assert ticket
            breaker.record(True, 0, ticket=ticket, now_ns=now_ns)
        assert breaker.state == "closed"
        breaker.trip(now_ns)
        assert not breaker.allow(now_ns)
        breaker.reset(0)


def test_memory_that_is_too_small_or_misplaced_is_refused() -> None:
    shared = SharedMemory(4096)
    for offset in (-1, 1, 4, 4096 - CircuitBreaker.SIZE + 8, 2**70):
        with pytest.raises(ValueError, match="offset"):
            CircuitBreaker(memory=shared, offset=offset)
    with pytest.raises(ValueError, match="memory"):
        CircuitBreaker(memory=bytearray(CircuitBreaker.SIZE - 1))

    last = CircuitBreaker(memory=shared, offset=4096 - CircuitBreaker.SIZE, failure_threshold=1)
    last.record(False)
    del shared
    assert last.state == "open"
