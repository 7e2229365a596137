"""The store: run-time changes that must outlive the processes. One SQLite file, one writer.

Only the controller opens it. It has API keys (as SHA-256, never the key), consumers, sealed secrets, named
documents and the versions of the State document (versions.py), which the loader of the config reads as well.
Workers read only what the controller publishes in the directory.

The file is created on first use. Journal: WAL with synchronous=FULL, so that every acknowledged change is on
disk (SQLite, "Write-Ahead Logging" §2.2 and pragma synchronous). The schema version is user_version; an older
file is migrated in one transaction, a newer one is refused. A damaged or foreign file is refused with the
cause and never replaced. A second gateway on the same file is excluded by a lock on `<file>.lock`, which ends
with the process that holds it. Changes that are in effect but cannot be written are in `<file>.pending`
(backlog.py); every read here includes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from fastgate.state.backlog import (
    Backlog,
    Change,
    ForgetKey,
    PutConsumer,
    RemoveDocument,
    RemoveSecret,
    RevokeKey,
    Write,
)
from fastgate.state.records import KeyState, StoredConsumer, StoredKey
from fastgate.state.sealing import Sealer
from fastgate.state.store_rows import (
    CONSUMER_COLUMNS,
    INSERT_KEY,
    KEY_COLUMNS,
    consumer_of,
    key_conditions,
    key_of,
    row_of,
)
from fastgate.state.versions import MIGRATION as STATE_MIGRATION
from fastgate.state.versions import StateVersions

__all__ = ["Store", "StoreError", "StoredSecret"]

log = logging.getLogger(__name__)

APPLICATION_ID = 0x66676174  # "fgat": what file(1) and we know the file by
HEADER = b"SQLite format 3\0"  # https://sqlite.org/fileformat.html §1.3.1
BUSY_S = 2.0
"""A wait for another process's lock holds up the loop of the controller, which is killed as hanging after
10 s. A revocation may wait for it more than once.
"""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE keys (
        key_id TEXT PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        hint TEXT NOT NULL,
        name TEXT NOT NULL,
        consumer TEXT NOT NULL,
        tier TEXT NOT NULL,
        scopes TEXT NOT NULL,
        roles TEXT NOT NULL,
        metadata TEXT NOT NULL,
        limits TEXT,
        created_ns INTEGER NOT NULL,
        not_before_ns INTEGER NOT NULL,
        expires_ns INTEGER NOT NULL,
        revoked_ns INTEGER NOT NULL,
        replaces TEXT NOT NULL,
        replaced_by TEXT NOT NULL,
        used INTEGER NOT NULL,
        last_used_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX keys_by_time ON keys (created_ns, key_id);
    CREATE INDEX keys_by_consumer ON keys (consumer, created_ns, key_id);
    CREATE TABLE consumers (
        name TEXT PRIMARY KEY,
        tier TEXT,
        scopes TEXT,
        roles TEXT,
        metadata TEXT,
        limits TEXT,
        disabled INTEGER,
        created_ns INTEGER NOT NULL,
        updated_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE secrets (
        name TEXT PRIMARY KEY,
        sealed BLOB NOT NULL,
        created_ns INTEGER NOT NULL,
        updated_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE documents (
        name TEXT PRIMARY KEY,
        body BLOB NOT NULL,
        version INTEGER NOT NULL,
        updated_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    STATE_MIGRATION,
)
"""Entry n brings a file of schema n to n + 1. Entries are never changed, only added."""


class StoreError(Exception):
    """The store cannot be used. The text names the file and what is wrong with it."""


class StoredSecret(msgspec.Struct, frozen=True):
    name: str
    created_ns: int
    updated_ns: int


class Store:
    """The open store. StoreError from every method that has to touch the file and cannot."""

    def __init__(self, path: Path, environ: Mapping[str, str] = os.environ) -> None:
        self.path = path
        self.sealer = Sealer(path.with_name(path.name + ".key"), environ)
        self._db: sqlite3.Connection | None = None
        self._lock = -1
        self._backlog = Backlog(path.with_name(path.name + ".pending"))
        self.versions = StateVersions(self._read, self._transaction)

    def open(self) -> None:
        """Opens the file if there is one. Without it all is empty, and the first write makes it."""
        if self._db is None and self.path.exists():
            self._open()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._backlog.close()

    # --- what waits to be written

    def take_away(self, write: Write) -> str:
        """Makes a write that is in effect already. When the file cannot be written the write waits, reads see
        it, and it is made with the next that succeeds (`retry`). Returns why it waits, "" when it does not.
        StoreError when it would not even outlive this process.
        """
        try:
            with self._transaction() as db:
                _apply(db, write)
        except StoreError as error:
            if not self._backlog.add(write):
                raise
            return str(error)
        return ""

    def pending(self) -> int:
        """How many writes wait."""
        return len(self._backlog)

    def pending_changes(self) -> list[Change]:
        """The writes that wait, in the order in which they took effect."""
        return self._backlog.changes()

    def is_pending(self, key_id: str) -> bool:
        return any(isinstance(write, RevokeKey) and write.key_id == key_id for write in self._backlog)

    def retry(self) -> None:
        """Makes the writes that wait."""
        if len(self._backlog):
            with self._transaction():
                pass

    def _seen(self, key: StoredKey) -> StoredKey | None:
        """The key as it is with the writes that wait."""
        for write in self._backlog:
            if isinstance(write, RevokeKey) and write.key_id == key.key_id and not key.revoked_ns:
                key = msgspec.structs.replace(key, revoked_ns=write.revoked_ns)
            elif isinstance(write, ForgetKey) and write.key_id == key.key_id:
                return None
        return key

    def _changed_keys(self) -> set[str]:
        return {write.key_id for write in self._backlog if isinstance(write, RevokeKey | ForgetKey)}

    def _removed(self, kind: type[RemoveSecret | RemoveDocument]) -> set[str]:
        return {write.name for write in self._backlog if isinstance(write, kind)}

    # --- keys

    def insert_keys(self, keys: Iterable[StoredKey]) -> None:
        """All or none."""
        with self._transaction() as db:
            db.executemany(INSERT_KEY, map(row_of, keys))

    def replace_key(self, old: StoredKey, new: StoredKey) -> None:
        """Stores the new key and what the old one has become, together."""
        with self._transaction() as db:
            db.execute(INSERT_KEY, row_of(new))
            self._update(db, old)

    def update_key(self, key: StoredKey) -> None:
        """Stores everything about the key but its use."""
        with self._transaction() as db:
            self._update(db, key)

    def update_keys(self, keys: Iterable[StoredKey]) -> None:
        with self._transaction() as db:
            for key in keys:
                self._update(db, key)

    @staticmethod
    def _update(db: sqlite3.Connection, key: StoredKey) -> None:
        columns = [column for column in KEY_COLUMNS if column not in ("key_id", "used", "last_used_ns")]
        values = dict(zip(KEY_COLUMNS, row_of(key), strict=True))
        db.execute(
            f"UPDATE keys SET {', '.join(f'{column} = ?' for column in columns)} WHERE key_id = ?",
            [*(values[column] for column in columns), key.key_id],
        )

    def key(self, key_id: str) -> StoredKey | None:
        rows = self._read("SELECT * FROM keys WHERE key_id = ?", key_id)
        return self._seen(key_of(rows[0])) if rows else None

    def keys(
        self,
        *,
        consumer: str | None = None,
        state: KeyState | None = None,
        now_ns: int | None = None,
        after: StoredKey | None = None,
        limit: int = 100,
    ) -> list[StoredKey]:
        """Keys, oldest first, from behind `after`."""
        if state is not None and self._changed_keys():
            return self._filtered_keys(consumer, state, now_ns, after, limit)
        where, values = key_conditions(consumer, state, time.time_ns() if now_ns is None else now_ns)
        if after is not None:
            where.append("(created_ns, key_id) > (?, ?)")
            values += [after.created_ns, after.key_id]
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        rows = self._read(
            f"SELECT * FROM keys {condition} ORDER BY created_ns, key_id LIMIT ?", *values, limit
        )
        return [key for row in rows if (key := self._seen(key_of(row))) is not None]

    def _filtered_keys(
        self, consumer: str | None, state: KeyState, now_ns: int | None, after: StoredKey | None, limit: int
    ) -> list[StoredKey]:
        """The same while writes wait that change states: SQLite does not know of them."""
        now_ns = time.time_ns() if now_ns is None else now_ns
        found: list[StoredKey] = []
        while page := self.keys(consumer=consumer, now_ns=now_ns, after=after, limit=1000):
            found += [key for key in page if key.state(now_ns) == state]
            if len(found) >= limit:
                break
            after = page[-1]
        return found[:limit]

    def count_keys(self, *, consumer: str | None = None, state: KeyState | None = None) -> int:
        where, values = key_conditions(consumer, state, time.time_ns())
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        rows = self._read(f"SELECT count(*) FROM keys {condition}", *values)
        count = int(rows[0][0]) if rows else 0
        now_ns = time.time_ns()
        for key_id in self._changed_keys():
            for row in self._read("SELECT * FROM keys WHERE key_id = ?", key_id):
                stored = key_of(row)
                if consumer is None or stored.consumer == consumer:
                    seen = self._seen(stored)
                    count -= state is None or stored.state(now_ns) == state
                    count += seen is not None and (state is None or seen.state(now_ns) == state)
        return count

    def key_consumers(self) -> list[str]:
        """The consumers that have keys which are not revoked, by name."""
        rows = self._read("SELECT DISTINCT consumer FROM keys WHERE revoked_ns = 0 ORDER BY consumer")
        return [row[0] for row in rows]

    def good_keys(self, now_ns: int) -> Iterator[StoredKey]:
        """Every key that a request may use now or later, for publishing."""
        if self._db is None:
            return
        with self._errors():
            for row in self._db.execute(
                "SELECT * FROM keys WHERE revoked_ns = 0 AND (expires_ns = 0 OR expires_ns > ?)", (now_ns,)
            ):
                key = self._seen(key_of(row))
                if key is not None and not key.revoked_ns:
                    yield key

    def set_usage(self, usages: Iterable[tuple[bytes, int, int]]) -> None:
        """(digest, uses, last use): totals, of which older ones change nothing."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE keys SET used = max(used, ?2), last_used_ns = max(last_used_ns, ?3) "
                "WHERE digest = ?1",
                usages,
            )

    # --- consumers

    def put_consumer(self, consumer: StoredConsumer) -> None:
        with self._transaction() as db:
            _apply(db, PutConsumer(consumer))

    def remove_consumer(self, name: str) -> bool:
        with self._transaction() as db:
            return db.execute("DELETE FROM consumers WHERE name = ?", (name,)).rowcount > 0

    def consumer(self, name: str) -> StoredConsumer | None:
        waiting = self._waiting_consumers().get(name)
        if waiting is not None:
            return waiting
        rows = self._read("SELECT * FROM consumers WHERE name = ?", name)
        return consumer_of(rows[0]) if rows else None

    def consumers(self) -> list[StoredConsumer]:
        stored = {
            consumer.name: consumer for consumer in map(consumer_of, self._read("SELECT * FROM consumers"))
        }
        return [consumer for _name, consumer in sorted((stored | self._waiting_consumers()).items())]

    def _waiting_consumers(self) -> dict[str, StoredConsumer]:
        return {
            write.consumer.name: write.consumer for write in self._backlog if isinstance(write, PutConsumer)
        }

    # --- secrets

    def put_secret(self, name: str, secret: str) -> None:
        """Seals and stores. SealError when there is no usable key to seal with."""
        self._make()
        sealed, now_ns = self.sealer.seal(name, secret), time.time_ns()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO secrets VALUES (?1, ?2, ?3, ?3) "
                "ON CONFLICT (name) DO UPDATE SET sealed = ?2, updated_ns = ?3",
                (name, sealed, now_ns),
            )

    def secret(self, name: str) -> str | None:
        """The secret itself; None when there is none of this name. SealError when it cannot be opened."""
        if name in self._removed(RemoveSecret):
            return None
        rows = self._read("SELECT sealed FROM secrets WHERE name = ?", name)
        return self.sealer.open(name, rows[0][0]) if rows else None

    def secrets(self) -> list[StoredSecret]:
        gone = self._removed(RemoveSecret)
        return [
            StoredSecret(*row)
            for row in self._read("SELECT name, created_ns, updated_ns FROM secrets ORDER BY name")
            if row[0] not in gone
        ]

    def remove_secret(self, name: str) -> bool:
        with self._transaction() as db:
            return db.execute("DELETE FROM secrets WHERE name = ?", (name,)).rowcount > 0

    # --- documents

    def put_document(self, name: str, body: bytes) -> int:
        """Stores the document and returns its version, one more than the one before."""
        with self._transaction() as db:
            rows = db.execute(
                "INSERT INTO documents VALUES (?1, ?2, 1, ?3) ON CONFLICT (name) "
                "DO UPDATE SET body = ?2, version = version + 1, updated_ns = ?3 RETURNING version",
                (name, body, time.time_ns()),
            ).fetchall()
        return int(rows[0][0])

    def document(self, name: str) -> tuple[bytes, int] | None:
        """(body, version), or None."""
        if name in self._removed(RemoveDocument):
            return None
        rows = self._read("SELECT body, version FROM documents WHERE name = ?", name)
        return (rows[0][0], rows[0][1]) if rows else None

    def documents(self) -> list[tuple[str, bytes, int]]:
        gone = self._removed(RemoveDocument)
        rows = self._read("SELECT name, body, version FROM documents ORDER BY name")
        return [tuple(row) for row in rows if row[0] not in gone]

    def remove_document(self, name: str) -> bool:
        with self._transaction() as db:
            return db.execute("DELETE FROM documents WHERE name = ?", (name,)).rowcount > 0

    # --- the file

    def _read(self, statement: str, *values: Any) -> list[Any]:
        if self._db is None:
            return []
        with self._errors():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._make()
        assert self._db is not None
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for write in self._backlog:  # in the order in which they took effect
                    _apply(self._db, write)
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise
        if len(self._backlog):
            with contextlib.suppress(OSError):  # making them again would change nothing
                self._backlog.clear()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    def _make(self) -> None:
        if self._db is None:
            self._open()

    def _open(self) -> None:
        self._check_header()
        self._take_lock()
        try:
            with self._errors():
                if not self.path.exists():
                    os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
                try:
                    self._check_and_migrate(db)
                except BaseException:
                    db.close()
                    raise
        except OSError as error:
            self.close()
            raise StoreError(f"{self.path}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise
        self._db = db
        try:
            self._backlog.open()
        except OSError as error:
            log.warning("%s.pending: %s; revocations need a store that can be written", self.path, error)
        with contextlib.suppress(StoreError):  # they go on waiting, and reads see them
            self.retry()

    def _check_header(self) -> None:
        """Before SQLite sees the file: its own words for this are `file is not a database`."""
        try:
            if not self.path.parent.is_dir():
                raise StoreError(f"{self.path}: the directory {self.path.parent.absolute()} does not exist")
            if self.path.exists():
                with self.path.open("rb") as file:
                    head = file.read(len(HEADER))
                if head and head != HEADER:
                    raise StoreError(
                        f"{self.path}: not a SQLite file (it begins with {head[:8]!r}). It is left as it is: "
                        "move it away, or set store.path to another file"
                    )
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error

    def _take_lock(self) -> None:
        path = self.path.with_name(self.path.name + ".lock")
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip()
            self.close()
            raise StoreError(
                f"{self.path}: another gateway (process {holder or 'unknown'}) uses this store; "
                "each needs its own"
            ) from None
        except OSError as error:
            self.close()
            raise StoreError(f"{path}: {error.strerror}") from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def _check_and_migrate(self, db: sqlite3.Connection) -> None:
        try:
            version = _pragma(db, "user_version")
            application = _pragma(db, "application_id")
            tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if application != APPLICATION_ID and (application or version or tables):
                raise StoreError(
                    f"{self.path}: a SQLite file of another program. It is left as it is: set store.path to "
                    "another file"
                )
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"{self.path}: written by a newer fastgate (schema {version}, this one knows up to "
                    f"{len(MIGRATIONS)})"
                )
            faults = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise
            faults = [str(error)]
        if faults != ["ok"]:
            raise StoreError(
                f"{self.path}: the file is damaged: {'; '.join(faults)[:300]}. It is left as it is: "
                "restore a backup, or move it away to begin with an empty store"
            )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        for number in range(version, len(MIGRATIONS)):
            db.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {number + 1}; COMMIT;"
            )


def _apply(db: sqlite3.Connection, write: Write) -> None:
    """Makes one write. Making it twice is the same as once."""
    match write:
        case RevokeKey():
            db.execute(
                "UPDATE keys SET revoked_ns = ?2 WHERE key_id = ?1 AND revoked_ns = 0",
                (write.key_id, write.revoked_ns),
            )
        case ForgetKey():
            db.execute("DELETE FROM keys WHERE key_id = ?", (write.key_id,))
        case PutConsumer():
            db.execute(
                f"INSERT OR REPLACE INTO consumers ({', '.join(CONSUMER_COLUMNS)}) "
                f"VALUES ({', '.join('?' * len(CONSUMER_COLUMNS))})",
                row_of(write.consumer),
            )
        case RemoveSecret():
            db.execute("DELETE FROM secrets WHERE name = ?", (write.name,))
        case RemoveDocument():
            db.execute("DELETE FROM documents WHERE name = ?", (write.name,))


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
