"""SmoothWeighted, LeastRequests and P2C against plain-Python oracles, decision by decision."""

from __future__ import annotations

import gc
import math
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import P2C, LeastRequests, SmoothWeighted
from fastgate._core.balance.balance import live_objects

WEIGHTS = st.lists(st.integers(0, 20), min_size=1, max_size=9).filter(any)
MS = 1_000_000
S = 1000 * MS


# --- oracles


def smooth(weights: list[int], current: list[int], live: list[int]) -> int:
    """nginx ngx_http_upstream_get_peer, without the effective weight."""
    for index in live:
        current[index] += weights[index]
    best = max(live, key=lambda index: (current[index], -index))
    current[best] -= sum(weights[index] for index in live)
    return best


class SmoothOracle:
    def __init__(self, weights: list[int]) -> None:
        self.weights = weights
        self.current = [0] * len(weights)

    def pick(self, usable: list[bool]) -> int:
        live = [index for index, weight in enumerate(self.weights) if weight and usable[index]]
        return smooth(self.weights, self.current, live) if live else -1


class LeastOracle(SmoothOracle):
    def __init__(self, weights: list[int]) -> None:
        super().__init__(weights)
        self.in_flight = [0] * len(weights)

    def pick(self, usable: list[bool]) -> int:
        live = [index for index, weight in enumerate(self.weights) if weight and usable[index]]
        if not live:
            return -1
        load = {index: Fraction(self.in_flight[index], self.weights[index]) for index in live}
        least = min(load.values())
        best = smooth(self.weights, self.current, [index for index in live if load[index] == least])
        self.in_flight[best] += 1
        return best


