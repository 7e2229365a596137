"""The stamp of a file tells every change of its content, also one that leaves no trace in the inode."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastgate.state import files
from fastgate.state.files import stamp_of


class SameTick:
    """`os.stat` as on a kernel whose tick has not moved on: the times of the first look for ever."""

    def __init__(self, path: Path, ctime_ns: int) -> None:
        self.path, self.ctime_ns = path, ctime_ns
        self.looks = 0

    def __call__(self, path: Path) -> os.stat_result:
        self.looks += 1
        found = list(os.lstat(path))
        return os.stat_result(
            found,
            {"st_mtime_ns": self.ctime_ns, "st_ctime_ns": self.ctime_ns},
        )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    monkeypatch.setattr(files.os, "stat", SameTick(path, 1_000_000_000_000))
    return path


def at(monkeypatch: pytest.MonkeyPatch, after_ns: int) -> None:
    monkeypatch.setattr(files.time, "time_ns", lambda: 1_000_000_000_000 + after_ns)


def test_a_write_of_the_same_size_within_a_tick_is_a_change(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 1_000_000)
    before = stamp_of(file)
    file.write_text("two")

    assert stamp_of(file, before) != before
    assert stamp_of(file) != before


def test_the_change_is_told_however_late_the_next_look_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 1_000_000)
    before = stamp_of(file)
    file.write_text("two")
    at(monkeypatch, 3600 * 10**9)

    assert stamp_of(file, before) != before


def test_a_file_that_has_not_changed_has_one_stamp_and_is_read_no_more_once_it_is_settled(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 1_000_000)
    before = stamp_of(file)
    at(monkeypatch, files.RACY_NS + 1_000_000)
    settled = stamp_of(file, before)
    assert settled == before
    monkeypatch.setattr(files, "_digest", lambda path: pytest.fail("it was read"))

    assert stamp_of(file, settled) == before


def test_a_file_that_is_not_there_or_cannot_be_read_is_no_error(tmp_path: Path) -> None:
    assert stamp_of(tmp_path / "none") is None
    assert stamp_of(tmp_path) is not None
    os.mkfifo(tmp_path / "fifo")
    assert stamp_of(tmp_path / "fifo") is not None
