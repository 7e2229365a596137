"""Concurrency by key: never above the limit, whoever takes part, and nothing is left behind by the dead."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from fastgate._core import SharedMemory
from fastgate._core.limits.inflight import InflightTable
from tests.core.processes import Tallies, in_processes, kill, spawn


def table(capacity: int = 64, seats: int = 4) -> InflightTable:
    return InflightTable(capacity, seats, SharedMemory(InflightTable.size(capacity, seats)))


def test_exactly_the_limit_is_granted_and_a_release_makes_room() -> None:
    seat = table().for_seat(0)

    entries = [seat.acquire("a", 3) for _ in range(5)]

    assert [entry is not None for entry in entries] == [True, True, True, False, False]
    seat.release(entries[0])  # type: ignore[arg-type]
    assert seat.count("a") == 2
    assert seat.acquire("a", 3) is not None
    assert seat.acquire("b", 1) is not None


def test_seats_count_together() -> None:
    shared = table()
    one, two = shared.for_seat(1), shared.for_seat(2)

    assert one.acquire("key", 2) is not None
    assert two.acquire("key", 2) is not None

    assert one.acquire("key", 2) is None
    assert two.acquire("key", 2) is None
    assert shared.count("key") == 2


def test_a_cleared_seat_holds_nothing_and_others_keep_theirs() -> None:
    shared = table()
    one, two = shared.for_seat(1), shared.for_seat(2)
    one.acquire("key", 9)
    one.acquire("other", 9)
    entry = two.acquire("key", 9)

    assert shared.clear_seat(1) == 2

    assert shared.count("key") == 1
    assert shared.in_use == 1
    assert entry is not None
    two.release(entry)
    assert shared.in_use == 0
    assert shared.statistics()["cleared"] == 2


def test_idle_keys_make_room_for_new_ones_and_busy_ones_do_not() -> None:
    seat = table(capacity=16, seats=1).for_seat(0)
    for number in range(1000):  # 1000 keys pass through 16 places
        entry = seat.acquire(f"key {number}", 1)
        assert entry is not None
        seat.release(entry)

    held = [seat.acquire(f"held {number}", 1) for number in range(16)]

    assert None not in held
    assert seat.acquire("one more", 1) is None
    assert seat.statistics()["full"] == 1
    seat.release(held[3])  # type: ignore[arg-type]
    assert seat.acquire("one more", 1) is not None


@pytest.mark.parametrize(("capacity", "seats"), [(0, 1), (1, 0), (8_000_001, 1), (1, 4097)])
def test_shapes_out_of_range_are_refused(capacity: int, seats: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        InflightTable(capacity, seats)


def test_a_handle_without_a_seat_does_not_acquire() -> None:
    with pytest.raises(ValueError, match="for_seat"):
        table().acquire("a", 1)


def test_memory_of_another_shape_is_refused() -> None:
    memory = SharedMemory(InflightTable.size(64, 4))
    InflightTable(64, 4, memory)

    with pytest.raises(ValueError, match="holds one of"):
        InflightTable(32, 4, memory)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_processes_never_hold_more_than_the_limit(limit: int) -> None:
    shared = table(capacity=16, seats=4)
    holders = SharedMemory(8 * 4)
    words = memoryview(holders).cast("q")

    def work(number: int) -> int:
        seat = shared.for_seat(number)
        rng = random.Random(number)
        granted = 0
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            entry = seat.acquire("key", limit)
            if entry is None:
                continue
            granted += 1
            words[number] = 1
            assert sum(words) <= limit, list(words)
            if rng.random() < 0.1:
                os.sched_yield()
            words[number] = 0
            seat.release(entry)
        return granted

    granted = in_processes(4, work)

    assert sum(granted) > 0
    assert shared.in_use == 0


def test_keys_that_take_over_each_others_places_are_never_counted_for_another() -> None:
    """Four processes, far more keys than places: every take-over races with an acquire."""
    shared = table(capacity=16, seats=4)

    def work(number: int) -> int:
        seat = shared.for_seat(number)
        rng = random.Random(number)
        held: list[tuple[str, int]] = []
        granted = 0
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            if held and (len(held) >= 3 or rng.random() < 0.5):
                key, entry = held.pop(rng.randrange(len(held)))
                assert seat.count(key) >= 1
                seat.release(entry)
                continue
            key = f"key {rng.randrange(60)}"
            taken = seat.acquire(key, 4)
            if taken is not None:
                granted += 1
                held.append((key, taken))
        for _, entry in held:
            seat.release(entry)
        return granted

    assert sum(in_processes(4, work)) > 0
    assert shared.in_use == 0


@pytest.mark.parametrize("seed", range(3))
def test_processes_killed_at_random_leave_nothing_behind(seed: int) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")
    shared = table(capacity=32, seats=4)
    tallies = Tallies(4)

    def work(seat_number: int) -> None:
        seat = shared.for_seat(seat_number)
        own = random.Random(rng.random())
        held: list[int] = []
        while True:
            entry = seat.acquire(f"key {own.randrange(50)}", 2)
            if entry is not None:
                held.append(entry)
                tallies.words[seat_number] += 1
            while len(held) > own.randrange(4):
                seat.release(held.pop())

    pids = {seat: spawn(lambda seat=seat: work(seat)) for seat in range(4)}  # type: ignore[misc]
    for _ in range(40):
        time.sleep(rng.random() * 0.01)
        victim = rng.randrange(4)
        kill(pids[victim])
        shared.clear_seat(victim)
        pids[victim] = spawn(lambda: work(victim))  # noqa: B023 - forked at once
    for seat, pid in pids.items():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        shared.clear_seat(seat)

    assert shared.in_use == 0
    assert tallies.total() > 0
    seat = shared.for_seat(0)
    entries = [seat.acquire(f"key {number}", 1) for number in range(12)]
    assert None not in entries  # every place can still be used, no bucket is left locked
