"""What is in effect and could not be stored: kept through crashes, seen by reads, stored when it can be."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from fastgate.state.backlog import FILE_BYTES, Backlog, PutConsumer, RemoveSecret, RevokeKey, Write
from fastgate.state.records import StoredConsumer, StoredKey
from fastgate.state.store import Store, StoreError


def stored_key(number: int, consumer: str = "ann") -> StoredKey:
    return StoredKey(
        key_id=f"key_{number}",
        digest=bytes([number]) * 32,
        hint="fg_",
        consumer=consumer,
        created_ns=number + 1,
    )


def filled(path: Path) -> Store:
    store = Store(path)
    store.insert_keys([stored_key(number) for number in range(5)])
    store.put_secret("password", "secret")
    return store


def fill_disk(store: Store) -> None:
    """SQLite's own error for a full disk, from a bound on the number of pages and a table that reaches it."""
    db = store._db
    assert db is not None
    db.execute("CREATE TABLE ballast (data)")
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        while True:
            db.execute("INSERT INTO ballast VALUES (zeroblob(1000))")


def break_writes(store: Store) -> None:
    """Every write fails, as on a disk that became read-only."""
    assert store._db is not None
    store._db.execute("PRAGMA query_only = 1")


def mend(store: Store) -> None:
    assert store._db is not None
    store._db.execute("PRAGMA query_only = 0")


def test_a_full_disk_is_an_error_and_what_is_taken_away_waits(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db")
    fill_disk(store)

    with pytest.raises(StoreError, match="full"):
        store.insert_keys([stored_key(number) for number in range(100, 200)])
    problem = store.take_away(
        PutConsumer(StoredConsumer(name="ann", created_ns=1, metadata={"a": "x" * 9000}))
    )

    assert "full" in problem
    assert store.pending() == 1
    consumer = store.consumer("ann")
    assert consumer is not None and consumer.metadata == {"a": "x" * 9000}
    store.close()


def test_reads_see_what_waits(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db")
    break_writes(store)

    assert "readonly" in store.take_away(RevokeKey("key_2", 77))
    assert store.take_away(RemoveSecret("password"))
    assert store.take_away(PutConsumer(StoredConsumer(name="eve", created_ns=1, disabled=True)))

    gone = store.key("key_2")
    assert gone is not None and gone.revoked_ns == 77
    now_ns = time.time_ns()
    assert [key.key_id for key in store.keys(state="revoked")] == ["key_2"]
    assert [key.key_id for key in store.keys(state="active", limit=3)] == ["key_0", "key_1", "key_3"]
    assert (store.count_keys(state="active"), store.count_keys(state="revoked"), store.count_keys()) == (
        4,
        1,
        5,
    )
    assert store.count_keys(state="revoked", consumer="nobody") == 0
    assert "key_2" not in [key.key_id for key in store.good_keys(now_ns)]
    assert (store.secret("password"), store.secrets()) == (None, [])
    assert [consumer.name for consumer in store.consumers()] == ["eve"]
    assert store.is_pending("key_2") and not store.is_pending("key_1")
    store.close()


def test_what_waits_survives_the_process_and_is_stored_when_that_is_possible(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db")
    break_writes(store)
    store.take_away(RevokeKey("key_2", 77))
    store.close()  # all that a crash leaves is the file

    again = Store(tmp_path / "store.db")
    again.open()

    assert again.pending() == 0
    assert again._db is not None
    assert again._db.execute("SELECT revoked_ns FROM keys WHERE key_id = 'key_2'").fetchone() == (77,)
    again.close()
    third = Store(tmp_path / "store.db")
    third.open()
    assert third.pending() == 0
    third.close()


def test_what_waits_is_made_before_any_later_write(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db")
    break_writes(store)
    store.take_away(PutConsumer(StoredConsumer(name="ann", created_ns=1, disabled=True)))
    mend(store)

    store.put_consumer(StoredConsumer(name="ann", created_ns=1, disabled=False))

    assert store.pending() == 0
    consumer = store.consumer("ann")
    assert consumer is not None and consumer.disabled is False
    store.close()


def test_the_file_is_allocated_before_it_is_needed_and_is_private(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db")

    status = (tmp_path / "store.db.pending").stat()

    assert (status.st_size, status.st_mode & 0o777) == (FILE_BYTES, 0o600)
    assert status.st_blocks * 512 >= FILE_BYTES
    store.close()


def test_a_torn_record_ends_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pending"
    backlog = Backlog(path)
    backlog.open()
    writes: list[Write] = [RevokeKey(f"key_{number}", number + 1) for number in range(10)]
    assert all(backlog.add(write) for write in writes)
    ends = backlog._end
    backlog.close()

    for cut in range(ends):
        content = path.read_bytes()
        (tmp_path / "torn").write_bytes(content[:cut] + bytes(FILE_BYTES - cut))
        torn = Backlog(tmp_path / "torn")
        torn.open()
        found = list(torn)
        torn.close()
        assert found == writes[: len(found)]
        assert len(found) >= cut * 10 // ends - 1


def test_what_finds_no_room_in_the_file_is_told(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path / "pending")
    backlog.open()
    count = 0
    while backlog.add(RevokeKey(f"key_{count:013d}", 10**18)):
        count += 1
    assert count > 2000
    assert len(backlog) == count + 1

    backlog.clear()

    assert backlog.add(RevokeKey("key_1", 1))
    backlog.close()
    again = Backlog(tmp_path / "pending")
    again.open()
    assert list(again) == [RevokeKey("key_1", 1)]
    again.close()
    assert os.path.getsize(tmp_path / "pending") == FILE_BYTES
