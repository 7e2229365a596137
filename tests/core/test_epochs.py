"""Epochs: a purge is in force everywhere when its call returns, and one process at a time makes a key."""

from __future__ import annotations

import fnmatch
import os
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import Cache, SharedMemory
from fastgate._core.shm.epochs import Epochs, Fill
from tests.core.processes import Tallies, in_processes, kill, spawn

SECOND = 1_000_000_000


def shared_epochs(purges: int = 64, fills: int = 1024) -> Epochs:
    return Epochs(purges, fills, SharedMemory(Epochs.size(purges, fills)))


# ── purges

TEXT = st.text("ab/*", min_size=1, max_size=4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["key", "tag", "prefix", "pattern", "all", "look", "look"]),
            TEXT,
            st.integers(0, 20),
        ),
        max_size=40,
    )
)
def test_concerns_equals_a_list_of_purges(history: list[tuple[str, str, int]]) -> None:
    epochs = Epochs(16, 64)
    log: list[tuple[str, str]] = []

    for verb, text, back in history:
        if verb != "look":
            sequence = epochs.purge_all() if verb == "all" else getattr(epochs, f"purge_{verb}")(text)
            log.append((verb, text))
            assert sequence == epochs.sequence == epochs.start + len(log)
            continue
        since = max(0, len(log) - back)
        expected = len(log) - since > 16 or any(
            verb == "all"
            or (verb == "key" and key == text)
            or (verb == "tag" and key == "a")
            or (verb == "prefix" and text.startswith(key))
            or (verb == "pattern" and fnmatch.fnmatchcase(text, key))
            for verb, key in log[since:]
        )
        assert epochs.concerns(text, ["a", "x"], epochs.start + since) == expected


@pytest.mark.parametrize(
    ("purge", "left"),
    [
        (lambda e: e.purge_all(), set()),
        (lambda e: e.purge_key("/a/1"), {"/a/2", "/b/1"}),
        (lambda e: e.purge_tag("even"), {"/a/1", "/b/1"}),
        (lambda e: e.purge_prefix("/a/"), {"/b/1"}),
        (lambda e: e.purge_pattern("/?/1"), {"/a/2"}),
    ],
)
def test_a_cache_carries_out_what_it_has_not_seen(purge: object, left: set[str]) -> None:
    epochs = Epochs(16, 64)
    cache = Cache(1 << 20)
    seen = epochs.sequence
    for key, tags in (("/a/1", []), ("/a/2", ["even"]), ("/b/1", [])):
        cache.set(key, b"x", tags=tags)

    purge(epochs)  # type: ignore[operator]
    seen = epochs.apply(cache, seen)

    assert {key for key in ("/a/1", "/a/2", "/b/1") if key in cache} == left
    assert seen == epochs.sequence
    cache.set("/a/1", b"new")
    assert epochs.apply(cache, seen) == seen
    assert "/a/1" in cache


def test_a_cache_that_slept_through_the_ring_is_cleared() -> None:
    epochs = Epochs(16, 64)
    cache = Cache(1 << 20)
    seen = epochs.sequence
    cache.set("k", b"v")

    for _ in range(17):
        epochs.purge_key("other")

    assert epochs.since(seen) is None
    assert epochs.concerns("k", (), seen)
    assert epochs.apply(cache, seen) == epochs.sequence
    assert "k" not in cache


def test_numbers_of_earlier_runs_are_before_every_purge_of_this_one() -> None:
    before = Epochs(16, 64)
    old = before.purge_key("k")

    now = Epochs(16, 64)

    assert now.start >= old
    assert not now.concerns("k", (), old)  # nothing was purged in this run yet
    now.purge_key("k")
    assert now.concerns("k", (), old)
    assert now.concerns("k", (), now.sequence + 10**12)  # the clock was set back between the runs


