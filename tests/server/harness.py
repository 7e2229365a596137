"""The real supervisor and real worker processes around a data plane of fixed answers, run as a program.

    python -m tests.server.harness CONFIG READY_FD

What is under test is the machinery that forks, watches, reloads and drains; with a data plane this small, a
test can make it misbehave on demand. CONFIG is JSON: `listen`, `workers`, `text` (what is answered),
`drain_ms`, `hang_ms`, `watch`, `admin`, `refuse` (the config is bad), `cannot_freeze` (only freeze finds
out), `crash_on_start`, `load_gate` (a file: loading goes on when it is gone). Requests: `/text`, `/pid`,
`/slow` (answers after 0.3 s), `/block` (the loop stands still), `/never`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from fastgate._core.shm.shm import SharedMemory
from fastgate.server.loader import LoadOrder, Reading, Topology
from fastgate.server.supervisor import Supervisor
from fastgate.server.worker import WorkerOrders, run_worker
from fastgate.settings import ConfigError
from fastgate.state.channel import ControllerOrders, Problem
from fastgate.state.host import HostTable

SLOW_S = 0.3
FIRST_REQUEST_S = 2  # a client with a CPU of its own needs microseconds; a loaded machine takes longer


class Connection(asyncio.Protocol):
    def __init__(self, plane: FixedPlane) -> None:
        self.plane = plane
        self.data = b""
        self.is_busy = False
        self.has_answered = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.plane.connections.add(self)

    def connection_lost(self, _error: BaseException | None) -> None:
        self.plane.connections.discard(self)
        self.is_busy = False

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.next()

    def next(self) -> None:
        if self.is_busy or b"\r\n\r\n" not in self.data:
            return
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        self.is_busy = True
        if path == "/block":
            time.sleep(3600)
        elif path == "/slow":
            self.plane.loop.call_later(SLOW_S, self.answer, self.plane.text)
        elif path == "/pid":
            self.answer(str(os.getpid()))
        elif path != "/never":
            self.answer(self.plane.text)

    def answer(self, text: str) -> None:
        self.is_busy = False
        self.has_answered = True
        closing = self.plane.is_draining
        head = "Connection: close\r\n" if closing else ""
        self.transport.write(f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
        if closing:
            self.transport.close()
        else:
            self.next()


class FixedPlane:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.text = ""
        self.is_draining = False
        self.connections: set[Connection] = set()

    @property
    def active_requests(self) -> int:
        return sum(connection.is_busy for connection in self.connections)

    @property
    def open_connections(self) -> int:
        return len(self.connections)

    def install(self, plan: FixedPlan) -> None:
        self.text = plan.text

    def connection(self, _listener: Any) -> Connection:
        return Connection(self)

    def begin_drain(self, close_tunnels: bool = True) -> None:
        """Closes idle connections; one without an answer yet may have its first request under way."""
        self.is_draining = True
        self.loop.call_later(FIRST_REQUEST_S, self.close_idle)
        for connection in list(self.connections):
            if connection.has_answered and not connection.is_busy:
                connection.transport.close()

    def close_idle(self) -> None:
        for connection in list(self.connections):
            if not connection.is_busy:
                connection.transport.close()

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()

    def close(self) -> None:
        self.connections.clear()

    def reopen_logs(self) -> None:
        os.write(2, f"logs opened anew by {os.getpid()}\n".encode())


class FixedPlan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.requests = 0

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        await asyncio.sleep(0)


class FixedRuntime:
    def plane(self, loop: asyncio.AbstractEventLoop, _orders: WorkerOrders) -> FixedPlane:
        return FixedPlane(loop)

    def decode(self, blob: bytes) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(blob)
        return config

    def listener(self, config: dict[str, Any], index: int) -> str:
        return str(config["listen"][index])

    def tls(self, _listener: str) -> None:
        return None

    async def freeze(self, config: dict[str, Any], _plane: Any, _previous: Any) -> FixedPlan:
        await asyncio.sleep(0)
        marker = config.get("crash_on_start")
        if marker and os.path.exists(marker):
            os._exit(3)
        if config.get("cannot_freeze"):
            raise ConfigError("$.cannot_freeze", found="true", expected="false")
        return FixedPlan(str(config.get("text", "")))


def main() -> None:
    path, ready_fd = Path(sys.argv[1]), int(sys.argv[2])

    def read(_order: LoadOrder) -> Reading | list[Problem]:
        config = json.loads(path.read_text())
        while "load_gate" in config and os.path.exists(config["load_gate"]):
            time.sleep(0.005)
        if "load_exit" in config:
            sys.exit(config["load_exit"])
        if config.get("refuse"):
            return [Problem(text="$.refuse: expected false, got true", path="$.refuse")]
        topology = Topology(
            listen=config["listen"],
            workers=config.get("workers", 1),
            admin_listen=config.get("admin"),
            drain_timeout_ns=config.get("drain_ms", 5000) * 1_000_000,
            watch=config.get("watch", False),
            generation_key=json.dumps([config["listen"], config.get("workers", 1)]).encode(),
        )
        return Reading(topology, json.dumps(config).encode())

    def control(orders: ControllerOrders) -> None:
        asyncio.run(controller(orders))

    supervisor = Supervisor(
        read,
        lambda orders: run_worker(FixedRuntime(), orders),
        control,
        memory=SharedMemory(HostTable.size(64)),
        map_host=lambda seats, _sizes: SharedMemory(8 * seats),
        watched=[path],
        ready_fd=ready_fd,
        hang_limit_ns=json.loads(path.read_text()).get("hang_ms", 10_000) * 1_000_000,
    )
    sys.exit(supervisor.run())


async def controller(orders: ControllerOrders) -> None:
    """The smallest process that can take the controller's place: waits for the end."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()

    def beat() -> None:
        orders.table.controller_heartbeat_ns = time.monotonic_ns()
        loop.call_later(0.5, beat)

    beat()

    def read() -> None:
        with contextlib.suppress(Exception):
            received = orders.channel.receive()
            if received is None or type(received[0]).__name__ != "Stop":
                if received and received[1] is not None:
                    os.close(received[1])
                return
        gone.set()

    loop.add_reader(orders.channel.fileno(), read)
    await gone.wait()


if __name__ == "__main__":
    main()
