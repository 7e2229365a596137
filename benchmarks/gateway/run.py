"""The gateway beside nginx and HAProxy on the same machine: `python benchmarks/gateway/run.py`.

Writes gateway.json and gateway.png under benchmarks/gateway/results/ and prints the tables. How to read
them: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from benchmarks.gateway import report, servers
from benchmarks.gateway.ladder import Options, measure_ladder
from benchmarks.gateway.scenarios import LADDERS, SINGLES

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH = 120  # of the tables in a file or a pipe


def main(arguments: list[str] | None = None) -> int:
    """Measures what was asked for. With --strict 1 when a promise is broken or a scenario fails, else 0."""
    names = [*LADDERS, *SINGLES]
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per scenario (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (3)")
    parser.add_argument("--rate", type=float, default=4000.0, help="requests a second for p50 and p99 (4000)")
    parser.add_argument(
        "--scenarios", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[""],
        metavar="PEER",
        help="only peers whose names begin with one of these",
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "gateway.json", help="where the JSON goes")
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 when a promise is broken or a scenario fails"
    )
    given = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    options = Options(given.rounds, given.seconds, given.rate, tuple(given.peers))
    document = _document(given.scenarios, options)
    for name in given.scenarios:
        program = LADDERS[name].traffic.program if name in LADDERS else None
        if program is not None and servers.version(program) is None:
            document["missing"].append(f"{name}: its load needs {program}")
            continue
        with console.status(name) as status:
            say = lambda text, name=name, status=status: status.update(f"{name}: {text}")  # noqa: E731
            try:
                if name in LADDERS:
                    document["scenarios"][name] = measure_ladder(LADDERS[name], options, say)
                else:
                    document["scenarios"][name] = SINGLES[name](options, say)
            except RuntimeError as error:  # a peer does not do what is measured: no figure for this lane
                document["failed"].append(f"{name}: {error}")
                continue
        document["missing"] += [f"{name}: {why}" for why in document["scenarios"][name].get("missing", [])]
        report.write(document, given.output)
    image = given.output.with_suffix(".png")
    if not report.plot(document, image):
        document["missing"].append("matplotlib (no plot)")
    report.write(document, given.output)
    report.print_report(document, console)
    console.print(f"written to {given.output}")
    broken = [promise for promise in report.promises(document["scenarios"]) if not promise.holds]
    return 1 if given.strict and (broken or document["failed"]) else 0


def _document(scenarios: list[str], options: Options) -> dict[str, Any]:
    programs = {name: servers.version(name) for name in ("nginx", "haproxy", "varnishd", "wrk", "h2load")}
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load_average": os.getloadavg()[0],
        },
        "programs": programs,
        "missing": [f"{name} (not installed)" for name, found in programs.items() if found is None],
        "failed": [],
        "rounds": options.rounds,
        "seconds": options.seconds,
        "scenarios": {},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
