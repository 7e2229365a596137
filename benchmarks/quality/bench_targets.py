"""Simulated upstreams with failing and slow targets: waiting times by strategy, time lines of ejection.

Discrete events, no clock: two processes with rows of their own in one HealthTable send Poisson arrivals to
targets that serve one request at a time. Seeds are fixed, so figures repeat. Each case prints its figures and
fails outside the bound that the docs state.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from fastgate._core import CircuitBreaker
from fastgate._core.balance.strategies import (
    LatencyWeighted,
    P2cEwma,
    P2cRequests,
    Random,
    RoundRobin,
    Scored,
)
from fastgate._core.balance.targets import TargetSet
from fastgate._core.resilience.health import HealthTable

S = 1_000_000_000
MS = 1_000_000
START = 1000 * S
SERVICE_NS = 10 * MS


class Done(NamedTuple):
    """One request that is over."""

    at_ns: int
    target: int
    took_ns: int
    ok: bool


def simulate(
    count: int,
    strategy: Callable[[], Any],
    *,
    load: float,
    seconds: int,
    slow: Callable[[int, int], float] = lambda target, at_ns: 1.0,
    fails: Callable[[int, int, random.Random], bool] = lambda target, at_ns, chance: False,
    guards: Callable[[], dict[str, Any]] = dict,
    tiers: Sequence[int] | None = None,
) -> list[Done]:
    """load: share of the capacity of all targets at their usual speed. slow(target, at): its service time
    as a multiple of the usual one. A request that fails takes a tenth of a service time.
    """
    chance = random.Random(11)
    table = HealthTable(4096, 2)
    names = [f"target {i}" for i in range(count)]
    sets = [
        TargetSet(
            names,
            [table.hold(name, slot) for name in names],
            table.hold("upstream", slot),
            strategy(),
            tiers=tiers,
            seed=5 + slot,
            **guards(),
        )
        for slot in range(2)
    ]
    free_at = [0] * count
    pending: list[tuple[int, int, int, int, Any, int, bool]] = []
    done: list[Done] = []
    at, number = START, 0
    gap_ns = SERVICE_NS / (load * count)
    while at < START + seconds * S:
        at += int(chance.expovariate(1 / gap_ns))
        while pending and pending[0][0] <= at:
            end, _, slot, target, ticket, began, ok = heapq.heappop(pending)
            sets[slot].finished(target, ticket, ok, end - began, now_ns=end)
            done.append(Done(end, target, end - began, ok))
        number += 1
        slot = number % 2
        target, ticket = sets[slot].choose(now_ns=at)
        if target < 0:
            done.append(Done(at, target, 0, False))
            continue
        ok = not fails(target, at, chance)
        work_ns = int(chance.expovariate(1 / SERVICE_NS) * slow(target, at)) if ok else SERVICE_NS // 10
        free_at[target] = max(free_at[target], at) + work_ns
        heapq.heappush(pending, (free_at[target], number, slot, target, ticket, at, ok))
    return done


def quantile_ms(done: list[Done], q: float) -> float:
    took = sorted(each.took_ns for each in done if each.ok)
    return took[int(q * (len(took) - 1))] / MS


STRATEGIES = {
    "round_robin": RoundRobin,
    "random": Random,
    "latency": LatencyWeighted,
    "least_requests": P2cRequests,
    "p2c_ewma": P2cEwma,
    "intelligent": Scored,
}


def test_waiting_times_with_one_slow_target() -> None:
    """Ten targets at 60 % load, of which one takes four times as long from the tenth second on."""

    def slow(target: int, at_ns: int) -> float:
        return 4.0 if target == 0 and at_ns >= START + 10 * S else 1.0

    found = {}
    print()
    for name, strategy in STRATEGIES.items():
        done = [
            each
            for each in simulate(10, strategy, load=0.6, seconds=60, slow=slow)
            if each.at_ns > START + 15 * S
        ]
        found[name] = quantile_ms(done, 0.99)
        share = sum(each.target == 0 for each in done) / len(done)
        print(
            f"{name:<16} p50 {quantile_ms(done, 0.5):8.1f} ms   p99 {found[name]:10.1f} ms   "
            f"{100 * share:4.1f} % at the slow target"
        )
    assert found["p2c_ewma"] < found["round_robin"] / 5
    assert found["least_requests"] < found["round_robin"] / 5
    assert found["latency"] < found["round_robin"]


def guarded_by(kind: str) -> Callable[[], dict[str, Any]]:
    def guards() -> dict[str, Any]:
        if kind == "ejection":
            return {
                "ejection": CircuitBreaker(
                    failure_threshold=5,
                    recovery_timeout_s=5,
                    max_recovery_timeout_s=60,
                    backoff="linear",
                    half_open_permits=4000,
                    success_threshold=3,
                )
            }
        return {
            "breaker": CircuitBreaker(
                failure_threshold=5,
                recovery_timeout_s=5,
                max_recovery_timeout_s=60,
                backoff="exponential",
                half_open_permits=1,
                success_threshold=3,
            )
        }

    return guards


FAILURES: dict[str, Callable[[int], float]] = {
    "step": lambda second: 1.0 if 10 <= second < 40 else 0.0,
    "ramp": lambda second: min(1.0, max(0.0, (second - 10) / 30)) if second < 60 else 0.0,
    "flapping": lambda second: 1.0 if 10 <= second < 80 and second // 7 % 2 else 0.0,
}


@pytest.mark.parametrize("kind", ["ejection", "breaker"])
@pytest.mark.parametrize("shape", list(FAILURES))
def test_time_line_of_a_failing_target(shape: str, kind: str) -> None:
    """One of five targets fails with this probability. The share of failed requests falls to a few probes,
    and the target has its whole share again within a minute of its recovery.
    """

    def fails(target: int, at_ns: int, chance: random.Random) -> bool:
        return target == 0 and chance.random() < FAILURES[shape]((at_ns - START) // S)

    done = simulate(5, RoundRobin, load=0.3, seconds=180, fails=fails, guards=guarded_by(kind))
    unguarded = simulate(5, RoundRobin, load=0.3, seconds=180, fails=fails)
    seconds = [[0, 0, 0] for _ in range(181)]
    for each in done:
        row = seconds[min(180, (each.at_ns - START) // S)]
        row[0] += 1
        row[1] += not each.ok
        row[2] += each.target == 0
    line = "".join(
        "·" if not row[2] else "x" if row[1] > row[2] / 2 else "o" if row[2] < row[0] / 10 else "O"
        for row in seconds
    )
    failed, before = sum(not each.ok for each in done), sum(not each.ok for each in unguarded)
    print(f"\n{shape:<9} {kind:<9} {failed:5d} failed of {before:5d} without   {line}")

    assert failed < before / 2
    assert all(each.target >= 0 for each in done)  # the other targets took its requests
    last = seconds[170:180]
    assert sum(row[2] for row in last) > 0.15 * sum(row[0] for row in last)


def test_a_tier_in_another_region_gets_what_the_nearer_one_cannot_take() -> None:
    """Four targets nearby and four far away; of those nearby, one after the other fails for good."""

    def fails(target: int, at_ns: int, chance: random.Random) -> bool:
        return target < 4 and at_ns > START + (10 + 10 * target) * S

    def guards() -> dict[str, Any]:
        return {
            "ejection": CircuitBreaker(failure_threshold=3, recovery_timeout_s=1000, half_open_permits=4000),
            "max_ejected": 1.0,
        }

    done = simulate(8, P2cEwma, load=0.2, seconds=60, fails=fails, guards=guards, tiers=[0] * 4 + [1] * 4)

    shares = []
    for begin in (0, 12, 22, 32, 42):
        part = [each for each in done if begin * S <= each.at_ns - START < (begin + 8) * S]
        shares.append(sum(each.target >= 4 for each in part) / len(part))
    print("\nshare of the far tier with 4, 3, 2, 1, 0 targets nearby:", *(f"{share:.2f}" for share in shares))
    assert shares[0] == 0 and shares[1] < 0.02
    for share, usable in zip(shares[2:], (2, 1, 0), strict=True):
        assert share == pytest.approx(1 - min(1, 1.4 * usable / 4), abs=0.05)
