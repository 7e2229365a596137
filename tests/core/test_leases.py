"""ConcurrencyLimit: never above the limit, each lease back once, also when its process dies."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import ConcurrencyLimit, Lease, SharedMemory
from fastgate._core.limits.leases import live_objects
from tests.core.processes import Tallies, in_processes, kill, spawn


def shared_limit(limit: int, capacity: int | None = None) -> ConcurrencyLimit:
    return ConcurrencyLimit(limit, SharedMemory(ConcurrencyLimit.size(capacity or limit)), capacity)


@given(
    st.integers(1, 8),
    st.integers(0, 8),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(["acquire", "acquire", "release", "drop", "with"]), st.integers(0, 20)),
        max_size=80,
    ),
)
def test_any_history_equals_a_counter(
    limit: int, more: int, shared: bool, history: list[tuple[str, int]]
) -> None:
    subject = shared_limit(limit, limit + more) if shared else ConcurrencyLimit(limit, None, limit + more)
    held: list[Lease] = []

    for verb, number in history:
        if verb in ("acquire", "with"):
            lease = subject.acquire()
            assert (lease is not None) == (len(held) < limit)
            if lease is not None and verb == "acquire":
                held.append(lease)
            elif lease is not None:
                with lease as entered:
                    assert entered.is_held
                    assert subject.in_use == len(held) + 1
                assert not lease.is_held
        elif held:
            lease = held.pop(number % len(held))
            if verb == "release":
                assert lease.release()
                assert not lease.release()
            del lease
        assert subject.in_use == len(held)


def test_a_lowered_limit_drains() -> None:
    limit = ConcurrencyLimit(10)
    held = [limit.acquire() for _ in range(10)]

    limit.set_limit(3)
    refused = limit.acquire()
    for lease in held:
        assert lease is not None
        lease.release()
    granted = [limit.acquire() for _ in range(4)]

    assert refused is None
    assert [lease is not None for lease in granted] == [True, True, True, False]


def test_a_raised_limit_admits_more_in_every_process() -> None:
    limit = shared_limit(1, 5)
    held = [limit.acquire()]

    def raise_limit(_: int) -> int:
        limit.set_limit(3)
        return 0

    in_processes(1, raise_limit)
    held += [limit.acquire() for _ in range(3)]

    assert [lease is not None for lease in held] == [True, True, True, False]


def test_four_processes_hold_exactly_the_limit_together() -> None:
    limit = shared_limit(1000)
    ready = Tallies(4)

    def work(number: int) -> int:
        held = []
        while (lease := limit.acquire()) is not None:
            held.append(lease)
        ready.words[number] = 1
        while ready.total() < 4:  # nobody lets go before everybody has been refused
            os.sched_yield()
        return len(held)

    granted = in_processes(4, work)

    assert sum(granted) == 1000
    assert limit.in_use == 0


def test_four_processes_never_hold_more_than_the_limit_at_once() -> None:
    limit = shared_limit(3)
    inside = memoryview(SharedMemory(8 * 4)).cast("q")

    def work(number: int) -> int:
        worst = 0
        for _ in range(5_000):
            lease = limit.acquire()
            if lease is None:
                continue
            inside[number] = 1
            worst = max(worst, sum(inside))
            inside[number] = 0
            lease.release()
        return worst

    assert max(in_processes(4, work)) <= 3
    assert limit.in_use == 0


def test_four_threads_never_lose_a_lease() -> None:
    limit = ConcurrencyLimit(3)

    def work() -> None:
        for _ in range(5_000):
            lease = limit.acquire()
            if lease is not None:
                lease.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert limit.in_use == 0
    held = [limit.acquire() for _ in range(3)]
    assert None not in held


def test_a_killed_processs_leases_come_back_within_a_second() -> None:
    limit = shared_limit(5)
    holding = Tallies(1)

    def work() -> None:
        held = [limit.acquire() for _ in range(5)]
        holding.words[0] = len(held)
        threading.Event().wait()

    pid = spawn(work)
    while not holding.total():
        os.sched_yield()
    assert limit.acquire() is None
    kill(pid)
    deadline = time.monotonic() + 60  # who is alive is looked up a few times a second

    while (lease := limit.acquire()) is None:
        assert time.monotonic() < deadline
    assert lease.is_held
    assert limit.in_use == 1


def test_a_zombies_leases_come_back() -> None:
    limit = shared_limit(1)

    def work() -> None:
        lease = limit.acquire()
        os.kill(os.getpid(), 9 if lease else 15)

    pid = spawn(work)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, but not collected

    reaped = limit.reap()

    os.waitpid(pid, 0)
    assert reaped == 1
    assert limit.acquire() is not None


def kill_holders(rounds: int, seed: int) -> None:
    randomly = random.Random(seed)
    limit = shared_limit(8)

    def work() -> None:
        held: list[Lease] = []
        while True:
            lease = limit.acquire()
            if lease is not None:
                held.append(lease)
            elif held:
                held.pop().release()
            if len(held) > 4:
                held.clear()

    children = [spawn(work) for _ in range(3)]
    for _ in range(rounds):
        threading.Event().wait(randomly.random() * 0.003)
        kill(children.pop(randomly.randrange(3)))
        children.append(spawn(work))
    for pid in children:
        kill(pid)

    assert limit.in_use == 0
    held = [limit.acquire() for _ in range(9)]
    assert sum(lease is not None for lease in held) == 8


def test_a_process_killed_anywhere_leaves_no_lease_behind() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    kill_holders(3000 if os.environ.get("FASTGATE_SOAK") else 120, seed)


@pytest.mark.soak
def test_thousands_of_kills_leave_no_lease_behind() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    kill_holders(5000, seed)


@pytest.mark.parametrize("shared", [True, False])
def test_a_forked_copy_of_a_lease_is_the_parents(shared: bool) -> None:
    limit = shared_limit(1) if shared else ConcurrencyLimit(1)
    lease = limit.acquire()
    assert lease is not None

    in_child = in_processes(1, lambda _: 10 * lease.release() + (limit.acquire() is not None))

    # A private limit starts empty in the child, a shared one is full there too.
    assert in_child == [0 if shared else 1]
    assert lease.release()


def test_a_dropped_lease_is_given_back() -> None:
    limit = ConcurrencyLimit(1)
    lease = limit.acquire()

    del lease
    gc.collect()

    assert limit.acquire() is not None


def test_a_lease_keeps_its_limit_alive() -> None:
    lease = ConcurrencyLimit(1).acquire()
    gc.collect()

    assert lease is not None
    assert lease.release()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ConcurrencyLimit(0), ValueError, "limit: expected 1 to 1000000, got 0"),
        (lambda: ConcurrencyLimit(5, None, 4), ValueError, "limit: expected 1 to 4, got 5"),
        (lambda: ConcurrencyLimit(1, None, 2**70), ValueError, "capacity"),
        (lambda: ConcurrencyLimit(1.0), TypeError, "limit: expected an int"),  # type: ignore[arg-type]
        (
            lambda: ConcurrencyLimit(9, SharedMemory(8)),
            ValueError,
            "shared: expected at least 136 bytes for 9 leases",
        ),
        (lambda: ConcurrencyLimit(3).set_limit(4), ValueError, "limit: expected 1 to 3, got 4"),
        (lambda: ConcurrencyLimit(3).set_limit(0), ValueError, "limit"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_another_limit_in_the_same_memory_is_refused() -> None:
    memory = SharedMemory(4096)
    ConcurrencyLimit(5, memory)

    with pytest.raises(ValueError, match="shared: it holds a limit of capacity 5, expected 6"):
        ConcurrencyLimit(6, memory)
    with pytest.raises(ValueError, match="shared: it holds a limit of 5, got 4"):
        ConcurrencyLimit(4, memory, 5)


def test_a_lease_made_by_hand_holds_nothing() -> None:
    lease = Lease()

    assert not lease.is_held
    assert not lease.release()


def test_no_lease_outlives_its_use() -> None:
    limit = ConcurrencyLimit(5)
    before = live_objects()

    for _ in range(1000):
        lease = limit.acquire()
    del lease
    gc.collect()

    assert live_objects() == before
