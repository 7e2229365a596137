"""RetryBudget and Backoff compared with plain Python. Promise: each call from Python <= 80 ns.

The rival of the budget is a counter under a lock, as in botocore's RetryQuota: one process, no rate.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

OURS = """
from fastgate._core import RetryBudget, SharedMemory
budget = RetryBudget({options})
deposit, withdraw = budget.deposit, budget.withdraw
"""
DRAINED = "\nwhile withdraw(): pass"
SHARED = "shared=SharedMemory(RetryBudget.size())"
BY_HAND = """
import threading
class Budget:
    def __init__(self):
        self.lock, self.balance = threading.Lock(), 100.0
    def deposit(self):
        with self.lock:
            self.balance = min(self.balance + 0.2, 100.0)
    def withdraw(self):
        with self.lock:
            if self.balance < 1.0:
                return False
            self.balance -= 1.0
            return True
budget = Budget()
deposit, withdraw = budget.deposit, budget.withdraw
"""
# A share of 1 and no rate: the balance stays where it is, so that every round measures the same path.
STEADY = "1, min_retries_per_s=0, burst=100"
# Without a retry in between it is full, and a deposit writes nothing.
FULL = {
    "fastgate": Candidate("fastgate", OURS.format(options=""), "deposit()"),
    "fastgate, shared memory": Candidate("fastgate", OURS.format(options=SHARED), "deposit()"),
    "fastgate, now_ns given": Candidate(
        "fastgate", OURS.format(options="") + "now_ns = 10**15", "deposit(now_ns)"
    ),
    "python, lock and counter": Candidate("python", BY_HAND, "deposit()"),
}
BOTH = {
    "fastgate": Candidate("fastgate", OURS.format(options=STEADY), "withdraw(); deposit()", 2),
    "fastgate, shared memory": Candidate(
        "fastgate", OURS.format(options=f"{STEADY}, {SHARED}"), "withdraw(); deposit()", 2
    ),
    "fastgate, now_ns given": Candidate(
        "fastgate",
        OURS.format(options=STEADY) + "now_ns = 10**15",
        "withdraw(now_ns); deposit(now_ns)",
        2,
    ),
    "python, lock and counter": Candidate("python", BY_HAND, "withdraw(); deposit()", 2),
}
EMPTY = {
    "fastgate": Candidate("fastgate", OURS.format(options="1, min_retries_per_s=0") + DRAINED, "withdraw()"),
    "python, lock and counter": Candidate("python", BY_HAND + DRAINED, "withdraw()"),
}


def _backoff(options: str) -> Candidate:
    setup = f"from fastgate._core import Backoff; delay_ns = Backoff(0.025, 10, {options}).delay_ns"
    return Candidate("fastgate", setup, "delay_ns(5)")


BACKOFF = {
    "fastgate, full": _backoff(""),
    "fastgate, none": _backoff("jitter='none'"),
    "fastgate, fibonacci, equal": _backoff("shape='fibonacci', jitter='equal'"),
    "python, random.uniform": Candidate(
        "python",
        "from random import uniform\n"
        "def delay_s(attempt): return uniform(0, min(10, 0.025 * 2 ** (attempt - 1)))",
        "delay_s(5)",
    ),
}


@pytest.mark.parametrize("name", FULL)
@pytest.mark.benchmark(group="retry budget: deposit when full", timer=virtual_s)
def test_deposit(benchmark: Any, name: str) -> None:
    race(benchmark, FULL[name], promise_ns=80)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.benchmark(group="retry budget: withdraw, and deposit when not full", timer=virtual_s)
def test_both(benchmark: Any, name: str) -> None:
    race(benchmark, BOTH[name], promise_ns=80)


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.benchmark(group="retry budget: refused", timer=virtual_s)
def test_refused(benchmark: Any, name: str) -> None:
    race(benchmark, EMPTY[name], promise_ns=80)


@pytest.mark.parametrize("name", BACKOFF)
@pytest.mark.benchmark(group="back-off: the wait before an attempt", timer=virtual_s)
def test_backoff(benchmark: Any, name: str) -> None:
    race(benchmark, BACKOFF[name], promise_ns=80)
