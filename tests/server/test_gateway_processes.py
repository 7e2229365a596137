"""The processes with the real data plane: what test_reload.py and test_supervisor.py show in isolation."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.control.admin_client import call
from tests.gateway import Gateway, private_bytes, rss_bytes
from tests.ports import reserved_port
from tests.server.gateway_harness import PAUSE_S, Traffic, read_answer, until
from tests.upstream import Peer, Upstream, answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def config(upstream: Upstream, draw: random.Random | None = None, **changes: object) -> dict[str, object]:
    """Routes to the upstream; with `draw`, in a shape that differs from time to time."""
    extra = draw.randint(0, 20) if draw else 0
    return {
        "upstreams": {
            "one": {"targets": [upstream.url], "pool": {"max_connections": 64 + extra}},
            **{f"spare{i}": {"targets": [upstream.url]} for i in range(extra % 3)},
        },
        "routes": [
            {"path": "/*", "upstream": "one", "max_body": f"{1 + extra}MB"},
            *({"path": f"/extra/{i}", "respond": {"status": 200, "body": str(i)}} for i in range(extra)),
        ],
        **changes,
    }


def test_a_hundred_reloads_under_load_fail_no_request() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    with reserved_port() as port, Upstream(answer(OK)) as upstream:
        other = f"127.0.0.1:{port}"
        settings = config(upstream)
        with (
            Gateway(settings, workers=2, allow="config refused", check_descriptors=False) as gateway,
            Traffic(gateway.port, threads=2, pause_s=PAUSE_S) as kept,
            Traffic(gateway.port, threads=2, pause_s=PAUSE_S, keep_alive=False) as fresh,
        ):
            for _ in range(100):
                kind = draw.choice(["hot", "hot", "workers", "listen", "bad"])
                if kind == "workers":
                    settings = config(upstream, draw, workers=draw.randint(1, 3))
                elif kind == "listen":
                    settings = config(upstream, draw, listen=["127.0.0.1:0", *draw.choice([[], [other]])])
                else:
                    settings = config(upstream, draw)
                if kind == "bad":
                    settings["nonsense"] = True
                gateway.write_config(settings)
                status = call(gateway.admin, "/api/gateway/reload", "POST").status
                assert status == (422 if kind == "bad" else 200)

            answers = kept.answers + fresh.answers
            until(lambda: kept.answers + fresh.answers > answers + 100, "traffic goes on")
        assert kept.failures == []
        # Not even what a client has to expect of kept-alive connections: a busy one is told with its answer.
        assert kept.tried_again == 0
        assert fresh.failures == []
        assert kept.texts == fresh.texts == {"hello"}


def test_a_killed_worker_is_back_within_a_second() -> None:
    with (
        Upstream(answer(OK)) as upstream,
        Gateway(config(upstream), workers=2, check_descriptors=False) as gateway,
    ):
        for _ in range(3):
            victim = gateway.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
            until(lambda gone=victim: _ready(gateway) == 2 and gone not in gateway.worker_pids(), "both")
            assert Traffic(gateway.port).failures == []


def test_a_request_that_came_while_the_worker_had_no_cpu_is_answered_though_its_idle_time_is_over() -> None:
    """Timers run before sockets are read, unless the pause was so long that a worker knows of it."""
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    idle_s, pause_s = 2.0, 0.15
    with (
        Upstream(answer(OK)) as upstream,
        Gateway(config(upstream, server={"idle_timeout": f"{idle_s:.0f}s"}), workers=1) as gateway,
    ):
        [pid] = gateway.worker_pids()
        shown = 0
        while shown < 3:
            with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
                begun = time.monotonic()
                sock.sendall(request)
                assert read_answer(sock) == "hello"
                time.sleep(max(0.0, begun + idle_s - pause_s / 2 - time.monotonic()))
                os.kill(pid, signal.SIGSTOP)
                until(lambda: _state(pid) == "T", "the worker has stopped")
                is_in_time = time.monotonic() < begun + idle_s  # else it may have closed before
                sock.sendall(request)
                time.sleep(max(0.0, begun + idle_s + pause_s / 2 - time.monotonic()))
                os.kill(pid, signal.SIGCONT)
                if is_in_time:
                    assert read_answer(sock) == "hello"
                    shown += 1


def test_sigterm_under_load_loses_nothing() -> None:
    with Upstream(answer(OK)) as upstream:
        gateway = Gateway(config(upstream), workers=2, check_descriptors=False)
        with gateway, Traffic(gateway.port, keep_alive=False) as fresh:
            until(lambda: fresh.answers > 200, "traffic")
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: gateway.process.poll() is not None, "the end")
        assert {text.partition("(")[0] for text in fresh.failures} <= {"ConnectionRefusedError"}
        assert gateway.process.returncode == 0


def test_in_flight_is_answered_after_sigterm() -> None:
    def slow(peer: Peer) -> None:
        peer.read_request()
        until(lambda: released, "the test lets go")
        peer.send(OK)
        peer.wait_closed()

    released: list[bool] = []
    with Upstream(slow) as upstream:
        gateway = Gateway(config(upstream), workers=1)
        with gateway, socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            upstream.wait_for_peers(1)
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: call(gateway.admin, "/ready").status == 503, "the drain")
            released.append(True)
            assert read_answer(sock) == "hello"
            assert gateway.process.wait(60) == 0


def test_a_worker_keeps_little_for_itself_and_the_first_answer_comes_soon() -> None:
    config = {"routes": [{"path": "/", "respond": {"status": 200}}]}
    with Gateway(config, workers=2, fork=False) as gateway:
        assert all(private_bytes(pid) < 45_000_000 for pid in gateway.worker_pids())


@pytest.mark.soak
def test_a_thousand_reloads_leave_memory_flat() -> None:
    draw = random.Random(1)
    with (
        Upstream(answer(OK)) as upstream,
        Gateway(config(upstream), workers=1, check_descriptors=False) as gateway,
        Traffic(gateway.port, threads=1) as traffic,
    ):
        resident = []
        for number in range(1200):
            gateway.write_config(config(upstream, draw))
            assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200
            if number in (200, 1199):
                pids = [gateway.pid, *sorted(gateway.children())]
                resident.append([rss_bytes(pid) for pid in pids])
        assert all(late - early < 3_000_000 for early, late in zip(*resident, strict=True)), resident
    assert traffic.failures == []


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _ready(gateway: Gateway) -> int:
    health = call(gateway.admin, "/health").json
    return int(health["components"]["workers"]["ready"])
