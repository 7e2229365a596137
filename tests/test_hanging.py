"""A test that hangs fails with its name, and the tests around it are reported (tests/conftest.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = """
import asyncio, socket, time
import pytest, uvloop

def test_first():
    pass

def test_blocking_call():
    a, b = socket.socketpair()
    a.recv(1)

def test_loop_of_uvloop():
    uvloop.run(asyncio.sleep(3600))

def test_caught_exception():
    try:
        time.sleep(3600)
    except BaseException:
        pass

@pytest.fixture
def slow_end():
    yield
    time.sleep(3600)

def test_teardown(slow_end):
    pass

def test_last():
    pass
"""


def test_a_test_that_hangs_fails_by_name_and_the_others_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "test_sample.py"
    path.write_text(SAMPLE)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-p", "no:xdist", "-ra", "-q"]

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FASTGATE_HANG_S": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
    )

    summary = ran.stdout.rpartition("short test summary info")[2]
    for name in ("test_blocking_call", "test_loop_of_uvloop", "test_caught_exception"):
        assert f"FAILED test_sample.py::{name} - Failed: hangs: not done after 1 s" in summary, ran.stdout
    assert "ERROR test_sample.py::test_teardown - Failed: hangs: not done after 1 s" in summary, ran.stdout
    assert "3 failed, 3 passed, 1 error" in summary, ran.stdout
