"""The examples of docs/primitives.md run as they stand, each in a process of its own, and none is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastgate._core

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "primitives.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

# Made by the primitives, never by their users.
RETURNED = {"Lease", "Limit", "Match", "Refusal", "Reservation", "Route", "SseEvent"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0][-40:])
def test_the_example_runs(example: str) -> None:
    command = [sys.executable, "-W", "error", "-c", example]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_every_primitive_is_in_an_example() -> None:
    public = {name for name in fastgate._core.__all__ if name[0].isupper()}

    shown = set(re.findall(r"\w+", "".join(EXAMPLES)))

    assert public - RETURNED <= shown
