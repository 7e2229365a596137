"""Instructions per request, by function: where the time of a path goes, without the machine's noise.

    python -m benchmarks.gateway.instructions guarded hit

The gateway runs under valgrind's callgrind (not installed: a printed reason), which counts only between two
requests of a plugin. One connection asks again and again, so the figures are those of a request that comes
alone: a busy worker shares the loop's part between several. System calls count as nothing. About half a
minute each.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gateway.load import Origin, Traffic
from benchmarks.gateway.paths import PATHS
from benchmarks.gateway.paths import Path as RequestPath
from benchmarks.gateway.servers import Server
from fastgate.plugin import CONTINUE, Plugin, RequestContext

WARM, COUNTED = 50, 1000
LIBRARY = "FASTGATE_CALLGRIND"  # where the plugin finds what speaks to callgrind
SWITCH = b"""
#include <valgrind/callgrind.h>
void count_on(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void count_off(void) { CALLGRIND_STOP_INSTRUMENTATION; CALLGRIND_DUMP_STATS; }
"""


class Switch(Plugin):
    """Begins and ends the counting, in the worker that is asked."""

    def decide(self, ctx: RequestContext) -> int:
        library = ctypes.CDLL(os.environ[LIBRARY])
        (library.count_on if ctx.path.endswith("on") else library.count_off)()
        return CONTINUE


def main() -> int:
    """Prints the functions that take most, for each path asked for."""
    names = list(PATHS)
    parser = argparse.ArgumentParser(prog="benchmarks.gateway.instructions", description=__doc__)
    parser.add_argument("paths", nargs="+", choices=names, metavar="PATH", help=", ".join(names))
    parser.add_argument("--most", type=int, default=40, help="functions to print (40)")
    given = parser.parse_args()
    for program in ("valgrind", "callgrind_annotate", "cc"):
        if shutil.which(program) is None:
            print(f"missing: {program} (not installed)")
            return 1
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "switch.c").write_bytes(SWITCH)
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(place / "switch.so"), str(place / "switch.c")]
        if subprocess.run(command, check=False).returncode:
            print("missing: valgrind/callgrind.h (Debian: valgrind)")
            return 1
        os.environ[LIBRARY] = str(place / "switch.so")
        for name in given.paths:
            path = PATHS[name]
            print(f"\n{name}: instructions per {path.load.unit}")
            with path.origin() as origin:
                for line in _counted(path, origin, place / name)[: given.most + 1]:
                    print(line)
    return 0


def _counted(path: RequestPath, origin: Origin, out: Path) -> list[str]:
    switch = {"path": "/count/{x}", "respond": "", "plugins": [{"use": f"{__spec__.name}:Switch"}]}
    under = (
        *("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"),
        f"--callgrind-out-file={out}.%p",
    )
    server = path.start(origin, [switch], core=None, under=under)
    try:
        with path.load.one_by_one(server, origin) as talk:
            talk(WARM)
            time.sleep(1)  # a disk is written to in batches
            _switch(server, origin, "on")
            talk(COUNTED)
            _switch(server, origin, "off")
    finally:
        _end(server)
    largest = max(out.parent.glob(f"{out.name}.*"), key=lambda path: path.stat().st_size)
    done = subprocess.run(
        ["callgrind_annotate", "--threshold=95", str(largest)], capture_output=True, text=True, check=True
    )
    found = []
    for line in done.stdout.splitlines():
        first, _, rest = line.strip().partition(" ")
        if first.replace(",", "").isdigit():
            function = rest.partition(")")[2].strip().partition(" [")[0].rpartition(":")[2]
            found.append(f"{int(first.replace(',', '')) / COUNTED:10.0f}  {function}")
    return found


def _switch(server: Server, origin: Origin, to: str) -> None:
    with Traffic("GET", f"/count/{to}", body_bytes=0).one_by_one(server, origin) as talk:
        talk(1)


def _end(server: Server) -> None:
    server.process.terminate()
    server.process.wait(60)
    server.stop()


if __name__ == "__main__":
    sys.exit(main())
