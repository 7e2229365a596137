"""The directory: a map that one process writes and all read, whoever is killed and however full it is."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgate._core import Directory, DirectoryFull, SharedMemory
from fastgate._core.shm.directory import LARGEST_BLOB
from tests.core.processes import in_processes, kill, spawn


def digest(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def test_what_was_put_is_found_and_what_was_removed_is_not() -> None:
    directory = Directory(10, 1 << 16)

    assert directory.put(digest("a"), b"first")
    assert directory.get(digest("b")) is None
    found = directory.get(digest("a"))
    assert found is not None and found[2] == b"first"
    assert directory.remove(digest("a"))
    assert directory.get(digest("a")) is None
    assert not directory.remove(digest("a"))


def test_a_holder_learns_of_a_removal_and_of_a_replacement() -> None:
    directory = Directory(10, 1 << 16)
    directory.put(digest("a"), b"first")
    directory.put(digest("b"), b"other")
    first, other = directory.get(digest("a")), directory.get(digest("b"))
    assert first is not None and other is not None

    directory.put(digest("a"), b"second")

    assert not directory.is_current(*first[:2])
    assert directory.is_current(*other[:2])
    directory.remove(digest("b"))
    assert not directory.is_current(*other[:2])


def test_putting_the_same_again_changes_nothing() -> None:
    directory = Directory(10, 1 << 16)
    directory.put(digest("a"), b"first")
    found, generation = directory.get(digest("a")), directory.generation

    assert not directory.put(digest("a"), b"first")

    assert directory.get(digest("a")) == found
    assert directory.generation == generation


def test_every_change_changes_the_generation() -> None:
    directory = Directory(10, 1 << 16)
    seen = {directory.generation}

    directory.put(digest("a"), b"1")
    seen.add(directory.generation)
    directory.put(digest("a"), b"2")
    seen.add(directory.generation)
    directory.remove(digest("a"))
    seen.add(directory.generation)

    assert len(seen) == 4


def test_a_watch_counts_the_changes_of_its_own_digest_only() -> None:
    directory = Directory(100, 1 << 16)
    watches = [directory.watch(digest(i)) for i in range(20)]
    before = [directory.changes(watch) for watch in watches]

    def changed() -> list[int]:
        return [i for i, watch in enumerate(watches) if directory.changes(watch) != before[i]]

    assert len(set(watches)) == 20
    assert [directory.watch(digest(i)) for i in range(20)] == watches
    directory.put(digest("a key"), b"1")  # the first write of a writer may count one more
    before = [directory.changes(watch) for watch in watches]
    directory.put(digest("another"), b"1")
    directory.remove(digest("another"))
    assert changed() == []
    directory.put(digest(3), b"first")
    assert changed() == [3]
    seen = directory.changes(watches[3])
    assert not directory.put(digest(3), b"first")
    assert directory.changes(watches[3]) == seen
    directory.put(digest(3), b"second")
    assert directory.changes(watches[3]) == seen + 1
    directory.remove(digest(3))
    assert directory.changes(watches[3]) == seen + 2
    directory.announce(digest(4))
    assert changed() == [3, 4]


def test_a_compaction_is_no_change_of_a_document() -> None:
    directory = Directory(100, 1 << 14)
    watch = directory.watch(digest("document"))
    directory.put(digest("document"), b"x" * 100)
    seen = directory.changes(watch)

    for i in range(1000):
        directory.put(digest("other"), b"%d" % i * 50)

    assert directory.statistics()["compactions"] > 0
    assert directory.changes(watch) == seen


def test_only_so_many_digests_are_watched() -> None:
    directory = Directory(10, 1 << 16)
    for i in range(256):
        directory.watch(digest(i))

    with pytest.raises(DirectoryFull, match="all 256 watches are in use"):
        directory.watch(digest(256))
    assert directory.watch(digest(7)) == directory.watch(digest(7))
    with pytest.raises(IndexError, match="watch: expected 0 to 255, got 256"):
        directory.changes(256)


def test_a_new_writer_counts_a_change_for_every_watch() -> None:
    # The one before may have been killed between a change and its count.
    directory = Directory(10, 1 << 16, SharedMemory(Directory.size(10, 1 << 16)))
    watch = directory.watch(digest("document"))

    def write() -> None:
        directory.put(digest("other"), b"1")

    os.waitpid(spawn(write), 0)
    seen = directory.changes(watch)
    directory.put(digest("other"), b"2")

    assert directory.changes(watch) > seen


def test_no_change_is_missed_by_a_watch_that_begins_meanwhile() -> None:
    for round_ in range(40):
        size = Directory.size(1024, 1 << 20)
        directory = Directory(1024, 1 << 20, SharedMemory(size))
        names = [digest(f"{round_} {i}") for i in range(200)]

        def work(number: int, directory: Directory = directory, names: list[bytes] = names) -> int:
            if number == 0:
                for name in names:
                    directory.put(name, b"there")
                return 0
            missing = []
            for name in names:
                watch = directory.watch(name)
                seen = directory.changes(watch)
                if directory.get(name) is None:
                    missing.append((name, watch, seen))
            while directory.entries() < len(names):
                time.sleep(0)
            return sum(directory.changes(watch) == seen for _name, watch, seen in missing)

        assert in_processes(2, work) == [0, 0], f"round {round_}"


def test_uses_are_counted_and_outlive_a_replacement() -> None:
    directory = Directory(10, 1 << 16)
    directory.put(digest("a"), b"1", used=40, last_used_ns=5)
    found = directory.get(digest("a"))
    assert found is not None

    directory.use(found[0], 100)
    directory.use(found[0], 90)
    directory.put(digest("a"), b"2", used=7)

    assert directory.usage(digest("a")) == (42, 100)
    assert directory.usage(digest("b")) == (0, 0)
    assert directory.usages() == [(digest("a"), 42, 100)]
    assert directory.usages(101) == []


def test_an_entry_that_comes_again_begins_anew() -> None:
    directory = Directory(1, 1 << 16)
    directory.put(digest("a"), b"1", used=40)
    directory.remove(digest("a"))

    directory.put(digest("b"), b"1")

    assert directory.usage(digest("b")) == (0, 0)


def test_a_full_directory_refuses_and_keeps_what_it_has() -> None:
    directory = Directory(3, 1 << 16)
    for i in range(3):
        directory.put(digest(i), b"%d" % i)

    with pytest.raises(DirectoryFull, match="all 3 entries"):
        directory.put(digest(3), b"3")

    assert [directory.get(digest(i))[2] for i in range(3)] == [b"0", b"1", b"2"]  # type: ignore[index]
    directory.remove(digest(0))
    assert directory.put(digest(3), b"3")


def test_a_full_arena_refuses_and_keeps_what_it_has() -> None:
    directory = Directory(100, 4096)
    count = 0
    with pytest.raises(DirectoryFull, match="arena"):
        for count in range(100):
            directory.put(digest(count), bytes([count]) * 200)

    assert count > 10
    assert all(directory.get(digest(i))[2] == bytes([i]) * 200 for i in range(count))  # type: ignore[index]
    assert directory.get(digest(count)) is None
    assert directory.remove(digest(0))
    assert directory.put(digest(count), b"x" * 200)


def test_a_blob_may_be_empty_and_may_not_be_too_large() -> None:
    directory = Directory(4, 8 << 20)

    directory.put(digest("empty"), b"")
    directory.put(digest("large"), b"x" * LARGEST_BLOB)
    with pytest.raises(ValueError, match="blob: expected at most"):
        directory.put(digest("larger"), b"x" * (LARGEST_BLOB + 1))

    assert directory.get(digest("empty"))[2] == b""  # type: ignore[index]
    assert directory.get(digest("large"))[2] == b"x" * LARGEST_BLOB  # type: ignore[index]


@pytest.mark.parametrize("wrong", [b"", b"x" * 31, b"x" * 33])
def test_a_digest_has_32_bytes(wrong: bytes) -> None:
    directory = Directory(4, 4096)

    with pytest.raises(ValueError, match="digest: expected 32 bytes"):
        directory.put(wrong, b"")
    with pytest.raises(ValueError, match="digest: expected 32 bytes"):
        directory.get(wrong)


def test_memory_of_another_shape_is_refused() -> None:
    memory = SharedMemory(Directory.size(100, 1 << 16))
    Directory(100, 1 << 16, memory)

    with pytest.raises(ValueError, match="expected a directory of layout 2, 99 entries"):
        Directory(99, 1 << 16, memory)
    with pytest.raises(ValueError, match="shared: expected at least"):
        Directory(1000, 1 << 16, memory)


operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "remove", "again"]), st.integers(0, 30), st.integers(0, 700)
    ),
    max_size=300,
)


@settings(max_examples=200, deadline=None)
@given(operations)
def test_it_is_a_dict_through_compactions_and_new_writers(steps: list[tuple[str, int, int]]) -> None:
    memory = SharedMemory(Directory.size(20, 8192))
    directory = Directory(20, 8192, memory)
    model: dict[bytes, bytes] = {}
    for number, (step, name, size) in enumerate(steps):
        key = digest(name)
        blob = bytes([number % 256]) * size
        if step == "again":
            directory = Directory(20, 8192, memory)
        elif step == "remove":
            assert directory.remove(key) == (model.pop(key, None) is not None)
        else:
            try:
                assert directory.put(key, blob) == (model.get(key) != blob)
                model[key] = blob
            except DirectoryFull:
                used = sum((len(value) + 4 + 15) // 16 * 16 for value in model.values())
                assert len(model) == 20 or used + size + 4 > directory.statistics()["arena_bytes"] - 16

    assert {key: directory.get(key)[2] for key in model} == model  # type: ignore[index]
    assert sorted(directory.digests()) == sorted(model)
    assert directory.entries() == len(model)
    assert all(directory.get(digest(name)) is None for name in range(31) if digest(name) not in model)


def blob_of(key: bytes, version: int) -> bytes:
    """Says whose it is, in every part, so that a torn read shows."""
    return version.to_bytes(4, "big") + key * (version % 9)


def check(key: bytes, blob: bytes) -> int:
    version = int.from_bytes(blob[:4], "big")
    assert blob == blob_of(key, version)
    return version


def test_readers_never_see_a_torn_or_a_missing_entry() -> None:
    # A small arena, so that it is compacted all the time. Half of the entries come and go.
    directory = Directory(48, 24 * 1024, SharedMemory(Directory.size(48, 24 * 1024)))
    keys = [digest(i) for i in range(40)]
    lasting, passing = keys[:20], keys[20:]

    def work(number: int) -> int:
        if number == 0:
            randomness = random.Random(7)
            for version in range(1, 60_000):
                key = randomness.choice(keys)
                if key in passing and randomness.random() < 0.5:
                    directory.remove(key)
                else:
                    directory.put(key, blob_of(key, version))
            compactions = directory.statistics()["compactions"]
            directory.put(digest("end"), b"")
            return compactions
        newest = dict.fromkeys(keys, 0)
        reads = 0
        while directory.get(digest("end")) is None:
            for key in keys:
                found = directory.get(key)
                reads += 1
                if found is None:
                    assert key in passing
                    continue
                version = check(key, found[2])
                assert version >= newest[key]
                newest[key] = version
        return reads

    for key in lasting:  # written by a process that has gone by the time the writer starts
        child = spawn(lambda key=key: directory.put(key, blob_of(key, 0)))  # type: ignore[misc]
        assert os.waitpid(child, 0)[1] == 0

    compactions, *reads = in_processes(3, work)

    assert compactions > 50
    assert min(reads) > 1000


def test_a_writer_killed_anywhere_leaves_every_entry_whole() -> None:
    directory = Directory(48, 24 * 1024, SharedMemory(Directory.size(48, 24 * 1024)))
    keys = [digest(i) for i in range(40)]
    lasting, passing = keys[:20], keys[20:]
    randomness = random.Random(11)

    def write(start: int) -> None:
        own = random.Random(start)
        version = start
        for key in lasting:
            directory.put(key, blob_of(key, version))
        while True:
            version += 1
            key = own.choice(keys)
            if key in passing and own.random() < 0.5:
                directory.remove(key)
            else:
                directory.put(key, blob_of(key, version))

    newest = dict.fromkeys(keys, 0)
    for round_ in range(60):
        taken = directory.statistics()["takeovers"]
        writer = spawn(lambda round_=round_: write(1 + round_ * 1_000_000))  # type: ignore[misc]
        while directory.entries() < 20 or (round_ and directory.statistics()["takeovers"] == taken):
            time.sleep(0.001)
        time.sleep(randomness.random() * 0.02)
        kill(writer)
        for key in keys:
            found = directory.get(key)
            if found is None:
                assert key in passing or round_ == 0
                continue
            version = check(key, found[2])
            assert version >= newest[key]
            newest[key] = version

    assert directory.statistics()["takeovers"] == 59
    finisher = spawn(lambda: [directory.remove(key) for key in keys])
    assert os.waitpid(finisher, 0)[1] == 0
    assert directory.entries() == 0
    assert directory.statistics()["blob_bytes"] == 0
    # Nothing was lost on the way: all 48 entries can be had again.
    filler = spawn(lambda: [directory.put(digest(f"new {i}"), b"x" * 100) for i in range(48)])
    assert os.waitpid(filler, 0)[1] == 0
    assert directory.entries() == 48


def test_a_second_living_writer_is_refused() -> None:
    directory = Directory(10, 1 << 16, SharedMemory(Directory.size(10, 1 << 16)))
    reading, writing = os.pipe()

    def first() -> None:
        directory.put(digest("a"), b"1")
        os.write(writing, b".")
        signal.pause()

    writer = spawn(first)
    os.read(reading, 1)
    with pytest.raises(RuntimeError, match=f"process {writer} writes this directory"):
        directory.put(digest("b"), b"1")

    kill(writer)

    assert directory.put(digest("b"), b"1")
    assert sorted(directory.digests()) == sorted([digest("a"), digest("b")])


def test_uses_of_many_processes_add_up() -> None:
    directory = Directory(10, 1 << 16, SharedMemory(Directory.size(10, 1 << 16)))
    directory.put(digest("a"), b"1")
    found = directory.get(digest("a"))
    assert found is not None

    def work(number: int) -> int:
        for i in range(20_000):
            directory.use(found[0], number * 100_000 + i)
        return 0

    in_processes(4, work)

    assert directory.usage(digest("a")) == (80_000, 319_999)


def test_a_hundred_thousand_entries() -> None:
    directory = Directory(250_000, 128 << 20)
    keys = [digest(i) for i in range(100_000)]
    for key in keys:
        directory.put(key, key * 5)

    assert directory.entries() == 100_000
    assert all(directory.get(key)[2] == key * 5 for key in keys)  # type: ignore[index]


def test_memory_that_nothing_was_put_into_stays_untouched() -> None:
    directory = Directory(1_000_000, 256 << 20)
    before = resident_kb()

    directory.put(digest("a"), b"x" * 100)
    directory.usages()
    directory.digests()
    directory.remove(digest("a"))
    for i in range(100):
        directory.put(digest(i), b"x" * 100)

    # 350 MB are mapped. A hundred entries touch a page of buckets each, and a few of the rest.
    assert resident_kb() - before < 2_000


def resident_kb() -> int:
    with open("/proc/self/status") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("RssShmem"))