def test_a_key_too_long_for_a_record_is_purged_as_a_prefix() -> None:
    epochs = Epochs(16, 64)
    since = epochs.sequence

    epochs.purge_key("k" * 2000)

    assert epochs.concerns("k" * 2000, (), since)
    assert not epochs.concerns("k" * 1000, (), since)


def test_bad_arguments_change_nothing() -> None:
    epochs = Epochs(16, 64)
    for bad in ("[a", "a\\"):
        with pytest.raises(ValueError, match="pattern"):
            epochs.purge_pattern(bad)
    with pytest.raises(ValueError, match="tag"):
        epochs.purge_tag("t" * 1025)
    with pytest.raises(TypeError):
        epochs.purge_prefix(3)  # type: ignore[arg-type]
    assert epochs.sequence == epochs.start


def test_memory_of_another_size_is_refused() -> None:
    memory = SharedMemory(Epochs.size(64, 1024))
    Epochs(32, 1024, memory)

    with pytest.raises(ValueError, match="32 purges and 1024 fills"):
        Epochs(64, 1024, memory)
    with pytest.raises(ValueError, match="at least"):
        Epochs(128, 1024, memory)


def test_the_disk_store_never_claims_more_than_was_purged() -> None:
    epochs = Epochs(16, 64)
    first = epochs.purge_key("a")
    second = epochs.purge_key("b")

    epochs.set_applied(first)
    assert epochs.applied == first
    epochs.set_applied(second + 100)
    assert epochs.applied == second
    epochs.set_applied(first)
    assert epochs.applied == second


def test_purges_of_four_processes_are_all_seen_whole_and_in_order() -> None:
    epochs = shared_epochs(purges=4096)
    start = epochs.sequence

    def work(number: int) -> int:
        for i in range(500):
            epochs.purge_tag(f"{number}:{i}:" + "x" * (i % 900))
        return 0

    in_processes(4, work)
    records = epochs.since(start)

    assert records is not None
    assert [record.sequence for record in records] == list(range(start + 1, start + 2001))
    for number in range(4):
        mine = [record.text for record in records if record.text.startswith(b"%d:" % number)]
        assert mine == [f"{number}:{i}:".encode() + b"x" * (i % 900) for i in range(500)]


def test_a_reader_of_a_ring_that_is_overwritten_never_sees_half_a_record() -> None:
    epochs = shared_epochs(purges=16)
    stop = memoryview(SharedMemory(8)).cast("q")

    def write() -> None:
        length = 0
        while not stop[0]:
            length = (length + 1) % 10
            epochs.purge_tag(str(length) * (length * 100 + 1))

    writers = [spawn(write), spawn(write)]
    looked = torn = 0
    until = time.monotonic() + 1
    while time.monotonic() < until or looked <= 1000:  # a loaded machine may need longer
        for record in epochs.since(epochs.sequence - 15) or ():
            looked += 1
            digit = record.text[:1]
            torn += record.text != digit * (int(digit) * 100 + 1)
    stop[0] = 1
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in writers]

    assert codes == [0, 0]
    assert looked > 1000
    assert torn == 0


def test_a_purge_that_returned_is_seen_by_every_process_at_once() -> None:
    epochs = shared_epochs(purges=4096)
    told = memoryview(SharedMemory(8)).cast("q")
    origin = memoryview(SharedMemory(8)).cast("q")

    def read() -> None:
        cache = Cache(1 << 20)
        seen = epochs.sequence
        version = 0
        while version < 2000:
            version = told[0]  # the purge of everything older has returned
            if seen != epochs.sequence:
                seen = epochs.apply(cache, seen)
            value = cache.get("k")
            assert value is None or int(value) >= version
            began = epochs.sequence
            fresh = origin[0]
            if not epochs.concerns("k", (), began):
                cache.set("k", b"%d" % fresh)

    readers = [spawn(read), spawn(read)]
    for version in range(1, 2001):
        origin[0] = version
        epochs.purge_key("k")
        told[0] = version
        if version % 100 == 0:
            os.sched_yield()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in readers]

    assert codes == [0, 0]


