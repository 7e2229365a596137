"""Ewma and PeakEwma against their definitions over the whole history."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import Ewma, PeakEwma

SECOND = 10**9
HISTORIES = st.lists(
    st.tuples(st.integers(-2 * SECOND, 20 * SECOND), st.floats(0, 1e12)), min_size=1, max_size=40
)


def clock_of(history: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Steps in time as times; the clock may go back, not below zero."""
    now, times = 10 * SECOND, []
    for step, value in history:
        now = max(0, now + step)
        times.append((now, value))
    return times


@given(history=HISTORIES, half_life_s=st.sampled_from([0.1, 1.0, 10.0]))
def test_ewma_is_the_mean_weighted_by_age(history: list[tuple[int, float]], half_life_s: float) -> None:
    ewma = Ewma(half_life_s)
    seen: list[tuple[int, float]] = []
    latest = 0
    for now, value in clock_of(history):
        ewma.update(value, now_ns=now)
        latest = max(latest, now)
        seen.append((latest, value))  # a clock that went back counts as no time passed

    weights = [0.5 ** ((latest - at) / SECOND / half_life_s) for at, _ in seen]
    expected = sum(w * v for w, (_, v) in zip(weights, seen, strict=True)) / sum(weights)
    assert math.isclose(ewma.value, expected, rel_tol=1e-9, abs_tol=1e-280)
    assert math.isclose(ewma.weight(now_ns=latest), sum(weights), rel_tol=1e-9)
    later = latest + round(half_life_s * SECOND)
    assert math.isclose(ewma.weight(now_ns=later), sum(weights) / 2, rel_tol=1e-6)


@given(history=HISTORIES, half_life_s=st.sampled_from([0.1, 1.0, 10.0]))
def test_peak_ewma_jumps_up_and_decays(history: list[tuple[int, float]], half_life_s: float) -> None:
    peak = PeakEwma(half_life_s)
    cost, at = 0.0, 0
    for now, value in clock_of(history):
        kept = 0.5 ** (max(0, now - at) / SECOND / half_life_s)
        cost = value if value > cost else cost * kept + value * (1 - kept)
        at = max(at, now)
        peak.update(value, now_ns=now)
        assert math.isclose(peak.value(now_ns=at), cost, rel_tol=1e-9, abs_tol=1e-280)

    later = at + 3 * SECOND
    faded = cost * 0.5 ** (3 / half_life_s)
    assert math.isclose(peak.value(now_ns=later), faded, rel_tol=1e-9, abs_tol=1e-280)
    load = 5 * peak.value(now_ns=later) or 5e150
    assert peak.load(4, now_ns=later) == load


def test_values_at_one_instant_count_alike() -> None:
    ewma = Ewma()
    for value in (1, 2, 6):
        ewma.update(value, now_ns=5)

    assert ewma.value == 3


def test_an_unanswered_target_comes_last() -> None:
    silent, slow = PeakEwma(), PeakEwma()
    slow.update(10**12, now_ns=0)

    assert silent.load(0, now_ns=0) == 0
    assert silent.load(1, now_ns=0) > slow.load(1000, now_ns=0)


def test_clear_forgets() -> None:
    for average in (Ewma(), PeakEwma()):
        average.update(5, now_ns=1)
        average.clear()
    assert Ewma().value == 0.0


@pytest.mark.parametrize("kind", [Ewma, PeakEwma])
def test_bad_input_is_named_and_changes_nothing(kind: type[Ewma] | type[PeakEwma]) -> None:
    bad_values: list[tuple[Any, type[Exception]]] = [
        (math.nan, ValueError),
        (math.inf, ValueError),
        (1e200, ValueError),
        (10**400, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ]
    for bad, error in bad_values:
        average = kind(1.0)
        average.update(7, now_ns=100)
        with pytest.raises(error, match="value"):
            average.update(bad, now_ns=200)
        assert repr(average) == repr(kind(1.0)).replace("=0", "=7")
    for bad in (0, -1, math.nan, 1e10):
        with pytest.raises(ValueError, match="half_life_s"):
            kind(bad)
    for bad in (-1, 2**63):
        with pytest.raises(ValueError, match="now_ns"):
            kind().update(1, now_ns=bad)
    with pytest.raises(ValueError, match="value"):
        PeakEwma().update(-1)
    with pytest.raises(ValueError, match="pending"):
        PeakEwma().load(-1)
