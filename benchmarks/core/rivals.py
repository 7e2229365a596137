"""Times one candidate in a process of its own, so that no two share a heap, a cache or a garbage collector.

A candidate is a setup and a statement in text. `race` starts a fresh interpreter for it, prints the package
and its version, and hands the seconds per operation to pytest-benchmark through a virtual clock: the
`timer` of the test's mark must be `virtual_s`. It runs under timeit: all pay the same loop (10 ns).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROUNDS = 15
ROUND_S = 0.05  # long enough to outlast a timer tick and short enough to find a quiet moment

_ROOT = Path(__file__).resolve().parents[2]
_CHILD = """
import json, sys, timeit
from importlib.metadata import PackageNotFoundError, version
sys.path.insert(0, sys.argv[1])
package, setup, statement = json.loads(sys.stdin.readline())
names = {}
exec(setup, names)
try:
    found = sys.version.split()[0] if package == "python" else version(package)
except PackageNotFoundError:
    found = __import__(package).__version__
print(json.dumps(found), flush=True)
timer = timeit.Timer(statement, globals=names)
for line in sys.stdin:
    print(json.dumps(timer.timeit(int(line))), flush=True)
"""

_elapsed_s = 0.0


@dataclass(frozen=True)
class Candidate:
    package: str  # as installed; "python" for the standard library
    setup: str
    statement: str
    operations: int = 1  # that one run of the statement does
    label: str = ""  # which class or setting of the package
    bytes: int = 0  # that one operation handles, to report MB/s

    def __str__(self) -> str:
        return f"{self.package} {self.label}".strip()


def virtual_s() -> float:
    """Seconds per operation, summed over all rounds; the tiny step lets pytest-benchmark find a precision."""
    global _elapsed_s
    _elapsed_s += 1e-13
    return _elapsed_s


def race(benchmark: Any, candidate: Candidate, promise_ns: float | None = None) -> None:
    """Fills `benchmark` with ROUNDS rounds of the candidate; version and promise go to extra_info."""
    if candidate.package not in ("python", "fastgate"):
        try:
            metadata.version(candidate.package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{candidate.package} is not installed")
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(_ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    to_child, from_child = child.stdin, child.stdout

    def tell(message: object) -> Any:
        to_child.write(json.dumps(message) + "\n")
        to_child.flush()
        line = from_child.readline()
        assert line, f"{candidate.package}: the candidate's process died"
        return json.loads(line)

    try:
        version = tell([candidate.package, candidate.setup, candidate.statement])
        print(f"{candidate.package} {version}", end=" ", flush=True)
        benchmark.extra_info["package"] = f"{candidate.package} {version}"
        if promise_ns is not None:
            benchmark.extra_info["promise_ns"] = promise_ns
        times = 1
        while (took_s := tell(times)) < ROUND_S:
            times = max(times * 2, int(times * ROUND_S / max(took_s, 1e-9)))

        def one_round() -> None:
            global _elapsed_s
            _elapsed_s += tell(times) / times / candidate.operations

        benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
        if candidate.bytes:
            mb_per_s = round(candidate.bytes / benchmark.stats.stats.min / 1e6)
            benchmark.extra_info["mb_per_s"] = mb_per_s
            print(f"{candidate.label}: {mb_per_s} MB/s", flush=True)
    finally:
        to_child.close()
        child.wait()
        from_child.close()
