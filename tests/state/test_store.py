"""The store: what it keeps, what it refuses, and that nothing ever replaces a file."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from fastgate.config import StoreConfig
from fastgate.state.records import StoredConsumer, StoredKey
from fastgate.state.sealing import SealError, masked
from fastgate.state.store import MIGRATIONS, Store, StoreError

NOW = 1_700_000_000_000_000_000


def key(number: int, **fields: object) -> StoredKey:
    values: dict[str, object] = {
        "key_id": f"key_{number:06}",
        "digest": number.to_bytes(32, "big"),
        "hint": "fg_abcd",
        "consumer": "acme",
        "created_ns": NOW + number,
        **fields,
    }
    return StoredKey(**values)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "fastgate.db", {})


def test_nothing_is_created_until_something_is_stored(store: Store, tmp_path: Path) -> None:
    store.open()

    assert store.keys() == []
    assert store.consumers() == []
    assert list(store.good_keys(NOW)) == []
    assert list(tmp_path.iterdir()) == []

    store.insert_keys([key(1)])
    assert (tmp_path / "fastgate.db").stat().st_mode & 0o777 == 0o600


def test_what_was_stored_is_there_after_opening_again(store: Store) -> None:
    made = key(
        1, scopes=("a", "b"), roles=("r",), metadata={"n": 1, "ü": [None]}, limits={"per_minute": 5}, used=3
    )
    store.insert_keys([made])
    store.put_consumer(StoredConsumer(name="acme", tier="premium", disabled=True))
    store.close()

    again = Store(store.path, {})
    again.open()

    assert again.key("key_000001") == made
    assert again.consumer("acme") == StoredConsumer(name="acme", tier="premium", disabled=True)
    assert again.key("key_000002") is None


def test_pages_follow_each_other_without_a_gap(store: Store) -> None:
    keys = [key(i, consumer="acme" if i % 2 else "other", created_ns=NOW + i // 3) for i in range(50)]
    store.insert_keys(keys)

    seen: list[StoredKey] = []
    while page := store.keys(limit=7, after=seen[-1] if seen else None):
        seen += page

    assert [found.key_id for found in seen] == [made.key_id for made in keys]
    assert [found.key_id for found in store.keys(consumer="acme", limit=1000)] == [
        made.key_id for made in keys if made.consumer == "acme"
    ]


def test_states_in_sql_are_the_states_of_the_struct(store: Store) -> None:
    variants = [
        {},
        {"revoked_ns": NOW},
        {"expires_ns": NOW},
        {"expires_ns": NOW + 1},
        {"not_before_ns": NOW + 1},
        {"replaced_by": "key_x", "expires_ns": NOW + 1},
        {"replaced_by": "key_x", "expires_ns": NOW},
        {"replaced_by": "key_x", "revoked_ns": NOW, "expires_ns": NOW},
    ]
    keys = [key(i, **fields) for i, fields in enumerate(variants)]
    store.insert_keys(keys)

    for state in ("active", "rotating", "pending", "expired", "revoked"):
        found = {stored.key_id for stored in store.keys(state=state, now_ns=NOW)}  # type: ignore[arg-type]
        assert found == {made.key_id for made in keys if made.state(NOW) == state}, state
    assert {stored.key_id for stored in store.good_keys(NOW)} == {
        made.key_id for made in keys if made.is_good(NOW)
    }


def test_a_rotation_is_stored_whole_or_not_at_all(store: Store) -> None:
    store.insert_keys([key(1), key(2)])

    with pytest.raises(StoreError, match="UNIQUE"):
        store.replace_key(key(1, replaced_by="key_000002"), key(2))

    assert store.key("key_000001") == key(1)


def test_uses_only_grow(store: Store) -> None:
    store.insert_keys([key(1)])

    store.set_usage([(key(1).digest, 5, NOW)])
    store.set_usage([(key(1).digest, 3, NOW - 1), (b"unknown", 1, 1)])
    store.update_key(key(1, name="renamed"))

    found = store.key("key_000001")
    assert found is not None
    assert (found.used, found.last_used_ns, found.name) == (5, NOW, "renamed")


def test_documents_count_their_versions(store: Store) -> None:
    assert store.put_document("policies", b"one") == 1
    assert store.put_document("policies", b"two") == 2
    assert store.document("policies") == (b"two", 2)
    assert store.documents() == [("policies", b"two", 2)]
    assert store.remove_document("policies")
    assert store.document("policies") is None


def test_secrets_are_sealed_in_the_file(store: Store) -> None:
    store.put_secret("openai", "sk-very-secret-0123456789")
    store.close()

    assert b"very-secret" not in store.path.read_bytes()
    key_file = store.path.with_name("fastgate.db.key")
    assert key_file.stat().st_mode & 0o777 == 0o600
    again = Store(store.path, {})
    again.open()
    assert again.secret("openai") == "sk-very-secret-0123456789"
    assert [found.name for found in again.secrets()] == ["openai"]
    assert again.secret("other") is None


def test_a_secret_opens_with_its_own_key_and_under_its_own_name_only(store: Store) -> None:
    store.put_secret("a", "secret a")
    store.put_secret("b", "secret b")
    store.close()
    with sqlite3.connect(store.path) as db:
        sealed = db.execute("SELECT sealed FROM secrets WHERE name = 'a'").fetchone()[0]
        db.execute("UPDATE secrets SET sealed = ? WHERE name = 'b'", (sealed,))
    db.close()

    again = Store(store.path, {})
    again.open()
    assert again.secret("a") == "secret a"
    with pytest.raises(SealError, match="'b' does not open"):
        again.secret("b")
    again.close()

    other = Store(store.path, {"FASTGATE_STORE_KEY": "ab" * 32})
    other.open()
    with pytest.raises(SealError, match=r"'a' does not open with the key of \$FASTGATE_STORE_KEY"):
        other.secret("a")


def test_a_lost_key_an_open_key_file_and_a_bad_key_are_named(store: Store) -> None:
    store.put_secret("a", "secret")
    key_file = store.path.with_name("fastgate.db.key")
    content = key_file.read_bytes()

    for change, message in (
        (lambda: key_file.chmod(0o644), "expected a file that only its owner can read"),
        (lambda: key_file.unlink(), "not found; secrets were sealed with this key"),
    ):
        change()
        store.close()
        again = Store(store.path, {})
        again.open()
        with pytest.raises(SealError, match=message):
            again.secret("a")
        again.close()
        key_file.touch(0o600)
        key_file.chmod(0o600)
        key_file.write_bytes(content)

    bad = Store(store.path, {"FASTGATE_STORE_KEY": "short"})
    bad.open()
    with pytest.raises(SealError, match="expected 32 bytes in base64 or hex"):
        bad.secret("a")


def test_masked_shows_nothing_of_a_short_secret() -> None:
    assert masked("hunter2") == "…"
    assert masked("sk-0123456789abcdefXYZW") == "…XYZW"


def refusal(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(StoreError) as refused:
        Store(path, {}).open()
    assert path.read_bytes() == before
    return str(refused.value)


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "fastgate.db"
    path.write_text("listen: 8080\n")

    assert "not a SQLite file (it begins with b'listen: ')" in refusal(path)


def test_the_database_of_another_program_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "fastgate.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE notes (text)")
    db.close()

    assert "a SQLite file of another program" in refusal(path)


def test_a_newer_schema_is_refused_and_kept(store: Store) -> None:
    store.insert_keys([key(1)])
    store.close()
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()

    assert f"schema 99, this one knows up to {len(MIGRATIONS)}" in refusal(store.path)


@pytest.mark.parametrize("how", ["overwritten", "cut"])
def test_a_damaged_file_is_refused_and_kept(store: Store, how: str) -> None:
    store.insert_keys(key(i, metadata={"text": "x" * 200}) for i in range(500))
    store.close()
    content = bytearray(store.path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[8192:40960] = b"\xff" * (40960 - 8192)
    store.path.write_bytes(content)

    message = refusal(store.path)

    assert message.startswith(f"{store.path}: the file is damaged: ")
    assert "restore a backup" in message


def test_a_missing_directory_and_a_directory_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere does not exist"):
        Store(tmp_path / "nowhere" / "a.db", {}).put_document("a", b"")
    (tmp_path / "a.db").mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        Store(tmp_path / "a.db", {}).open()


def test_two_gateways_cannot_use_one_store(store: Store) -> None:
    store.insert_keys([key(1)])

    with pytest.raises(StoreError, match=rf"another gateway \(process {os.getpid()}\) uses this store"):
        Store(store.path, {}).open()

    store.close()
    Store(store.path, {}).open()


def test_what_was_answered_survives_a_kill(store: Store) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        number = 0
        while True:
            number += 1
            store.insert_keys([key(number)])
            os.write(writing, b"%6d" % number)
    answered = 0
    while answered < 20:
        answered = int(os.read(reading, 6))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    while text := os.read(reading, 6):
        answered = int(text)
    os.close(reading)

    again = Store(store.path, {})
    again.open()

    assert again.count_keys() in (answered, answered + 1)


def test_an_error_inside_a_transaction_leaves_the_store_usable(store: Store) -> None:
    store.insert_keys([key(1)])
    with pytest.raises(StoreError):
        store.insert_keys([key(2), key(1)])

    assert store.count_keys() == 1
    store.insert_keys([key(2)])
    assert store.count_keys() == 2


def test_the_default_place_is_the_services_state_directory() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/fastgate:/var/lib/other"}

    assert StoreConfig().file({}) == Path("fastgate.db")
    assert StoreConfig().file(environ) == Path("/var/lib/fastgate/fastgate.db")
    assert StoreConfig(path="/srv/keys.db").file(environ) == Path("/srv/keys.db")


def test_a_hundred_thousand_keys(store: Store) -> None:
    store.insert_keys(key(i) for i in range(100_000))

    assert sum(1 for _ in store.good_keys(NOW)) == 100_000
