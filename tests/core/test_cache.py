"""Cache: an oracle decides the same for the same history; bounds, purges, bad input, destructors, leaks."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import Cache
from fastgate._core.cache import cache
from tests.core.cache_oracle import Entry, Oracle, Policy, block, glob_regex

History = list[tuple[Any, ...]]
POLICIES: list[Policy] = ["lru", "s3fifo"]
KIB = 1024
SECOND = 10**9


KEYS = [f"{shop}/{n}".encode() for shop in ("a", "b", "cc") for n in range(14)]
TAGS = [b"red", b"green", "blå".encode()]
PATTERNS = [b"*/1", b"[ab]/?", b"cc/*", b"*", b"[!c]*/1[0-3]", b"a\\/1*", b"?", b"b/[13-5]"]
OPERATIONS = st.one_of(
    st.tuples(st.just("get"), st.sampled_from(KEYS)),
    st.tuples(
        st.just("set"),
        st.sampled_from(KEYS),
        st.sampled_from([1000, 1500, 3000, 9000, 31000, 40000]) | st.integers(1000, 6000),
        st.sampled_from([None, None, 0.5, 3, math.inf]),
        st.sampled_from([1.0, 1.0, 2, 5, 100]),
        st.lists(st.sampled_from(TAGS), max_size=3),
    ),
    st.tuples(st.just("set"), st.sampled_from(KEYS), st.just(1200), st.none(), st.just(1.0), st.just([])),
    st.tuples(st.just("delete"), st.sampled_from(KEYS)),
    st.tuples(st.just("tag"), st.sampled_from(TAGS)),
    st.tuples(st.just("prefix"), st.sampled_from([b"a", b"a/1", b"cc/", b"nothing"])),
    st.tuples(st.just("pattern"), st.sampled_from(PATTERNS)),
    st.tuples(st.just("clock"), st.integers(-2, 3)),
)
RARE = st.tuples(st.just("clear"))
HISTORIES = st.lists(OPERATIONS | OPERATIONS | OPERATIONS | RARE, max_size=120)


def swept(c: Cache, now_ns: int) -> None:
    c.sweep(1 << 20, now_ns=now_ns)
    c.sweep(1 << 20, now_ns=now_ns)


@pytest.mark.parametrize("policy", POLICIES)
@given(history=HISTORIES, ttl_s=st.sampled_from([None, 2.0]))
def test_every_decision_is_the_oracle_s(
    policy: Policy, history: list[tuple[Any, ...]], ttl_s: float | None
) -> None:
    c = Cache(64 * KIB, policy, ttl_s=ttl_s)
    oracle = Oracle(64 * KIB, policy, c.used_bytes)
    now_ns = 5 * SECOND
    for step, (what, *arguments) in enumerate(history):
        oracle.expire(now_ns)
        swept(c, now_ns)
        if what == "clock":
            now_ns = max(0, now_ns + arguments[0] * SECOND)
            continue
        if what == "get":
            assert c.get(arguments[0], now_ns=now_ns) == oracle.get(arguments[0]), step
        elif what == "set":
            key, size, ttl, cost, tags = arguments
            value = bytes([step % 256]) * size
            lives = sum(cost >= x for x in (2, 4, 8))
            life_s = ttl if ttl is not None else ttl_s if ttl_s is not None else math.inf
            entry_bytes = block(72 + 8 * len(tags) + len(key)) + block(size + 33)
            entry = Entry(value, entry_bytes, now_ns + life_s * SECOND, lives, tags)
            stored = c.set(key, value, ttl_s=ttl, cost=cost, tags=tags, now_ns=now_ns)
            queue = next((e[1] for e in c._entries() if e[0] == key), None)
            assert stored == oracle.set(key, entry, queue), step
        elif what == "delete":
            assert c.delete(arguments[0], now_ns=now_ns) == (arguments[0] in oracle.entries), step
            oracle.purge(lambda k, e, gone=arguments[0]: k == gone)
        elif what == "tag":
            c.purge_tag(arguments[0])
            oracle.purge(lambda k, e, tag=arguments[0]: tag in e.tags)
        elif what == "clear":
            c.clear()
            assert len(c) == 0
            oracle.purge(lambda k, e: True)
        else:
            getattr(c, f"purge_{what}")(arguments[0])
            oracle.purge_room = 8 * 24
            if what == "prefix":
                oracle.purge(lambda k, e, prefix=arguments[0]: k.startswith(prefix))
            else:
                regex = glob_regex(arguments[0])
                oracle.purge(lambda k, e, regex=regex: regex.fullmatch(k))
            oracle.evict_until(lambda: oracle.used() <= oracle.max_bytes)
        swept(c, now_ns)
        oracle.expire(now_ns)
        entries = c._entries()
        if policy == "lru":
            entries = [(k, q, 0, lives, size) for k, q, _, lives, size in entries]
        assert entries == oracle.order(), step
        assert c.used_bytes == oracle.used() <= c.max_bytes, step
        assert len(c) == len(oracle.entries), step


@pytest.mark.parametrize("policy", POLICIES)
@given(history=HISTORIES)
def test_a_purge_takes_effect_at_once_though_nobody_sweeps(
    policy: Policy, history: list[tuple[Any, ...]]
) -> None:
    c = Cache(64 << 20, policy)
    for n in range(300):  # more than one purge call sweeps
        c.set(f"filler{n}", b"x")
    model: dict[bytes, tuple[int, float, list[bytes]]] = {}
    now_ns = 5 * SECOND
    for step, (what, *arguments) in enumerate(history):
        if what == "clock":
            now_ns = max(0, now_ns + arguments[0] * SECOND)
        elif what == "get":
            expected = model.get(arguments[0])
            alive = expected is not None and expected[1] > now_ns
            assert c.get(arguments[0], now_ns=now_ns) == (
                str(expected[0]).encode() if expected and alive else None
            )
            if not alive:
                model.pop(arguments[0], None)
        elif what == "set":
            key, _, ttl, _, tags = arguments
            c.set(key, str(step).encode(), ttl_s=ttl, tags=tags, now_ns=now_ns)
            model[key] = (step, now_ns + (math.inf if ttl is None else ttl * SECOND), tags)
        elif what == "delete":
            c.delete(arguments[0], now_ns=now_ns)
            model.pop(arguments[0], None)
        elif what == "clear":
            c.clear()
            model.clear()
        else:
            getattr(c, f"purge_{what}")(arguments[0])
            regex = glob_regex(arguments[0]) if what == "pattern" else None
            model = {
                k: v
                for k, v in model.items()
                if not (
                    (what == "tag" and arguments[0] in v[2])
                    or (what == "prefix" and k.startswith(arguments[0]))
                    or (regex is not None and regex.fullmatch(k))
                )
            }
        # The clock may have gone back: what a sweep has dropped as expired by then stays away.
        if what == "clock" and arguments[0] < 0:
            model = {k: v for k, v in model.items() if c.get(k, now_ns=now_ns) is not None}
    for key in KEYS:
        found = model.get(key)
        expected_value = str(found[0]).encode() if found and found[1] > now_ns else None
        assert c.get(key, now_ns=now_ns) == expected_value


@given(
    pattern=st.lists(
        st.sampled_from([b"a", b"b", b"*", b"?", b"[ab]", b"[!a]", b"[a-c]", b"[]x]", b"\\*"]), min_size=1
    ),
    key=st.lists(st.sampled_from([b"a", b"b", b"c", b"*", b"]", b"\xff"]), max_size=8),
)
def test_globs_match_what_they_say(pattern: list[bytes], key: list[bytes]) -> None:
    c = Cache(64 * KIB)
    c.set(b"".join(key), b"v")

    c.purge_pattern(b"".join(pattern)[:1024])

    assert (b"".join(key) in c) == (glob_regex(b"".join(pattern)[:1024]).fullmatch(b"".join(key)) is None)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_budget_holds_while_the_index_grows_and_shrinks(policy: Policy) -> None:
    c = Cache(4 << 20, policy)
    for n in range(60_000):
        c.set(f"key:{n}", b"x" * (n * 7919 % 300), tags=[f"t{n % 1000}"] if n % 3 == 0 else ())
        if n % 500 == 0:
            assert c.used_bytes <= c.max_bytes
    many = c.stats()
    assert many["used_bytes"] > 0.99 * c.max_bytes
    assert many["index_bytes"] > 20 * 4096

    c.clear()
    while c.sweep(1 << 20):
        pass

    few = c.stats()
    assert len(c) == 0 and c._entries() == []
    assert few["index_bytes"] <= many["index_bytes"] // 4
    assert few["tag_bytes"] == few["purge_bytes"] == 0
    assert c.set("after", b"v") and c.get("after") == b"v"


def test_every_key_is_found_at_every_size_of_the_index() -> None:
    c = Cache(64 << 20, "lru")
    for n in range(5000):
        c.set(str(n), b"v")
        if n % 97 == 0:
            assert all(str(m) in c for m in range(n + 1))
    for n in range(4999, -1, -1):
        assert c.delete(str(n))
        if n % 97 == 0:
            assert all(str(m) in c for m in range(n))
    assert len(c) == 0


def test_a_large_value_evicts_no_more_than_a_bounded_number() -> None:
    c = Cache(8 << 20, "lru")
    for n in range(60_000):
        c.set(str(n), b"")
    before = len(c)

    stored = c.set("large", bytes(3 << 20))

    assert not stored and "large" not in c
    assert before - len(c) == 4096
    assert c.stats()["refused"] == 1


def test_a_value_over_half_the_budget_is_refused_and_the_old_one_is_gone() -> None:
    c = Cache(64 * KIB)
    c.set("k", b"old")
    c.set("other", b"stays")

    assert c.set("k", bytes(33 * KIB)) is False

    assert c.get("k") is None and c.get("other") == b"stays"


def test_the_same_object_comes_back() -> None:
    c = Cache(64 * KIB)
    value = bytes(1000)

    c.set("k", value)

    assert c.get("k") is value
    assert c.get(b"k") is value, "a str key is its UTF-8"
    assert c.get("é") is None
    c.set("é", value)
    assert c.get("é".encode()) is value


def test_time_to_live() -> None:
    c = Cache(64 * KIB, ttl_s=2)
    c.set("default", b"v", now_ns=0)
    c.set("short", b"v", ttl_s=0.5, now_ns=0)
    c.set("ever", b"v", ttl_s=math.inf, now_ns=0)

    assert c.get("short", now_ns=SECOND // 2 - 1) == b"v"
    assert c.get("short", now_ns=SECOND // 2) is None
    assert c.get("default", now_ns=2 * SECOND - 1) == b"v"
    assert c.get("default", now_ns=2 * SECOND) is None
    assert c.get("default", b"none", now_ns=0) == b"none", "expired is expired, also when the clock goes back"
    assert c.get("ever", now_ns=1 << 62) == b"v"
    assert c.stats()["expired"] == 2


def test_expired_entries_are_freed_by_the_sweep_of_later_calls() -> None:
    c = Cache(1 << 20)
    for n in range(500):
        c.set(f"old{n}", b"v", ttl_s=1, now_ns=0)

    for _ in range(1100):
        c.set("new", b"v", now_ns=2 * SECOND)

    assert len(c) == 1


def test_dear_entries_outlive_cheap_ones() -> None:
    for policy in POLICIES:
        c = Cache(64 * KIB, policy)
        c.set("dear", bytes(500), cost=8)
        c.set("cheap", bytes(500), cost=1)
        n = 0
        while "cheap" in c:
            c.set(f"x{n}", bytes(500))
            n += 1
        assert "dear" in c, policy


def test_a_scan_empties_lru_but_not_s3fifo() -> None:
    survivors = {}
    for policy in POLICIES:
        c = Cache(256 * KIB, policy)
        hot = [f"hot{n}" for n in range(50)]
        for _ in range(4):
            for key in hot:
                if c.get(key) is None:
                    c.set(key, bytes(1000))
        for n in range(1000):
            c.set(f"scan{n}", bytes(1000))
        survivors[policy] = sum(key in c for key in hot)
    assert survivors["lru"] == 0
    assert survivors["s3fifo"] >= 45


def test_more_purges_than_can_wait_purge_everything() -> None:
    c = Cache(64 << 20)
    for n in range(60_000):
        c.set(str(n), b"v")
    for n in range(600):
        c.purge_prefix(f"x{n}")
    assert c.stats()["purge_overflows"] == 0 and len(c) == 60_000

    for n in range(600):
        c.purge_prefix(f"y{n}")

    # 1 200 calls have swept 76 800 entries, so a whole pass is done; more need entries to wait for.
    assert c.stats()["pending_purges"] <= 1024
    for n in range(200_000):
        c.set(f"more{n}", b"v")
    before = c.stats()["purge_overflows"]
    for n in range(1100):
        c.purge_prefix(f"z{n}")
    assert c.stats()["purge_overflows"] == before + 1
    assert c.get("more5") is None


def test_a_repeated_purge_waits_only_once() -> None:
    c = Cache(64 << 20)
    for n in range(10_000):
        c.set(str(n), b"v")

    for _ in range(50):
        c.purge_pattern("never*")
        c.purge_prefix("never*")

    assert c.stats()["pending_purges"] == 2


BAD_INIT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_bytes": 0}, ValueError, "max_bytes: expected 65536 to"),
    ({"max_bytes": -1}, ValueError, "max_bytes"),
    ({"max_bytes": 10**6000}, ValueError, "max_bytes"),
    ({"max_bytes": 1e6}, TypeError, "max_bytes"),
    ({"max_bytes": True}, TypeError, "max_bytes"),
    ({"max_bytes": 65536, "policy": "LRU"}, ValueError, "policy.*'LRU'"),
    ({"max_bytes": 65536, "policy": None}, ValueError, "policy"),
    *(
        ({"max_bytes": 65536, "ttl_s": bad}, ValueError, "ttl_s")
        for bad in (0, -1, math.nan, -math.inf, 1e10, 10**400)
    ),
    ({"max_bytes": 65536, "ttl_s": "60"}, TypeError, "ttl_s"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_INIT)
def test_bad_settings_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Cache(**arguments)


BAD_SET: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (5, b"v", {}, TypeError, "key"),
    (bytearray(b"k"), b"v", {}, TypeError, "key"),
    (None, b"v", {}, TypeError, "key"),
    ("\ud800", b"v", {}, ValueError, "key"),
    (b"k" * 65536, b"v", {}, ValueError, "key: expected 0 to 65535 bytes, got 65536"),
    ("k", "text", {}, TypeError, "value"),
    ("k", None, {"size_bytes": 1}, TypeError, "value"),
    ("k", bytearray(), {}, TypeError, "value"),
    ("k", b"v", {"size_bytes": -1}, ValueError, "size_bytes"),
    ("k", b"v", {"size_bytes": 2**48}, ValueError, "size_bytes"),
    ("k", b"v", {"ttl_s": 0}, ValueError, "ttl_s"),
    ("k", b"v", {"ttl_s": math.nan}, ValueError, "ttl_s"),
    ("k", b"v", {"cost": -1}, ValueError, "cost"),
    ("k", b"v", {"cost": math.nan}, ValueError, "cost"),
    ("k", b"v", {"cost": math.inf}, ValueError, "cost"),
    ("k", b"v", {"cost": "1"}, TypeError, "cost"),
    ("k", b"v", {"tags": "tag"}, TypeError, "tags"),
    ("k", b"v", {"tags": [5]}, TypeError, "tags"),
    ("k", b"v", {"tags": ["x" * 1025]}, ValueError, "tags"),
    ("k", b"v", {"tags": ["x"] * 256}, ValueError, "tags: expected 0 to 255, got 256"),
    ("k", b"v", {"now_ns": -1}, ValueError, "now_ns"),
    ("k", b"v", {"now_ns": 2**63}, ValueError, "now_ns"),
    ("k", b"v", {"now_ns": 1.5}, TypeError, "now_ns"),
]


@pytest.mark.parametrize(("key", "value", "more", "error", "message"), BAD_SET)
def test_bad_input_is_named_and_changes_nothing(
    key: Any, value: Any, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    c = Cache(64 * KIB)
    c.set("k", b"before", tags=["t"])
    state = (c.stats(), c._entries())

    with pytest.raises(error, match=message):
        c.set(key, value, **more)

    assert (c.stats(), c._entries()) == state
    assert c.get("k") == b"before"


@pytest.mark.parametrize("bad", ["", "[a", "[", "a\\", "[]", "[!]", "x" * 1025])
def test_bad_patterns_are_refused(bad: str) -> None:
    c = Cache(64 * KIB)
    c.set("a", b"v")

    with pytest.raises(ValueError, match="pattern"):
        c.purge_pattern(bad)

    assert "a" in c


def test_bad_reads_are_refused() -> None:
    c = Cache(64 * KIB)
    for call in (
        lambda: c.get(5),  # type: ignore[arg-type]
        lambda: c.delete(5),  # type: ignore[arg-type]
        lambda: 5 in c,  # type: ignore[operator]
        lambda: c.get("k", now_ns="x"),  # type: ignore[arg-type]
        lambda: c.purge_tag(5),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="prefix"):
        c.purge_prefix("")
    with pytest.raises(ValueError, match="max_entries"):
        c.sweep(0)


class Guest:
    """A value that uses its cache while it is being destroyed."""

    alive = 0

    def __init__(self, cache: Cache, name: str) -> None:
        self.cache, self.name = cache, name
        Guest.alive += 1

    def __del__(self) -> None:
        Guest.alive -= 1
        self.cache.get(self.name)
        self.cache.get("k1")
        self.cache.delete("k2")
        if self.name.startswith("k"):
            self.cache.set("d" + self.name, b"from a destructor", ttl_s=5, tags=["late"])
            self.cache.purge_prefix("k3")
        self.cache.sweep(10)


@pytest.mark.parametrize("policy", POLICIES)
def test_destructors_may_use_the_cache(policy: Policy) -> None:
    c = Cache(64 * KIB, policy)
    for round_number in range(300):
        for n in range(12):
            c.set(f"k{n}", Guest(c, f"k{n}"), size_bytes=5000, tags=[f"t{n % 3}"])
        c.get(f"k{round_number % 12}")
        c.purge_tag("t1")
        c.delete("k0")
        c.purge_pattern("k*5")
        if round_number % 50 == 0:
            c.clear()
        assert c.used_bytes <= c.max_bytes
    c.clear()
    while c._entries():
        c.sweep(1000)
    assert Guest.alive == 0


def test_tags_may_use_the_cache_while_they_are_listed() -> None:
    c = Cache(64 * KIB)

    def tags() -> Iterable[str]:
        yield "a"
        c.set("k", b"inner", tags=["a"])
        c.purge_tag("a")
        yield "b"

    assert c.set("k", b"outer", tags=tags())
    assert c.get("k") == b"outer"
    c.purge_tag("b")
    assert c.get("k") is None


def test_values_are_released_exactly_once() -> None:
    before = cache.live_objects()
    value = bytes(2000)
    start = sys.getrefcount(value)
    c = Cache(256 * KIB)

    for n in range(1000):
        c.set(f"k{n % 300}", value, tags=["t"], cost=n % 9)
        c.get(f"k{n % 50}")
        c.delete(f"k{n % 70}")
    c.set("large", value, size_bytes=1 << 20)
    held = len(c._entries())

    assert sys.getrefcount(value) == start + held
    c.purge_tag("t")
    while c._entries():
        c.sweep()
    assert sys.getrefcount(value) == start
    c.set("k", value)
    del c
    assert sys.getrefcount(value) == start
    assert cache.live_objects() == before


def test_threads_share_a_cache() -> None:
    c = Cache(256 * KIB)
    wrong: list[object] = []

    def work(seed: int) -> None:
        for n in range(4000):
            key = f"k{(n * 7 + seed) % 500}"
            value = c.get(key)
            if value is not None and value != key.encode() * 50:
                wrong.append((key, value))
            c.set(key, key.encode() * 50, tags=[f"t{n % 5}"])
            if n % 100 == 0:
                c.purge_tag(f"t{seed}")
                c.purge_pattern(f"k{seed}*")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    try:
        for thread in threads:
            thread.start()
    finally:
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)

    assert wrong == []
    assert c.used_bytes <= c.max_bytes


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps what was freed")
def test_resident_memory_stays_flat_under_random_sizes() -> None:
    c = Cache(16 << 20)

    def churn(rounds: int, start: int) -> None:
        for n in range(start, start + rounds):
            c.set(f"key{n * 7919 % 100_000}", bytes(n * 104_729 % 8000), tags=[f"t{n % 100}"])
            if n % 1000 == 0:
                c.purge_tag(f"t{n % 99}")
            assert c.used_bytes <= c.max_bytes

    churn(40_000, 0)
    warm = resident_bytes()
    churn(80_000, 40_000)

    assert resident_bytes() - warm < 4 << 20
