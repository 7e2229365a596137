"""The runtime table: names keep their slots from plan to plan, values are read by all, whoever is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgate._core import SharedMemory
from fastgate._core.shm.runtime import RuntimeTable, RuntimeTableFull
from tests.core.processes import in_processes, kill, spawn


def test_an_unset_name_reads_as_the_value_of_the_plan() -> None:
    table = RuntimeTable(8)
    table.assign(["a"], 1)
    value, other = table.value("a", 7), table.value("nowhere", 9)

    assert (value.get(), other.get(), table.get("a")) == (7, 9, None)
    table.set("a", -3)
    assert (value.get(), table.value("a", 8).get(), table.get("a")) == (-3, -3, -3)
    table.reset("a")
    assert (value.get(), table.value("a", 8).get(), other.get()) == (7, 8, 9)


def test_a_name_without_a_slot_cannot_be_set() -> None:
    table = RuntimeTable(8)

    for call in (lambda: table.set("a", 1), lambda: table.reset("a"), lambda: table.get("a")):
        with pytest.raises(LookupError, match="there is no runtime value 'a'"):
            call()


@pytest.mark.parametrize("wrong", [2**63, -(2**63), -(2**63) - 1])
def test_a_value_has_64_bits_without_the_smallest(wrong: int) -> None:
    table = RuntimeTable(8)
    table.assign(["a"], 1)

    with pytest.raises(ValueError, match="value: expected"):
        table.set("a", wrong)
    with pytest.raises(ValueError, match="default: expected"):
        table.value("a", wrong)
    for most in (2**63 - 1, -(2**63) + 1):
        table.set("a", most)
        assert table.get("a") == most


def test_a_name_keeps_its_value_from_plan_to_plan() -> None:
    table = RuntimeTable(8)
    table.assign(["a", "b"], 1)
    first = table.value("a", 0)
    table.set("a", 5)

    table.assign(["c", "a"], 2)
    assert table.release(2, 2)

    assert (first.get(), table.value("a", 0).get(), table.get("c")) == (5, 5, None)
    assert len(table) == 2
    with pytest.raises(LookupError):
        table.get("b")


def test_a_slot_is_freed_when_the_last_plan_with_the_name_is_left() -> None:
    table = RuntimeTable(2)
    table.assign(["a", "b"], 1)
    table.set("b", 5)
    old = table.value("b", 0)
    table.assign(["a"], 2)

    assert table.release(1, 2)
    assert old.get() == 5
    with pytest.raises(RuntimeTableFull):
        table.assign(["a", "c"], 3)
    assert table.release(2, 2)

    assert old.get() == 0
    table.assign(["a", "c"], 3)
    assert table.get("c") is None


def test_a_refused_plan_leaves_nothing_behind() -> None:
    table = RuntimeTable(4)
    table.assign(["a"], 1)
    table.set("a", 5)

    for version in range(2, 50):
        table.assign(["a", f"x{version}", f"y{version}"], version)
        assert table.release(1, 1)

    assert (len(table), table.get("a")) == (1, 5)


def test_names_that_do_not_fit_change_nothing_and_are_counted() -> None:
    table = RuntimeTable(3)
    table.assign(["a", "b"], 1)

    with pytest.raises(
        RuntimeTableFull, match="all 3 slots are taken: 3 names, 2 of them new, and 1 slots free"
    ):
        table.assign(["b", "c", "d", "c"], 2)

    assert table.statistics() == {"slots": 2, "capacity": 3, "failures": 1}
    table.assign(["c"], 2)
    assert len(table) == 3


def test_memory_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="shared: expected at least"):
        RuntimeTable(100, SharedMemory(100))
    with pytest.raises(ValueError, match="capacity: expected 1 to"):
        RuntimeTable(0)


steps = st.lists(
    st.tuples(
        st.sampled_from(["plan", "plan", "refused", "set", "set", "reset"]),
        st.sets(st.integers(0, 12), max_size=8),
        st.integers(-5, 5),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_it_is_a_dict_through_plans_and_refusals(steps: list[tuple[str, set[int], int]]) -> None:
    table = RuntimeTable(12)
    version, current = 1, 1
    values: dict[str, int | None] = {}

    for step, numbers, number in steps:
        names = {f"name {i}" for i in numbers}
        if step in ("plan", "refused"):
            version += 1
            try:
                table.assign(names, version)
            except RuntimeTableFull:
                assert len(values.keys() | names) > 12
                continue
            if step == "plan":
                current = version
                values = {name: values.get(name) for name in names}
            assert table.release(current, current)
        else:
            for name in names:
                if name in values:
                    values[name] = number if step == "set" else None
                    table.set(name, number) if step == "set" else table.reset(name)
                else:
                    with pytest.raises(LookupError):
                        table.set(name, number)
        assert {name: table.get(name) for name in values} == values
        assert len(table) == len(values)


def test_a_value_never_goes_to_a_name_that_took_over_its_slot() -> None:
    table = RuntimeTable(2, SharedMemory(RuntimeTable.size(2)))
    done = memoryview(SharedMemory(8)).cast("q")
    table.assign(["even"], 0)

    def work(number: int) -> int:
        if number == 0:
            for version in range(1, 4000):
                table.assign(["even" if version % 2 == 0 else "odd"], version)
                while not table.release(version, version):
                    pass
                if table.get("even" if version % 2 == 0 else "odd") not in (None, version % 2):
                    done[0] = 1
                    return 1
            done[0] = 1
            return 0
        while not done[0]:
            for name, value in (("even", 0), ("odd", 1)):
                with contextlib.suppress(LookupError):
                    table.set(name, value)
        return 0

    assert in_processes(2, work) == [0, 0]


def test_a_writer_killed_anywhere_holds_nothing_up() -> None:
    table = RuntimeTable(64, SharedMemory(RuntimeTable.size(64)))
    names = [f"name {i}" for i in range(50)]
    table.assign(names, 1)
    values = [table.value(name, 0) for name in names]
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)

    def write() -> None:
        while True:
            for number, name in enumerate(names):
                table.set(name, number + 1)

    for version in range(2, 40):
        writer = spawn(write)
        while values[-1].get() == 0:
            time.sleep(0)
        time.sleep(rng.random() * 0.002)
        kill(writer)
        assert table.release(1, version)
        assert all(value.get() in (0, number + 1) for number, value in enumerate(values))
        table.set(names[-1], 0)


def test_a_stopped_writer_does_not_hold_up_the_one_who_assigns() -> None:
    table = RuntimeTable(8, SharedMemory(RuntimeTable.size(8)))
    table.assign(["a"], 1)

    def write() -> None:
        while True:
            table.set("a", 1)

    writer = spawn(write)
    try:
        while table.get("a") != 1:
            time.sleep(0)
        for version in range(2, 200):
            os.kill(writer, signal.SIGSTOP)
            os.waitpid(writer, os.WUNTRACED)
            table.assign(["a", f"other {version}"], version)
            table.release(version, version)  # returns, whether or not the stopped process holds the lock
            os.kill(writer, signal.SIGCONT)
            while not table.release(version, version):
                pass
        assert len(table) == 2
    finally:
        kill(writer)
