"""Balance without a clock: how far each strategy strays from the shares that the weights ask for.

Each case prints its figure and fails above the bound that the docs state. Seeds are fixed, so figures repeat.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

import pytest

from fastgate._core import P2C, HashRing, LeastRequests, Maglev, SmoothWeighted

WEIGHTS = [1, 1, 2, 3, 5, 8]
PICKS = 20_000
OFF = "requests off its fair share at any time"


def report(name: str, figure: float, bound: float, what: str) -> None:
    print(f"\n{name:<42} {figure:8.3f}  (bound {bound:g})  {what}")
    assert figure <= bound


def furthest_from_fair(picks: list[int], weights: list[int]) -> float:
    """The largest |picks so far - fair share so far| over all targets and all prefixes, in requests."""
    counts, worst, total = [0] * len(weights), 0.0, sum(weights)
    for number, index in enumerate(picks, 1):
        counts[index] += 1
        for count, weight in zip(counts, weights, strict=True):
            worst = max(worst, abs(count - number * weight / total))
    return worst


def test_smooth_weighted_is_never_two_requests_off() -> None:
    balancer = SmoothWeighted(WEIGHTS)
    picks = [balancer.pick() for _ in range(PICKS)]
    report("SmoothWeighted", furthest_from_fair(picks, WEIGHTS), 2.0, OFF)


def test_random_for_comparison() -> None:
    picks = random.Random(1).choices(range(len(WEIGHTS)), WEIGHTS, k=PICKS)
    report("weighted random", furthest_from_fair(picks, WEIGHTS), 1e9, OFF)


def simulate(pick: Callable[[], int], finished: Callable[[int], object], speeds: list[float]) -> float:
    """Most requests in flight on one target over the mean, with exponential service times.

    Time is counted in arrivals: one per tick. With equal shares a target of speed 1 has 8 in flight.
    """
    rng = random.Random(7)
    in_flight, ends = [0] * len(speeds), list[tuple[float, int]]()
    peak = 0.0
    for tick in range(PICKS):
        while ends and ends[0][0] <= tick:
            _, index = heapq.heappop(ends)
            in_flight[index] -= 1
            finished(index)
        index = pick()
        in_flight[index] += 1
        heapq.heappush(ends, (tick + rng.expovariate(speeds[index] / (8 * len(speeds))), index))
        if tick > 1000:
            peak = max(peak, max(in_flight) / (sum(in_flight) / len(in_flight)))
    return peak


@pytest.mark.parametrize("slow", [False, True], ids=["equal targets", "one target four times slower"])
def test_peak_of_requests_in_flight(slow: bool) -> None:
    speeds = [1.0] * 9 + [0.25 if slow else 1.0]
    ones = [1] * 10
    rng = random.Random(3)
    robin = SmoothWeighted(ones)
    cases: list[tuple[str, Callable[[], int], Callable[[int], object], float]] = [
        ("random", lambda: rng.randrange(10), lambda index: None, 1e9),
        ("SmoothWeighted", robin.pick, lambda index: None, 1e9),
    ]
    for balancer, bound in ((LeastRequests(ones), 1.5), (P2C(ones, seed=1), 2.0)):
        cases.append((type(balancer).__name__, balancer.pick, balancer.finished, bound))
    for name, pick, finished, bound in cases:
        name += ", one slow" if slow else ", equal"
        report(name, simulate(pick, finished, speeds), bound, "peak / mean in flight")


@pytest.mark.parametrize(
    ("name", "make", "bound"),
    [
        ("HashRing, 160 points", lambda names: HashRing(names), 0.30),
        ("HashRing, 1000 points", lambda names: HashRing(names, points_per_weight=1000), 0.12),
        ("Maglev, 65 537 entries", lambda names: Maglev(names), 0.05),
    ],
)
def test_share_of_keys(name: str, make: Callable[[list[str]], Any], bound: float) -> None:
    names = [f"10.0.0.{index}:8080" for index in range(10)]
    balancer = make(names)
    counts = [0] * 10
    for index in range(100_000):
        counts[balancer.pick(f"user-{index}")] += 1
    report(name, max(counts) / 10_000 - 1, bound, "the fullest of 10 targets over its share, 100 000 keys")


@pytest.mark.parametrize("load_factor", [None, 1.25, 2.0])
@pytest.mark.parametrize(("name", "cls"), [("HashRing", HashRing), ("Maglev", Maglev)])
def test_one_hot_key(name: str, cls: Any, load_factor: float | None) -> None:
    balancer = cls([f"10.0.0.{index}:8080" for index in range(10)], load_factor=load_factor)
    rng = random.Random(5)
    counts = [0] * 10
    for index in range(10_000):
        counts[balancer.pick("hot" if rng.random() < 0.3 else f"user-{index}")] += 1
    bound = 1e9 if load_factor is None else load_factor - 1 + 1e-3
    what = "the fullest of 10 over its share, all in flight, 30 % one key"
    report(f"{name}, load_factor {load_factor}", max(counts) / 1000 - 1, bound, what)


@pytest.mark.parametrize(("name", "cls"), [("HashRing", HashRing), ("Maglev", Maglev)])
def test_keys_moved_when_one_of_ten_targets_leaves(name: str, cls: Any) -> None:
    names = [f"10.0.0.{index}:8080" for index in range(10)]
    before, after = cls(names), cls(names[:-1])
    keys = [f"user-{index}" for index in range(50_000)]
    moved = sum(before.pick(key) not in (9, after.pick(key)) for key in keys) / len(keys)
    report(name, moved, 0.0 if cls is HashRing else 0.05, "of the keys moved without need")
