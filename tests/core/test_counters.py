"""Counts in shared memory: many processes, full tables, names that meet, memory that is too small."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core.shm.counters import OCTAVES_NS, Counters
from fastgate._core.shm.shm import SharedMemory
from tests.core.processes import in_processes


def counters(slots: int = 2, capacity: int = 8) -> Counters:
    return Counters(SharedMemory(Counters.size(slots, capacity)), slots, capacity)


def test_a_series_keeps_its_place() -> None:
    table = counters()

    places = [table.series(b"route %d" % i, True) for i in range(8)]

    assert sorted(places) == list(range(1, 9))
    assert [table.series(b"route %d" % i, True) for i in range(8)] == places
    assert [table.series(b"route %d" % i) for i in range(8)] == places


def test_looking_up_adds_nothing() -> None:
    table = counters()

    assert table.series(b"unknown") == 0
    assert table.read("unknown") is None
    assert table.series(b"first", True) > 0
    assert table.series(b"unknown") == 0


def test_a_full_table_counts_the_rest_together() -> None:
    table = counters(capacity=3)
    places = [table.series(b"%d" % i, True) for i in range(5)]

    assert sorted(places[:3]) == [1, 2, 3]
    assert places[3:] == [0, 0]
    assert table.read("3") is None
    assert table.read(None) is not None


@given(st.sets(st.binary(max_size=8), max_size=40), st.integers(1, 32))
def test_names_never_share_a_place(names: set[bytes], capacity: int) -> None:
    table = counters(1, capacity)  # small tables: their names meet all the time
    places = {name: table.series(name, True) for name in names}

    taken = [place for place in places.values() if place]
    assert len(taken) == len(set(taken)) == min(len(names), capacity)
    assert {name: table.series(name) for name in names} == places


def test_processes_that_add_at_once_agree_on_the_places() -> None:
    table = counters(4, 512)
    names = [b"route %d" % i for i in range(400)]

    def work(number: int) -> int:
        order = names[number * 100 :] + names[: number * 100]
        for name in order:
            assert table.series(name, True) > 0
        return sum((i + 1) * table.series(name) for i, name in enumerate(names))

    sums = in_processes(4, work)

    places = [table.series(name) for name in names]
    assert len(set(places)) == 400
    assert sums == [sum((i + 1) * place for i, place in enumerate(places))] * 4


def test_memory_that_is_too_small_is_refused() -> None:
    size = Counters.size(2, 8)

    with pytest.raises(ValueError, match=f"memory: expected at least {size} bytes"):
        Counters(SharedMemory(4096), 2, 8)
    assert size > 4096


@pytest.mark.parametrize(("slots", "capacity"), [(0, 1), (1, 0), (-1, 5)])
def test_slots_and_capacity_are_positive(slots: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="slots and capacity: expected >= 1"):
        Counters(SharedMemory(1 << 20), slots, capacity)


def test_slots_that_do_not_exist_are_named() -> None:
    table = counters()

    for slot in (-1, 2):
        with pytest.raises(IndexError, match="expected 0 to 1"):
            table.worker_counts(slot)
        with pytest.raises(IndexError, match="expected 0 to 1"):
            table.reset_gauges(slot)


def test_fresh_counts_are_zero() -> None:
    table = counters()
    table.series(b"a", True)

    found = table.read("a")

    assert found is not None
    assert found.name == "a"
    assert found.responses == (0,) * 6
    assert not any(found.reasons)
    assert found.cumulative("duration") == (0, 0, [0] * len(OCTAVES_NS))
    assert found.quantile_ns("duration", 0.99) == 0
    assert set(table.worker_counts(1).values()) == {0}
    assert table.read_touched(["a", "unknown"]) == []


def test_octaves_are_powers_of_two() -> None:
    assert {later // earlier for earlier, later in pairwise(OCTAVES_NS)} == {2}
