"""The load: wrk as fast as it goes, h2load at a fixed rate, and idle connections from this process.

Both generators run on the load core. wrk waits for each answer before it sends again, so its latencies hide
queueing; the p50 and p99 that count come from h2load, whose requests are due at fixed moments whatever the
gateway does.
"""

from __future__ import annotations

import json
import resource
import selectors
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gateway.servers import BODY, LOAD_CORE, Server, pinned

__all__ = [
    "CONNECTIONS",
    "FIRST",
    "MARK",
    "Paced",
    "Sample",
    "Traffic",
    "ask",
    "closed_loop",
    "hold_idle",
    "is_paced_available",
    "paced",
    "run",
    "start_paced",
]

CONNECTIONS = 64
WARM_S = 0.5
# Where the requests of a load differ, and what stands there in the first of them.
MARK, FIRST = "@MARK@", "0000000"

# Every answer with a status above 399 is an error to wrk; what Traffic.status asks for is none to us.
SCRIPT = r"""
%(setup)s
local result = 'RESULT {"requests": %%d, "duration_us": %%d, "p50_us": %%d, "p99_us": %%d, ' ..
  '"status": %%d, "errors": %%d}'
done = function(summary, latency, requests)
  local e = summary.errors
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  print(string.format(result, summary.requests, summary.duration, p50, p99, e.status,
    e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Traffic:
    """What is asked for. `varying` is Lua that defines `request()`, for loads whose requests differ."""

    method: str = "POST"
    path: str = "/orders/123"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    varying: str = ""

    def script(self) -> str:
        """The wrk script."""
        headers = dict(self.headers)
        setup = [f'wrk.method = "{self.method}"', f'wrk.path = "{self.path}"']
        if self.method == "POST":
            headers["Content-Type"] = "application/json"
            setup.append(f"wrk.body = '{BODY}'")
        setup += [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
        return SCRIPT % {"setup": "\n".join([*setup, self.varying])}


@dataclass(frozen=True)
class Sample:
    """One closed-loop run. `cpu_us` is per request, of the gateway's workers."""

    cpu_us: float
    rps: float
    p50_us: float
    p99_us: float
    errors: int


@dataclass(frozen=True)
class Paced:
    """One run at a fixed rate."""

    rate_per_s: float
    requests: int
    p50_us: float
    p99_us: float
    max_us: float
    errors: int


def closed_loop(server: Server, traffic: Traffic, seconds: float) -> Sample:
    """Load on 64 keep-alive connections for so long, after a short warm-up."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "load.lua"
        script.write_text(traffic.script())
        _wrk(server, WARM_S, script)
        before = server.cpu_ns()
        result = _wrk(server, seconds, script)
        spent = server.cpu_ns() - before
    requests = max(1, result["requests"])
    refused = result["status"] if traffic.status < 400 else requests - result["status"]
    return Sample(
        cpu_us=spent / requests / 1000,
        rps=requests / (result["duration_us"] / 1e6),
        p50_us=result["p50_us"],
        p99_us=result["p99_us"],
        errors=result["errors"] + refused,
    )


def run(server: Server, traffic: Traffic, seconds: float) -> dict[str, int]:
    """The load alone, to fill what is to be full: requests, status, errors."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "load.lua"
        script.write_text(traffic.script())
        return _wrk(server, seconds, script)


def ask(server: Server, traffic: Traffic) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers (lower case) and body of one request of this load."""
    headers = dict(traffic.headers)
    if traffic.method == "POST":
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{traffic.path.replace(MARK, FIRST)}",
        data=BODY.encode() if traffic.method == "POST" else None,
        headers={name: value.replace(MARK, FIRST) for name, value in headers.items()},
        method=traffic.method,
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def _wrk(server: Server, seconds: float, script: Path) -> dict[str, int]:
    # wrk takes whole seconds; shorter warm-ups use its smallest.
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}/"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=pinned(LOAD_CORE),
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"wrk gave no result:\n{(done.stdout + done.stderr)[-2000:]}")
    result: dict[str, int] = json.loads(line.removeprefix("RESULT "))
    return result


def is_paced_available() -> bool:
    """True if h2load is installed."""
    return shutil.which("h2load") is not None


class PacedRun:
    """A run at a fixed rate that has begun."""

    def __init__(self, server: Server, traffic: Traffic, seconds: float, rate_per_s: float) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._log = Path(self._directory.name) / "requests"
        headers = dict(traffic.headers)
        more = []
        if traffic.method == "POST":
            body = Path(self._directory.name) / "body"
            body.write_text(BODY)
            headers["content-type"] = "application/json"
            more = [f"-d{body}"]
        self._status = str(traffic.status)
        self._rate_per_s = rate_per_s
        self._process = subprocess.Popen(
            [
                "h2load", "--h1", "-t1", f"-c{CONNECTIONS}", f"-D{max(1, round(seconds))}",
                "--warm-up-time=1",
                f"--rps={rate_per_s / CONNECTIONS:g}", f"--log-file={self._log}", *more,
                *(f"-H{name}: {value}" for name, value in headers.items()),
                f"http://127.0.0.1:{server.port}{traffic.path}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=pinned(LOAD_CORE),
        )  # fmt: skip

    @property
    def is_running(self) -> bool:
        """True until the load has ended."""
        return self._process.poll() is None

    def finish(self) -> Paced:
        """Waits for the end and reads the log: start, status and microseconds of every request."""
        self._process.wait()
        rows = [line.split() for line in self._log.read_text().splitlines()]
        self._directory.cleanup()
        good = sorted(int(row[2]) for row in rows if row[1] == self._status)
        if not good:
            return Paced(self._rate_per_s, 0, 0, 0, 0, len(rows) or 1)
        return Paced(
            self._rate_per_s,
            len(good),
            good[len(good) // 2],
            good[int(len(good) * 0.99)],
            good[-1],
            len(rows) - len(good),
        )


def start_paced(server: Server, traffic: Traffic, seconds: float, rate_per_s: float) -> PacedRun:
    """Begins a load of so many requests a second."""
    return PacedRun(server, traffic, seconds, rate_per_s)


def paced(server: Server, traffic: Traffic, seconds: float, rate_per_s: float) -> Paced:
    """Load of so many requests a second for so long, after a warm-up of one second."""
    return start_paced(server, traffic, seconds, rate_per_s).finish()


def hold_idle(server: Server, count: int) -> tuple[int, int]:
    """Private bytes of the worker before and while so many connections are idle, each after one answered
    request.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _ask(server.port, 200)  # whatever is allocated once is allocated now
    before = server.private_bytes()
    sockets = []
    try:
        for start in range(0, count, 500):
            sockets += _ask(server.port, min(500, count - start), keep=True)
        return before, server.private_bytes()
    finally:
        for sock in sockets:
            sock.close()


def _ask(port: int, count: int, *, keep: bool = False) -> list[socket.socket]:
    sockets = []
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
            selector.register(sock, selectors.EVENT_READ)
            sockets.append(sock)
        waiting = count
        while waiting:
            for key, _ in selector.select(10):
                sock = key.fileobj  # type: ignore[assignment]
                if not sock.recv(65536):
                    raise RuntimeError("an idle connection was closed")
                selector.unregister(sock)
                waiting -= 1
    if keep:
        return sockets
    for sock in sockets:
        sock.close()
    return []
