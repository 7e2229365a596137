"""CircuitBreaker beside pybreaker and purgatory. Promise: allow + record <= 80 ns called from Python."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

Case = tuple[str, Candidate]


def case(package: str, setup: str, statement: str, operations: int, label: str) -> Case:
    return f"{package}, {label}", Candidate(package, setup, statement, operations)


OURS = """
from fastgate._core import Bulkhead, CircuitBreaker, SharedMemory
breaker = CircuitBreaker({options})
"""
CALLS = OURS + "allow, record = breaker.allow, breaker.record"
NOTHING = "def nothing(): pass\n"
DECORATED = "guarded = breaker(nothing)"
RATES = "failure_ratio=0.5, slow_ratio=0.5, slow_call_s=1.0"
PYBREAKER = NOTHING + "import pybreaker\nbreaker = pybreaker.CircuitBreaker(fail_max=5)\n"
PURGATORY = """
from purgatory import SyncCircuitBreakerFactory
factory = SyncCircuitBreakerFactory(default_threshold=5)
breaker = factory.get_breaker("x")
@factory("y")
def guarded(): pass
"""
BY_HAND = [
    case("fastgate", CALLS.format(options=""), "allow(); record(True, 1000)", 1, "in a row"),
    case("fastgate", CALLS.format(options=RATES), "allow(); record(True, 1000)", 1, "failure and slow ratio"),
    case("fastgate", CALLS.format(options="adaptive=True"), "allow(); record(True, 1000)", 1, "adaptive"),
    case(
        "fastgate",
        CALLS.format(options=RATES + ", memory=SharedMemory(CircuitBreaker.SIZE)"),
        "allow(); record(True, 1000)",
        1,
        "failure and slow ratio, shared memory",
    ),
    case("fastgate", CALLS.format(options="") + "\nbreaker.trip()", "allow()", 1, "open: refused"),
]
GUARDED = [
    case("fastgate", OURS.format(options=""), "with breaker: pass", 1, "with"),
    case("fastgate", NOTHING + OURS.format(options="") + DECORATED, "guarded()", 1, "decorator"),
    case("pybreaker", PYBREAKER, "breaker.call(nothing)", 1, "call"),
    case("pybreaker", PYBREAKER + DECORATED, "guarded()", 1, "decorator"),
    case("purgatory", PURGATORY, "with breaker: pass", 1, "with"),
    case("purgatory", PURGATORY, "guarded()", 1, "decorator"),
]
BULKHEADS = [
    case(
        "fastgate",
        OURS.format(options="") + "b = Bulkhead(10); take, release = b.try_acquire, b.release",
        "take(); release()",
        1,
        "try_acquire + release",
    ),
    case("fastgate", OURS.format(options="") + "b = Bulkhead(10)", "with b: pass", 1, "with"),
    case("python", "import threading; b = threading.Semaphore(10)", "with b: pass", 1, "Semaphore"),
]


@pytest.mark.benchmark(group="breaker allow + record", timer=virtual_s)
@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: case[0])
def test_by_hand(benchmark: Any, case: Case) -> None:
    race(benchmark, case[1])


@pytest.mark.benchmark(group="guarded call", timer=virtual_s)
@pytest.mark.parametrize("case", GUARDED, ids=lambda case: case[0])
def test_guarded(benchmark: Any, case: Case) -> None:
    race(benchmark, case[1])


@pytest.mark.benchmark(group="bulkhead", timer=virtual_s)
@pytest.mark.parametrize("case", BULKHEADS, ids=lambda case: case[0])
def test_bulkhead(benchmark: Any, case: Case) -> None:
    race(benchmark, case[1])