def test_processes_killed_while_they_purge_hold_up_nobody() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    epochs = shared_epochs(purges=64)
    done = Tallies(20)

    def work(number: int) -> None:
        while True:
            epochs.purge_tag("t" * 1000)
            done.words[number] += 1

    for number in range(20):
        pid = spawn(lambda number=number: work(number))  # type: ignore[misc]
        time.sleep(dice.random() * 0.03)
        kill(pid)
        before = epochs.sequence
        assert epochs.purge_key("mine") == before + 1

    purged = epochs.sequence - epochs.start - 20
    assert done.total() <= purged <= done.total() + 20


# ── fills


def test_one_leads_and_the_others_wait() -> None:
    epochs = Epochs(16, 64)

    fill = epochs.lead("k")

    assert isinstance(fill, Fill)
    assert epochs.lead("k") is None
    assert epochs.busy("k")
    assert not epochs.busy("other")
    assert fill.done()
    assert not fill.done()
    assert not epochs.busy("k")
    assert isinstance(epochs.lead("k"), Fill)


def test_a_dropped_fill_is_over() -> None:
    epochs = Epochs(16, 64)
    fill = epochs.lead("k")

    del fill

    assert not epochs.busy("k")
    assert epochs.statistics()["under_way"] == 0


def test_a_fill_that_is_not_for_sharing_lets_the_others_go_alone_for_a_second() -> None:
    epochs = Epochs(16, 64)
    fill = epochs.lead("k")
    assert isinstance(fill, Fill)

    assert fill.done(alone=True)

    now = time.monotonic_ns()
    assert epochs.lead("k") is False
    assert not epochs.busy("k")
    assert isinstance(epochs.lead("k", now_ns=now + 2 * SECOND), Fill)


def test_a_leader_that_takes_too_long_is_given_up() -> None:
    epochs = Epochs(16, 64)
    now = time.monotonic_ns()
    slow = epochs.lead("k", now_ns=now)
    assert isinstance(slow, Fill)

    assert epochs.lead("k", max_age_s=5, now_ns=now + 4 * SECOND) is None
    second = epochs.lead("k", max_age_s=5, now_ns=now + 6 * SECOND)

    assert isinstance(second, Fill)
    assert not slow.done()
    assert epochs.busy("k", now_ns=now + 6 * SECOND)
    assert epochs.statistics()["taken_over"] == 1
    assert second.done()


