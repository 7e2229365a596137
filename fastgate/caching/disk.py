"""The disk tier: responses in one LMDB file that all workers of the machine share, and that survives a
restart.

Reads are synchronous, on the request path: a lookup in the memory map, a checksum over the value, no lock.
Writes are not: `put` appends to a bounded queue, and a thread of each worker writes in batches, one worker at
a time (LMDB's lock). The event loop never waits for a write, a commit or the disk, except for page faults of
a value that is not in the page cache.

A cache may lose its last seconds but must never serve corrupt data. Every value is verified against its
checksum and its key.

The parts: `disk_rows` (the layout), `disk_file` (opening and replacing the file), `disk_writer` (batches,
eviction, purges), `disk_events` (counters and log lines).
"""

from __future__ import annotations

import logging
import os
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastgate._core.cache.envelope import LATER, SLOW, DiskReader
from fastgate._core.clock import realtime_ns
from fastgate._core.hashing import siphash128
from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.metric import MetricTable
from fastgate.caching.disk_events import DiskEvents
from fastgate.caching.disk_file import DISK_ROLE, DiskFile, OpenElsewhere
from fastgate.caching.disk_rows import BEFORE, LENGTH, PIECE, Opened, footprint, joined
from fastgate.caching.disk_writer import DiskWriter, Sealed
from fastgate.state.envelope import LARGEST_BYTES, Damaged, Envelope, open_envelope, seal

__all__ = ["LATER", "DiskStore"]

log = logging.getLogger(__name__)

LEAST_BYTES: Final = 16 << 20
_QUEUE_BYTES: Final = 32 << 20
_QUEUE_ITEMS: Final = 20_000
_LINGER_S: Final = 0.02  # puts gathered within this time are one transaction
_TICK_S: Final = 0.1
_SWITCH_S: Final = 0.0005
_OFF_S: Final = 30.0  # pause of writes after the disk was full
_LATER_BYTES: Final = 256 << 10  # decompressing more than this would block the loop: read in a thread
_LATER_STORED: Final = 1 << 20  # and joining more than this
_TAGS_MAX: Final = 255  # as in _core/cache
_TAG_BYTES: Final = 1024

"""Result of `get` for a value that should be read in a thread: `get_in_thread`."""


class _Item(NamedTuple):
    key: bytes
    value: bytes
    tags: tuple[bytes, ...]
    expires_ns: int
    sequence: int