class TwoChoicesOracle:
    def __init__(self, weights: list[int], half_life_s: float | None, seed: int) -> None:
        self.weights = weights
        self.tau_ns = None if half_life_s is None else half_life_s * 1e9 / 0.6931471805599453
        self.random = seed
        self.in_flight = [0] * len(weights)
        self.latency = [(0.0, 0)] * len(weights)  # cost, when

    def below(self, n: int) -> int:
        mask = 2**64 - 1
        self.random = x = (self.random + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
        return ((x ^ x >> 31) * n) >> 64

    def draw(self, live: list[int]) -> int:
        at = self.below(sum(self.weights[index] for index in live))
        for index in live:
            if at < self.weights[index]:
                return index
            at -= self.weights[index]
        raise AssertionError

    def kept(self, index: int, now_ns: int) -> float:
        assert self.tau_ns is not None
        passed = now_ns - self.latency[index][1]
        return math.exp(-float(passed) / self.tau_ns) if passed > 0 else 1.0

    def load(self, index: int, now_ns: int) -> float:
        waiting = self.in_flight[index] / self.weights[index]
        if self.tau_ns is None:
            return waiting
        latency = self.latency[index][0] * self.kept(index, now_ns)
        return (1e150 if latency == 0 and waiting > 0 else latency) * (1.0 + waiting)

    def pick(self, usable: list[bool], now_ns: int) -> int:
        live = [index for index, weight in enumerate(self.weights) if weight and usable[index]]
        if not live:
            return -1
        best = self.draw(live)
        if len(live) > 1:
            other = self.draw([index for index in live if index != best])
            if self.load(other, now_ns) < self.load(best, now_ns):
                best = other
        self.in_flight[best] += 1
        return best

    def finished(self, index: int, latency_ns: int | None, now_ns: int) -> None:
        self.in_flight[index] -= 1
        if self.tau_ns is None or latency_ns is None:
            return
        cost, when = self.latency[index]
        kept = self.kept(index, now_ns)
        cost = float(latency_ns) if latency_ns > cost else cost * kept + latency_ns * (1.0 - kept)
        self.latency[index] = (cost, max(when, now_ns))


# --- random histories


@given(WEIGHTS, st.integers(0, 40), st.lists(st.none() | st.integers(0, 511), max_size=150))
def test_smooth_weighted_equals_the_oracle(weights: list[int], start: int, picks: list[int | None]) -> None:
    oracle, everyone = SmoothOracle(weights), [True] * len(weights)
    for _ in range(start):
        oracle.pick(everyone)
    balancer = SmoothWeighted(weights, start)

    for mask in picks:
        if mask is None:
            assert balancer.pick() == oracle.pick(everyone)
        else:
            usable = [bool(mask >> index & 1) for index in range(len(weights))]
            assert balancer.pick_among(usable) == oracle.pick(usable)


@given(WEIGHTS, st.lists(st.tuples(st.sampled_from("ppmf"), st.integers(0, 511)), max_size=200))
def test_least_requests_equals_the_oracle(weights: list[int], steps: list[tuple[str, int]]) -> None:
    oracle, balancer = LeastOracle(weights), LeastRequests(weights)
    open_: list[int] = []

    for verb, number in steps:
        if verb == "f":
            if open_:
                index = open_.pop(number % len(open_))
                balancer.finished(index)
                oracle.in_flight[index] -= 1
            continue
        usable = [verb == "p" or bool(number >> index & 1) for index in range(len(weights))]
        index = balancer.pick() if verb == "p" else balancer.pick_among(usable)
        assert index == oracle.pick(usable)
        if index >= 0:
            open_.append(index)
        assert balancer.in_flight == tuple(oracle.in_flight)


@given(
    WEIGHTS,
    st.none() | st.sampled_from([0.01, 10.0]),
    st.integers(0, 2**63 - 1),
    st.lists(
        st.tuples(st.sampled_from("ppmff"), st.integers(0, 511), st.sampled_from([0, 1, MS, 20 * S, -S])),
        max_size=200,
    ),
)
def test_p2c_equals_the_oracle(
    weights: list[int], half_life_s: float | None, seed: int, steps: list[tuple[str, int, int]]
) -> None:
    oracle = TwoChoicesOracle(weights, half_life_s, seed)
    balancer = P2C(weights, half_life_s=half_life_s, seed=seed)
    open_: list[int] = []
    now_ns = 0

    for verb, number, step_ns in steps:
        now_ns = max(0, now_ns + step_ns)
        if verb == "f":
            if open_:
                index, latency_ns = open_.pop(number % len(open_)), None if number % 5 == 0 else number * MS
                balancer.finished(index, latency_ns, now_ns=now_ns)
                oracle.finished(index, latency_ns, now_ns)
            continue
        usable = [verb == "p" or bool(number >> index & 1) for index in range(len(weights))]
        index = balancer.pick(now_ns=now_ns) if verb == "p" else balancer.pick_among(usable, now_ns=now_ns)
        assert index == oracle.pick(usable, now_ns)
        if index >= 0:
            open_.append(index)
        assert balancer.in_flight == tuple(oracle.in_flight)


# --- promises


def test_smooth_weighted_is_exact_in_every_cycle() -> None:
    weights = [5, 1, 1, 0, 3]
    balancer = SmoothWeighted(weights)

    for _ in range(20):
        assert Counter(balancer.pick() for _ in range(10)) == {0: 5, 1: 1, 2: 1, 4: 3}
    assert [SmoothWeighted([5, 1, 1]).pick() for _ in range(1)] == [0]
    first = SmoothWeighted([5, 1, 1])
    assert [first.pick() for _ in range(7)] == [0, 0, 1, 0, 2, 0, 0]  # the example in nginx's commit message


def test_p2c_avoids_the_slow_and_the_busy() -> None:
    balancer = P2C([1, 1, 1, 1], half_life_s=10, seed=1)
    counts: Counter[int] = Counter()
    for turn in range(4000):
        index = balancer.pick(now_ns=turn * MS)
        counts[index] += 1
        balancer.finished(index, 200 * MS if index == 2 else 10 * MS, now_ns=turn * MS)

    assert counts[2] < 100
    assert max(counts.values()) - min(counts[index] for index in (0, 1, 3)) < 1500


@pytest.mark.parametrize("make", [SmoothWeighted, LeastRequests, P2C])
def test_bad_weights_are_refused_by_name(make: Callable[..., Any]) -> None:
    too_many = [1] * 65_537
    for weights in ([], [0], [0, 0], [1, -1], [10**6 + 1], [10**30], too_many):
        with pytest.raises(ValueError, match="weights"):
            make(weights)
    for weight in (1.0, "1", True, None, float("nan")):
        with pytest.raises(TypeError, match="weights"):
            make([weight])
    with pytest.raises(TypeError):
        make(5)


def test_bad_calls_leave_the_balancer_as_it_was() -> None:
    for start in (-1, 65_537):
        with pytest.raises(ValueError, match="start"):
            SmoothWeighted([1], start)
    for options in ({"half_life_s": 0}, {"half_life_s": float("nan")}, {"seed": -1}, {"seed": 2**63}):
        with pytest.raises(ValueError, match=next(iter(options))):
            P2C([1], **options)
    least, p2c, smooth_ = LeastRequests([1, 2]), P2C([1, 2], seed=1), SmoothWeighted([1, 2])
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: least.finished(0), "index"),
        (lambda: least.finished(2), "index"),
        (lambda: least.finished(-1), "index"),
        (lambda: p2c.finished(0, 5), "index"),
        (lambda: p2c.pick(now_ns=-1), "now_ns"),
        (lambda: p2c.pick(now_ns=2**63), "now_ns"),
        (lambda: p2c.finished(0, -1), "latency_ns"),
        (lambda: smooth_.pick_among([True]), "usable"),
        (lambda: least.pick_among([True] * 3), "usable"),
        (lambda: p2c.pick_among([]), "usable"),
    ]
    for call, name in calls:
        with pytest.raises(ValueError, match=name):
            call()

    assert least.in_flight == p2c.in_flight == (0, 0)
    assert [balancer.pick_among([0, 0]) for balancer in (least, p2c, smooth_)] == [-1, -1, -1]
    assert smooth_.pick() == 1


def test_a_flag_that_raises_is_passed_on() -> None:
    class Bad:
        def __bool__(self) -> bool:
            raise KeyError("flag")

    with pytest.raises(KeyError, match="flag"):
        LeastRequests([1, 1]).pick_among([True, Bad()])


def test_nothing_is_leaked() -> None:
    def use() -> None:
        for balancer in (SmoothWeighted([1, 2, 3]), LeastRequests([1, 2, 3]), P2C([1, 2, 3], half_life_s=1)):
            balancer.pick()
            balancer.pick_among([1, 0, 1])
            with pytest.raises(ValueError):
                balancer.pick_among([1])
            with pytest.raises(ValueError):
                type(balancer)([])

    use()
    gc.collect()
    blocks, live = sys.getallocatedblocks(), live_objects()
    for _ in range(50):
        use()
    gc.collect()

    assert live_objects() == live
    assert abs(sys.getallocatedblocks() - blocks) < 200
