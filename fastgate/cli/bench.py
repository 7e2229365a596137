"""A small load test of one URL: `fastgate bench URL`.

Owns the client side: keep-alive connections in one event loop, each with one request in flight. Without a
rate, every connection sends its next request when the previous response is complete (closed loop: it
measures throughput and hides queueing). With a rate, requests are due at fixed times, and latency counts
from that time, so that stalls are included (coordinated omission, after Gil Tene's wrk2). It is one Python
process and reaches about 20 000 requests per second; the benchmarks use wrk and h2load.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["Load", "Report", "main", "report_table", "run"]

QUANTILES = (0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
# Delay before a refused connection is retried, so that a dead server does not cause a busy loop.
RETRY_S = 0.1
END_S = 1.0  # for requests in flight at the end
SAMPLES = 5_000_000  # latencies kept exactly; 40 MB, more than this client sends in two minutes


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send. `rate_per_s` 0 means a closed loop."""

    url: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    connections: int = 64
    duration_s: float = 5.0
    rate_per_s: float = 0.0


@dataclass
class Report:
    """The results. Latencies are in nanoseconds, sorted."""

    load: Load
    elapsed_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    bytes_received: int = 0
    latencies_ns: list[int] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Complete responses of any status."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Requests without a complete response, and responses of 400 and above."""
        return sum(self.errors.values()) + sum(n for status, n in self.statuses.items() if status >= 400)

    def by_class(self) -> dict[str, int]:
        """Responses by class of status: `2xx`, `4xx` and so on."""
        classes: Counter[str] = Counter()
        for status, count in self.statuses.items():
            classes[f"{status // 100}xx"] += count
        return dict(sorted(classes.items()))

    def quantile_ns(self, q: float) -> int:
        """The latency that a share q of the responses did not exceed; 0 without any."""
        if not self.latencies_ns:
            return 0
        return self.latencies_ns[min(len(self.latencies_ns) - 1, int(q * len(self.latencies_ns)))]


def run(load: Load) -> Report:
    """Sends the load from an event loop of its own. ValueError describes a fault in the URL."""
    target = urlsplit(load.url if "//" in load.url else f"http://{load.url}")
    if target.scheme not in ("http", "https") or not target.hostname:
        raise ValueError(f"{load.url}: expected http://host[:port]/path or https://…")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Run(load).send())


def report_table(report: Report) -> Table:
    """The report as a table to print."""
    load = report.load
    mode = f"{load.rate_per_s:g} requests/s" if load.rate_per_s else "closed loop"
    table = Table(
        title=f"{load.method} {load.url}  ({load.connections} connections, {mode}; latency in ms)",
        title_justify="left",
        box=box.SIMPLE_HEAD,  # nine columns fit a terminal of 80
        show_edge=False,
        padding=0,
    )
    table.add_column("responses", justify="right")
    table.add_column("per s", justify="right")
    table.add_column("failed", justify="right")
    for q in QUANTILES:
        table.add_column("max" if q == 1.0 else f"p{q * 100:g}", justify="right")
    table.add_row(
        str(report.requests),
        f"{report.requests / report.elapsed_s:.0f}" if report.elapsed_s else "-",
        str(report.failed),
        *(f"{report.quantile_ns(q) / 1e6:.2f}" for q in QUANTILES),
    )
    parts = []
    for name, total in report.by_class().items():
        inside = [f"{s}: {n}" for s, n in sorted(report.statuses.items()) if f"{s // 100}xx" == name]
        parts.append(f"{name}: {total} ({', '.join(inside)})")
    parts += [f"{name}: {count}" for name, count in report.errors.most_common()]
    table.caption = ", ".join(parts) or "no response"
    return table


def main(load: Load, console: Console) -> int:
    """Runs the load and prints its table. 0 if every response was below 400, else 1."""
    report = run(load)
    console.print(report_table(report))
    return 1 if report.failed or not report.requests else 0


