"""The balancers, 3 to 1 000 targets."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

Case = tuple[str, Candidate]


def case(package: str, setup: str, statement: str, operations: int, label: str) -> Case:
    return f"{package}, {label}", Candidate(package, setup, statement, operations)


SETUP = """
from fastgate._core import P2C, HashRing, LeastRequests, Maglev, SmoothWeighted
names = [f"10.0.{{i // 256}}.{{i % 256}}:80" for i in range({count})]
weights = [1 + i % 5 for i in range({count})]
b = {make}
pick = b.pick
"""
MAKES = {
    "SmoothWeighted": ("SmoothWeighted(weights)", "pick()"),
    "LeastRequests": ("LeastRequests(weights)", "b.finished(pick())"),
    "P2C": ("P2C(weights)", "b.finished(pick())"),
    "P2C latency": ("P2C(weights, half_life_s=10)", "b.finished(pick(), 1_000_000)"),
    "HashRing": ("HashRing(names)", "pick('user-12345')"),
    "HashRing bounded": ("HashRing(names, load_factor=1.25)", "b.finished(pick('user-12345'))"),
    "Maglev": ("Maglev(names)", "pick('user-12345')"),
}
CASES = [
    case("fastgate", SETUP.format(count=count, make=make), statement, 1, f"{name}, {count:,}")
    for name, (make, statement) in MAKES.items()
    for count in (3, 30, 1_000)
]


@pytest.mark.benchmark(group="pick a target", timer=virtual_s)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_pick(benchmark: Any, case: Case) -> None:
    race(benchmark, case[1])