def test_a_fill_that_began_after_our_clock_was_read_is_not_taken_for_an_old_one() -> None:
    epochs = Epochs(16, 64)
    now = time.monotonic_ns()
    fill = epochs.lead("k", now_ns=now + SECOND // 2)

    assert isinstance(fill, Fill)
    assert epochs.lead("k", now_ns=now) is None


def test_crowded_out_keys_are_made_without_waiting() -> None:
    epochs = Epochs(16, 64)

    fills = [epochs.lead(str(i)) for i in range(500)]

    led = [fill for fill in fills if isinstance(fill, Fill)]
    assert 40 <= len(led) <= 64
    assert all(fill is False for fill in fills if not isinstance(fill, Fill))
    assert epochs.statistics()["crowded"] == 500 - len(led)
    assert epochs.statistics()["under_way"] == len(led)


def test_four_processes_lead_each_key_exactly_once() -> None:
    epochs = shared_epochs(fills=65_536)
    arrived = Tallies(4)

    def work(number: int) -> int:
        led = 0
        for i in range(1, 1001):
            arrived.words[number] = i
            while min(arrived.words) < i:  # all four want the next key at the same moment
                os.sched_yield()
            fill = epochs.lead(f"key {i}")
            led += isinstance(fill, Fill)
            held.append(fill)
        arrived.words[number] = 1001
        while min(arrived.words) < 1001:  # who leaves gives up its last fill
            os.sched_yield()
        return led

    held: list[object] = []
    led = in_processes(4, work)

    assert sum(led) == 1000


def seen_dead(epochs: Epochs, key: str) -> None:
    """Returns once the death of who made this key is noticed: who is alive is looked up now and then."""
    deadline = time.monotonic() + 60
    while epochs.busy(key):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_fills_of_a_killed_process_are_taken_over() -> None:
    epochs = shared_epochs()
    ready = memoryview(SharedMemory(8)).cast("q")

    def work() -> None:
        fills = [epochs.lead(f"key {i}") for i in range(10)]
        assert all(isinstance(fill, Fill) for fill in fills)
        ready[0] = 1
        time.sleep(60)

    pid = spawn(work)
    while not ready[0]:
        time.sleep(0.001)
    assert epochs.lead("key 3") is None
    kill(pid)

    seen_dead(epochs, "key 3")
    assert isinstance(epochs.lead("key 3"), Fill)


def test_a_new_process_in_a_dead_ones_seat_does_not_keep_its_fills_alive() -> None:
    epochs = shared_epochs()
    ready = memoryview(SharedMemory(8)).cast("q")

    def leave_behind() -> None:
        fill = epochs.lead("k")
        assert isinstance(fill, Fill)
        ready[0] = 1
        time.sleep(60)

    pid = spawn(leave_behind)
    while not ready[0]:
        time.sleep(0.001)
    kill(pid)
    # All other seats are free, so the dead one's is only taken when it is looked for: fill them.
    pids = []
    led = Tallies(3)

    def take_a_seat(number: int) -> None:
        epochs.lead("other")
        led.words[number] = 1
        time.sleep(60)

    for number in range(3):
        pids.append(spawn(lambda number=number: take_a_seat(number)))  # type: ignore[misc]
    while sum(led.words) < 3:
        time.sleep(0.001)

    seen_dead(epochs, "k")
    for each in pids:
        kill(each)


def test_killed_leaders_leave_every_key_free_for_the_next() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    epochs = shared_epochs(fills=256)

    def work() -> None:
        while True:
            with_key = epochs.lead(f"key {random.randrange(50)}")
            if isinstance(with_key, Fill) and random.random() < 0.9:
                with_key.done()

    for _ in range(10):
        pids = [spawn(work), spawn(work)]
        time.sleep(dice.random() * 0.03)
        for pid in pids:
            kill(pid)

    for i in range(50):
        seen_dead(epochs, f"key {i}")
    fills = [epochs.lead(f"key {i}") for i in range(50)]
    assert all(isinstance(fill, Fill) for fill in fills)


# ── roles


def test_a_note_is_changed_by_one_process_of_many() -> None:
    epochs = shared_epochs()

    def work(_number: int) -> int:
        return sum(epochs.change_note(1, 2, value, value + 1) for value in range(5000))

    changed = in_processes(4, work)

    # Each step up is made once, by whoever was there first; who finds another value changes nothing.
    assert sum(changed) == epochs.note(1, 2)
    assert epochs.change_note(1, 2, epochs.note(1, 2), 7)
    assert not epochs.change_note(1, 2, 6, 8)
    assert epochs.note(1, 2) == 7


def test_a_role_has_one_holder_and_passes_on_when_it_dies() -> None:
    epochs = shared_epochs()
    ready = memoryview(SharedMemory(8)).cast("q")

    def work() -> None:
        assert epochs.claim(2)
        epochs.set_note(2, 0, 41)
        ready[0] = 1
        time.sleep(60)

    pid = spawn(work)
    while not ready[0]:
        time.sleep(0.001)
    assert not epochs.claim(2)
    assert epochs.claim(3)
    kill(pid)

    assert epochs.claim(2)
    assert epochs.note(2, 0) == 41
    assert epochs.leave(2)
    assert not epochs.leave(2)
