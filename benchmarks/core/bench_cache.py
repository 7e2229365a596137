"""Cache get and set beside cachebox, cachetools and theine.

Promise: get <= 80 ns with the TTL checked, set with eviction <= 200 ns. The loop over the keys is part of
every figure, about 8 ns.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

KEYS = """
import random
every = [f"/api/v1/orders/{n}" for n in range(10_000)]
random.Random(1).shuffle(every)
keys = every[:1000]
value = b"x" * 200
"""
GET = "for key in keys: get(key)"


def fastgate_get(policy: str, ttl: str) -> str:
    return KEYS + (
        f"from fastgate._core import Cache; cache = Cache(64 << 20, '{policy}', ttl_s={ttl})\n"
        "for key in every: cache.set(key, value)\n"
        "get = cache.get"
    )


def dict_like(make: str) -> str:
    return KEYS + f"{make}\nfor key in every: cache[key] = value\nget = cache.get"


THEINE = (
    "import datetime\nfrom theine import Cache\n"
    "cache = Cache(10_000); ttl = datetime.timedelta(seconds=600)\n"
    "for key in every: cache.set(key, value, ttl)\n"
)
GETS = [
    Candidate("fastgate", fastgate_get("s3fifo", "600"), GET, 1000, "s3fifo, ttl"),
    Candidate("fastgate", fastgate_get("lru", "600"), GET, 1000, "lru, ttl"),
    Candidate("fastgate", fastgate_get("lru", "None"), GET, 1000, "lru"),
    Candidate(
        "cachebox", dict_like("import cachebox as c; cache = c.LRUCache(10_000)"), GET, 1000, "LRUCache"
    ),
    Candidate(
        "cachebox",
        dict_like("import cachebox; cache = cachebox.TTLCache(10_000, 600)"),
        GET,
        1000,
        "TTLCache",
    ),
    Candidate(
        "cachetools",
        dict_like("import cachetools as c; cache = c.LRUCache(10_000)"),
        GET,
        1000,
        "LRUCache",
    ),
    Candidate(
        "cachetools",
        dict_like("import cachetools; cache = cachetools.TTLCache(10_000, 600)"),
        GET,
        1000,
        "TTLCache",
    ),
    Candidate("theine", KEYS + THEINE + "get = cache.get", GET, 1000, "ttl"),
]

# 40 000 keys in turn through a cache of about 10 000: every set evicts.
STREAM = """
keys = [f"/api/v1/orders/{n}" for n in range(40_000)]
value = b"x" * 200
"""
SET = "for key in keys: put(key, value)"


def fastgate_set(policy: str, ttl: str) -> str:
    # 10 000 entries of 72 + 20 + 8 -> 112 bytes, 248 of value, 22 of index.
    return STREAM + (
        "from fastgate._core import Cache\n"
        f"cache = Cache(3_820_000, '{policy}', ttl_s={ttl}); put = cache.set\n"
        "for key in keys: put(key, value)"
    )


def subscript(make: str) -> str:
    return STREAM + f"{make}\nput = cache.__setitem__\nfor key in keys: put(key, value)"


SETS = [
    Candidate("fastgate", fastgate_set("s3fifo", "None"), SET, 40_000, "s3fifo"),
    Candidate("fastgate", fastgate_set("s3fifo", "600"), SET, 40_000, "s3fifo, ttl"),
    Candidate("fastgate", fastgate_set("lru", "None"), SET, 40_000, "lru"),
    Candidate(
        "cachebox", subscript("import cachebox; cache = cachebox.LRUCache(10_000)"), SET, 40_000, "LRUCache"
    ),
    Candidate(
        "cachebox",
        subscript("import cachebox; cache = cachebox.TTLCache(10_000, 600)"),
        SET,
        40_000,
        "TTLCache",
    ),
    Candidate(
        "cachetools",
        subscript("import cachetools; cache = cachetools.LRUCache(10_000)"),
        SET,
        40_000,
        "LRUCache",
    ),
    Candidate(
        "cachetools",
        subscript("import cachetools; cache = cachetools.TTLCache(10_000, 600)"),
        SET,
        40_000,
        "TTLCache",
    ),
    Candidate("theine", STREAM + "from theine import Cache; put = Cache(10_000).set\n" + SET, SET, 40_000),
]


@pytest.mark.benchmark(group="cache get (hit)", timer=virtual_s)
@pytest.mark.parametrize("case", GETS, ids=str)
def test_get(benchmark: Any, case: Candidate) -> None:
    race(benchmark, case)


@pytest.mark.benchmark(group="cache set (evicting)", timer=virtual_s)
@pytest.mark.parametrize("case", SETS, ids=str)
def test_set(benchmark: Any, case: Candidate) -> None:
    race(benchmark, case)


# What no call may do: take long because there is much. The same calls in a cache a hundred times as large.
MANY = """
from fastgate._core import Cache
cache = Cache(1 << 30)
for n in range({entries}): cache.set(f"key:{{n}}", b"v", tags=["t%d" % (n % 1000)])
"""
FLAT = [
    Candidate("fastgate", MANY.format(entries=entries), statement, 1, f"{what}, {entries:,} entries")
    for what, statement in (
        ("purge_tag", "cache.purge_tag('t7')"),
        ("purge_prefix", "cache.purge_prefix('key:77')"),
        ("purge_pattern", "cache.purge_pattern('*:7?7*')"),
        ("clear", "cache.clear()"),
        ("set", "cache.set('key:5', b'w')"),
    )
    for entries in (10_000, 1_000_000)
]


@pytest.mark.benchmark(group="cache calls by size", timer=virtual_s)
@pytest.mark.parametrize("case", FLAT, ids=str)
def test_flat(benchmark: Any, case: Candidate) -> None:
    race(benchmark, case)
