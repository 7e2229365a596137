"""Versions of the State document in the store: candidates, adoption, history, and the other reader."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fastgate.state.store import MIGRATIONS, Store
from fastgate.state.versions import (
    EMPTY,
    MOST_VERSIONS,
    NEWEST,
    UnreadableState,
    read_version,
)


def test_a_candidate_is_no_version_until_it_is_adopted(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    versions = store.versions
    assert (versions.newest(), versions.all(), versions.get(0)) == (0, [], EMPTY)

    first = versions.insert('{"a":1}', 0)
    assert (first, versions.newest(), versions.all(), versions.get(first)) == (1, 0, [], None)
    assert read_version(store.path, NEWEST) == EMPTY
    assert read_version(store.path, first).document == '{"a":1}'

    assert versions.adopt(first)
    adopted = versions.get(first)
    assert versions.adopt(first)
    assert not versions.adopt(99)
    assert versions.get(first) == adopted
    found = versions.get(first)
    assert found is not None and (found.document, found.base) == ('{"a":1}', 0)
    assert read_version(store.path, NEWEST) == found
    store.close()


def test_a_number_is_never_used_twice(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    first = store.versions.insert("{}", 0)
    store.versions.forget(first)
    second = store.versions.insert("{}", 0)
    store.close()

    again = Store(tmp_path / "a.db")
    again.open()
    again.versions.forget(second)

    assert [first, second, again.versions.insert("{}", 0)] == [1, 2, 3]
    again.close()


def test_a_version_that_was_lost_with_the_store_is_stored_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    for base in range(5):
        store.versions.adopt(store.versions.insert(f'{{"a":{base}}}', base))
    lost = store.versions.get(5)
    store.close()

    recreated = Store(tmp_path / "b.db")
    assert not recreated.versions.adopt(5)
    assert recreated.versions.adopt(5, lost)
    assert recreated.versions.get(5) == lost
    assert (recreated.versions.newest(), recreated.versions.insert("{}", 5)) == (5, 6)
    recreated.close()


def test_a_candidate_has_a_number_above_the_version_in_effect_in_a_recreated_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")

    assert [store.versions.insert("{}", 7) for _ in range(2)] == [8, 9]
    store.versions.forget(9)
    assert store.versions.insert("{}", 3) == 10
    store.close()


def test_older_candidates_go_with_an_adoption_and_an_adopted_version_cannot_be_forgotten(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "a.db")
    left, adopted, later = (store.versions.insert("{}", 0) for _ in range(3))

    store.versions.adopt(adopted)
    store.versions.forget(adopted)

    with pytest.raises(UnreadableState, match=f"there is no state version {left}"):
        read_version(store.path, left)
    assert read_version(store.path, later).version == later
    assert [version.version for version in store.versions.all()] == [adopted]
    store.close()


def test_the_history_is_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    for base in range(MOST_VERSIONS + 5):
        store.versions.adopt(store.versions.insert("{}", base))

    listed = [version.version for version in store.versions.all()]
    assert listed == list(range(MOST_VERSIONS + 5, 5, -1))
    store.close()


def test_a_store_of_before_has_no_versions_and_gets_the_table(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as db:
        db.executescript(f"{MIGRATIONS[0]} PRAGMA application_id = {0x66676174}; PRAGMA user_version = 1;")
    db.close()

    assert read_version(path, NEWEST) == EMPTY
    store = Store(path)
    store.open()
    assert store.versions.newest() == 0
    store.versions.adopt(store.versions.insert("{}", 0))
    assert read_version(path, NEWEST).version == 1
    store.close()


def test_what_cannot_be_read_is_told_with_its_cause(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    assert read_version(path, NEWEST) == EMPTY
    assert read_version(path, 0) == EMPTY
    with pytest.raises(UnreadableState, match="unable to open"):
        read_version(path, 3)
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(UnreadableState, match="not a database"):
        read_version(path, NEWEST)