class DiskStore:
    """The store of one worker. `start` after the fork; `get` and `put` from any thread.

    Until the file is open, and while it is unavailable, `get` finds no value and `put` stores none: both are
    counted.
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
        self._open: Opened | None = None
        self._readers = 0
        self._readers_lock = threading.Lock()
        self._queue: deque[_Item] = deque()
        self._bytes_in = self._bytes_out = 0
        self._waiting: dict[bytes, list[Callable[[], Any]]] = {}
        self._wake = threading.Event()
        self._ready = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._lmdb: Any = None  # the module: imported when the store starts, as the next two are created
        self._file: DiskFile
        self._writer: DiskWriter
        self._damaged: str | None = None
        self._off_until = 0.0
        self._retry_at = 0.0
        self._events = DiskEvents(metrics)
        self.reader = DiskReader(
            epochs, self._events.counts["hit"], self._events.counts["miss"], BEFORE, PIECE
        )

    # ── lifecycle

    def start(self) -> None:
        """Starts the thread, which opens the file: call `wait_ready` to wait for it."""
        if self._thread is None:
            import lmdb

            self._lmdb = lmdb
            self._stopping = False
            self._file = DiskFile(
                lmdb,
                self.path,
                self.size_bytes,
                self._epochs,
                self._events,
                lambda: self._stopping,
                verify_in_process=self._verify_in_process,
            )
            self._writer = DiskWriter(
                lmdb, self.size_bytes, self._epochs, self._events, lambda: self._stopping
            )
            self._thread = threading.Thread(target=self._run, name="fastgate-disk", daemon=True)
            self._thread.start()

    def wait_ready(self, timeout_s: float = 10.0) -> bool:
        """True once the file has been opened, or opening it has failed."""
        return self._ready.wait(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes the queued values, as far as the time allows, and closes the file."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    @property
    def is_open(self) -> bool:
        return self._open is not None

    # ── requests

    def get(self, key: bytes) -> Any:
        """The value of key; None; or LATER, if it is so large that a thread should read it."""
        value = self.reader.get(key)
        return self.get_slow(key) if value is SLOW else value

    def get_slow(self, key: bytes) -> Any:
        """As `get`, for a key for which `reader` has just returned SLOW."""
        value = self._read_open(key, False)
        self._events.count("miss" if value is None else "hit")
        return value

    def get_in_thread(self, key: bytes) -> Envelope | None:
        """The value of key, of any size. Blocks on the disk: not for the event loop."""
        found: Envelope | None = self._read_open(key, True)
        return found

    def _read_open(self, key: bytes, whole: bool) -> Any:
        with self._readers_lock:
            opened = self._open
            if opened is None:
                return None
            self._readers += 1
        try:
            return self._read(opened, key, whole)
        finally:
            with self._readers_lock:
                self._readers -= 1

    def _read(self, opened: Opened, key: bytes, whole: bool) -> Any:
        epochs = self._epochs
        # Before the transaction begins: the transaction sees the effect of all purges applied until now.
        applied = epochs.applied
        sequence = epochs.sequence
        try:
            txn = opened.env.begin(opened.answers, None, False, True)
            try:
                digest = siphash128(key, opened.secret)
                found = txn.get(digest)
                if found is None:
                    return None
                length = LENGTH.unpack_from(found, 8)[0]
                if length > _LATER_STORED and not whole:
                    return LATER
                if length > PIECE:
                    envelope = open_envelope(joined(txn, opened.answers, digest, found, length), key)
                else:
                    envelope = open_envelope(found, key, BEFORE)
            finally:
                txn.abort()
        except (Damaged, struct.error) as error:
            self._found_damage(f"value: {error}")
            return None
        except (self._lmdb.ReadersFullError, self._lmdb.MemoryError) as error:
            self._events.trouble("readers", "the disk cache cannot be read", str(error))
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
        """True if the value is queued to be written. Never waits; values that do not fit are dropped and
        counted. expires_ns 0: the value of key is to be removed."""
        n = len(value) + len(key)
        labels = tuple(tags)
        if (
            self._open is None
            or n > self.largest_bytes
            or len(key) > 0xFFFF
            or len(labels) > _TAGS_MAX
            or any(len(tag) > _TAG_BYTES for tag in labels)
        ):
            self._events.count("refused")
            return False
        if (
            self._bytes_in - self._bytes_out + n > _QUEUE_BYTES
            or len(self._queue) >= _QUEUE_ITEMS
            or time.monotonic() < self._off_until
        ):
            self._events.count("dropped")
            return False
        self._bytes_in += n
        self._queue.append(_Item(key, value, labels, expires_ns, sequence))
        if not self._wake.is_set():
            self._wake.set()
        return True

    def when_written(self, key: bytes, then: Callable[[], Any]) -> bool:
        """True: `then` is called, in the thread, when the value put under key is written or dropped. False:
        no write is pending."""
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
            **{event: counter.value for event, counter in self._events.counts.items()},
            "bytes": self._events.used.value,
            "entries": self._events.entries.value,
            "size": self.size_bytes,
            "queued": len(self._queue),
        }

    # ── the thread

    def _run(self) -> None:
        lmdb = self._lmdb
        # A loop that needs the interpreter while this thread computes gets it within half a millisecond
        # instead of five; no cost while only one of them runs.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        if sys.platform == "linux":
            # On Linux each thread has its own priority. Compressing and copying must not compete with the
            # loop: the p99 of small hits while 1 GB is stored halves with it (benchmarks.gateway, store-big).
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        # Without this a write that waits for another worker's would block this one's loop.
        lmdb.enable_drop_gil()
        while True:
            stopping = self._stopping
            try:
                self._turn()
            except lmdb.Error as error:
                self._on_error(error)
            except OSError as error:
                self._events.trouble("io", "the disk cache cannot be used", str(error))
                self._retry_at = time.monotonic() + _OFF_S
                self._close()
            except Exception:
                # A bug, but the thread must not end: the current operation is lost, requests continue.
                self._events.count("error")
                log.exception("the disk cache")
            if not self._queue or self._open is None:
                self._written(list(self._waiting))
            if stopping:
                break
            self._wake.wait(_TICK_S)
            if self._wake.is_set() and not self._stopping:
                time.sleep(_LINGER_S)
            self._wake.clear()
        self._close()
        self._file.leave()

    def _turn(self) -> None:
        now = time.monotonic()
        if self._damaged is not None and self._open is not None:
            self._rebuild(self._damaged)
        opened = self._open
        if opened is not None and self._file.generation != opened.generation:
            self._close()
            opened = None
        if opened is None:
            if now < self._retry_at or self._stopping:
                self._ready.set()
                return
            try:
                opened = self._file.open()
            except OpenElsewhere:
                return
            except BaseException:
                self._ready.set()
                raise
            self._open = opened
            if opened is not None:
                self.reader.open(opened.env, opened.answers, opened.secret)
            self._ready.set()
            if opened is None:
                self._retry_at = now + _OFF_S
                return
            self._writer.measure(opened)
            self._events.over("io")
        if self._epochs.claim(DISK_ROLE):
            self._writer.clean(opened, now)
        while self._queue and self._damaged is None:
            self._write_some(opened)
            if self._stopping and time.monotonic() > now + 3.0:
                break

    # ── failures

    def _found_damage(self, detail: str) -> None:
        """Called on the loop: only records the damage; the thread handles it."""
        if self._damaged is None:
            self._events.count("damaged")
            self._damaged = detail
            self._wake.set()

    def _rebuild(self, detail: str) -> None:
        opened = self._open
        self._close()
        if opened is not None:
            self._file.damage(opened.generation, detail)
        self._damaged = None

    def _on_error(self, error: Exception) -> None:
        lmdb = self._lmdb
        full = isinstance(error, lmdb.DiskError) or any(
            word in str(error) for word in ("No space", "File too large", "quota", "Input/output")
        )
        if full or isinstance(error, lmdb.MapFullError | lmdb.TxnFullError):
            self._events.count("full")
            self._events.trouble("full", f"the disk cache is off for {_OFF_S:g} s", str(error))
            self._off_until = time.monotonic() + _OFF_S
            self._drop_queue()
            return
        self._found_damage(str(error))

    def _drop_queue(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            self._bytes_out += len(item.value) + len(item.key)
            self._events.count("dropped")
        self._written(list(self._waiting))

    def _close(self) -> None:
        """Closes the file once it has no readers."""
        opened = self._open
        with self._readers_lock:
            self._open = None
        self.reader.close()
        if opened is None:
            return
        while self.reader.reading or self._readers:
            time.sleep(0.001)
        self._file.shut(opened)

    # ── writing

    def _write_some(self, opened: Opened) -> None:
        """Writes one batch of the queue."""
        batch: list[Sealed] = []
        need = size = 0
        bound = max(self.size_bytes // 128, 256 << 10)
        while self._queue and need < bound and len(batch) < 1024:
            item = self._queue.popleft()
            size += len(item.value) + len(item.key)
            data = seal(item.key, item.value, item.tags, item.expires_ns, item.sequence, self._compress_above)
            batch.append(Sealed(item.key, item.tags, item.expires_ns, item.sequence, data))
            need += footprint(len(data), len(item.key), len(item.tags))
        try:
            self._writer.write(opened, batch)
        except BaseException:
            self._events.count("dropped", len(batch))
            raise
        finally:
            self._bytes_out += size
            self._written(item.key for item in batch)
        self._events.over("full")
