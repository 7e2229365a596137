"""Writing to the file of the disk tier: batches, eviction, and the cleaning that one worker does for all.

PURGES  Values have the sequence of the last purge before their fetch (_core/epochs). A reader compares them
with all purges that the file has not been cleaned of yet, so a purge is in effect before anything is deleted.
A writer compares them inside its write transaction, so a value stored after a purge was fetched after it, or
is removed by the cleaning.

BUDGET  `size` bounds the pages in use, index included; eviction is first in, first out, in transactions
before those that write, since LMDB reuses a page two transactions later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from fastgate._core.clock import realtime_ns
from fastgate._core.hashing import siphash128
from fastgate._core.shm.epochs import Epochs
from fastgate.caching.disk_events import DiskEvents
from fastgate.caching.disk_rows import (
    LENGTH,
    ORDER,
    PIECE,
    PIECE_NUMBER,
    PLACE,
    Opened,
    footprint,
    pieces,
    remove_row,
    sequence_of,
    tag_digest,
)

__all__ = ["DiskWriter", "Sealed"]

_SLICE: Final = 256  # rows processed before other threads get their turn
_SWEEP_S: Final = 1.0
_READERS_S: Final = 5.0
_SYNC_S: Final = 10.0


class Sealed(NamedTuple):
    """One response to be written. expires_ns 0: the response under the key is to be removed."""

    key: bytes
    tags: tuple[bytes, ...]
    expires_ns: int
    sequence: int
    data: bytes
    """The envelope."""


class DiskWriter:
    """Write transactions of one worker. Only the store's thread uses it."""

    def __init__(
        self,
        lmdb: Any,
        size_bytes: int,
        epochs: Epochs,
        events: DiskEvents,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._lmdb = lmdb
        self.size_bytes = size_bytes
        self._epochs = epochs
        self._events = events
        self._is_stopping = is_stopping
        self._sweep_from = 0
        self._next: dict[str, float] = {}

    def write(self, opened: Opened, batch: Sequence[Sealed]) -> None:
        """Writes the batch in one transaction; evicts before that, in separate transactions. Raises
        lmdb.Error."""
        need = sum(footprint(len(item.data), len(item.key), len(item.tags)) for item in batch)
        for attempt in range(8):
            try:
                self._make_room(opened, need + attempt * (self.size_bytes // 128))
                with opened.env.begin(write=True) as txn:
                    stored = self._write_batch(opened, txn, batch)
                    self.measure(opened, txn)
                break
            except self._lmdb.MapFullError:
                # Enough pages are free, but not yet for two transactions: LMDB reuses them then.
                if attempt == 7:
                    raise
        self._events.count("stored", stored)

    def _write_batch(self, opened: Opened, txn: Any, batch: Sequence[Sealed]) -> int:
        stored = evicted = 0
        with txn.cursor(opened.order) as cursor:
            place = PLACE.unpack(cursor.key())[0] if cursor.last() else 0
        for item in batch:
            if item.expires_ns == 0:
                evicted += remove_row(opened, txn, siphash128(item.key, opened.secret), None)
                continue
            # Inside the transaction: a later purge cleans after it, an earlier one is in the log.
            if self._epochs.concerns(item.key, item.tags, item.sequence):
                self._events.count("purged")
                continue
            digest = siphash128(item.key, opened.secret)
            remove_row(opened, txn, digest, None)
            place += 1
            at = PLACE.pack(place)
            txn.put(digest, at + LENGTH.pack(len(item.data)) + item.data[:PIECE], db=opened.answers)
            for piece in range(1, pieces(len(item.data))):
                txn.put(
                    digest + PIECE_NUMBER.pack(piece),
                    item.data[piece * PIECE : (piece + 1) * PIECE],
                    db=opened.answers,
                )
            txn.put(
                at,
                ORDER.pack(digest, item.expires_ns, item.sequence, len(item.data)) + item.key,
                append=True,
                db=opened.order,
            )
            for tag in item.tags:
                txn.put(tag_digest(tag) + at, digest, db=opened.tags)
            stored += 1
        self._events.count("evicted", evicted)
        return stored

    def _pages(self, opened: Opened, txn: Any) -> int:
        pages = 0
        for db in (opened.answers, opened.order, opened.tags):
            stat = txn.stat(db)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * 4096

    def measure(self, opened: Opened, txn: Any = None) -> None:
        """Sets the gauges of bytes and entries."""
        if txn is None:
            with opened.env.begin() as own:
                self.measure(opened, own)
            return
        self._events.used.set(self._pages(opened, txn))
        self._events.entries.set(txn.stat(opened.order)["entries"])

    def _make_room(self, opened: Opened, need: int) -> None:
        target = self.size_bytes - need
        with opened.env.begin() as txn:
            used = self._pages(opened, txn)
        while used > target:
            evicted = 0
            with opened.env.begin(write=True) as txn:
                # The oldest first; in portions, so that no transaction blocks the others for long.
                with txn.cursor(opened.order) as cursor:
                    oldest = []
                    freed = 0
                    for place, row in cursor:
                        oldest.append((place, row[:16]))
                        freed += footprint(ORDER.unpack_from(row)[3], len(row) - ORDER.size, 0)
                        if len(oldest) == _SLICE or freed > used - target + 65536:
                            break
                for place, digest in oldest:
                    evicted += 1
                    remove_row(opened, txn, digest, place)
                used = self._pages(opened, txn)
            self._events.count("evicted", evicted)
            if not evicted:
                return

    # ── cleaning: one worker for all

    def clean(self, opened: Opened, now: float) -> None:
        """Runs the due tasks. now: time.monotonic()."""
        if self._epochs.applied < self._epochs.sequence:
            self._apply_purges(opened)
        if self._due("sweep", _SWEEP_S, now):
            self._sweep(opened)
        if self._due("readers", _READERS_S, now):
            opened.env.reader_check()
        if self._due("sync", _SYNC_S, now):
            opened.env.sync(True)

    def _due(self, what: str, every_s: float, now: float) -> bool:
        if now < self._next.get(what, 0.0):
            return False
        self._next[what] = now + every_s
        return True

    def _apply_purges(self, opened: Opened) -> None:
        """Deletes the responses affected by the purges since the last run, then records that it has."""
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
        # The purge is durable, even if the machine stops now.
        opened.env.sync(True)
        self._events.count("purged", removed)
        self.measure(opened)
        epochs.set_applied(sequence)  # last: who sees it may look at the counts

    def _remove_older(self, opened: Opened, txn: Any, digest: bytes, sequence: int) -> int:
        data = txn.get(digest, db=opened.answers)
        if data is None or sequence_of(data) >= sequence:
            return 0
        return int(remove_row(opened, txn, digest, None))

    def _remove_tagged(self, opened: Opened, txn: Any, tag: bytes, sequence: int) -> int:
        prefix = tag_digest(tag)
        found = []
        with txn.cursor(opened.tags) as cursor:
            if cursor.set_range(prefix):
                for row, digest in cursor:
                    if row[:16] != prefix:
                        break
                    found.append(digest)
        return sum(self._remove_older(opened, txn, digest, sequence) for digest in found)

    def _sweep(self, opened: Opened) -> None:
        """Sweeps a part of the responses for expired ones."""
        now_ns = realtime_ns()
        expired, self._sweep_from = self._look(
            opened, self._sweep_from, 16 * _SLICE, lambda key, expires_ns, made: expires_ns <= now_ns
        )
        if expired:
            self._events.count("expired", self._remove_all(opened, expired))
            self.measure(opened)

    def _scan(self, opened: Opened, is_wanted: Any) -> int | None:
        """Removes responses for which is_wanted(key, expires_ns, sequence); returns how many. None:
        interrupted."""
        removed = at = 0
        while True:
            found, at = self._look(opened, at, _SLICE, is_wanted)
            removed += self._remove_all(opened, found)
            if at == 0:
                return removed
            if self._is_stopping():
                return None
            time.sleep(0.0005)

    def _look(
        self, opened: Opened, start: int, rows: int, is_wanted: Any
    ) -> tuple[list[tuple[bytes, bytes]], int]:
        """The rows that match, of some rows from a place on, and the place to continue from (0: the end)."""
        found: list[tuple[bytes, bytes]] = []
        with opened.env.begin() as txn, txn.cursor(opened.order) as cursor:
            if not cursor.set_range(PLACE.pack(start)):
                return [], 0
            for place, row in cursor:
                if rows == 0:
                    return found, PLACE.unpack(place)[0]
                rows -= 1
                digest, expires_ns, made, _ = ORDER.unpack_from(row)
                if is_wanted(row[ORDER.size :], expires_ns, made):
                    found.append((place, digest))
        return found, 0

    def _remove_all(self, opened: Opened, found: list[tuple[bytes, bytes]]) -> int:
        removed = 0
        for begin in range(0, len(found), _SLICE):
            with opened.env.begin(write=True) as txn:
                for place, digest in found[begin : begin + _SLICE]:
                    removed += remove_row(opened, txn, digest, place)
        return removed
