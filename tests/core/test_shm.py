"""Shared memory: anonymous over fork, by path for unrelated processes, and what it refuses."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fastgate._core import SharedMemory


def test_new_memory_is_zero_and_writable() -> None:
    shared = SharedMemory(8192)

    view = memoryview(shared)
    view[100] = 7

    assert len(shared) == shared.size == view.nbytes == 8192
    assert bytes(view[:100]) == bytes(100)
    assert memoryview(shared)[100] == 7


def test_a_forked_child_writes_what_the_parent_reads() -> None:
    view = memoryview(SharedMemory(16))

    pid = os.fork()
    if pid == 0:
        view[3] = 42
        os._exit(0)
    os.waitpid(pid, 0)

    assert view[3] == 42


def test_an_unrelated_process_opens_the_same_path(tmp_path: Path) -> None:
    path = tmp_path / "table"
    view = memoryview(SharedMemory(4096, path))

    code = "import sys; from fastgate._core import SharedMemory as S; memoryview(S(4096, sys.argv[1]))[9] = 5"
    subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert view[9] == 5
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_view_keeps_the_memory_mapped() -> None:
    view = memoryview(SharedMemory(4096))

    gc.collect()
    view[0] = 1

    assert view[0] == 1


def test_memory_with_a_path_can_be_sent_to_a_spawned_process(tmp_path: Path) -> None:
    shared = SharedMemory(64, tmp_path / "table")
    memoryview(shared)[5] = 1

    copy = pickle.loads(pickle.dumps(shared))

    assert memoryview(copy)[5] == 1


def test_anonymous_memory_refuses_to_be_pickled() -> None:
    with pytest.raises(TypeError, match="give it a path"):
        pickle.dumps(SharedMemory(64))


@pytest.mark.parametrize("size", [0, -1, 2**46 + 1, 2**80])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"size: expected 1\.\.70368744177664 bytes, got {size}"):
        SharedMemory(size)


@pytest.mark.parametrize("size", [1.5, "10", None, True])
def test_a_size_that_is_no_int_is_refused(size: object) -> None:
    with pytest.raises(TypeError, match="size: expected int, got"):
        SharedMemory(size)  # type: ignore[arg-type]


def test_a_file_of_another_size_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "table"
    SharedMemory(64, path)

    with pytest.raises(ValueError, match="size: expected 64"):
        SharedMemory(128, path)

    assert path.stat().st_size == 64


def test_a_path_that_cannot_be_opened_names_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent/table"):
        SharedMemory(64, tmp_path / "absent" / "table")


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    kept = [SharedMemory(64, tmp_path / f"table{number}") for number in range(8)]

    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 8
