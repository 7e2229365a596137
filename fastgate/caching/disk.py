"""The disk tier: responses in one LMDB file that all workers of the machine share, and that survives a
restart.

Reads are synchronous, on the request path: a lookup in the memory map, a checksum over the value, no lock.
Writes are not: `put` appends to a bounded queue, and a thread of each worker writes in batches, one worker at
a time (LMDB's lock). The event loop never waits for a write, a commit or the disk, except for page faults of
a value that is not in the page cache.

LAYOUT  `<path>/answers-<n>.mdb`, n counts rebuilds; `<path>/instance` holds which gateway uses it (a lock)
and how it was left. Databases in the file:
    answers  SipHash of the key 16 -> place 8, length 4, envelope (state/envelope.py); values above 16 KB are
             split, under the hash and the piece number 2, because free pages are rarely contiguous
    order    place 8, ascending -> hash 16, expires 8, sequence 8, bytes 4, key     eviction, sweeping, scans
    tags     hash of the tag 16, place 8 -> hash 16
    meta     "secret" -> 16 bytes for the hashes

A cache may lose its last seconds but must never serve corrupt data. Every value is verified against its
checksum and its key. The file is never flushed synchronously (MDB_NOSYNC), and its contents are dropped after
an unclean stop of the machine. A damaged file (an error of LMDB, a failed checksum) is abandoned, and all
workers switch to a new one. A file that may have crashed a worker is verified by a separate process before it
is used.

PURGES  Values have the sequence of the last purge before their fetch (_core/epochs). A reader compares them
with all purges that the file has not been cleaned of yet, so a purge is in effect before anything is deleted.
A writer compares them inside its write transaction, so a value stored after a purge was fetched after it, or
is removed by the cleaning.

BUDGET  `size` bounds the pages in use, index included; eviction is first in, first out, in transactions
before those that write, since LMDB reuses a page two transactions later. The map is 5 % larger for that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastgate._core.cache.envelope import SLOW, look
from fastgate._core.clock import realtime_ns
from fastgate._core.hashing import siphash128
from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.metric import MetricTable
from fastgate.state.envelope import HEAD_BYTES, LARGEST_BYTES, Damaged, Envelope, open_envelope, seal

__all__ = ["DISK_ROLE", "DiskStore", "verify"]

log = logging.getLogger(__name__)

_open_here: set[str] = set()
"""Files open in this process: LMDB's locks allow each once. After a reload the next store waits for the one
before."""

DISK_ROLE: Final = 0
"""The role (_core/epochs) of the worker that cleans the file. Note 0: the number of the file in use."""
_GENERATION: Final = 0

LEAST_BYTES: Final = 16 << 20
_MAP_RATIO: Final = 1.05
_QUEUE_BYTES: Final = 32 << 20
_QUEUE_ITEMS: Final = 20_000
_LINGER_S: Final = 0.02  # what gathers in it is one transaction
_TICK_S: Final = 0.1
_SWITCH_S: Final = 0.0005
_SLICE: Final = 256  # rows looked at before other threads get their turn
_OFF_S: Final = 30.0  # no writes for so long after the disk was full
_SWEEP_S: Final = 1.0
_READERS_S: Final = 5.0
_SYNC_S: Final = 10.0
_VERIFY_S: Final = 120.0
_LATER_BYTES: Final = 256 << 10  # decompressing more than this would hold up the loop: read in a thread
_LATER_STORED: Final = 1 << 20  # and putting together more than this
_MAX_READERS: Final = 2046
_TAGS_MAX: Final = 255  # as in _core/cache
_TAG_BYTES: Final = 1024
_ORDER: Final = struct.Struct("<16sqqI")
_PLACE: Final = struct.Struct(">Q")
_PIECE: Final = 4 * 4096 - 32  # of a value: four pages of LMDB, its header of 16 and ours
_PIECE_NUMBER: Final = struct.Struct(">H")
_LENGTH: Final = struct.Struct("<I")
_BEFORE: Final = 12  # the place and the length
_TAG_KEY: Final = b"fastgate's tags\0"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"

LATER: Final = object()
"""What `get` says of a value that is better read in a thread: `get_in_thread`."""


class _Item(NamedTuple):
    key: bytes
    value: bytes
    tags: tuple[bytes, ...]
    expires_ns: int
    sequence: int


class _InUse(Exception):
    """This process has the file open already."""


class _Open(NamedTuple):
    """One opened file."""

    env: Any
    answers: Any
    order: Any
    tags: Any
    secret: bytes
    generation: int


class DiskStore:
    """The store of one worker. `start` after the fork; `get` and `put` from any thread.

    Until the file is open, and while it is not to be had, `get` finds nothing and `put` keeps nothing: both
    are counted.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size_bytes: int,
        epochs: Epochs,
        metrics: MetricTable,
        *,
        compress_above: int = 32 << 10,
        verify_in_process: bool = False,
    ) -> None:
        if size_bytes < LEAST_BYTES:
            raise ValueError(f"size_bytes: expected at least {LEAST_BYTES}, got {size_bytes}")
        self.path = Path(path)
        self.size_bytes = size_bytes
        self.largest_bytes = min(LARGEST_BYTES, size_bytes // 32)
        self._epochs = epochs
        self._compress_above = compress_above
        self._verify_in_process = verify_in_process
        self._open: _Open | None = None
        self._readers = 0
        self._readers_lock = threading.Lock()
        self._in_loop = False
        self._queue: deque[_Item] = deque()
        self._bytes_in = self._bytes_out = 0
        self._waiting: dict[bytes, list[Callable[[], Any]]] = {}
        self._wake = threading.Event()
        self._ready = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._lmdb: Any = None  # the module: imported when the store starts
        self._instance = -1
        self._damaged: str | None = None
        self._off_until = 0.0
        self._retry_at = 0.0
        self._logged: set[str] = set()
        self._sweep_from = 0
        self._next: dict[str, float] = {}
        self._counts = {
            event: metrics.counter("fastgate_cache_tier_total", tier="disk", event=event)
            for event in (
                *("hit", "miss", "stored", "dropped", "refused", "evicted", "expired", "purged"),
                *("damaged", "error", "rebuilt", "full"),
            )
        }
        self._hits, self._misses = self._counts["hit"], self._counts["miss"]
        self._used = metrics.gauge("fastgate_cache_tier_bytes", tier="disk")
        self._entries = metrics.gauge("fastgate_cache_tier_entries", tier="disk")

    # ── life

    def start(self) -> None:
        """Starts the thread, which opens the file: `wait_ready` when it matters."""
        if self._thread is None:
            import lmdb

            self._lmdb = lmdb
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="fastgate-disk", daemon=True)
            self._thread.start()

    def wait_ready(self, timeout_s: float = 10.0) -> bool:
        """True once the file has been opened, or found not to open."""
        return self._ready.wait(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued, as far as the time allows, and closes the file."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    @property
    def is_open(self) -> bool:
        return self._open is not None

    # ── the request's side

    def get(self, key: bytes) -> Any:
        """The value of key; None; or LATER, when it is so large that a thread should read it."""
        # The writer thread closes a file only after it has removed it here and no reader uses it.
        self._in_loop = True
        opened = self._open
        try:
            if opened is None:
                return None
            value = look(opened.env, opened.answers, opened.secret, key, self._epochs, _BEFORE, _PIECE)
            if value is SLOW:
                value = self._read(opened, key, False)
        finally:
            self._in_loop = False
        (self._misses if value is None else self._hits).add()
        return value

    def get_in_thread(self, key: bytes) -> Envelope | None:
        """The value under key, of any size. Blocks on the disk: not for the event loop."""
        with self._readers_lock:
            opened = self._open
            if opened is None:
                return None
            self._readers += 1
        try:
            found: Envelope | None = self._read(opened, key, True)
            return found
        finally:
            with self._readers_lock:
                self._readers -= 1

    def _read(self, opened: _Open, key: bytes, whole: bool) -> Any:
        epochs = self._epochs
        # Before the transaction begins: what the file was cleaned of by now, the transaction sees cleaned.
        applied = epochs.applied
        sequence = epochs.sequence
        try:
            txn = opened.env.begin(opened.answers, None, False, True)
            try:
                digest = siphash128(key, opened.secret)
                found = txn.get(digest)
                if found is None:
                    return None
                length = _LENGTH.unpack_from(found, 8)[0]
                if length > _LATER_STORED and not whole:
                    return LATER
                if length > _PIECE:
                    envelope = open_envelope(_joined(txn, opened.answers, digest, found, length), key)
                else:
                    envelope = open_envelope(found, key, _BEFORE)
            finally:
                txn.abort()
        except (Damaged, struct.error) as error:
            self._found_damage(f"value: {error}")
            return None
        except (self._lmdb.ReadersFullError, self._lmdb.MemoryError) as error:
            self._trouble("readers", "the disk cache cannot be read", str(error))
            return None
        except self._lmdb.Error as error:
            self._found_damage(f"read: {error}")
            return None
        if envelope is None or envelope.expires_ns <= realtime_ns():
            return None
        made = envelope.sequence
        if made != sequence:
            since = made if made > applied else applied
            if since != sequence and epochs.concerns(key, envelope.tags, since):
                return None
        if not envelope.is_compressed:
            return envelope if whole else envelope.stored
        if not whole and envelope.raw_bytes > _LATER_BYTES:
            return LATER
        try:
            value = envelope.value()
            return envelope._replace(stored=value, is_compressed=False) if whole else value
        except Damaged as error:
            self._found_damage(f"value: {error}")
            return None

    def put(self, key: bytes, value: bytes, tags: Iterable[bytes], expires_ns: int, sequence: int) -> bool:
        """True when the value is queued to be written. Never waits; what does not fit is dropped, counted.
        expires_ns 0: what is under the key is to be removed."""
        n = len(value) + len(key)
        labels = tuple(tags)
        if (
            self._open is None
            or n > self.largest_bytes
            or len(key) > 0xFFFF
            or len(labels) > _TAGS_MAX
            or any(len(tag) > _TAG_BYTES for tag in labels)
        ):
            self._counts["refused"].add()
            return False
        if (
            self._bytes_in - self._bytes_out + n > _QUEUE_BYTES
            or len(self._queue) >= _QUEUE_ITEMS
            or time.monotonic() < self._off_until
        ):
            self._counts["dropped"].add()
            return False
        self._bytes_in += n
        self._queue.append(_Item(key, value, labels, expires_ns, sequence))
        if not self._wake.is_set():
            self._wake.set()
        return True

    def when_written(self, key: bytes, then: Callable[[], Any]) -> bool:
        """True: `then` is called, in the thread, when what was put under key is written or given up.
        False: nothing is waiting to be written."""
        if self._bytes_in == self._bytes_out:
            return False
        with self._readers_lock:
            self._waiting.setdefault(key, []).append(then)
        self._wake.set()
        return True

    def _written(self, keys: Iterable[bytes]) -> None:
        if self._waiting:
            with self._readers_lock:
                found = [then for key in keys for then in self._waiting.pop(key, ())]
            for then in found:
                then()

    def statistics(self) -> dict[str, int]:
        """Counters of all workers of this machine, and the contents of the file."""
        return {
            **{event: counter.value for event, counter in self._counts.items()},
            "bytes": self._used.value,
            "entries": self._entries.value,
            "size": self.size_bytes,
            "queued": len(self._queue),
        }

    # ── the thread

    def _run(self) -> None:
        lmdb = self._lmdb
        # A loop that wants the interpreter back while this thread computes gets it within half a
        # millisecond instead of five; it costs nothing while only one of them has something to do.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        if sys.platform == "linux":
            # Threads have a priority of their own there. Compressing and copying must not take turns with the
            # loop: the p99 of small hits while 1 GB is stored halves with it (benchmarks.gateway, store-big).
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        # Without this a write that waits for another worker's would hold up this one's loop.
        lmdb.enable_drop_gil()
        while True:
            stopping = self._stopping
            try:
                self._turn()
            except lmdb.Error as error:
                self._on_error(error)
            except OSError as error:
                self._trouble("io", "the disk cache cannot be used", str(error))
                self._retry_at = time.monotonic() + _OFF_S
                self._close()
            except Exception:
                # A bug, and no reason to end the thread: what it was at is lost, requests go on.
                self._counts["error"].add()
                log.exception("the disk cache")
            if not self._queue or self._open is None:
                self._written(list(self._waiting))
            if stopping:
                break
            self._wake.wait(_TICK_S)
            if self._wake.is_set() and not self._stopping:
                time.sleep(_LINGER_S)
            self._wake.clear()
        self._leave()

    def _turn(self) -> None:
        now = time.monotonic()
        if self._damaged is not None and self._open is not None:
            self._rebuild(self._damaged)
        opened = self._open
        if opened is not None and self._epochs.note(DISK_ROLE, _GENERATION) != opened.generation:
            self._close()
            opened = None
        if opened is None:
            if now < self._retry_at or self._stopping:
                self._ready.set()
                return
            try:
                opened = self._open_file()
            except _InUse:
                return
            except BaseException:
                self._ready.set()
                raise
            self._ready.set()
            if opened is None:
                self._retry_at = now + _OFF_S
                return
        if self._epochs.claim(DISK_ROLE):
            self._clean(opened, now)
        while self._queue and self._damaged is None:
            self._write_some(opened)
            if self._stopping and time.monotonic() > now + 3.0:
                break

    def _due(self, what: str, every_s: float, now: float) -> bool:
        if now < self._next.get(what, 0.0):
            return False
        self._next[what] = now + every_s
        return True

    # ── opening

    def _open_file(self) -> _Open | None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        first = self._enter()
        if first is None:
            self._trouble("shared", "the disk cache is in use by another gateway", str(self.path))
            return None
        try:
            return self._open_as(first)
        finally:
            if first:
                fcntl.flock(self._instance, fcntl.LOCK_SH)

    def _open_as(self, first: bool) -> _Open | None:
        epochs = self._epochs
        generation = epochs.note(DISK_ROLE, _GENERATION)
        if first or generation == 0:
            numbers = sorted(self._files())
            generation = max(generation, numbers[-1] if numbers else 1)
            epochs.set_note(DISK_ROLE, _GENERATION, generation)
            if first and self._was_torn():
                generation += 1
                epochs.set_note(DISK_ROLE, _GENERATION, generation)
            for number in numbers:
                if number < generation:
                    self._unlink(number)
            if first:
                self._write_state(clean=False)
        file = self._file(generation)
        check = first and file.exists()
        for _ in range(2):
            if check and not self._is_sound(file):
                self._damage(generation, "found while it was checked")
                generation = epochs.note(DISK_ROLE, _GENERATION)
                file = self._file(generation)
                check = False
            opened, dead = self._try_open(file, generation)
            if opened is None:
                generation = epochs.note(DISK_ROLE, _GENERATION)
                file = self._file(generation)
                check = False
                continue
            if dead and not check:
                # A worker died with this file open. It may have died of it.
                check = True
                self._shut(opened)
                continue
            self._open = opened
            self._measure(opened)
            self._logged.discard("io")
            return opened
        return None

    def _try_open(self, file: Path, generation: int) -> tuple[_Open | None, int]:
        lmdb = self._lmdb
        env = None
        if str(file) in _open_here:
            raise _InUse
        try:
            map_bytes = int(self.size_bytes * _MAP_RATIO) // 4096 * 4096
            if file.exists() and file.stat().st_size > map_bytes:
                self._give_up(
                    generation,
                    f"disk.size is smaller than the {file.stat().st_size} bytes of the file: "
                    "the disk cache starts with an empty one",
                )
                return None, 0
            env = lmdb.open(
                str(file),
                subdir=False,
                map_size=map_bytes,
                max_dbs=4,
                mode=0o600,
                sync=False,
                metasync=False,
                readahead=False,
                max_readers=_MAX_READERS,
                max_spare_txns=2,
            )
            dead = env.reader_check()
            meta = env.open_db(b"meta")
            answers, order, tags = (env.open_db(name) for name in (b"answers", b"order", b"tags"))
            with env.begin(write=True) as txn:
                secret = txn.get(b"secret", db=meta)
                if secret is None:
                    secret = os.urandom(16)
                    txn.put(b"secret", secret, db=meta)
            if len(secret) != 16:
                raise lmdb.CorruptedError("secret")
            _open_here.add(str(file))
            return _Open(env, answers, order, tags, bytes(secret), generation), dead
        except (lmdb.DiskError, lmdb.ReadersFullError, lmdb.LockError, lmdb.MemoryError) as error:
            if env is not None:
                env.close()
            raise OSError(str(error)) from error
        except lmdb.Error as error:
            if env is not None:
                env.close()
            if "No space" in str(error) or "Permission" in str(error) or "Read-only" in str(error):
                raise OSError(str(error)) from error
            self._damage(generation, str(error))
            return None, 0

    def _enter(self) -> bool | None:
        """Joins those who use the directory. True: we are the first; None: another gateway has it."""
        if self._instance >= 0:
            return False
        fd = os.open(self.path / "instance", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._instance = fd
            return True
        except BlockingIOError:
            pass
        # Another process opens it (briefly exclusive) or uses it. The first one writes its identity.
        for _ in range(int(_VERIFY_S / 0.05)):
            if self._stopping:
                break
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        if self._state(fd).get("run") != self._epochs.start:
            os.close(fd)
            return None
        self._instance = fd
        return False

    def _state(self, fd: int) -> dict[str, Any]:
        try:
            state = json.loads(os.pread(fd, 4096, 0) or b"{}")
        except ValueError:
            return {}
        return state if isinstance(state, dict) else {}

    def _write_state(self, *, clean: bool) -> None:
        text = json.dumps({"run": self._epochs.start, "boot": _boot_id(), "clean": clean}).encode()
        os.pwrite(self._instance, text.ljust(256), 0)
        os.ftruncate(self._instance, 256)

    def _was_torn(self) -> bool:
        """Whether the machine stopped while the file was open: then what lies in it may be anything."""
        state = self._state(self._instance)
        return bool(state) and not state.get("clean") and state.get("boot") != _boot_id()

    def _file(self, generation: int) -> Path:
        return self.path / f"answers-{generation}.mdb"

    def _files(self) -> Iterator[int]:
        for file in self.path.glob("answers-*.mdb"):
            with contextlib.suppress(ValueError):
                yield int(file.stem.removeprefix("answers-"))

    def _unlink(self, number: int) -> None:
        for name in (f"answers-{number}.mdb", f"answers-{number}.mdb-lock"):
            (self.path / name).unlink(missing_ok=True)

    def _is_sound(self, file: Path) -> bool:
        """Whether a walk over the file ends well: in a process of its own, since damage may crash it."""
        if self._verify_in_process:
            return verify(str(file))
        command = [sys.executable, "-m", "fastgate.caching.disk", str(file)]
        here = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": paths}
        try:
            done = subprocess.run(command, capture_output=True, timeout=_VERIFY_S, check=False, env=env)
        except (OSError, subprocess.TimeoutExpired) as error:
            self._trouble("verify", "the disk cache could not be checked", str(error))
            return False
        return done.returncode == 0

    # ── what goes wrong

    def _trouble(self, kind: str, what: str, detail: str) -> None:
        """Counted every time, logged once until it is over."""
        self._counts["error"].add()
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("%s: %s", what, detail)

    def _found_damage(self, detail: str) -> None:
        """On the loop: only notes it; the thread does the work."""
        if self._damaged is None:
            self._counts["damaged"].add()
            self._damaged = detail
            self._wake.set()

    def _damage(self, generation: int, detail: str) -> None:
        """Gives up a file with damage in it."""
        self._give_up(generation, f"the disk cache is damaged and starts with an empty file: {detail}")

    def _give_up(self, generation: int, why: str) -> None:
        """Gives up the file of that number, for all workers; the first who says so counts it."""
        if self._epochs.change_note(DISK_ROLE, _GENERATION, generation, generation + 1):
            self._counts["rebuilt"].add()
            log.warning("%s", why)
        self._unlink(generation)

    def _rebuild(self, detail: str) -> None:
        opened = self._open
        self._close()
        if opened is not None:
            self._damage(opened.generation, detail)
        self._damaged = None

    def _on_error(self, error: Exception) -> None:
        lmdb = self._lmdb
        full = isinstance(error, lmdb.DiskError) or any(
            word in str(error) for word in ("No space", "File too large", "quota", "Input/output")
        )
        if full or isinstance(error, lmdb.MapFullError | lmdb.TxnFullError):
            self._counts["full"].add()
            self._trouble("full", f"the disk cache is off for {_OFF_S:g} s", str(error))
            self._off_until = time.monotonic() + _OFF_S
            self._drop_queue()
            return
        self._found_damage(str(error))

    def _drop_queue(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            self._bytes_out += len(item.value) + len(item.key)
            self._counts["dropped"].add()
        self._written(list(self._waiting))

    def _close(self) -> None:
        """Closes the file when it has no readers left."""
        opened = self._open
        with self._readers_lock:
            self._open = None
        if opened is None:
            return
        while self._in_loop or self._readers:
            time.sleep(0.001)
        self._shut(opened)

    @staticmethod
    def _shut(opened: _Open) -> None:
        _open_here.discard(opened.env.path())
        opened.env.close()

    def _leave(self) -> None:
        self._close()
        self._epochs.leave(DISK_ROLE)
        if self._instance < 0:
            return
        with contextlib.suppress(OSError):
            fcntl.flock(self._instance, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # No other process has it open, so the contents are complete.
            for number in self._files():
                fd = os.open(self._file(number), os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
            self._write_state(clean=True)
        os.close(self._instance)
        self._instance = -1

    # ── writing

    def _write_some(self, opened: _Open) -> None:
        """One batch in one transaction; evicts before, in transactions of their own."""
        batch: list[tuple[_Item, bytes]] = []
        need = size = 0
        bound = max(self.size_bytes // 128, 256 << 10)
        while self._queue and need < bound and len(batch) < 1024:
            item = self._queue.popleft()
            size += len(item.value) + len(item.key)
            data = seal(item.key, item.value, item.tags, item.expires_ns, item.sequence, self._compress_above)
            batch.append((item, data))
            need += _footprint(len(data), len(item.key), len(item.tags))
        stored = 0
        try:
            for attempt in range(8):
                try:
                    self._make_room(opened, need + attempt * (self.size_bytes // 128))
                    with opened.env.begin(write=True) as txn:
                        stored = self._write_batch(opened, txn, batch)
                        self._measure(opened, txn)
                    break
                except self._lmdb.MapFullError:
                    # Enough pages are free, but not in one piece, or not free for two transactions yet.
                    if attempt == 7:
                        raise
            self._counts["stored"].add(stored)
        except BaseException:
            self._counts["dropped"].add(len(batch))
            raise
        finally:
            self._bytes_out += size
            self._written(item.key for item, _ in batch)
        if self._logged:
            self._logged.discard("full")

    def _write_batch(self, opened: _Open, txn: Any, batch: list[tuple[_Item, bytes]]) -> int:
        stored = evicted = 0
        with txn.cursor(opened.order) as cursor:
            place = _PLACE.unpack(cursor.key())[0] if cursor.last() else 0
        for item, data in batch:
            if item.expires_ns == 0:
                evicted += self._remove(opened, txn, siphash128(item.key, opened.secret), None)
                continue
            # Inside the transaction: a later purge cleans after it, an earlier one is in the log.
            if self._epochs.concerns(item.key, item.tags, item.sequence):
                self._counts["purged"].add()
                continue
            digest = siphash128(item.key, opened.secret)
            self._remove(opened, txn, digest, None)
            place += 1
            at = _PLACE.pack(place)
            txn.put(digest, at + _LENGTH.pack(len(data)) + data[:_PIECE], db=opened.answers)
            for piece in range(1, _pieces(len(data))):
                txn.put(
                    digest + _PIECE_NUMBER.pack(piece),
                    data[piece * _PIECE : (piece + 1) * _PIECE],
                    db=opened.answers,
                )
            txn.put(
                at,
                _ORDER.pack(digest, item.expires_ns, item.sequence, len(data)) + item.key,
                append=True,
                db=opened.order,
            )
            for tag in item.tags:
                txn.put(_tag_digest(tag) + at, digest, db=opened.tags)
            stored += 1
        self._counts["evicted"].add(evicted)
        return stored

    def _remove(self, opened: _Open, txn: Any, digest: bytes, place: bytes | None) -> bool:
        """Removes the response with all its rows, if it is still the one at that place."""
        data = txn.get(digest, db=opened.answers)
        if data is None or (place is not None and data[:8] != place):
            if place is not None:
                txn.delete(place, db=opened.order)
            return False
        at = data[:8]
        length = _LENGTH.unpack_from(data, 8)[0]
        if _has_tags(data):
            for tag in _tags_of(_joined(txn, opened.answers, digest, data, length)):
                txn.delete(_tag_digest(tag) + at, db=opened.tags)
        for piece in range(1, _pieces(length)):
            txn.delete(digest + _PIECE_NUMBER.pack(piece), db=opened.answers)
        txn.delete(at, db=opened.order)
        txn.delete(digest, db=opened.answers)
        return True

    def _pages(self, opened: _Open, txn: Any) -> int:
        pages = 0
        for db in (opened.answers, opened.order, opened.tags):
            stat = txn.stat(db)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * 4096

    def _measure(self, opened: _Open, txn: Any = None) -> None:
        if txn is None:
            with opened.env.begin() as own:
                self._measure(opened, own)
            return
        self._used.set(self._pages(opened, txn))
        self._entries.set(txn.stat(opened.order)["entries"])

    def _make_room(self, opened: _Open, need: int) -> None:
        target = self.size_bytes - need
        with opened.env.begin() as txn:
            used = self._pages(opened, txn)
        while used > target:
            evicted = 0
            with opened.env.begin(write=True) as txn:
                # The oldest first; in portions, so that no transaction holds the others up for long.
                with txn.cursor(opened.order) as cursor:
                    oldest = []
                    freed = 0
                    for place, row in cursor:
                        oldest.append((place, row[:16]))
                        freed += _footprint(_ORDER.unpack_from(row)[3], len(row) - _ORDER.size, 0)
                        if len(oldest) == _SLICE or freed > used - target + 65536:
                            break
                for place, digest in oldest:
                    evicted += 1
                    self._remove(opened, txn, digest, place)
                used = self._pages(opened, txn)
            self._counts["evicted"].add(evicted)
            if not evicted:
                return

    # ── cleaning: one worker for all

    def _clean(self, opened: _Open, now: float) -> None:
        if self._epochs.applied < self._epochs.sequence:
            self._apply_purges(opened)
        if self._due("sweep", _SWEEP_S, now):
            self._sweep(opened)
        if self._due("readers", _READERS_S, now):
            opened.env.reader_check()
        if self._due("sync", _SYNC_S, now):
            opened.env.sync(True)

    def _apply_purges(self, opened: _Open) -> None:
        """Deletes what the purges since the last time hit, and then says so."""
        epochs = self._epochs
        applied = epochs.applied
        sequence = epochs.sequence
        records = epochs.since(applied)
        removed = 0
        if records is None or any(record.kind == "all" for record in records):
            with opened.env.begin(write=True) as txn:
                removed = txn.stat(opened.order)["entries"]
                for db in (opened.answers, opened.order, opened.tags):
                    txn.drop(db, delete=False)
            records = []
        direct = [record for record in records if record.kind in ("key", "tag")]
        for begin in range(0, len(direct), 64):
            with opened.env.begin(write=True) as txn:
                for record in direct[begin : begin + 64]:
                    if record.kind == "key":
                        removed += self._remove_older(
                            opened, txn, siphash128(record.text, opened.secret), record.sequence
                        )
                    else:
                        removed += self._remove_tagged(opened, txn, record.text, record.sequence)
        if len(direct) < len(records):
            hit = self._scan(
                opened, lambda key, expires_ns, made: epochs.concerns(key, (), max(made, applied))
            )
            if hit is None:
                return
            removed += hit
        # The purge survives, also if the machine stops now.
        opened.env.sync(True)
        epochs.set_applied(sequence)
        self._counts["purged"].add(removed)
        self._measure(opened)

    def _remove_older(self, opened: _Open, txn: Any, digest: bytes, sequence: int) -> int:
        data = txn.get(digest, db=opened.answers)
        if data is None or _sequence_of(data) >= sequence:
            return 0
        return int(self._remove(opened, txn, digest, None))

    def _remove_tagged(self, opened: _Open, txn: Any, tag: bytes, sequence: int) -> int:
        prefix = _tag_digest(tag)
        found = []
        with txn.cursor(opened.tags) as cursor:
            if cursor.set_range(prefix):
                for row, digest in cursor:
                    if row[:16] != prefix:
                        break
                    found.append(digest)
        return sum(self._remove_older(opened, txn, digest, sequence) for digest in found)

    def _sweep(self, opened: _Open) -> None:
        """Sweeps a part of the responses for expired ones."""
        now_ns = realtime_ns()
        expired, self._sweep_from = self._look(
            opened, self._sweep_from, 16 * _SLICE, lambda key, expires_ns, made: expires_ns <= now_ns
        )
        if expired:
            self._counts["expired"].add(self._remove_all(opened, expired))
            self._measure(opened)

    def _scan(self, opened: _Open, is_wanted: Any) -> int | None:
        """Removes responses for which is_wanted(key, expires_ns, sequence); how many. None: cut short."""
        removed = at = 0
        while True:
            found, at = self._look(opened, at, _SLICE, is_wanted)
            removed += self._remove_all(opened, found)
            if at == 0:
                return removed
            if self._stopping:
                return None
            time.sleep(0.0005)

    def _look(
        self, opened: _Open, start: int, rows: int, is_wanted: Any
    ) -> tuple[list[tuple[bytes, bytes]], int]:
        """Some rows of the order from a place on: those wanted, and the place to go on from (0: the end)."""
        found: list[tuple[bytes, bytes]] = []
        with opened.env.begin() as txn, txn.cursor(opened.order) as cursor:
            if not cursor.set_range(_PLACE.pack(start)):
                return [], 0
            for place, row in cursor:
                if rows == 0:
                    return found, _PLACE.unpack(place)[0]
                rows -= 1
                digest, expires_ns, made, _ = _ORDER.unpack_from(row)
                if is_wanted(row[_ORDER.size :], expires_ns, made):
                    found.append((place, digest))
        return found, 0

    def _remove_all(self, opened: _Open, found: list[tuple[bytes, bytes]]) -> int:
        removed = 0
        for begin in range(0, len(found), _SLICE):
            with opened.env.begin(write=True) as txn:
                for place, digest in found[begin : begin + _SLICE]:
                    removed += self._remove(opened, txn, digest, place)
        return removed


def _boot_id() -> str:
    try:
        return Path(_BOOT_ID).read_text().strip()
    except OSError:
        return ""


def _tag_digest(tag: bytes) -> bytes:
    return siphash128(tag, _TAG_KEY)


def _footprint(data_bytes: int, key_bytes: int, tags: int) -> int:
    """The approximate number of pages of a response: large values have separate pages, small ones share."""
    value = data_bytes + _BEFORE
    rows = int((key_bytes + 60) * 1.2) + tags * 70
    if value + 24 > 2000:
        return (value + 16 + 4095) // 4096 * 4096 + 100 * _pieces(data_bytes) + rows
    return int((value + 24) * 1.5) + rows


def _pieces(length: int) -> int:
    return (length + _PIECE - 1) // _PIECE


def _joined(txn: Any, answers: Any, digest: bytes, first: Any, length: int) -> bytes:
    """The envelope out of its pieces; short when one is missing, which its checksum tells."""
    if length > LARGEST_BYTES * 2:
        raise Damaged(f"a length of {length}")
    parts = [first[_BEFORE:]]
    for piece in range(1, _pieces(length)):
        parts.append(txn.get(digest + _PIECE_NUMBER.pack(piece), b"", answers))
    return b"".join(parts)


_SEQUENCE: Final = struct.Struct("<q")
_TAGS_LENGTH: Final = struct.Struct("<I")


def _sequence_of(data: bytes) -> int:
    """The sequence in a stored envelope; one that is too short is older than any."""
    if len(data) < _BEFORE + HEAD_BYTES:
        return 0
    sequence: int = _SEQUENCE.unpack_from(data, _BEFORE + HEAD_BYTES - 8)[0]
    return sequence


def _has_tags(data: bytes) -> bool:
    return len(data) >= _BEFORE + HEAD_BYTES and _TAGS_LENGTH.unpack_from(data, _BEFORE + 16)[0] > 0


def _tags_of(envelope: bytes) -> tuple[bytes, ...]:
    """The tags in an envelope; none of one that is damaged."""
    try:
        opened = open_envelope(envelope, None)
    except Damaged:
        return ()
    return opened.tags if opened is not None else ()


def verify(file: str) -> bool:
    """True when every row of every database of the file can be reached and looks like one."""
    import lmdb

    try:
        env = lmdb.open(file, subdir=False, readonly=True, max_dbs=4, max_readers=_MAX_READERS)
    except lmdb.Error:
        return False
    try:
        databases = [env.open_db(name, create=False) for name in (b"answers", b"order", b"tags")]
        shapes = ((16, 18), (8,), (24,))
        with env.begin() as txn:
            for db, lengths in zip(databases, shapes, strict=True):
                left = int(txn.stat(db)["entries"])
                last = b""
                with txn.cursor(db) as cursor:
                    for key in cursor.iternext(keys=True, values=False):
                        left -= 1
                        if len(key) not in lengths or key <= last or left < 0:
                            return False
                        last = key
                if left:
                    return False
    except lmdb.Error:
        return False
    finally:
        env.close()
    return True


if __name__ == "__main__":
    raise SystemExit(0 if verify(sys.argv[1]) else 1)
