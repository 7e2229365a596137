"""The admin API of a running gateway."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.client import Client, get
from tests.control.admin_client import call, scrape, scrape_idle, value
from tests.gateway import Gateway
from tests.ports import reserved_port
from tests.server.gateway_harness import until
from tests.upstream import Upstream

HELLO = {"path": "/hello", "name": "hello", "respond": {"status": 200, "body": "hello"}}


def test_probes_overview_and_unknown_paths() -> None:
    with Gateway({"routes": [HELLO]}) as gateway:
        assert call(gateway.admin, "/live").json == {"live": True}
        assert call(gateway.admin, "/ready").json == {"ready": True, "phase": "serving"}
        health = call(gateway.admin, "/health")
        assert (health.status, health.json["status"]) == (200, "healthy")
        assert "/metrics" in call(gateway.admin, "/").json["endpoints"]
        assert call(gateway.admin, "/nothing").status == 404
        assert call(gateway.admin, "/api/gateway/reload").status == 405


def test_ready_is_false_from_the_first_moment_of_a_drain() -> None:
    with (
        Upstream(lambda peer: peer.wait_closed()) as upstream,
        Gateway(
            {"routes": [{"path": "/*", "upstream": upstream.url}], "server": {"drain_timeout": "10s"}}
        ) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port)) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        upstream.wait_for_peers(1)

        gateway.process.send_signal(signal.SIGTERM)

        until(lambda: call(gateway.admin, "/ready").status == 503, "not ready")
        assert call(gateway.admin, "/live").status == 200
        assert call(gateway.admin, "/health").json["phase"] == "draining"
        client.close()
        assert gateway.process.wait(60) == 0


def test_status_tells_of_every_worker() -> None:
    with Gateway({"routes": [HELLO]}, workers=2) as gateway:
        status = call(gateway.admin, "/api/gateway/status").json

        assert sorted(worker["pid"] for worker in status["workers"]) == sorted(gateway.worker_pids())
        assert {worker["state"] for worker in status["workers"]} == {"ready"}
        assert all(0 < worker["private_bytes"] < 45e6 for worker in status["workers"])
        assert (status["pid"], status["config_version"], status["routes"]) == (gateway.pid, 1, 1)


def test_a_reload_through_the_api_answers_when_all_workers_have_it() -> None:
    with Gateway({"routes": [HELLO]}, workers=2) as gateway:
        gateway.write_config({"routes": [{**HELLO, "respond": {"status": 200, "body": "new"}}]})

        answer = call(gateway.admin, "/api/gateway/reload", "POST")

        assert (answer.status, answer.json["result"], answer.json["version"]) == (200, "applied", 2)
        assert {get(gateway.port, "/hello").body for _ in range(20)} == {b"new"}


def test_a_bad_config_is_answered_with_every_error_and_changes_nothing() -> None:
    # Not watched: the change may be noticed before the call is answered, and that is a reload of its own.
    with Gateway({"watch_config": False, "routes": [HELLO]}, allow="config refused") as gateway:
        gateway.write_config({"routes": [{**HELLO, "pathh": 1}, {"path": 7, "respond": {"status": 200}}]})

        answer = call(gateway.admin, "/api/gateway/reload", "POST")

        assert answer.status == 422
        assert answer.json["errors_total"] == len(answer.json["errors"]) == 2
        assert {error["path"] for error in answer.json["errors"]} == {"$.routes[0].pathh", "$.routes[1].path"}
        assert get(gateway.port, "/hello").body == b"hello"
        assert call(gateway.admin, "/health").json["status"] == "degraded"
        assert value(scrape(gateway.admin), "fastgate_reloads_total", result="refused") == 1


def test_what_only_freeze_finds_refuses_the_reload_on_every_worker(tmp_path: Path) -> None:
    with Gateway({"routes": [HELLO]}, workers=2, allow="config refused") as gateway:
        unwritable = str(tmp_path / "no" / "such" / "directory" / "log")
        gateway.write_config(
            {
                "routes": [{**HELLO, "respond": {"status": 200, "body": "bad"}}],
                "access_log": {"output": unwritable},
            }
        )

        answer = call(gateway.admin, "/api/gateway/reload", "POST")

        assert answer.status == 422
        assert unwritable in answer.json["errors"][0]["text"]
        assert {get(gateway.port, "/hello").body for _ in range(20)} == {b"hello"}


def test_many_reloads_at_once_are_all_answered() -> None:
    with Gateway({"routes": [HELLO]}) as gateway:
        answers: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(call(gateway.admin, "/api/gateway/reload", "POST").status)
            )
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert answers == [200] * 12
        assert call(gateway.admin, "/api/gateway/status").json["reloads_applied"] < 12


def test_the_token_guards_everything_but_the_probes() -> None:
    with Gateway(
        {"routes": [HELLO], "admin": {"listen": "127.0.0.1:0", "token": "a-long-secret"}}
    ) as gateway:
        assert call(gateway.admin, "/ready").status == 200
        for path in ("/", "/metrics", "/api/gateway/status", "/api/gateway/stats"):
            assert call(gateway.admin, path).status == 401
            assert call(gateway.admin, path, Authorization="Bearer a-long-secret").status == 200
        assert call(gateway.admin, "/api/gateway/reload", "POST").status == 401


def test_a_web_page_cannot_reload() -> None:
    with Gateway({"routes": [HELLO]}) as gateway:
        for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
            assert call(gateway.admin, "/api/gateway/reload", "POST", **headers).status == 403
        assert call(gateway.admin, "/api/gateway/status", host="evil.example").status == 403
        assert call(gateway.admin, "/api/gateway/status").json["reloads_applied"] == 0


def test_metrics_are_one_answer_for_all_workers_and_outlive_them() -> None:
    with Gateway({"routes": [HELLO]}, workers=2) as gateway:
        for _ in range(40):
            get(gateway.port, "/hello")
        get(gateway.port, "/nothing")
        # a count follows its answer: a worker killed in between would take it along
        until(
            lambda: call(gateway.admin, "/api/gateway/stats").json["requests"] == 41,
            "all answers are counted",
        )
        for pid in gateway.worker_pids():
            os.kill(pid, signal.SIGKILL)
        until(lambda: call(gateway.admin, "/health").json["status"] == "healthy", "both are back")
        for _ in range(10):
            get(gateway.port, "/hello")

        samples = until(
            lambda: (
                (found := scrape(gateway.admin))
                and value(found, "fastgate_requests_total", route="hello", status="2xx") == 50
                and value(found, "fastgate_workers", state="ready") == 2
                and found
            ),
            "all requests are counted, and both workers are back",
        )

        assert value(samples, "fastgate_requests_total", status="4xx") == 1
        assert value(samples, "fastgate_refusals_total", reason="no_route") == 1
        assert value(samples, "fastgate_request_duration_seconds_count", route="hello") == 50
        assert value(samples, "fastgate_restarts_total", process="worker") == 2
        assert value(samples, "fastgate_workers", state="ready") == 2
        assert value(samples, "fastgate_build_info") == 1
        assert value(samples, "fastgate_process_open_fds", process="worker") > 0
        stats = call(gateway.admin, "/api/gateway/stats").json
        assert [(row["route"], row["requests"]) for row in stats["routes"]] == [("hello", 50), ("(none)", 1)]


def test_counts_survive_the_route() -> None:
    with Gateway({"routes": [HELLO]}) as gateway:
        get(gateway.port, "/hello")
        gateway.write_config({"routes": [{**HELLO, "name": "other"}]})
        call(gateway.admin, "/api/gateway/reload", "POST")

        samples = scrape_idle(gateway.admin)

        assert value(samples, "fastgate_requests_total", route="hello") == 1


def test_hostile_route_names_are_escaped() -> None:
    name = 'a"b\\c'
    with Gateway({"routes": [{**HELLO, "name": name}]}) as gateway:
        get(gateway.port, "/hello")

        samples = scrape_idle(gateway.admin)

        assert value(samples, "fastgate_requests_total", route='a\\"b\\\\c') == 1


def test_ten_thousand_routes_cost_a_scrape_only_what_is_used() -> None:
    routes = [
        {"path": f"/r/{i}", "name": f"r{i}", "respond": {"status": 200, "body": "x"}} for i in range(10_000)
    ]
    with Gateway({"routes": routes}) as gateway:
        get(gateway.port, "/r/7")
        get(gateway.port, "/r/9999")
        before = call(gateway.admin, "/api/gateway/status").json["workers"][0]["resident_bytes"]

        answer = call(gateway.admin, "/metrics")

        assert len(answer.body) < 32_000
        assert b'route="r9999"' in answer.body
        after = call(gateway.admin, "/api/gateway/status").json["workers"][0]["resident_bytes"]
        assert after - before < 4_000_000


def test_another_admin_address_is_taken_up_by_a_reload() -> None:
    with reserved_port() as port, Gateway({"routes": [HELLO]}, check_descriptors=False) as gateway:
        gateway.write_config({"routes": [HELLO], "admin": {"listen": f"127.0.0.1:{port}"}})

        answer = call(gateway.admin, "/api/gateway/reload", "POST")

        assert answer.status == 200
        until(lambda: _answers(f"127.0.0.1:{port}"), "the new address answers")
        until(lambda: not _answers(gateway.admin), "the old one does not")
        assert get(gateway.port, "/hello").body == b"hello"


def test_the_controller_comes_back_with_what_it_knew() -> None:
    with Gateway({"routes": [HELLO]}, allow="config refused") as gateway:
        gateway.write_config({"routes": []})
        assert call(gateway.admin, "/api/gateway/reload", "POST").status == 422
        before = call(gateway.admin, "/api/gateway/status").json

        os.kill(before["controller_pid"], signal.SIGKILL)

        after = until(lambda: _status(gateway.admin), "it answers again")
        assert after["controller_pid"] != before["controller_pid"]
        assert after["last_reload"] == before["last_reload"]
        assert after["controller_restarts"] == 1


@pytest.mark.parametrize("path", ["/metrics", "/api/gateway/status", "/api/gateway/stats", "/health"])
def test_an_answer_does_not_name_the_server_software(path: str) -> None:
    with Gateway({"routes": [HELLO]}) as gateway:
        assert "server" not in {name.lower() for name in call(gateway.admin, path).headers}


def _answers(address: str) -> bool:
    try:
        return call(address, "/live").status == 200
    except OSError:
        return False


def _status(address: str) -> dict[str, object] | None:
    try:
        found = call(address, "/api/gateway/status")
    except (OSError, json.JSONDecodeError):
        return None
    return dict(found.json) if found.status == 200 else None


def test_bodies_that_are_too_large_too_deep_or_break_off_leave_no_trace() -> None:
    head = "POST /api/auth/api-key HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    deep = b'{"consumer": "x", "metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001
    with Gateway({"routes": [HELLO]}) as gateway:
        port = int(gateway.admin.rpartition(":")[2])
        for length, body, status in ((99_999_999_999, b"", 413), (len(deep), deep, 400), (9, b"{", None)):
            with Client(port) as client:
                client.send(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
                if status is not None:
                    assert client.read_response("POST").status == status

        assert call(gateway.admin, "/live").status == 200
