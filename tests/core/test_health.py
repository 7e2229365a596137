"""HealthTable: rows that processes hold by name, and what a process leaves behind when it dies."""

from __future__ import annotations

import os
import random
import signal

import pytest

from fastgate._core.resilience.health import Health, HealthTable, HealthTableFull
from fastgate._core.shm.shm import SharedMemory
from tests.core.processes import kill, spawn

S = 1_000_000_000


def read(table: HealthTable, name: str, **how: int) -> dict[str, object]:
    found = table.read(name, **how)
    assert found is not None
    return found


def test_all_holders_of_a_name_have_one_row() -> None:
    table = HealthTable(100, 3)
    first, second = table.hold("target/a", 0), table.hold("target/a", 1)
    other = table.hold("target/b", 0)

    first.started()
    second.started()
    second.started()
    second.finished(False)

    assert first.in_flight == second.in_flight == 2
    assert other.in_flight == 0
    assert (first.requests, first.failures) == (1, 1)
    assert read(table, "target/a")["in_flight"] == 2
    assert table.read("target/c") is None


def test_a_row_says_what_it_said_when_it_is_held_again() -> None:
    table = HealthTable(100, 1)
    health = table.hold("target/a", 0)
    health.started()
    health.finished(True, 5 * S, now_ns=S)
    del health

    assert table.hold("target/a", 0).latency_ns(now_ns=S) == 5 * S


def test_latency_jumps_to_a_peak_and_falls_by_half_per_half_life() -> None:
    health = HealthTable(1, 1).hold("target/a", 0)

    health.finished(True, 100, now_ns=S, half_life_s=1)
    health.finished(True, 50, now_ns=S, half_life_s=1)
    assert health.latency_ns(now_ns=S, half_life_s=1) == 100
    assert health.latency_ns(now_ns=2 * S, half_life_s=1) == pytest.approx(50)

    health.finished(True, 200, now_ns=2 * S, half_life_s=1)
    assert health.latency_ns(now_ns=2 * S, half_life_s=1) == 200
    assert health.latency_ns(now_ns=S, half_life_s=1) == 200  # a clock that was read earlier


def test_a_row_that_is_held_keeps_its_place_and_others_give_it_up() -> None:
    table = HealthTable(4, 1)
    kept = [table.hold(f"kept/{i}", 0) for i in range(3)]
    for health in kept:
        health.started()

    for i in range(50):
        table.hold(f"passing/{i}", 0)  # not held after this line

    assert [health.in_flight for health in kept] == [1, 1, 1]
    assert all(read(table, f"kept/{i}")["in_flight"] == 1 for i in range(3))
    last = table.hold("last", 0)
    with pytest.raises(HealthTableFull, match="no place for 'too many': 4 of 4 rows"):
        table.hold("too many", 0)
    assert last.in_flight == 0
    assert table.statistics() == {"rows": 4, "capacity": 4, "failures": 1}


def test_a_name_in_a_reused_place_begins_at_zero() -> None:
    table = HealthTable(1, 1)
    old = table.hold("old", 0)
    old.started()
    old.finished(False, S)
    del old

    new = table.hold("new", 0)

    assert (new.in_flight, new.requests, new.failures, new.latency_ns()) == (0, 0, 0, 0)
    assert table.read("old") is None


def test_any_history_of_names_agrees_with_a_dict() -> None:
    chance = random.Random(3)
    table = HealthTable(64, 2)
    held: dict[str, list[Health]] = {}
    for _ in range(5000):
        name = f"name/{chance.randrange(40)}"
        action = chance.randrange(4)
        if action == 0:
            held.setdefault(name, []).append(table.hold(name, chance.randrange(2)))
        elif action == 1 and held.get(name):
            held[name].pop()
        elif held.get(name):
            health = chance.choice(held[name])
            before = health.in_flight
            health.started()
            assert all(each.in_flight == before + 1 for each in held[name])


def test_what_a_dead_process_held_and_had_in_flight_is_cleared() -> None:
    memory = SharedMemory(HealthTable.size(8, 3))
    table = HealthTable(8, 3, memory)
    mine = table.hold("target/a", 0)
    mine.started()

    def busy() -> None:
        theirs = HealthTable(8, 3, memory)
        kept = [theirs.hold("target/a", 1), theirs.hold("target/b", 1)]
        for health in kept:
            health.started()
        os.write(ready, b"x")
        signal.pause()

    is_ready, ready = os.pipe()
    pid = spawn(busy)
    os.read(is_ready, 1)
    assert mine.in_flight == 2
    kill(pid)
    table.clear_slot(1)
    os.close(is_ready)
    os.close(ready)

    assert mine.in_flight == 1
    assert read(table, "target/b")["in_flight"] == 0
    del mine
    # Nothing is held any more: every place can be had.
    kept = [table.hold(f"other/{i}", 2) for i in range(8)]
    assert len(kept) == 8


def test_a_process_killed_at_any_moment_leaves_a_table_that_works() -> None:
    memory = SharedMemory(HealthTable.size(16, 3))

    def churn() -> None:
        theirs = HealthTable(16, 3, memory)
        chance = random.Random()
        while True:
            health = theirs.hold(f"name/{chance.randrange(30)}", 1)
            health.started()
            health.finished(True, 1)

    for round_ in range(20):
        pid = spawn(churn)
        table = HealthTable(16, 3, memory)
        for i in range(200):
            health = table.hold(f"name/{i % 30}", 0)
            health.started()
            health.finished(True, 1)
        kill(pid)
        table.clear_slot(1)
        assert table.hold(f"after/{round_}", 0).in_flight == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "capacity: expected 1 to 1048576, got 0"),
        ((1, 0), "processes: expected 1 to 1024, got 0"),
        ((1, 1, SharedMemory(64)), "shared: expected at least"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HealthTable(*arguments)


def test_a_seat_must_exist() -> None:
    table = HealthTable(1, 2)
    with pytest.raises(ValueError, match=r"slot: expected 0 to 1, got 2"):
        table.hold("a", 2)
    with pytest.raises(ValueError, match="slot"):
        table.clear_slot(-1)
