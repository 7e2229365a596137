"""The disk tier: what comes out is what was put in and not purged, whatever happens to the file."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from fastgate._core.cache.envelope import SLOW
from fastgate._core.hashing import siphash128
from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.metric import MetricTable
from fastgate._core.shm.shm import SharedMemory
from fastgate.caching import disk, disk_file, disk_writer
from fastgate.caching.disk import LATER, DiskStore
from fastgate.caching.disk_file import DISK_ROLE
from fastgate.caching.disk_rows import PIECE, PIECE_NUMBER
from fastgate.caching.tiers import Tiers
from fastgate.state.envelope import Damaged, open_envelope, seal
from tests.core.processes import kill, spawn

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
SIZE = 16 << 20


class Elsewhere:
    """A worker of its own process that does with its store what it is told."""

    def __init__(self, machine: Machine) -> None:
        self.pipe, theirs = Pipe()

        def serve() -> None:
            store = machine.store()
            while True:
                name, arguments = theirs.recv()
                if name == "close":
                    store.close(60)
                    return
                theirs.send(NAMED[name](store, *arguments))

        self.pid = spawn(serve)

    def ask(self, name: str, *arguments: Any) -> Any:
        self.pipe.send((name, arguments))
        assert self.pipe.poll(100)
        return self.pipe.recv()

    def get(self, key: bytes) -> Any:
        return self.ask("get", key)

    def put(self, *arguments: Any) -> None:
        self.ask("put", *arguments)

    def close(self) -> None:
        self.pipe.send(("close", ()))
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0


class Machine:
    """The shared memory of one run, and stores over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epochs = Epochs(64, 1024, SharedMemory(Epochs.size(64, 1024)))
        self.metrics = MetricTable(1024, SharedMemory(MetricTable.size(1024)))
        self.stores: list[DiskStore] = []
        self.others: list[Elsewhere] = []

    def store(self, size: int = SIZE, **options: object) -> DiskStore:
        store = DiskStore(self.path, size, self.epochs, self.metrics, verify_in_process=True, **options)  # type: ignore[arg-type]
        self.stores.append(store)
        store.start()
        assert store.wait_ready(60)
        return store

    def elsewhere(self) -> Elsewhere:
        """Before `store`: a process that has the file open must not fork another that opens it."""
        other = Elsewhere(self)
        self.others.append(other)
        other.get(b"")
        return other

    def count(self, event: str) -> int:
        return self.metrics.counter("fastgate_cache_tier_total", tier="disk", event=event).value

    def close(self) -> None:
        for store in self.stores:
            store.close(60)
        for other in self.others:
            other.close()
        self.stores.clear()
        self.others.clear()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "cache")
    yield made
    made.close()


