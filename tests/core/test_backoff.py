"""Backoff against plain Python, and what it promises otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import Backoff, CircuitBreaker
from tests.core.breaker_oracle import splitmix
from tests.core.processes import in_processes

SECOND = 1_000_000_000
SHAPES = ["constant", "linear", "exponential", "fibonacci"]
JITTERS = ["none", "full", "equal"]

attempts = st.one_of(st.integers(1, 100), st.sampled_from([2**31 - 1, 2**31 - 2, 63, 64, 65, 91, 92, 93]))


class Oracle:
    """The wait in integers without a bound on their size."""

    def __init__(self, base_s: float, max_s: float, shape: str, jitter: str, seed: int) -> None:
        self.base_ns = int(base_s * 1e9 + 0.5)
        self.max_ns = int(max_s * 1e9 + 0.5)
        self.shape = shape
        self.jitter = jitter
        self.random = seed

    def factor(self, attempt: int) -> int:
        if self.shape == "linear":
            return attempt
        if self.shape == "constant":
            return 1
        attempt = min(attempt, 200)  # both factors are above max_ns long before
        if self.shape == "exponential":
            return 1 << (attempt - 1)
        factor, before = 1, 0
        for _ in range(attempt - 1):
            factor, before = factor + before, factor
        return factor

    def delay_ns(self, attempt: int) -> int:
        span = min(self.base_ns * self.factor(attempt), self.max_ns)
        if self.jitter == "none":
            return span
        least = span // 2 if self.jitter == "equal" else 0
        drawn = splitmix(self.random)
        self.random = (self.random + 0x9E3779B97F4A7C15) % 2**64
        return least + (drawn * (span - least + 1) >> 64)


@given(
    st.one_of(st.floats(1e-6, 1e6), st.sampled_from([1e-6, 0.025, 1, 1_000_000])),
    st.one_of(st.floats(1, 1e12), st.just(1.0)),
    st.sampled_from(SHAPES),
    st.sampled_from(JITTERS),
    st.integers(0, 2**63 - 1),
    st.lists(attempts, max_size=40),
)
def test_every_wait_equals_the_oracle(
    base_s: float, times: float, shape: Any, jitter: Any, seed: int, history: list[int]
) -> None:
    max_s = min(base_s * times, 1e6)
    subject = Backoff(base_s, max_s, shape=shape, jitter=jitter, seed=seed)
    oracle = Oracle(base_s, max_s, shape, jitter, seed)

    for attempt in history:
        wait_ns = subject.delay_ns(attempt)

        assert wait_ns == oracle.delay_ns(attempt)
        assert 0 <= wait_ns <= oracle.max_ns


@pytest.mark.parametrize(
    ("shape", "expected_ms"),
    [
        ("constant", [25, 25, 25, 25, 25, 25, 25]),
        ("linear", [25, 50, 75, 100, 125, 150, 175]),
        ("exponential", [25, 50, 100, 200, 250, 250, 250]),
        ("fibonacci", [25, 25, 50, 75, 125, 200, 250]),
    ],
)
def test_the_shapes_grow_as_documented(shape: Any, expected_ms: list[int]) -> None:
    backoff = Backoff(0.025, 0.250, shape=shape, jitter="none")

    assert [backoff.delay_ns(attempt) for attempt in range(1, 8)] == [ms * 1_000_000 for ms in expected_ms]


@pytest.mark.parametrize(("jitter", "least_ns"), [("full", 0), ("equal", 5 * SECOND)])
def test_jitter_spreads_evenly_over_its_range(jitter: Any, least_ns: int) -> None:
    backoff = Backoff(10, 10, jitter=jitter, seed=1)
    tenths = [0] * 10

    for _ in range(40_000):
        wait_ns = backoff.delay_ns(1)
        assert least_ns <= wait_ns <= 10 * SECOND
        tenths[min(9, (wait_ns - least_ns) * 10 // (10 * SECOND - least_ns))] += 1

    assert all(3600 < count < 4400 for count in tenths)  # seven standard deviations


@pytest.mark.parametrize(("jitter", "least_ns"), [("full", 0), ("equal", 500)])
def test_jitter_reaches_both_ends(jitter: Any, least_ns: int) -> None:
    backoff = Backoff(1e-6, 1e-6, jitter=jitter, seed=1)

    waits = [backoff.delay_ns(1) for _ in range(20_000)]

    assert (min(waits), max(waits)) == (least_ns, 1000)


def test_forked_workers_do_not_wait_in_step() -> None:
    unseeded, seeded = Backoff(1, 1), Backoff(1, 1, seed=7)
    unseeded.delay_ns(1)

    drawn = in_processes(3, lambda _: unseeded.delay_ns(1))
    repeated = in_processes(3, lambda _: seeded.delay_ns(1))

    assert len({*drawn, unseeded.delay_ns(1)}) == 4
    assert {*repeated} == {seeded.delay_ns(1)}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_breaker_opens_for_the_same_spans(shape: Any) -> None:
    breaker = CircuitBreaker(recovery_timeout_s=0.3, backoff=shape, max_recovery_timeout_s=1000)
    backoff = Backoff(0.3, 1000, shape=shape, jitter="none")

    for attempt in range(1, 64):
        breaker.trip(0)
        span_ns = backoff.delay_ns(attempt)
        assert span_ns <= breaker.retry_after_ns(0) < span_ns + 128  # the breaker rounds up to 128 ns


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Backoff(0, 1), ValueError, r"base_s: expected 1e-06 to 1000000.0, got 0"),
        (lambda: Backoff(-1, 1), ValueError, "base_s: .* got -1"),
        (lambda: Backoff(math.nan, 1), ValueError, "base_s: .* got nan"),
        (lambda: Backoff(2, 1), ValueError, "max_s: expected 2.0 to 1000000.0, got 1"),
        (lambda: Backoff(1, math.inf), ValueError, "max_s: .* got inf"),
        (lambda: Backoff(1, 1e6 + 1), ValueError, "max_s"),
        (lambda: Backoff("1", 1), TypeError, "base_s: expected a number"),  # type: ignore[arg-type]
        (lambda: Backoff(1, None), TypeError, "max_s: expected a number"),  # type: ignore[arg-type]
        (
            lambda: Backoff(1, 1, shape="cubic"),  # type: ignore[arg-type]
            ValueError,
            "shape: expected one of constant, linear, exponential, fibonacci, got 'cubic'",
        ),
        (
            lambda: Backoff(1, 1, jitter=True),  # type: ignore[arg-type]
            ValueError,
            "jitter: expected one of none, full, equal, got True",
        ),
        (lambda: Backoff(1, 1, seed=-1), ValueError, "seed: expected 0 to"),
        (lambda: Backoff(1, 1, seed=1.0), TypeError, "seed: expected an int"),  # type: ignore[arg-type]
        (lambda: Backoff(1, 1).delay_ns(0), ValueError, "attempt: expected 1 to 2147483647, got 0"),
        (lambda: Backoff(1, 1).delay_ns(2**31), ValueError, "attempt"),
        (lambda: Backoff(1, 1).delay_ns(2**200), ValueError, "attempt"),
        (lambda: Backoff(1, 1).delay_ns(1.0), TypeError, "attempt"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_refused_call_draws_nothing() -> None:
    subject, twin = Backoff(1, 1, seed=3), Backoff(1, 1, seed=3)

    with pytest.raises(ValueError, match="attempt"):
        subject.delay_ns(0)

    assert subject.delay_ns(1) == twin.delay_ns(1)


def test_repr_shows_how_to_make_it() -> None:
    assert repr(Backoff(0.025, 10)) == "Backoff(0.025, 10, shape='exponential', jitter='full')"
