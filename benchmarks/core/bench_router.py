"""Router among 100 to 10 000 routes, beside Starlette's. Promise: a match <= 500 ns, and flat."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

Case = tuple[str, Candidate]


def case(package: str, setup: str, statement: str, operations: int, label: str) -> Case:
    return f"{package}, {label}", Candidate(package, setup, statement, operations)


# Every route is asked for once, in random order: at 10 000 the tables do not fit the first cache level.
OURS = """
import random
from fastgate._core import Router
router = Router()
asked = []
for index in range({count}):
    {add}
router.freeze()
random.Random(1).shuffle(asked)
match = router.match
assert all(match(host, path) for host, path in asked)
assert match("h", "/no/such/path") is None
"""
LITERAL = 'router.add(f"/v1/svc{index}/orders"); asked.append(("h", f"/v1/svc{index}/orders"))'
PARAMS = 'router.add(f"/v1/svc{index}/orders/{{id}}"); asked.append(("h", f"/v1/svc{index}/orders/42"))'
TAILS = 'router.add(f"/svc{index}/{{rest...}}"); asked.append(("h", f"/svc{index}/a/b"))'
HOSTS = 'router.add("/*", host=f"s{index}.example.com"); asked.append((f"s{index}.example.com", "/a"))'
WILDCARDS = 'router.add("/*", host=f"*.s{index}.org"); asked.append((f"a.s{index}.org", "/a"))'
KINDS = {"literal": LITERAL, "params": PARAMS, "tail": TAILS, "hosts": HOSTS, "*.hosts": WILDCARDS}
STARLETTE = """
import random
from starlette.routing import Match, Route
async def endpoint(request): ...
routes = [Route(f"/v1/svc{{index}}/orders/{{{{id}}}}", endpoint) for index in range({count})]
indices = random.Random(1).sample(range({count}), 100)
asked = [{{"type": "http", "method": "GET", "path": f"/v1/svc{{index}}/orders/42"}} for index in indices]
def match(scope):
    for route in routes:
        if route.matches(scope)[0] is Match.FULL:
            return route
"""
MATCH_ALL = "for h, p in asked: match(h, p)"
MATCHES = [
    case("fastgate", OURS.format(count=count, add=add), MATCH_ALL, count, f"{kind}, {count:,}")
    for kind, add in KINDS.items()
    for count in (100, 1_000, 10_000)
] + [
    case(
        "starlette",
        STARLETTE.format(count=count),
        "for scope in asked: match(scope)",
        100,
        f"params, {count:,}",
    )
    for count in (100, 10_000)
]
MANY = OURS.format(count=10_000, add=PARAMS)
MISS = case("fastgate", MANY, "match('h', '/v1/svc77/orderz/42')", 1, "no route, 10,000")
PARAMS_DICT = case("fastgate", MANY, "match('h', '/v1/svc77/orders/42').params", 1, "with .params")
BUILD = case(
    "fastgate",
    "from fastgate._core import Router\npaths = [f'/v1/svc{i}/orders/{{id}}' for i in range(10_000)]\n"
    "def build():\n    router = Router()\n    for path in paths: router.add(path)\n    router.freeze()",
    "build()",
    10_000,
    "build, per route",
)


@pytest.mark.benchmark(group="route match", timer=virtual_s)
@pytest.mark.parametrize("case", [*MATCHES, MISS, PARAMS_DICT, BUILD], ids=lambda case: case[0])
def test_match(benchmark: Any, case: Case) -> None:
    race(benchmark, case[1])