def until(what: Callable[[], object], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def put(
    store: DiskStore,
    key: bytes,
    value: bytes,
    tags: tuple[bytes, ...] = (),
    ttl_ns: int = HOUR,
    sequence: int = -1,
) -> None:
    if sequence < 0:
        sequence = store._epochs.sequence
    assert store.put(key, value, tags, time.time_ns() + ttl_ns, sequence)


def settle(store: DiskStore) -> None:
    """Waits until what was put has been written and counted."""
    until(lambda: store._bytes_in == store._bytes_out)


def cleaned(machine: Machine) -> None:
    until(lambda: machine.epochs.applied == machine.epochs.sequence)


def put_and_settle(store: DiskStore, *arguments: Any) -> None:
    put(store, *arguments)
    settle(store)


NAMED: dict[str, Callable[..., Any]] = {
    "get": lambda store, key: store.get(key),
    "put": put_and_settle,
    "generation": lambda store: store._open and store._open.generation,
}


# ── the envelope


def test_any_changed_byte_of_an_envelope_is_found() -> None:
    data = seal(b"key", b"value" * 20, [b"tag", b"another"], 5, 6, 1 << 20)
    whole = open_envelope(data, b"key")
    assert whole is not None
    assert (whole.value(), whole.tags, whole.expires_ns, whole.sequence) == (
        b"value" * 20,
        (b"tag", b"another"),
        5,
        6,
    )
    assert open_envelope(data, b"other") is None

    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(Damaged):
            open_envelope(bytes(damaged), b"key")
    for length in range(len(data)):
        with pytest.raises(Damaged):
            open_envelope(data[:length], b"key")


def test_values_above_a_size_are_compressed_when_that_saves_something() -> None:
    text, noise = b"hello world " * 1000, os.urandom(12000)

    assert len(seal(b"k", text, (), 0, 0, 1000)) < 1000
    assert len(seal(b"k", text, (), 0, 0, 100_000)) > 12000
    pressed = open_envelope(seal(b"k", text, (), 0, 0, 1000), b"k")
    kept = open_envelope(seal(b"k", noise, (), 0, 0, 1000), b"k")

    assert pressed is not None and pressed.is_compressed and pressed.value() == text
    assert kept is not None and not kept.is_compressed and kept.value() == noise


@pytest.mark.parametrize("length", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1, 65536, 65537])
def test_a_value_of_any_number_of_pieces_is_read_whole(machine: Machine, length: int) -> None:
    store = machine.store()
    value = os.urandom(length - len(seal(b"k", b"", (), 0, 0, 1)))
    put(store, b"k", value)
    settle(store)

    assert store.get(b"k") == value
    assert (store.reader.get(b"k") is SLOW) == (length > 65536)
    assert machine.count("hit") == (1 if length > 65536 else 2)


@pytest.mark.parametrize("other", [None, b"short", b"x" * PIECE])
def test_a_value_with_a_wrong_piece_is_never_served(machine: Machine, other: bytes | None) -> None:
    store = machine.store()
    put(store, b"k", os.urandom(20_000))
    settle(store)
    opened = store._open
    assert opened is not None
    piece = siphash128(b"k", opened.secret) + PIECE_NUMBER.pack(2)
    with opened.env.begin(write=True) as txn:
        if other is None:
            assert txn.delete(piece, db=opened.answers)
        else:
            txn.put(piece, other, db=opened.answers)

    assert store.get(b"k") is None
    assert machine.count("damaged") == 1


def test_large_values_that_are_asked_for_together_are_all_found(machine: Machine) -> None:
    store = machine.store(64 << 20)
    values = {b"key %d" % number: os.urandom(1_500_000) for number in range(2)}
    for key, value in values.items():
        put(store, key, value)
    settle(store)
    tiers = Tiers(machine.epochs, store, None)

    async def ask() -> list[bytes | None]:
        assert [tiers.get_now(key) for key in values] == [LATER, LATER]
        return list(await asyncio.gather(*(tiers.get_later(key, is_large=True) for key in values)))

    assert asyncio.run(ask()) == list(values.values())


def test_a_decompression_makes_no_more_than_was_said() -> None:
    from backports import zstd

    bomb = zstd.compress(b"\0" * 50_000_000)
    honest = open_envelope(seal(b"k", b"x" * 2000, (), 0, 0, 1000), b"k")
    assert honest is not None

    with pytest.raises(Damaged):
        honest._replace(stored=bomb).value()


# ── get and put


def test_what_was_put_is_found_by_every_worker_and_after_a_restart(machine: Machine) -> None:
    two, one = machine.elsewhere(), machine.store()
    values = {b"key %d" % i: os.urandom(random.randrange(20_000)) for i in range(200)}

    for key, value in values.items():
        put(one, key, value)
    settle(one)

    assert {key: two.get(key) for key in values} == values
    assert two.get(b"other") is None
    machine.close()
    later = Machine(machine.path)
    again = later.store()
    assert {key: again.get(key) for key in values} == values
    later.close()


def test_the_last_value_of_a_key_is_the_one_that_is_found(machine: Machine) -> None:
    store = machine.store()

    for version in range(50):
        put(store, b"k", b"%d" % version, (b"t%d" % version,))
    settle(store)

    assert store.get(b"k") == b"49"
    assert store.statistics()["entries"] == 1


