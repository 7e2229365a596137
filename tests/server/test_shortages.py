"""One clear error each for what runs out: disk, descriptors, address space, ports."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.client import get
from tests.control.admin_client import call, scrape, value
from tests.gateway import ROOT, Gateway
from tests.server.gateway_harness import until

HELLO = {"path": "/*", "respond": {"status": 200, "body": "hello"}}


def events(gateway: Gateway, part: str) -> list[dict[str, Any]]:
    lines = [line for line in gateway.stderr_text.splitlines() if part in line]
    return [json.loads(line) for line in lines]


def dropped_lines(gateway: Gateway) -> float:
    return value(scrape(gateway.admin), "fastgate_access_log_dropped_total")


def test_an_access_log_on_a_full_disk_is_reported_once_and_its_lines_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    config = {"access_log": {"output": str(log)}, "routes": [HELLO]}
    with Gateway(config, allow="access log", check_descriptors=False) as gateway:
        for _ in range(50):
            assert get(gateway.port).status == 200
        until(lambda: log.read_text().count("\n") == 50, "the first lines")
        worker = gateway.worker_pids()[0]
        hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)[1]
        # Room for a line and a half: the disk gets full within a line.
        line = log.stat().st_size // 50
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (log.stat().st_size + line * 3 // 2, hard))

        for _ in range(100):
            assert get(gateway.port).status == 200
        until(
            lambda: value(scrape(gateway.admin), "fastgate_access_log_dropped_total") > 90, "they are counted"
        )
        told = until(lambda: events(gateway, "lines are lost so far"), "the report")

        assert len(told) == 1
        assert str(log) in told[0]["event"] and told[0]["level"] == "error"
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (hard, hard))
        for _ in range(10):
            assert get(gateway.port).status == 200
        until(lambda: events(gateway, "it is written again"), "the end of the shortage is told")
        assert len(events(gateway, "lines are lost so far")) == 1
        dropped = dropped_lines(gateway)
    whole, torn = [], []
    for text in log.read_text().splitlines():
        try:
            json.loads(text)
            whole.append(text)
        except ValueError:
            torn.append(text)
    assert len(torn) <= 1  # where the disk was full; the next line begins on a line of its own
    assert len(whole) + dropped == 160


def test_a_worker_without_descriptors_says_so_once() -> None:
    with Gateway({"routes": [HELLO]}, allow="descriptor limit", check_descriptors=False) as gateway:
        worker = gateway.worker_pids()[0]
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{worker}/fd"))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used, hard))

        told = until(lambda: events(gateway, "descriptor limit reached"), "the report")

        assert (told[0]["limit"], told[0]["level"]) == (used, "error")
        assert "ulimit -n" in told[0]["hint"]
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: get(gateway.port).status == 200, "it serves again")
        assert len(events(gateway, "descriptor limit reached")) == 1


def test_every_process_raises_its_descriptor_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with Gateway({"routes": [HELLO]}) as gateway:
        status = call(gateway.admin, "/api/gateway/status").json
        for pid in (status["controller_pid"], *gateway.worker_pids()):
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == hard


@pytest.mark.parametrize("megabytes", [300, 600])
def test_too_little_address_space_is_told_as_that(megabytes: int, tmp_path: Path) -> None:
    output = run_once(tmp_path, {"routes": [HELLO]}, f"ulimit -v {megabytes * 1000}; ")

    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["event"] for line in lines] == ["not enough address space"], output
    assert f"{megabytes * 1024 // 1000} MB" in lines[0]["problem"]
    assert "ulimit -v" in lines[0]["hint"]


def test_a_taken_port_is_told_with_its_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for config in (
            {"listen": f"127.0.0.1:{port}", "routes": [HELLO]},
            {"admin": {"listen": f"127.0.0.1:{port}"}, "routes": [HELLO]},
        ):
            lines = [json.loads(line) for line in run_once(tmp_path, config).splitlines()]

            assert [line["problem"] for line in lines] == [
                f"cannot listen on 127.0.0.1:{port}: address already in use"
            ]
            assert "ss -ltnp" in lines[0]["hint"]


def run_once(directory: Path, config: dict[str, Any], before: str = "") -> str:
    """What a gateway that cannot start says; it ends with status 1."""
    path = directory / "gateway.json"
    defaults = {"listen": "127.0.0.1:0", "admin": {"listen": "127.0.0.1:0"}, "workers": 1}
    path.write_text(json.dumps({**defaults, **config}))
    done = subprocess.run(
        ["sh", "-c", f'{before}exec "{sys.executable}" -m fastgate run -c "{path}"'],
        capture_output=True, text=True, timeout=120, check=False, cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FASTGATE_LOG": "json"},
    )  # fmt: skip
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_store_that_cannot_be_used_takes_the_gateway_out_of_service_where_routes_need_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.db"
    path.write_bytes(b"SQLite format 3\0" + 8000 * b"\xff")
    guarded = {"path": "/*", "auth": ["api_key"], "respond": {"status": 200}}
    for routes, ready in (([guarded, {**HELLO, "path": "/open"}], 503), ([HELLO], 200)):
        config = {"store": {"path": str(path)}, "routes": routes}
        with Gateway(config, allow="the store cannot be used") as gateway:
            assert call(gateway.admin, "/ready").status == ready
            assert call(gateway.admin, "/health").json["components"]["store"]["status"] == "degraded"
            assert len(events(gateway, "the store cannot be used")) == 1


def test_a_store_that_is_mended_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    path.write_bytes(b"SQLite format 3\0" + 8000 * b"\xff")
    guarded = {"path": "/*", "auth": ["api_key"], "respond": {"status": 200}}
    config = {"store": {"path": str(path)}, "routes": [guarded]}
    with Gateway(config, allow="the store cannot be used") as gateway:
        assert call(gateway.admin, "/ready").status == 503

        threading.Thread(target=path.unlink).start()

        until(lambda: call(gateway.admin, "/ready").status == 200, "the store is opened again", 90)
        assert call(gateway.admin, "/api/auth/api-key", "POST", body={"consumer": "a"}).status == 201
