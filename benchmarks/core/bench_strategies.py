"""Picks of a TargetSet by each strategy, for 3 and for 1 000 targets, and what a circuit breaker adds.

A pick and its end from Python, with the time given: about half of each figure is the two calls themselves.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastgate._core import CircuitBreaker
from fastgate._core.balance.strategies import (
    KeyHash,
    LatencyWeighted,
    P2cEwma,
    P2cRequests,
    Random,
    RoundRobin,
    Scored,
)
from fastgate._core.balance.targets import TargetSet
from fastgate._core.resilience.health import HealthTable

STRATEGIES = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_requests": P2cRequests,
    "p2c_ewma": P2cEwma,
    "latency": LatencyWeighted,
    "intelligent": Scored,
    "hash": KeyHash,
}
NOW_NS = 100_000_000_000


def made(strategy: Any, count: int, **how: Any) -> TargetSet:
    table = HealthTable(4096, 8)
    names = [f"http://10.0.{i // 256}.{i % 256}:80" for i in range(count)]
    own = strategy(names) if strategy is KeyHash else strategy()
    return TargetSet(
        names,
        [table.hold(f"target/orders/{name}", 0) for name in names],
        table.hold("upstream/orders", 0),
        own,
        **how,
    )


@pytest.mark.benchmark(group="pick and finish")
@pytest.mark.parametrize("count", [3, 1000])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_pick(benchmark: Any, name: str, count: int) -> None:
    balance = made(STRATEGIES[name], count)
    key = 0x9E3779B97F4A7C15 if name == "hash" else None

    def once() -> None:
        index, ticket = balance.choose(key, now_ns=NOW_NS)
        balance.finished(index, ticket, True, 1000, now_ns=NOW_NS)

    benchmark(once)


@pytest.mark.benchmark(group="pick and finish with breakers")
@pytest.mark.parametrize("guards", ["none", "breaker", "breaker and ejection"])
def test_guards(benchmark: Any, guards: str) -> None:
    how: dict[str, Any] = {}
    if guards != "none":
        how["breaker"] = CircuitBreaker(failure_ratio=0.5)
    if guards == "breaker and ejection":
        how["ejection"] = CircuitBreaker(failure_ratio=0.5)
    balance = made(RoundRobin, 3, **how)

    def once() -> None:
        index, ticket = balance.choose(now_ns=NOW_NS)
        balance.finished(index, ticket, True, 1000, now_ns=NOW_NS)

    benchmark(once)
