"""log_throttle.pxd: the first occurrence is logged, then one per period with the number of those since."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastgate._core
from tests.core.test_cimport import SETUP

SOURCE = """
# cython: language_level=3
from libc.string cimport memset
from fastgate._core.log_throttle cimport log_throttle_pass, log_throttle_t

def passes(times_ns, period_ns):
    cdef log_throttle_t throttle
    memset(&throttle, 0, sizeof(throttle))
    return [log_throttle_pass(&throttle, now_ns, period_ns) for now_ns in times_ns]
"""


def test_one_line_per_period_counts_what_was_held_back(tmp_path: Path) -> None:
    pytest.importorskip("Cython")
    (tmp_path / "outside.pyx").write_text(SOURCE)
    (tmp_path / "setup.py").write_text(SETUP)
    package = str(Path(fastgate.__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([package, str(tmp_path)]), "CFLAGS": "-O1"}
    program = "import outside; print(outside.passes([5, 6, 14, 15, 16, 40, 41, 49, 50], 10))"
    printed = ""

    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["-c", program]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout

    assert eval(printed) == [1, 0, 0, 3, 0, 2, 0, 0, 3]