def test_a_value_is_not_found_after_its_time_and_then_removed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_writer, "_SWEEP_S", 0.05)
    store = machine.store()

    expires_ns = time.time_ns() + SECOND
    put(store, b"short", b"x", ttl_ns=SECOND)
    put(store, b"long", b"y")
    settle(store)
    found = store.get(b"short")
    assert found == b"x" or time.time_ns() > expires_ns
    until(lambda: store.get(b"short") is None)
    until(lambda: store.statistics()["entries"] == 1)

    assert store.get(b"long") == b"y"
    assert store.statistics()["expired"] == 1


def test_a_large_compressed_value_is_read_in_a_thread(machine: Machine) -> None:
    store = machine.store()
    text = b"a long text " * 40_000

    put(store, b"large", text)
    settle(store)

    assert store.get(b"large") is LATER
    found = store.get_in_thread(b"large")
    assert found is not None and found.value() == text


def test_a_very_large_value_is_read_in_a_thread_too(machine: Machine) -> None:
    store = machine.store(64 << 20)
    noise = os.urandom(1_500_000)

    put(store, b"large", noise)
    settle(store)

    assert store.get(b"large") is LATER
    found = store.get_in_thread(b"large")
    assert found is not None and found.value() == noise


def test_after_a_reload_the_next_store_waits_for_the_one_before(machine: Machine) -> None:
    before = machine.store()
    put(before, b"k", b"v")
    settle(before)

    after = DiskStore(
        machine.path, SIZE, machine.epochs, machine.metrics, compress_above=1, verify_in_process=True
    )
    machine.stores.append(after)
    after.start()
    assert not after.wait_ready(0.3)
    assert after.get(b"k") is None
    before.close(60)

    assert after.wait_ready(60)
    assert after.get(b"k") == b"v"


