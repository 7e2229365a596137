"""AdaptiveLimit: equal to plain Python, always within its bounds, sensible in a closed loop."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import AdaptiveLimit, ConcurrencyLimit, Lease, SharedMemory
from tests.core.processes import in_processes

MS = 1_000_000
NOW = 1_000_000 * MS


class Oracle:
    """Gradient2 and AIMD as published, with at most one decrease per usual latency."""

    def __init__(self, algorithm: str, initial: int, lowest: int, highest: int, slow_ns: int) -> None:
        self.algorithm, self.lowest, self.highest, self.slow_ns = algorithm, lowest, highest, slow_ns
        self.estimate = float(initial)
        self.usual = self.recent = 0
        self.moved_at: int | None = None

    def learn(self, latency_ns: int, ok: bool, in_flight: int, now_ns: int) -> None:
        if ok:
            mean = (
                self.usual + int((float(latency_ns) - float(self.usual)) / 600.0)
                if self.usual
                else latency_ns
            )
            if self.algorithm == "gradient" and mean > 2 * latency_ns:
                mean -= mean // 20
            self.usual = max(mean, 1)
            mean = (
                self.recent + int((float(latency_ns) - float(self.recent)) / 10.0)
                if self.recent
                else latency_ns
            )
            self.recent = max(mean, 1)
        failed = not ok or latency_ns > self.slow_ns
        if not failed and in_flight * 2.0 < self.estimate:
            return
        if failed or self.algorithm == "gradient":
            if self.moved_at is not None and 0 <= now_ns - self.moved_at <= self.usual:
                return
            self.moved_at = now_ns
        if failed:
            wanted = self.estimate * 0.9
        elif self.algorithm == "gradient":
            gradient = min(max(1.5 * self.usual / self.recent, 0.5), 1.0)
            wanted = self.estimate * (1.0 - 0.2) + 0.2 * (self.estimate * gradient + 4)
        else:
            wanted = self.estimate + 1.0 / self.estimate
        self.estimate = min(max(wanted, self.lowest), self.highest)


@given(
    st.sampled_from(["gradient", "aimd"]),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 80),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["acquire", "acquire", "release", "cancel"]),
            st.one_of(st.integers(0, 200 * MS), st.sampled_from([0, 1, 2**62 - 1])),
            st.booleans(),
            st.integers(-5 * MS, 100 * MS),
        ),
        max_size=120,
    ),
)
def test_any_history_equals_the_oracle(
    algorithm: str,
    lowest: int,
    initial: int,
    room: int,
    shared: bool,
    history: list[tuple[str, int, bool, int]],
) -> None:
    initial += lowest
    highest = initial + room
    memory = SharedMemory(AdaptiveLimit.size(highest)) if shared else None
    limit = AdaptiveLimit(initial, lowest, highest, algorithm=algorithm, slow_s=0.1, shared=memory)
    oracle = Oracle(algorithm, initial, lowest, highest, 100 * MS)
    held: list[Lease] = []
    now_ns = NOW

    for verb, latency_ns, ok, wait_ns in history:
        now_ns += wait_ns
        if verb == "acquire":
            lease = limit.acquire()
            if lease is not None:
                held.append(lease)
            else:
                assert len(held) >= limit.limit
        elif held and verb == "cancel":
            assert held.pop().release()
        elif held:
            oracle.learn(latency_ns, ok, len(held), now_ns)
            lease = held.pop()
            assert limit.release(lease, latency_ns, ok, now_ns)
            assert not limit.release(lease, latency_ns, ok, now_ns)
        assert limit.limit == int(oracle.estimate)
        assert limit.usual_latency_ns == oracle.usual
        assert lowest <= limit.limit <= highest
        assert limit.in_use == len(held)


def closed_loop(limit: AdaptiveLimit, workers: int, servers: int, seed: int) -> int:
    """The limit after 200 rounds of a service that answers `servers` at once in 10 ms and queues the rest."""
    randomly = random.Random(seed)
    now_ns = NOW
    for _ in range(200):
        leases = [lease for _ in range(workers) if (lease := limit.acquire()) is not None]
        for position, lease in enumerate(leases):
            latency_ns = int(10 * MS * (1 + position // servers) * randomly.uniform(0.9, 1.1))
            limit.release(lease, latency_ns, latency_ns < 500 * MS, now_ns + latency_ns)
        now_ns += 100 * MS
    return limit.limit


@pytest.mark.parametrize("algorithm", ["gradient", "aimd"])
def test_a_limit_in_a_closed_loop_leaves_its_start_towards_the_capacity(algorithm: str) -> None:
    slow_s = None if algorithm == "gradient" else 0.025

    from_below = closed_loop(AdaptiveLimit(2, 1, 500, algorithm=algorithm, slow_s=slow_s), 500, 40, 1)
    from_above = closed_loop(AdaptiveLimit(500, 1, 500, algorithm=algorithm, slow_s=slow_s), 500, 40, 2)

    assert 20 <= from_below <= 250
    assert 20 <= from_above <= 250


def test_an_idle_limit_does_not_grow() -> None:
    limit = AdaptiveLimit(100, 1, 1000)

    for number in range(1000):
        lease = limit.acquire()
        assert lease is not None
        limit.release(lease, MS, True, NOW + number * MS)

    assert limit.limit == 100


def test_failures_that_were_in_flight_together_lower_it_once() -> None:
    limit = AdaptiveLimit(100, 1, 1000, algorithm="aimd")
    warm = limit.acquire()
    assert warm is not None
    limit.release(warm, 50 * MS, True, NOW)
    leases = [lease for _ in range(50) if (lease := limit.acquire()) is not None]

    for lease in leases:
        limit.release(lease, 50 * MS, False, NOW + 60 * MS)

    assert limit.limit == 90


def test_processes_share_one_limit() -> None:
    memory = SharedMemory(AdaptiveLimit.size(100))
    limit = AdaptiveLimit(10, 1, 100, algorithm="aimd", shared=memory)

    def work(_: int) -> int:
        mine = AdaptiveLimit(10, 1, 100, algorithm="aimd", shared=memory)
        lease = mine.acquire()
        assert lease is not None
        mine.release(lease, MS, False, NOW)
        return mine.limit

    in_child = in_processes(1, work)

    assert in_child == [9]
    assert limit.limit == 9
    assert AdaptiveLimit(10, 1, 100, algorithm="aimd", shared=memory).limit == 9


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AdaptiveLimit(0), ValueError, "initial: expected 1 to 1000, got 0"),
        (lambda: AdaptiveLimit(10, 20), ValueError, "initial: expected 20 to 1000, got 10"),
        (lambda: AdaptiveLimit(10, 5, 4), ValueError, "lowest: expected 1 to 4, got 5"),
        (lambda: AdaptiveLimit(10, 1, 2**40), ValueError, "highest"),
        (
            lambda: AdaptiveLimit(algorithm="vegas"),
            ValueError,
            "algorithm: expected 'gradient' or 'aimd', got 'vegas'",
        ),
        (lambda: AdaptiveLimit(tolerance_ratio=math.nan), ValueError, "tolerance_ratio"),
        (lambda: AdaptiveLimit(backoff_ratio=1.0), ValueError, "backoff_ratio: expected 0.1 to 0.99"),
        (lambda: AdaptiveLimit(smoothing_ratio=0), ValueError, "smoothing_ratio"),
        (lambda: AdaptiveLimit(headroom=0), ValueError, "headroom"),
        (lambda: AdaptiveLimit(slow_s=-1), ValueError, "slow_s"),
        (lambda: AdaptiveLimit(shared=SharedMemory(8)), ValueError, "shared: expected at least"),
    ],
)
def test_bad_construction_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("latency_ns", "now_ns", "error"),
    [
        (-1, NOW, ValueError),
        (2**62, NOW, ValueError),
        (0.1, NOW, TypeError),
        (1, -1, ValueError),
        (1, "1", TypeError),
    ],
)
def test_a_bad_release_changes_nothing(latency_ns: Any, now_ns: Any, error: type[Exception]) -> None:
    limit = AdaptiveLimit(10)
    lease = limit.acquire()
    assert lease is not None

    with pytest.raises(error):
        limit.release(lease, latency_ns, True, now_ns)

    assert lease.is_held
    assert limit.usual_latency_ns == 0


def test_a_lease_of_another_limit_is_refused() -> None:
    lease = ConcurrencyLimit(1).acquire()
    assert lease is not None

    with pytest.raises(ValueError, match="lease: expected one of this limit's own"):
        AdaptiveLimit().release(lease, 1)

    assert lease.is_held
