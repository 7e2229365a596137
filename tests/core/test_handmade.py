"""No class of fastgate._core ends the process, however it is made and whatever its methods are given."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastgate._core
from fastgate._core.cache.http_stored import StoredResponse
from fastgate._core.shm.metric import Metric

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fastgate._core.__path__, "fastgate._core.")
    if not module.ispkg
)


def has_compiled_classes(module: str) -> bool:
    """False for a module whose classes cannot crash, or that has functions alone."""
    spec = importlib.util.find_spec(module)
    if spec is None or (spec.origin or "").endswith(".py"):
        return False
    return any(
        isinstance(value, type) and value.__module__ == module
        for value in vars(importlib.import_module(module)).values()
    )


@pytest.mark.parametrize("module", MODULES)
def test_what_is_made_by_hand_raises_and_never_crashes(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.core.handmade", module],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        timeout=600,
    )

    steps = done.stdout.decode(errors="replace").splitlines()
    assert done.returncode == 0, f"{steps[-1:]}\n{done.stderr.decode(errors='replace')[-3000:]}"
    assert steps[-1] == "done"
    assert len(steps) > 20 or not has_compiled_classes(module)


def test_those_that_crashed() -> None:
    assert StoredResponse().fields() == []
    assert StoredResponse.__new__(StoredResponse).size == 256

    by_hand = Metric()
    by_hand.add(1)

    assert by_hand.value == 1
