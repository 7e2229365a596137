"""The load: wrk as fast as it goes, h2load at a fixed rate, and idle connections from this process. What wrk
cannot do is in streams.py and connections.py.

Both generators run on the load core. wrk waits for each answer before it sends again, so its latencies hide
queueing; the p50 and p99 that count come from h2load, whose requests are due at fixed moments whatever the
gateway does.
"""

from __future__ import annotations

import contextlib
import json
import resource
import selectors
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.gateway.message import Message
from benchmarks.gateway.servers import BODY, LOAD_CORE, START_S, Server, pinned

__all__ = [
    "CONNECTIONS",
    "FIRST",
    "MARK",
    "Counts",
    "Load",
    "Origin",
    "Paced",
    "Sample",
    "Traffic",
    "ask",
    "closed_loop",
    "hold_idle",
    "is_paced_available",
    "paced",
    "prove",
    "run",
    "start_paced",
    "tls_client",
]

CONNECTIONS = 64
WARM_S = 0.5
ASK_S = 60  # the longest wait for one response
# Responses to one load differ by no more: a count or an age may have more digits. A body is larger.
VARYING_BYTES = 24
# Where the requests of a load differ, and what stands there in the first of them.
MARK, FIRST = "@MARK@", "0000000"

# Every answer with a status above 399 is an error to wrk; what Traffic.status asks for is none to us.
SCRIPT = r"""
%(setup)s
local result = 'RESULT {"requests": %%d, "duration_us": %%d, "p50_us": %%d, "p99_us": %%d, ' ..
  '"bytes": %%d, "status": %%d, "errors": %%d}'
done = function(summary, latency, requests)
  local e = summary.errors
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  print(string.format(result, summary.requests, summary.duration, p50, p99, summary.bytes, e.status,
    e.connect + e.read + e.write + e.timeout))
end
"""


class Origin(Protocol):
    """The upstream of the peers."""

    port: int


@dataclass(frozen=True)
class Counts:
    """Units that were complete and as expected, and their latencies if the load measures them."""

    units: int
    seconds: float
    p50_us: float | None = None
    p99_us: float | None = None


class Load(Protocol):
    """A load for a peer. A response that is not the expected one is a RuntimeError, never a figure."""

    @property
    def unit(self) -> str:
        """What is counted: a request, an event, a message, a handshake."""

    @property
    def program(self) -> str | None:
        """What must be installed for it."""

    def drive(self, server: Server, origin: Origin, seconds: float) -> Counts:
        """As many units as go, for so long."""

    def one_by_one(self, server: Server, origin: Origin) -> AbstractContextManager[Callable[[int], None]]:
        """A function that makes so many units happen, one after the other."""


@dataclass(frozen=True)
class Traffic:
    """Requests. `varying` is Lua that defines `request()`, for loads whose requests differ. `body_bytes` is
    the size of the response's body, 0 where the peers' differ.
    """

    method: str = "POST"
    path: str = "/orders/123"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    varying: str = ""
    body_bytes: int = len(BODY)
    unit: str = "request"
    program: str | None = "wrk"

    def drive(self, server: Server, _origin: Origin, seconds: float) -> Counts:
        """wrk with 64 connections."""
        with _connected(server) as sock:
            sock.sendall(self._request())
            size = self._response_bytes(sock)
        result = run(server, self, seconds)
        refused = result["status"] if self.status < 400 else result["requests"] - result["status"]
        requests = result["requests"]
        if refused or result["errors"] or not requests:
            raise RuntimeError(
                f"{refused} of {requests} responses were not {self.status}, "
                f"{result['errors']} connections failed"
            )
        least, most = requests * (size - VARYING_BYTES), (requests + CONNECTIONS) * (size + VARYING_BYTES)
        if not least <= result["bytes"] <= most:
            raise RuntimeError(f"{result['bytes']} bytes arrived for {requests} responses of {size} bytes")
        return Counts(requests, result["duration_us"] / 1e6, result["p50_us"], result["p99_us"])

    @contextlib.contextmanager
    def one_by_one(self, server: Server, _origin: Origin) -> Iterator[Callable[[int], None]]:
        """A function that sends so many requests, on one connection if the peer keeps it open."""
        asked = self._request()
        is_closing = self.headers.get("Connection") == "close"
        sock: socket.socket | None = None

        def talk(times: int) -> None:
            nonlocal sock
            for _ in range(times):
                sock = sock or _connected(server)
                sock.sendall(asked)
                self._response_bytes(sock)
                if is_closing:
                    if sock.recv(1):
                        raise RuntimeError("the connection stays open after `Connection: close`")
                    sock.close()
                    sock = None

        try:
            yield talk
        finally:
            if sock is not None:
                sock.close()

    def _request(self) -> bytes:
        body = BODY.encode() if self.method == "POST" else b""
        fields = {"Host": "bench", **self.headers}
        if body:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".replace(MARK, FIRST)
        return head.encode() + body

    def _response_bytes(self, sock: socket.socket) -> int:
        response, size = Message(None, self.status), 0
        while not response.is_complete:
            data = sock.recv(65536)
            if not data:
                raise RuntimeError("the connection was closed before the end of the response")
            size += len(data)
            response.feed(data)
        if self.body_bytes not in (0, response.body_bytes):
            raise RuntimeError(f"a body of {response.body_bytes} bytes, not {self.body_bytes}")
        return size

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
    """One closed-loop run. `cpu_us` is per unit of the load, of the gateway's workers."""

    cpu_us: float
    per_s: float
    p50_us: float | None
    p99_us: float | None


@dataclass(frozen=True)
class Paced:
    """One run at a fixed rate."""

    rate_per_s: float
    requests: int
    p50_us: float
    p99_us: float
    max_us: float
    errors: int


def closed_loop(server: Server, load: Load, origin: Origin, seconds: float) -> Sample:
    """The CPU time of a load for so long, after a short warm-up."""
    load.drive(server, origin, WARM_S)
    before = server.cpu_ns()
    counts = load.drive(server, origin, seconds)
    spent = server.cpu_ns() - before
    if not counts.units:
        raise RuntimeError(f"no {load.unit} in {seconds:g} s")
    return Sample(
        cpu_us=spent / counts.units / 1000,
        per_s=counts.units / counts.seconds,
        p50_us=counts.p50_us,
        p99_us=counts.p99_us,
    )


def prove(server: Server, load: Load, origin: Origin) -> None:
    """Waits until two units in a row are as expected: a gateway that has just started may respond with 503,
    and a cache has nothing at first. RuntimeError when they are not after 30 s.
    """
    until = time.monotonic() + START_S
    while True:
        try:
            with load.one_by_one(server, origin) as talk:
                return talk(2)
        except (OSError, RuntimeError):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def tls_client() -> ssl.SSLContext:
    """TLS 1.3 to any certificate: those of the peers are their own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _connected(server: Server) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), ASK_S)
    return tls_client().wrap_socket(sock, server_hostname="localhost") if server.is_tls else sock


def run(server: Server, traffic: Traffic, seconds: float) -> dict[str, int]:
    """What wrk counts: requests, duration and latencies in microseconds, bytes, status, errors."""
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
    url = f"{'https' if server.is_tls else 'http'}://127.0.0.1:{server.port}/"
    with pinned(LOAD_CORE):
        done = subprocess.run(
            [*command, f"--timeout={ASK_S}s", url], capture_output=True, text=True, check=False
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
        with pinned(LOAD_CORE):
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