class _Run:
    def __init__(self, load: Load) -> None:
        target = urlsplit(load.url if "//" in load.url else f"http://{load.url}")
        self.load = load
        self.report = Report(load)
        self.host = target.hostname or ""
        self.port = target.port or (443 if target.scheme == "https" else 80)
        self.tls = ssl.create_default_context() if target.scheme == "https" else None
        self.request = _request_bytes(
            load, target.netloc.rpartition("@")[2], target.path or "/", target.query
        )
        self.idle: deque[_Connection] = deque()
        self.due: deque[int] = deque()  # due times of requests for which no connection was free
        self.open: set[_Connection] = set()
        self.opening: set[asyncio.Task[None]] = set()
        self.stopping = False

    async def send(self) -> Report:
        started = time.monotonic()
        for _ in range(self.load.connections):
            self.connect()
        if self.load.rate_per_s:
            await self.keep_the_rate(started + self.load.duration_s)
        else:
            await asyncio.sleep(self.load.duration_s)
        self.stopping = True
        self.report.elapsed_s = time.monotonic() - started
        await self.end()
        if self.due:
            self.report.errors["not sent: no connection was free"] += len(self.due)
        self.report.latencies_ns.sort()
        return self.report

    async def end(self) -> None:
        # A connect that is cancelled just when it completes leaves a connection whose end uvloop never
        # reports. Therefore only slow ones are cancelled, and nothing here waits without a limit.
        if self.opening:
            await asyncio.wait(self.opening, timeout=END_S)
        for task in self.opening:
            task.cancel()
        await asyncio.gather(*self.opening, return_exceptions=True)
        for connection in list(self.open):
            connection.transport.abort()
        until = time.monotonic() + END_S
        while self.open and time.monotonic() < until:
            await asyncio.sleep(0.001)

    async def keep_the_rate(self, until: float) -> None:
        step_ns = 1e9 / self.load.rate_per_s
        first_ns = time.monotonic_ns()
        number = 0
        while (now := time.monotonic()) < until:
            now_ns = time.monotonic_ns()
            while (due_ns := first_ns + int(number * step_ns)) <= now_ns:
                number += 1
                if self.idle:
                    self.idle.pop().begin(due_ns)
                else:
                    self.due.append(due_ns)
            await asyncio.sleep(min(0.001, until - now))

    def connect(self, after_s: float = 0.0) -> None:
        task = asyncio.get_running_loop().create_task(self.open_one(after_s))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def open_one(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if self.stopping:
            return
        loop = asyncio.get_running_loop()
        name = self.host if self.tls else None
        try:
            await loop.create_connection(
                lambda: _Connection(self), self.host, self.port, ssl=self.tls, server_hostname=name
            )
        except OSError as error:
            self.report.errors[f"connect: {error.strerror or type(error).__name__}"] += 1
            if not self.stopping:
                self.connect(RETRY_S)

    def ready(self, connection: _Connection) -> None:
        if self.stopping:
            connection.transport.abort()
            return
        if not self.load.rate_per_s:
            connection.begin(time.monotonic_ns())
        elif self.due:
            connection.begin(self.due.popleft())
        else:
            self.idle.append(connection)

    def lost(self, connection: _Connection, why: str) -> None:
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if self.stopping:
            return
        if why:
            self.report.errors[why] += 1
        self.connect(RETRY_S if why else 0.0)


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.begun_ns = 0  # due time of the request in flight, 0 without one
        self.parser: httptools.HttpResponseParser | None = None
        self.status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class, not a subclass of asyncio's
        self.run.open.add(self)
        self.run.ready(self)

    def begin(self, due_ns: int) -> None:
        self.begun_ns = due_ns
        self.parser = httptools.HttpResponseParser(self)
        self.transport.write(self.run.request)

    def data_received(self, data: bytes) -> None:
        self.run.report.bytes_received += len(data)
        if self.parser is None:
            self.fail("unexpected bytes")
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.fail("malformed response")

    def on_headers_complete(self) -> None:
        # The parser cannot know that this response has no body, so its result for the next bytes is not used.
        if (
            self.run.load.method == "HEAD"
            and self.parser is not None
            and self.parser.get_status_code() >= 200
        ):
            self.finish()

    def on_message_complete(self) -> None:
        if self.begun_ns:
            self.finish()

    def finish(self) -> None:
        parser = self.parser
        assert parser is not None
        self.status = parser.get_status_code()
        if self.status < 200:
            return
        report = self.run.report
        report.statuses[self.status] += 1
        if len(report.latencies_ns) < SAMPLES:
            report.latencies_ns.append(time.monotonic_ns() - self.begun_ns)
        self.begun_ns = 0
        if parser.should_keep_alive():
            # Not from within the parser's callback: the next response has its own parser.
            asyncio.get_running_loop().call_soon(self.run.ready, self)
        else:
            self.transport.close()

    def fail(self, why: str) -> None:
        self.begun_ns, self.parser = 0, None
        self.run.report.errors[why] += 1
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.parser = None
        self.run.lost(self, "connection lost" if self.begun_ns else "")


def _request_bytes(load: Load, authority: str, path: str, query: str) -> bytes:
    fields = [("Host", authority), ("User-Agent", "fastgate-bench"), ("Accept", "*/*"), *load.headers]
    if load.body:
        fields.append(("Content-Length", str(len(load.body))))
    given = {name.lower() for name, _ in load.headers}
    lines = [f"{load.method} {path}{'?' + query if query else ''} HTTP/1.1"]
    lines += [
        f"{name}: {value}" for at, (name, value) in enumerate(fields) if at >= 3 or name.lower() not in given
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + load.body
