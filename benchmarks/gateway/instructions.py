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
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gateway import servers
from benchmarks.gateway.caching import ORIGIN, cached
from benchmarks.gateway.guarded import KEY, guarded
from benchmarks.gateway.load import Traffic
from benchmarks.gateway.servers import BODY, Server
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


def paths(origin: int) -> dict[str, tuple[dict[str, Any], Traffic]]:
    """What can be looked at: a config and the request."""
    fixed = {"headers": {"Content-Type": "application/json"}, "body": BODY}
    key = {"X-API-Key": KEY}
    return {
        "proxy": ({"routes": [{"path": "/{rest...}", "upstream": f"http://127.0.0.1:{origin}"}]}, Traffic()),
        "respond": ({"routes": [{"path": "/{rest...}", "respond": fixed}]}, Traffic("GET")),
        "guarded": (guarded(origin), Traffic(headers=key)),
        "refusal": (
            {**guarded(origin), "tiers": {"bench": {"per_minute": 1}}},
            Traffic("GET", headers=key, status=429),
        ),
        "unauthorized": (guarded(origin), Traffic("GET", status=401)),
        "hit": (guarded(origin, cache={"ttl": "1h"}), Traffic("GET", headers=key)),
        "hit-unguarded": (cached(origin), Traffic("GET")),
        "hit-l2": (
            cached(origin, memory="0", disk={"path": "{directory}/answers", "size": "256MB"}),
            Traffic("GET"),
        ),
    }


def main() -> int:
    """Prints the functions that take most, for each path asked for."""
    names = list(paths(0))
    parser = argparse.ArgumentParser(prog="benchmarks.gateway.instructions", description=__doc__)
    parser.add_argument("paths", nargs="+", choices=names, metavar="PATH", help=", ".join(names))
    parser.add_argument("--most", type=int, default=40, help="functions to print (40)")
    given = parser.parse_args()
    for program in ("valgrind", "callgrind_annotate", "cc"):
        if shutil.which(program) is None:
            print(f"missing: {program} (not installed)")
            return 1
    with tempfile.TemporaryDirectory() as directory, servers.upstream(ORIGIN) as origin:
        place = Path(directory)
        (place / "switch.c").write_bytes(SWITCH)
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(place / "switch.so"), str(place / "switch.c")]
        if subprocess.run(command, check=False).returncode:
            print("missing: valgrind/callgrind.h (Debian: valgrind)")
            return 1
        os.environ[LIBRARY] = str(place / "switch.so")
        for name in given.paths:
            config, traffic = paths(origin.port)[name]
            print(f"\n{name}: instructions per request")
            for line in _counted(config, traffic, place / name)[: given.most + 1]:
                print(line)
    return 0


def _counted(config: dict[str, Any], traffic: Traffic, out: Path) -> list[str]:
    switch = {"path": "/count/{x}", "respond": "", "plugins": [{"use": f"{__spec__.name}:Switch"}]}
    config = {**config, "routes": [switch, *config["routes"]]}
    under = (
        *("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"),
        f"--callgrind-out-file={out}.%p",
    )
    server = servers.fastgate(config, keys=[KEY], core=None, under=under)
    try:
        with socket.create_connection(("127.0.0.1", server.port), 60) as sock:
            _talk(sock, traffic, WARM)
            time.sleep(1)  # a disk is written to in batches
            _talk(sock, Traffic("GET", "/count/on"), 1)
            _talk(sock, traffic, COUNTED)
            _talk(sock, Traffic("GET", "/count/off"), 1)
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


def _talk(sock: socket.socket, traffic: Traffic, times: int) -> None:
    body = BODY.encode() if traffic.method == "POST" else b""
    fields = {"Host": "bench", **traffic.headers}
    if body:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    asked = f"{traffic.method} {traffic.path} HTTP/1.1\r\n{lines}\r\n".encode() + body
    for _ in range(times):
        sock.sendall(asked)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(65536)
        head, _, rest = answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(rest) < length:
            rest += sock.recv(65536)


def _end(server: Server) -> None:
    server.process.terminate()
    server.process.wait(60)
    server.stop()


if __name__ == "__main__":
    sys.exit(main())
