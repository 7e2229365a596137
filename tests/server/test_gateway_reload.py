"""Reloads of the real gateway beside requests, while its processes are killed and plugins fail."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.client import Client, request
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.ports import reserved_port
from tests.server.gateway_harness import Traffic, read_answer, until
from tests.upstream import Peer, Upstream, answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

PLUGIN = """
import asyncio
import os

from fastgate.plugin import Plugin, Settings


class PickySettings(Settings):
    start: str = "good"


class Picky(Plugin):
    Config = PickySettings

    def __init__(self, settings):
        self.settings = settings

    @classmethod
    def build(cls, settings, env):
        return cls(settings)

    async def start(self):
        if self.settings.start == "raises":
            raise RuntimeError("this setting does not work")
        if self.settings.start == "exits":
            raise SystemExit(3)
        if self.settings.start == "cancels":
            raise asyncio.CancelledError
        if self.settings.start.startswith("/"):
            open(self.settings.start + ".seen", "w").close()
            while not os.path.exists(self.settings.start):
                await asyncio.sleep(0.02)
        if self.settings.start == "hangs":
            await asyncio.sleep(3600)
"""


def test_a_plugin_that_cannot_start_refuses_the_reload_and_no_worker_and_no_request_is_lost(
    tmp_path: Path,
) -> None:
    (tmp_path / "picky.py").write_text(PLUGIN)
    released = threading.Event()

    def slow(peer: Peer) -> None:
        peer.read_request()
        released.wait(60)
        peer.send(OK)
        peer.wait_closed()

    def config(upstream: Upstream, start: str) -> dict[str, Any]:
        route = {"path": "/*", "upstream": upstream.url, "plugins": [{"use": "picky:Picky", "start": start}]}
        return {"routes": [route], "upstreams": {"x": {"targets": [upstream.url]}}}

    environ = {"PYTHONPATH": f"{Path(__file__).resolve().parents[2]}:{tmp_path}"}
    with (
        Upstream(slow) as upstream,
        Gateway(
            config(upstream, "good"),
            workers=4,
            environ=environ,
            allow="config refused|does not work|SystemExit|CancelledError",
            check_descriptors=False,
        ) as gateway,
    ):
        before = set(gateway.worker_pids())
        socks = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(40)]
        for sock in socks:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        upstream.wait_for_peers(40)

        for start in ("raises", "exits", "cancels"):
            gateway.write_config(config(upstream, start))
            reply = call(gateway.admin, "/api/gateway/reload", "POST")
            assert (reply.status, reply.json["version"]) == (422, 1)
            assert "cannot be built" in reply.json["errors"][0]["text"]

        until(lambda: set(gateway.worker_pids()) == before, "the workers of before, and no other")
        gateway.write_config(config(upstream, "good") | {"trusted_proxies": ["10.0.0.0/8"]})
        reply = call(gateway.admin, "/api/gateway/reload", "POST")
        assert (reply.status, reply.json["kind"]) == (200, "hot")
        status = call(gateway.admin, "/api/gateway/status").json
        assert {worker["config_version"] for worker in status["workers"]} == {reply.json["version"]}
        assert set(gateway.worker_pids()) == before
        released.set()
        assert [read_answer(sock) for sock in socks] == ["hello"] * 40
        for sock in socks:
            sock.close()


def test_a_plugin_that_hangs_in_start_does_not_keep_the_worker_from_draining(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PLUGIN)

    def config(start: str) -> dict[str, Any]:
        plugins = [{"use": "picky:Picky", "start": start}]
        return {"routes": [{"path": "/*", "respond": {"body": "hello"}, "plugins": plugins}]}

    environ = {"PYTHONPATH": f"{Path(__file__).resolve().parents[2]}:{tmp_path}"}
    with Gateway(config("good"), workers=2, environ=environ, check_descriptors=False) as gateway:
        gateway.write_config(config("hangs"))
        gateway.process.send_signal(signal.SIGHUP)
        until(lambda: gateway.children(), "the gateway runs")
        with Traffic(gateway.port) as traffic:
            until(lambda: traffic.answers > 200, "traffic while the plan is being built")
        assert traffic.failures == []

        gateway.terminate()
        assert gateway.process.wait(60) == 0
        assert "drain limit" not in gateway.stderr_text


def test_who_waits_for_the_next_reload_is_answered_after_the_admin_address_has_moved(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PLUGIN)

    def config(start: Path | str, admin: str | None = None) -> dict[str, Any]:
        plugins = [{"use": "picky:Picky", "start": str(start)}]
        routes = [{"path": "/*", "respond": {"body": "hello"}, "plugins": plugins}]
        return {"routes": routes} | ({"admin": admin} if admin else {})

    environ = {"PYTHONPATH": f"{Path(__file__).resolve().parents[2]}:{tmp_path}"}
    with (
        reserved_port() as port,
        Gateway(config("good"), workers=1, environ=environ, check_descriptors=False) as gateway,
        ThreadPoolExecutor(1) as pool,
        Client(int(gateway.admin.rpartition(":")[2])) as waiting,
    ):
        moved = f"127.0.0.1:{port}"

        def reload() -> tuple[int, Any]:
            reply = call(gateway.admin, "/api/gateway/reload", "POST")
            return reply.status, reply.json

        gateway.write_config(config(tmp_path / "first", moved))
        first = pool.submit(reload)
        until((tmp_path / "first.seen").exists, "the first reload is built")
        gateway.write_config(config(tmp_path / "second", moved))
        waiting.send(request("/api/gateway/reload", "POST", host=gateway.admin))
        assert call(gateway.admin, "/ready").status == 200  # so the request that came before it is read, too
        (tmp_path / "first").touch()
        assert first.result(60)[0] == 200
        until((tmp_path / "second.seen").exists, "the second reload is built")
        time.sleep(2.5)  # longer than a controller that ends may take for calls under way
        (tmp_path / "second").touch()

        assert waiting.read_response("POST").status == 200
        assert call(moved, "/ready").status == 200


def test_workers_killed_right_after_sighup_neither_hang_nor_fail_a_reload() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)

    def config(upstream: Upstream, number: int) -> dict[str, Any]:
        return {
            "upstreams": {"one": {"targets": [upstream.url]}},
            "routes": [
                {"path": "/number", "respond": {"status": 200, "body": str(number)}},
                {"path": "/*", "upstream": "one"},
            ],
        }

    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with (
            Upstream(answer(OK)) as upstream,
            Gateway(config(upstream, 0), workers=4, check_descriptors=False) as gateway,
        ):
            for number in range(1, 21):
                until(lambda: _ready(gateway) == 4, "four workers")
                gateway.write_config(config(upstream, number))
                ended = _reloads(gateway)
                gateway.process.send_signal(signal.SIGHUP)
                for pid in draw.sample(gateway.worker_pids(), 2):
                    threading.Timer(draw.random() * 0.25, _kill, [pid]).start()
                until(lambda ended=ended: _reloads(gateway) > ended, f"reload {number} ends", 60)
                until(lambda: _ready(gateway) == 4, "four workers")
                status = call(gateway.admin, "/api/gateway/status").json
                assert status["last_reload"]["result"] == "applied"
                until(lambda number=number: _numbers(gateway) == {str(number)}, "every worker serves it")
    finally:
        hog.kill()
        hog.wait()


def _numbers(gateway: Gateway) -> set[str]:
    found = set()
    for _ in range(16):
        with socket.create_connection(("127.0.0.1", gateway.port), 60) as sock:
            sock.sendall(b"GET /number HTTP/1.1\r\nHost: a\r\n\r\n")
            try:
                found.add(read_answer(sock))
            except OSError:  # of a worker that was killed just now
                found.add("")
    return found


def _ready(gateway: Gateway) -> int:
    return int(call(gateway.admin, "/health").json["components"]["workers"]["ready"])


def _reloads(gateway: Gateway) -> int:
    status = call(gateway.admin, "/api/gateway/status").json
    return int(status["reloads_applied"] + status["reloads_refused"])


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
