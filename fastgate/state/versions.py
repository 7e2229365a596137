"""Versions of the State document: what an operator changed in the structure of the gateway at run time.

A version is a JSON object of the shape of a part of the config; fastgate.config.merge says how the two are
put together. It is stored before the workers see it, and adopted when they serve it; until then it is a
candidate, which no list shows and no start uses. Numbers are never used twice. Version 0 is the empty
document.

The controller writes. The process that reads the config reads versions, too, at every start and reload.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    import sqlite3

__all__ = ["MIGRATION", "NEWEST", "StateVersion", "StateVersions", "UnreadableState", "read_version"]

NEWEST: Final = -1
"""In place of a version: the newest that was adopted."""

MOST_VERSIONS: Final = 200
"""Adopted versions that are kept; older ones are deleted."""

BUSY_S: Final = 2.0

SCHEMA: Final = 2
"""The first schema of the store with this table."""

MIGRATION: Final = """
    CREATE TABLE state (
        version INTEGER PRIMARY KEY AUTOINCREMENT,
        base INTEGER NOT NULL,
        document TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        adopted_ns INTEGER NOT NULL
    ) STRICT;
    """


class StateVersion(msgspec.Struct, frozen=True):
    """One version. Times are realtime ns; `adopted_ns` 0: a candidate."""

    version: int
    base: int
    document: str
    created_ns: int = 0
    adopted_ns: int = 0


EMPTY: Final = StateVersion(0, 0, "{}")


class UnreadableState(Exception):
    """The version is not in the store, or the store cannot be read. The text says which and why."""


def read_version(store: Path, version: int) -> StateVersion:
    """This version (or NEWEST) as another process has stored it. UnreadableState."""
    if version == 0 or (version == NEWEST and not store.exists()):
        return EMPTY
    import sqlite3  # not in the supervisor, which imports this module: in the process that reads

    try:
        uri = f"{store.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as db:
            schema = int(db.execute("PRAGMA user_version").fetchone()[0])
            if schema < SCHEMA:
                rows = []
            elif version == NEWEST:
                rows = db.execute(f"{_SELECT} WHERE adopted_ns ORDER BY version DESC LIMIT 1").fetchall()
            else:
                rows = db.execute(f"{_SELECT} WHERE version = ?", (version,)).fetchall()
    except sqlite3.Error as error:
        raise UnreadableState(f"{store}: {error}") from error
    if rows:
        return StateVersion(*rows[0])
    if version == NEWEST:
        return EMPTY
    raise UnreadableState(f"{store}: there is no state version {version}")


_SELECT = "SELECT version, base, document, created_ns, adopted_ns FROM state"


class StateVersions:
    """The versions in the open store. StoreError from every method that cannot read or write it."""

    def __init__(
        self,
        read: Callable[..., list[Any]],
        transaction: Callable[[], AbstractContextManager[sqlite3.Connection]],
    ) -> None:
        self._read = read
        self._transaction = transaction

    def insert(self, document: str, base: int) -> int:
        """Stores a candidate and returns its version, which is above `base`, the version in effect, and above
        every number that was used in this store. `base` can be the larger one if the store was restored or
        recreated.
        """
        with self._transaction() as db:
            rows = db.execute(
                "INSERT INTO state (version, base, document, created_ns, adopted_ns) VALUES (1 + max(?, "
                "(SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'state')), ?, ?, ?, 0) "
                "RETURNING version",
                (base, base, document, time.time_ns()),
            ).fetchall()
        return int(rows[0][0])

    def adopt(self, version: int, known: StateVersion | None = None) -> bool:
        """Makes the candidate the newest version, because the workers serve it. Older candidates and the
        oldest versions are deleted; idempotent.

        known: this version as it was stored before. It is stored again if it is no longer in the store,
        because the store was restored or recreated. False when it is not in the store and not known.
        """
        with self._transaction() as db:
            now_ns = time.time_ns()
            db.execute(
                "UPDATE state SET adopted_ns = ? WHERE version = ? AND adopted_ns = 0", (now_ns, version)
            )
            if not db.execute("SELECT 1 FROM state WHERE version = ?", (version,)).fetchall():
                if known is None:
                    return False
                db.execute(
                    "INSERT INTO state (version, base, document, created_ns, adopted_ns) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (version, known.base, known.document, known.created_ns, known.adopted_ns or now_ns),
                )
            db.execute("DELETE FROM state WHERE adopted_ns = 0 AND version < ?", (version,))
            db.execute(
                "DELETE FROM state WHERE version <= (SELECT version FROM state WHERE adopted_ns "
                "ORDER BY version DESC LIMIT 1 OFFSET ?)",
                (MOST_VERSIONS,),
            )
        return True

    def forget(self, version: int) -> None:
        """Deletes a candidate that was refused."""
        with self._transaction() as db:
            db.execute("DELETE FROM state WHERE version = ? AND adopted_ns = 0", (version,))

    def get(self, version: int) -> StateVersion | None:
        """The adopted version with this number; 0 is the empty document."""
        if version == 0:
            return EMPTY
        rows = self._read(f"{_SELECT} WHERE version = ? AND adopted_ns", version)
        return StateVersion(*rows[0]) if rows else None

    def newest(self) -> int:
        """The number of the newest adopted version, 0 when there is none."""
        rows = self._read("SELECT max(version) FROM state WHERE adopted_ns")
        return int(rows[0][0] or 0) if rows else 0

    def all(self) -> list[StateVersion]:
        """The adopted versions, newest first, without their documents."""
        rows = self._read(
            "SELECT version, base, '', created_ns, adopted_ns FROM state WHERE adopted_ns "
            "ORDER BY version DESC"
        )
        return [StateVersion(*row) for row in rows]