def test_what_does_not_fit_is_dropped_and_counted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machine.store()
    monkeypatch.setattr(disk, "_QUEUE_BYTES", 100_000)
    monkeypatch.setattr(disk, "_LINGER_S", 0.2)

    taken = [store.put(b"%d" % i, b"x" * 30_000, (), HOUR, 0) for i in range(10)]

    assert taken[:3] == [True] * 3
    assert not taken[-1]
    assert not store.put(b"k", b"x" * (SIZE // 32 + 1), (), HOUR, 0)
    assert not store.put(b"k", b"x", (b"t" * 1025,), HOUR, 0)
    assert store.statistics()["dropped"] == taken.count(False)
    assert store.statistics()["refused"] == 2


# ── purges


@pytest.mark.parametrize(
    ("purge", "left"),
    [
        (lambda e: e.purge_all(), []),
        (lambda e: e.purge_key(b"/a/1"), [b"/a/2", b"/b/1"]),
        (lambda e: e.purge_tag(b"even"), [b"/a/1", b"/b/1"]),
        (lambda e: e.purge_prefix(b"/a/"), [b"/b/1"]),
        (lambda e: e.purge_pattern(b"/?/1"), [b"/a/2"]),
    ],
)
def test_a_purge_is_in_force_at_once_and_removes_what_it_hits(
    machine: Machine, purge: Callable[[Epochs], int], left: list[bytes]
) -> None:
    two, one = machine.elsewhere(), machine.store()
    for key, tags in ((b"/a/1", ()), (b"/a/2", (b"even", b"x")), (b"/b/1", (b"x",))):
        put(one, key, b"v" + key, tags)
    settle(one)

    purge(machine.epochs)
    at_once = [key for key in (b"/a/1", b"/a/2", b"/b/1") if two.get(key) is not None]
    cleaned(machine)
    after = [key for key in (b"/a/1", b"/a/2", b"/b/1") if two.get(key) is not None]

    assert at_once == after == left
    assert one.statistics()["entries"] == len(left)
    # What is made after the purge is kept.
    two.put(b"/a/1", b"new", (b"even",))
    assert one.get(b"/a/1") == b"new"


def test_a_value_whose_making_began_before_a_purge_is_not_stored(machine: Machine) -> None:
    store = machine.store()
    before = machine.epochs.sequence

    machine.epochs.purge_tag(b"t")
    put(store, b"hit", b"old", (b"t",), sequence=before)
    put(store, b"other", b"fine", (b"u",), sequence=before)
    settle(store)

    assert store.get(b"hit") is None
    assert store.get(b"other") == b"fine"


def test_purges_hold_after_a_restart(machine: Machine) -> None:
    store = machine.store()
    put(store, b"gone", b"old", (b"t",))
    put(store, b"kept", b"fine")
    settle(store)

    machine.epochs.purge_tag(b"t")
    cleaned(machine)
    machine.close()
    later = Machine(machine.path)
    again = later.store()

    assert again.get(b"gone") is None
    assert again.get(b"kept") == b"fine"
    later.epochs.purge_key(b"kept")
    assert again.get(b"kept") is None
    later.close()


def test_old_answers_never_come_back_while_four_processes_write_and_purge(machine: Machine) -> None:
    origin = memoryview(SharedMemory(8 * 16)).cast("q")
    promised = memoryview(SharedMemory(8 * 16)).cast("q")
    done = memoryview(SharedMemory(8 * 2)).cast("q")
    end = time.monotonic() + 3

    def work(number: int) -> None:
        store = machine.store()
        dice = random.Random(number)
        looked = 0
        while time.monotonic() < end or looked <= 10:  # a loaded machine may need longer
            which = dice.randrange(16)
            key = b"key %d" % which
            least = promised[which]
            found = store.get(key)
            if found is not None:
                looked += 1
                assert int(found) >= least, (key, found, least)
            sequence = machine.epochs.sequence
            value = origin[which]
            time.sleep(dice.random() * 0.002)
            store.put(key, b"%d" % value, (b"tag %d" % which,), time.time_ns() + HOUR, sequence)
        done[number] = 1
        store.close(60)

    pids = [spawn(lambda number=number: work(number)) for number in range(2)]  # type: ignore[misc]
    dice = random.Random(5)
    version = 0
    while sum(done) < 2:
        version += 1
        which = dice.randrange(16)
        origin[which] = version
        kind = dice.randrange(4)
        if kind == 0:
            machine.epochs.purge_key(b"key %d" % which)
        elif kind == 1:
            machine.epochs.purge_tag(b"tag %d" % which)
        elif kind == 2:
            machine.epochs.purge_pattern(b"key %d" % which)
        else:
            machine.epochs.purge_prefix(b"key %d" % which)
        promised[which] = version
        time.sleep(0.005)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    assert codes == [0, 0]


# ── faults


def test_a_file_of_garbage_is_replaced_at_the_start(machine: Machine) -> None:
    store = machine.store()
    put(store, b"k", b"v")
    settle(store)
    machine.close()
    (file,) = machine.path.glob("answers-*.mdb")

    for garbage in (
        b"",
        b"x",
        os.urandom(100_000),
        b"\0" * 8192,
        file.read_bytes()[:8192] + os.urandom(100_000),
    ):
        later = Machine(machine.path)
        for old in machine.path.glob("answers-*"):
            old.unlink()
        (machine.path / "answers-7.mdb").write_bytes(garbage)
        again = later.store()
        assert again.is_open
        assert again.get(b"k") is None
        put(again, b"k", b"new")
        settle(again)
        assert again.get(b"k") == b"new"
        later.close()


def test_a_file_with_another_layout_is_replaced(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    before = Machine(machine.path)
    put(before.store(), b"k", b"v")
    settle(before.stores[0])
    opened = before.stores[0]._open
    assert opened is not None
    with opened.env.begin(write=True) as txn:
        txn.put(b"layout", b"1", db=opened.env.open_db(b"meta", txn))
    before.close()

    store = machine.store()

    assert store.get(b"k") is None
    assert machine.count("rebuilt") == 1
    assert "written by another version of fastgate" in caplog.text
    put(store, b"k", b"new")
    settle(store)
    assert store.get(b"k") == b"new"


@pytest.mark.parametrize("where", [0, 8192])
def test_a_file_that_is_overwritten_while_in_use_is_replaced_and_serves_nothing_wrong(
    machine: Machine, where: int
) -> None:
    two, one = machine.elsewhere(), machine.store()
    values = {b"key %d" % i: os.urandom(6000) for i in range(100)}
    for key, value in values.items():
        put(one, key, value)
    settle(one)
    (file,) = machine.path.glob("answers-*.mdb")

    with file.open("r+b") as handle:
        size = handle.seek(0, 2)
        handle.seek(where)
        handle.write(os.urandom(size - where))
    for store in (one, two):
        for key, value in values.items():
            assert store.get(key) in (None, value)
    until(lambda: machine.count("rebuilt") == 1)
    until(lambda: one._open is not None and one._open.generation == 2)
    until(lambda: two.ask("generation") == 2)

    two.put(b"k", b"new")
    assert one.get(b"k") == b"new"
    assert machine.count("rebuilt") == 1


def test_a_flipped_bit_in_a_value_is_never_served(machine: Machine) -> None:
    store = machine.store()
    put(store, b"k", os.urandom(4000) + b"A" * 4000 + os.urandom(40_000))
    settle(store)
    (file,) = machine.path.glob("answers-*.mdb")

    raw = file.read_bytes()
    with file.open("r+b") as handle:
        handle.seek(raw.index(b"A" * 1000) + 500)
        handle.write(b"B")

    assert store.get(b"k") is None
    assert machine.count("damaged") == 1


def test_workers_killed_while_they_write_harm_nobody(machine: Machine) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    survivor = machine.elsewhere()

    def work() -> None:
        store = machine.store()
        while True:
            key = b"key %d" % random.randrange(1000)
            store.put(key, key * 500, (b"t",), time.time_ns() + HOUR, machine.epochs.sequence)
            time.sleep(0.0002)

    for _ in range(6):
        pid = spawn(work)
        time.sleep(0.2 + dice.random() * 0.1)
        kill(pid)
        survivor.put(b"mine", b"fine")
        assert survivor.get(b"mine") == b"fine"
        for i in range(1000):
            key = b"key %d" % i
            assert survivor.get(key) in (None, key * 500)

    assert machine.count("stored") > 100
    assert machine.count("rebuilt") == 0


def test_a_full_disk_stops_the_writing_and_nothing_else(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "_OFF_S", 0.3)
    store = machine.store()
    put(store, b"k", b"v" * 5000)
    settle(store)
    assert store.get(b"k") == b"v" * 5000
    (file,) = machine.path.glob("answers-*.mdb")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, hard))
    try:
        for round_ in range(3):

            def is_full(times: int = round_) -> bool:  # once what was tried before has been forgotten
                store.put(b"new", os.urandom(50_000), (), time.time_ns() + HOUR, machine.epochs.sequence)
                return machine.count("full") > times

            until(is_full)
            assert store.get(b"k") == b"v" * 5000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert len([record for record in caplog.records if "off for" in record.message]) == 1

    def writes_again() -> bool:
        store.put(b"after", b"w", (), time.time_ns() + HOUR, machine.epochs.sequence)
        settle(store)
        return store.get(b"after") == b"w"

    until(writes_again)
    assert machine.count("rebuilt") == 0


def test_a_directory_that_cannot_be_used_leaves_the_tier_off(machine: Machine) -> None:
    machine.path.write_text("a file")

    store = machine.store()

    assert not store.is_open
    assert store.get(b"k") is None
    assert not store.put(b"k", b"v", (), HOUR, 0)


def test_two_gateways_do_not_share_a_directory(machine: Machine) -> None:
    mine = machine.store()
    other = Machine(machine.path)

    theirs = other.store()

    assert mine.is_open
    assert not theirs.is_open
    other.close()
    put(mine, b"k", b"v")
    settle(mine)
    assert mine.get(b"k") == b"v"


def test_what_an_unclean_stop_of_the_machine_left_is_dropped(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_behind() -> None:
        store = machine.store()
        put(store, b"k", b"v")
        settle(store)
        os.kill(os.getpid(), signal.SIGKILL)

    kill_code = os.waitstatus_to_exitcode(os.waitpid(spawn(leave_behind), 0)[1])
    assert kill_code == -signal.SIGKILL

    same_boot = Machine(machine.path)
    assert same_boot.store().get(b"k") == b"v"
    for store in same_boot.stores:
        store._file._instance, fd = -1, store._file._instance  # as if it had been killed, too
        store.close()
        os.close(fd)
    monkeypatch.setattr(disk_file, "_boot_id", lambda: "the next boot")
    after = Machine(machine.path)
    assert after.store().get(b"k") is None
    after.close()


# ── budget


def private_bytes() -> int:
    """This process's own memory, without the pages of the map, which are the page cache's."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def fill(machine: Machine, seconds: float, size: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    store = machine.store(size)
    memory = []
    end = time.monotonic() + seconds
    full = False
    lowest = size
    number = 0
    while time.monotonic() < end or len(memory) < 8:  # a busy machine takes longer until it is full
        assert time.monotonic() < end + 120, store.statistics()
        number += 1
        kind = dice.random()
        length = int(dice.paretovariate(1.1) * 300) if kind < 0.9 else dice.randrange(size // 40)
        store.put(
            b"key %d" % dice.randrange(100_000),
            dice.randbytes(min(length, size // 40)),
            (b"t%d" % (number % 100),) if kind < 0.3 else (),
            time.time_ns() + HOUR,
            machine.epochs.sequence,
        )
        if number % 50 == 0:
            while store._bytes_in - store._bytes_out > 4 << 20:
                time.sleep(0.002)
            statistic = store.statistics()
            used = statistic["bytes"]
            full = full or statistic["evicted"] > 0
            assert used <= size * 1.05
            if full and number % 500 == 0:
                lowest = min(lowest, used)
                memory.append(private_bytes())
    settle(store)
    print(f"lowest {lowest / size:.3f}", store.statistics())

    assert lowest >= size * 0.95
    assert store.statistics()["evicted"] > 0
    assert store.statistics()["full"] == 0
    assert size * 0.95 <= store.statistics()["bytes"] <= size * 1.05
    (file,) = machine.path.glob("answers-*.mdb")
    assert file.stat().st_blocks * 512 <= size * 1.06
    print("private bytes", memory[:: max(1, len(memory) // 12)])
    half = len(memory) // 2
    assert statistics.median(memory[half:]) - statistics.median(memory[:half]) < 8 << 20


def test_the_bytes_in_use_stay_within_the_budget(machine: Machine) -> None:
    fill(machine, 6, 24 << 20)


@pytest.mark.soak
def test_the_bytes_in_use_stay_within_the_budget_for_minutes(machine: Machine) -> None:
    fill(machine, 180, 64 << 20)


def test_a_stopped_worker_in_the_cleaners_role_holds_up_no_purge(machine: Machine) -> None:
    ready = memoryview(SharedMemory(8)).cast("q")

    def work() -> None:
        machine.store()
        until(lambda: machine.epochs.claim(DISK_ROLE))
        ready[0] = 1
        time.sleep(60)

    pid = spawn(work)
    until(lambda: ready[0])
    store = machine.store()
    put(store, b"k", b"v")
    settle(store)
    os.kill(pid, signal.SIGSTOP)

    machine.epochs.purge_key(b"k")
    found = store.get(b"k")

    os.kill(pid, signal.SIGCONT)
    kill(pid)
    assert found is None
