"""Shares of a LimiterTable: a flood of keys of one rule or source leaves the others room and counts.

The shares hold for almost every secret: with one in 1024 two rules get the same number and count as one. The
tests use one secret, so that they do not fail by chance.
"""

from __future__ import annotations

import os
import random

import pytest

from fastgate._core import FixedWindow, KeyedLimiter, LimiterTable, SharedMemory
from tests.core.processes import in_processes

NOW = 1_000_000_000_000
CAPACITY = 4000
DAY = 86_400


@pytest.fixture(autouse=True)
def _one_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", random.Random(1).randbytes)


def limiter(table: LimiterTable, scope: str, limit: int = 10, when_full: str = "share") -> KeyedLimiter:
    return KeyedLimiter(FixedWindow(limit, DAY), table=table, scope=scope, when_full=when_full)


def flood(subject: KeyedLimiter, keys: int = 20 * CAPACITY, source: str | None = None, uses: int = 1) -> int:
    """How many of so many new keys were taken."""
    taken = 0
    for number in range(keys):
        said = [subject.take(f"flood {number}", 1, NOW, source=source) for _ in range(uses)]
        taken += bool(said[0])
    return taken


def granted(subject: KeyedLimiter, keys: int, *, sources: int = 1000) -> int:
    return sum(
        bool(subject.take(f"client {number}", 1, NOW, source=f"network {number % sources}"))
        for number in range(keys)
    )


@pytest.mark.parametrize("uses", [1, 3])
@pytest.mark.parametrize("when_full", ["refuse", "share", "evict"])
def test_new_keys_of_other_rules_find_room_in_a_flood(when_full: str, uses: int) -> None:
    table = LimiterTable(CAPACITY)
    flood(limiter(table, "flooded", when_full=when_full), 5 * CAPACITY, "one network", uses)

    assert granted(limiter(table, "other"), CAPACITY // 8) == CAPACITY // 8
    assert granted(limiter(table, "third"), CAPACITY // 8) >= 0.99 * (CAPACITY // 8)
    assert table.audit() == []


@pytest.mark.parametrize("rules", [2, 5, 7])
def test_a_flood_of_several_rules_leaves_room_too(rules: int) -> None:
    table = LimiterTable(CAPACITY)
    for number in range(rules):
        flood(limiter(table, f"flooded {number}"), 3 * CAPACITY, f"network {number}")

    assert granted(limiter(table, "other"), CAPACITY // 100) >= 0.85 * (CAPACITY // 100)


@pytest.mark.parametrize("when_full", ["refuse", "share", "evict"])
def test_the_counts_of_other_rules_survive_a_flood_exactly(when_full: str) -> None:
    table = LimiterTable(CAPACITY)
    clients = limiter(table, "clients", when_full="refuse")
    used = {f"client {number}": number % 10 + 1 for number in range(CAPACITY // 40)}
    for key, count in used.items():
        for _ in range(count):
            assert clients.take(key, 1, NOW)

    flood(limiter(table, "flooded", when_full=when_full), source="one network")
    granted(limiter(table, "other"), CAPACITY)  # displaces, and may not displace these

    assert {key: 10 - clients.peek(key, 10, NOW).remaining for key in used} == used


def test_a_network_that_floods_a_rule_leaves_room_to_the_others_in_the_same_rule() -> None:
    table = LimiterTable(CAPACITY)
    shared = limiter(table, "shared")
    taken = flood(shared, source="one network")

    assert taken > CAPACITY
    assert granted(shared, CAPACITY // 10) >= 0.99 * (CAPACITY // 10)
    assert not flood(limiter(table, "shared"), 100, "one network") > 90


def test_what_is_used_much_is_displaced_last() -> None:
    table = LimiterTable(CAPACITY)
    shared = limiter(table, "shared", limit=20)
    for number in range(CAPACITY // 4):
        for _ in range(12):
            assert shared.take(f"regular {number}", 1, NOW, source="one network")
    flood(shared, source="one network")
    granted(shared, CAPACITY // 4)
    granted(limiter(table, "other"), CAPACITY // 4)

    forgotten = sum(shared.peek(f"regular {number}", 1, NOW).remaining > 9 for number in range(CAPACITY // 4))
    assert table.counts()["displaced"] > CAPACITY // 8
    assert forgotten == 0


def test_evicting_takes_from_the_own_rule() -> None:
    table = LimiterTable(CAPACITY)
    clients = limiter(table, "clients", limit=1)
    assert granted(clients, CAPACITY // 4) == CAPACITY // 4

    assert flood(limiter(table, "flooded", when_full="evict"), source="one network") == 20 * CAPACITY
    assert granted(clients, CAPACITY // 4) == 0
    assert table.counts()["evicted"] > 10 * CAPACITY


def test_what_refuses_forgets_nothing_and_shares_by_source() -> None:
    table = LimiterTable(CAPACITY)
    nonces = limiter(table, "nonces", limit=1, when_full="refuse")
    first = [nonce for nonce in range(5 * CAPACITY) if nonces.take(f"a {nonce}", 1, NOW, source="a")]

    other = [nonce for nonce in range(CAPACITY // 40) if nonces.take(f"b {nonce}", 1, NOW, source="b")]

    assert len(other) >= 0.97 * (CAPACITY // 40)
    assert not any(nonces.take(f"a {nonce}", 1, NOW, source="a") for nonce in first)
    assert not any(nonces.take(f"b {nonce}", 1, NOW, source="b") for nonce in other)
    counts = table.counts()
    assert counts["evicted"] == counts["displaced"] == 0
    assert counts["over_share"] > CAPACITY


def test_one_rule_may_use_the_whole_capacity() -> None:
    table = LimiterTable(CAPACITY)
    alone = limiter(table, "alone", when_full="refuse")

    refused = CAPACITY - granted(alone, CAPACITY, sources=CAPACITY)

    assert refused <= 4  # 3 in 100 000 on average, whatever the secret


def test_displacing_ends_so_that_nothing_is_forgotten_again_and_again() -> None:
    table = LimiterTable(CAPACITY)
    shared = limiter(table, "shared")
    flood(shared, source="network 0")
    for number in range(1, 200):
        for key in range(200):
            shared.take(f"{number} {key}", 1, NOW, source=f"network {number}")
    before = table.counts()["displaced"]

    for number in range(1, 200):
        for key in range(200):
            shared.take(f"{number} again {key}", 1, NOW, source=f"network {number}")

    assert table.counts()["displaced"] - before < before / 10


def test_a_flood_by_several_processes_keeps_the_table_whole() -> None:
    memory = SharedMemory(LimiterTable.size(CAPACITY, 5, 8))
    table = LimiterTable(CAPACITY, 5, memory, 8)
    clients = limiter(table, "clients", when_full="refuse")
    for number in range(30):
        clients.take(f"client {number}", 4, NOW)

    def work(worker: int) -> int:
        mine = LimiterTable(CAPACITY, 5, memory, 8)
        rng = random.Random(worker)
        rules = [limiter(mine, f"rule {number}", when_full="share") for number in range(4)]
        for _ in range(40_000):
            source = f"network {rng.randrange(3)}"
            rng.choice(rules).take(f"key {rng.randrange(50_000)}", 1, NOW, source=source)
        return 0

    in_processes(4, work)

    assert table.audit() == []
    # So few that no sixteen slots hold as many of them as of a flooded rule, whose keys are displaced first.
    assert [clients.peek(f"client {number}", 1, NOW).remaining for number in range(30)] == [5] * 30
