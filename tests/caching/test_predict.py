"""AdaptiveTtl, RefreshAhead and CostScale: what they decide, and that they keep their bounds."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate.caching.predict import AdaptiveTtl, CostScale, RefreshAhead

S = 1_000_000_000
MIN_NS, MAX_NS = 1 * S, 3600 * S


def adaptive(**more: float) -> AdaptiveTtl:
    return AdaptiveTtl(min_ns=MIN_NS, max_ns=MAX_NS, **more)  # type: ignore[arg-type]


def test_unknown_key_gets_what_it_was_given() -> None:
    assert adaptive().ttl_ns("page", 60 * S) == 60 * S


def test_ttl_grows_while_nothing_changes_and_falls_when_it_does() -> None:
    learned = adaptive()

    grown = [learned.observe("page", False, 60 * S, 60 * S) for _ in range(20)]
    shrunk = [learned.observe("page", True, 60 * S, 60 * S) for _ in range(20)]

    assert grown == sorted(grown) and grown[-1] > 300 * S
    assert shrunk == sorted(shrunk, reverse=True) and shrunk[-1] < 60 * S


@pytest.mark.parametrize("period_s", [20, 200, 2000])
def test_ttl_comes_near_what_the_true_rate_asks_for(period_s: float) -> None:
    """Changes come at a known rate: the median ttl learned is within a factor of two of the right one."""
    rng = random.Random(20)
    learned = AdaptiveTtl(min_ns=S // 100, max_ns=10**6 * S, staleness=0.2)
    right_s = -math.log(0.8) * period_s
    ttl_ns, found = 30 * S, []
    for number in range(600):
        interval_s = ttl_ns / S + rng.expovariate(1 / 5)
        changed = rng.random() < 1 - math.exp(-interval_s / period_s)
        ttl_ns = learned.observe("page", changed, int(interval_s * S), 30 * S)
        if number >= 100:
            found.append(ttl_ns / S)

    found.sort()
    assert right_s / 2 < found[len(found) // 2] < right_s * 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**18)), max_size=60), st.integers(1, 10**15))
def test_ttl_stays_within_its_bounds_whatever_is_observed(
    seen: list[tuple[bool, int]], given_ns: int
) -> None:
    learned = adaptive()
    for changed, interval_ns in seen:
        assert MIN_NS <= learned.observe("page", changed, interval_ns, given_ns) <= MAX_NS


def test_only_the_keys_observed_last_are_remembered() -> None:
    learned = AdaptiveTtl(min_ns=MIN_NS, max_ns=MAX_NS, entries=10)
    for number in range(100):
        learned.observe(number, False, S, 60 * S)

    assert len(learned) == 10
    assert learned.ttl_ns(0, 42 * S) == 42 * S
    assert learned.ttl_ns(99, 42 * S) != 42 * S


def test_refresh_is_due_in_the_last_part_of_the_life_of_a_hot_answer_only() -> None:
    ahead = RefreshAhead(window=0.1, hits=3, draw=lambda: 0.5)

    assert not ahead.due(11 * S, 100 * S, 1_000_000, hits=50)
    assert ahead.due(9 * S, 100 * S, 1_000_000, hits=3)
    assert not ahead.due(9 * S, 100 * S, 1_000_000, hits=2)


def test_refresh_of_a_slow_answer_is_due_earlier() -> None:
    ahead = RefreshAhead(window=0.01, hits=1, draw=lambda: 0.9)

    assert not ahead.due(5 * S, 100 * S, took_ns=1 * S, hits=9)
    assert ahead.due(5 * S, 100 * S, took_ns=4 * S, hits=9)
    # Never more than the half: an answer that takes longer than it lives must not be fetched all the time.
    assert not ahead.due(51 * S, 100 * S, took_ns=1000 * S, hits=9)


def test_cost_is_relative_to_what_is_usual() -> None:
    scale = CostScale()
    for _ in range(200):
        scale.times(10_000_000, 1000)

    assert scale.times(10_000_000, 1000) == pytest.approx(1, rel=0.05)
    assert scale.times(80_000_000, 1000) == pytest.approx(8, rel=0.1)
    assert scale.times(10_000_000, 8000) == pytest.approx(1 / 8, rel=0.2)


def test_cost_of_the_first_answer_and_of_no_time_at_all() -> None:
    scale = CostScale()

    assert scale.times(0, 0) == 1.0
    assert scale.times(5, 100) >= 0
