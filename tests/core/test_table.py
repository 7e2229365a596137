"""LimiterTable: the deaths that random kills rarely hit, by hand; and what it refuses to open."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from fastgate._core import FixedWindow, KeyedLimiter, LimiterTable, SharedMemory
from fastgate._core.shm.owners import is_owner_alive, owner
from tests.core.processes import in_processes
from tests.core.test_limits import NOW

HEADER, OWNER = 32, 8  # words
IDENT, SPARE, FLIGHT, OLD, NEW = range(5)
DEAD = 1 << 22 | 4_000_000  # a pid above pid_max of most hosts, started one tick after boot
RECORD = 0xFFFFFF
VERSION = 1 << 33


class Bench:
    """A table with two places: ours, and one that a dead process seems to hold."""

    def __init__(self) -> None:
        self.memory = SharedMemory(LimiterTable.size(8, 5, 4))
        self.words = memoryview(self.memory).cast("Q")
        self.table = LimiterTable(8, 5, self.memory, 4)
        self.limiter = KeyedLimiter(FixedWindow(100, 1e6), table=self.table)
        self.limiter.take("a", 1, NOW)
        self.slots = self.words[2]
        index = HEADER + 4 * OWNER
        self.slot = next(slot for slot in range(self.slots) if self.words[index + slot] & (0xFF << 24))
        self.head_at = index + self.slot
        self.records_at = index + self.slots

    @property
    def head(self) -> int:
        return self.words[self.head_at]

    def dead(self, field: int) -> int:
        return HEADER + 1 * OWNER + field

    def die_in_flight(self) -> tuple[int, int]:
        """Place 1 has written its spare (a second take of "a") and announced the swing; (old, new) heads."""
        spare = self.slots + 1 + 1
        old = self.head
        current = self.records_at + ((old & RECORD) or self.slot + 1) * 8
        mine = self.records_at + spare * 8
        for word in range(8):
            self.words[mine + word] = self.words[current + word]
        self.words[mine + 2] = (2 << 54) | (self.words[current + 2] & ((1 << 54) - 1))
        self.words[mine + 4] += 1  # one more used in the window
        new = (old & ~(VERSION - 1)) + VERSION | (old & (0xFF << 24)) | spare
        for field, value in ((IDENT, DEAD), (SPARE, spare), (OLD, old), (NEW, new), (FLIGHT, self.slot + 1)):
            self.words[self.dead(field)] = value
        return old, new

    def check(self, used: int) -> None:
        assert self.table.audit() == []
        assert self.limiter.peek("a", 1, NOW).remaining == 99 - used
        # Somebody takes over the dead place and works on every key.
        heirs = [
            KeyedLimiter(FixedWindow(100, 1e6), table=LimiterTable(8, 5, self.memory, 4)) for _ in range(3)
        ]
        for heir in heirs:
            for key in "abcdefgh":
                assert heir.take(key, 1, NOW).allowed
        assert self.table.audit() == []
        assert self.limiter.peek("a", 1, NOW).remaining == 99 - used - 3


def test_death_before_the_swing_leaves_the_decision_undone() -> None:
    bench = Bench()

    bench.die_in_flight()

    bench.check(used=1)


def test_death_after_the_swing_leaves_the_decision_done() -> None:
    bench = Bench()
    _, new = bench.die_in_flight()

    bench.words[bench.head_at] = new

    bench.check(used=2)


def test_death_after_the_swing_and_another_take_since() -> None:
    bench = Bench()
    _, new = bench.die_in_flight()
    bench.words[bench.head_at] = new

    bench.limiter.take("a", 1, NOW)  # our spare is now the record the dead one wrote

    bench.check(used=3)


def test_death_after_the_swing_and_the_record_reused_since() -> None:
    bench = Bench()
    _, new = bench.die_in_flight()
    bench.words[bench.head_at] = new

    bench.limiter.take("a", 1, NOW)
    bench.limiter.take("b", 1, NOW)
    bench.limiter.take("a", 1, NOW)

    bench.check(used=4)


def test_death_before_the_swing_and_another_take_since() -> None:
    bench = Bench()
    bench.die_in_flight()

    bench.limiter.take("a", 1, NOW)

    bench.check(used=2)


def test_death_between_the_bookkeeping_stores() -> None:
    bench = Bench()
    old, new = bench.die_in_flight()
    bench.words[bench.head_at] = new
    bench.words[bench.dead(SPARE)] = (old & RECORD) or bench.slot + 1

    bench.check(used=2)


def test_a_pending_entry_of_a_dead_process_is_removed_by_the_same_key() -> None:
    bench = Bench()
    bench.words[bench.head_at] = bench.head | 1 << 32

    assert bench.limiter.take("a", 1, NOW).remaining == 99
    assert bench.limiter.take("a", 1, NOW).remaining == 98
    assert bench.table.audit() == []


def test_the_place_of_a_dead_process_is_taken_over() -> None:
    memory = SharedMemory(LimiterTable.size(8, 5, 1))

    def take(_: int) -> int:
        return (
            KeyedLimiter(FixedWindow(9, 1e6), table=LimiterTable(8, 5, memory, 1)).take("a", 1, NOW).remaining
        )

    remaining = [in_processes(1, take)[0] for _ in range(3)]

    assert remaining == [8, 7, 6]


def test_more_processes_than_places_is_an_error() -> None:
    memory = SharedMemory(LimiterTable.size(8, 5, 1))
    first = LimiterTable(8, 5, memory, 1)

    with pytest.raises(RuntimeError, match="processes: all 1 places of the table are in use"):
        LimiterTable(8, 5, memory, 1)

    del first
    assert LimiterTable(8, 5, memory, 1).audit() == []


def test_a_table_half_laid_out_by_a_dead_process_is_laid_out_again() -> None:
    memory = SharedMemory(LimiterTable.size(8))
    words = memoryview(memory).cast("Q")
    words[0], words[1], words[2] = DEAD, 1, 77

    table = LimiterTable(8, shared=memory)

    assert KeyedLimiter(FixedWindow(9, 1e6), table=table).take("a", 1, NOW).allowed


def test_times_from_before_a_restart_of_the_host_are_dropped() -> None:
    bench = Bench()
    bench.words[7] ^= 2  # the name of the boot

    table = LimiterTable(8, 5, bench.memory, 4)

    assert table.statistics()["entries"] == 0
    assert KeyedLimiter(FixedWindow(100, 1e6), table=table).take("a", 1, NOW).remaining == 99


@pytest.mark.parametrize(("capacity", "state_words", "processes"), [(6, 5, 4), (8, 13, 4), (8, 5, 3)])
def test_a_table_of_another_shape_is_refused(capacity: int, state_words: int, processes: int) -> None:
    memory = SharedMemory(1 << 20)
    LimiterTable(80, 5, memory, 4)

    with pytest.raises(ValueError, match="shared: expected a table of layout"):
        LimiterTable(capacity, state_words, memory, processes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "capacity: expected 1 to 9000000, got 0"),
        ((10, 0), "state_words: expected 1 to 29, got 0"),
        ((10, 30), "state_words"),
        ((10, 5, None, 0), "processes: expected 1 to 1000, got 0"),
        ((10, 5, None, 1001), "processes"),
    ],
)
def test_bad_shapes_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LimiterTable(*arguments)


def test_an_owner_is_alive_until_its_process_ends() -> None:
    mine = owner()
    in_child = in_processes(1, lambda _: owner())[0]

    assert is_owner_alive(mine)
    assert mine & 0x3FFFFF
    assert in_child != mine
    assert not is_owner_alive(in_child)
    assert not is_owner_alive(mine ^ 1 << 22)  # the same pid, started at another time
    assert in_processes(1, lambda _: is_owner_alive(mine)) == [1]


def test_a_shared_table_in_a_garbage_cycle_is_given_back_in_good_order() -> None:
    for _ in range(3):
        ring: dict[str, object] = {"table": LimiterTable(1024, 5, SharedMemory(LimiterTable.size(1024)))}
        KeyedLimiter(FixedWindow(5, 60), table=ring["table"]).take("key")  # type: ignore[arg-type]
        ring["itself"] = ring
        del ring

        assert gc.collect() > 0
