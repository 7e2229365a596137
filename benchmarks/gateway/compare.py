"""This checkout's gateway beside that of another one, round by round: what a change costs.

    python -m benchmarks.gateway.compare ../before --rounds 12 --paths proxy guarded hit

Both gateways run at once, on the same core, and are loaded in turn, one second each; the order changes from
round to round. The figure is the median of the ratios of neighboring measurements, which hardly moves on a
machine whose speed does. The other checkout must be built; its .venv is used if it has one.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gateway import load, servers
from benchmarks.gateway.paths import PATHS

SECONDS = 1.0


def main() -> int:
    """Prints one line for each path."""
    names = list(PATHS)
    parser = argparse.ArgumentParser(prog="benchmarks.gateway.compare", description=__doc__)
    parser.add_argument("before", type=Path, help="root of the other checkout")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of measurements of each path (12)")
    parser.add_argument(
        "--paths", nargs="+", choices=names, default=names, metavar="PATH", help=", ".join(names)
    )
    given = parser.parse_args()
    print(f"{'path':17} {'before':>8} {'now':>8}  CPU µs; now ÷ before (quartiles)")
    for name in given.paths:
        _compare(name, given.before.resolve(), given.rounds)
    return 0


def _compare(name: str, before: Path, rounds: int) -> None:
    path = PATHS[name]
    if path.load.program is not None and servers.version(path.load.program) is None:
        print(f"{name:17} needs {path.load.program}, which is not installed")
        return
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(path.origin())
        running = []
        for root in (before, servers.ROOT):
            running.append(path.start(origin, root=root))
            stack.callback(running[-1].stop)
        pairs: list[tuple[float, float]] = []
        for number in range(rounds):
            order = (0, 1) if number % 2 == 0 else (1, 0)
            spent = {}
            for which in order:
                spent[which] = load.closed_loop(running[which], path.load, origin, SECONDS).cpu_us
            pairs.append((spent[0], spent[1]))
    was, now = (statistics.median(pair[which] for pair in pairs) for which in (0, 1))
    low, ratio, high = statistics.quantiles([after / earlier for earlier, after in pairs], n=4)
    per = path.load.unit
    print(f"{name:17} {was:8.2f} {now:8.2f}  per {per}; {ratio:.3f} ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
