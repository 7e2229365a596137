"""Runtime values through the whole gateway: in effect on the next request of every worker, kept over reloads
and dead processes, freed when no plan reads them any more.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.control.admin_client import Answer, call, scrape
from tests.gateway import Gateway
from tests.server.gateway_harness import read_answer, until
from tests.state.workers import ask_every_worker, gateway_with, named
from tests.upstream import Peer, Upstream

pytest.importorskip("cel_expr_python")


def policy(name: str, when: str = "request.method == 'DELETE'") -> dict[str, Any]:
    return {"name": name, "when": when, "routes": "*"}


def config(*policies: dict[str, Any], **more: Any) -> dict[str, Any]:
    route = named({"name": "r", "path": "/*", "respond": {"body": "hello"}})
    return {"routes": [route], "policies": list(policies), **more}


def switch(gateway: Gateway, name: str, value: int | None) -> Answer:
    path = "/api/runtime/" + quote(f"policy/{name}/enabled")
    if value is None:
        return call(gateway.admin, path, "DELETE")
    return call(gateway.admin, path, "PUT", body={"value": value})


def values(gateway: Gateway) -> dict[str, int | None]:
    return {row["name"]: row["value"] for row in call(gateway.admin, "/api/runtime").json["values"]}


def slots(gateway: Gateway) -> int:
    return int(call(gateway.admin, "/api/runtime").json["slots"])


def reload(gateway: Gateway, changed: dict[str, Any], folder: Path) -> Answer:
    gateway.write_config({"store": {"path": str(folder / "fastgate.db")}, **changed})
    return call(gateway.admin, "/api/gateway/reload", "POST")


def statuses(gateway: Gateway) -> set[int]:
    return {status for status, _body in ask_every_worker(gateway, method="DELETE").values()}


def kill_one(gateway: Gateway) -> None:
    """Kills a worker and waits for another one in its place."""
    before = gateway.worker_pids()
    os.kill(before[0], signal.SIGKILL)
    until(lambda: set(gateway.worker_pids()) - set(before), "another worker")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_switch_is_in_effect_at_once_and_outlives_workers_reloads_and_the_controller(
    tmp_path: Path, workers: int
) -> None:
    with gateway_with(tmp_path, config(policy("first")), workers) as gateway:
        assert statuses(gateway) == {403}

        for value in (0, 1, 0):
            assert switch(gateway, "first", value).status == 200
            assert statuses(gateway) == {403 if value else 200}

        kill_one(gateway)
        assert statuses(gateway) == {200}
        changed = config(policy("second", "request.method == 'PUT'"), policy("first"))
        assert reload(gateway, changed, tmp_path).json["kind"] == "hot"
        assert statuses(gateway) == {200}
        assert values(gateway) == {"policy/second/enabled": None, "policy/first/enabled": 0}

        controller = call(gateway.admin, "/api/gateway/status").json["controller_pid"]
        os.kill(controller, signal.SIGKILL)
        until(
            lambda: call(gateway.admin, "/api/gateway/status").json["controller_pid"] != controller,
            "another controller",
        )
        assert values(gateway)["policy/first/enabled"] == 0
        kill_one(gateway)
        assert statuses(gateway) == {200}
        assert switch(gateway, "first", None).status == 200
        assert statuses(gateway) == {403}


def test_a_policy_that_refuses_everything_can_be_switched_off(tmp_path: Path) -> None:
    with gateway_with(tmp_path, config(policy("all", "true")), 2) as gateway:
        assert statuses(gateway) == {403}
        switch(gateway, "all", 0)
        assert statuses(gateway) == {200}
        (row,) = call(gateway.admin, "/api/policies").json["policies"]
        assert (row["in_force"], row["switched_off"]) == (False, True)
        switch(gateway, "all", 1)
        (row,) = call(gateway.admin, "/api/policies").json["policies"]
        assert (row["in_force"], row["switched_off"]) == (True, False)
        assert statuses(gateway) == {403}


def test_a_value_of_a_name_that_left_the_config_does_not_come_back_with_it(tmp_path: Path) -> None:
    with gateway_with(tmp_path, config(policy("first"), policy("second")), 2) as gateway:
        switch(gateway, "first", 0)
        assert slots(gateway) == 2

        assert reload(gateway, config(policy("second")), tmp_path).status == 200
        until(lambda: slots(gateway) == 1, "the slot is freed")
        assert switch(gateway, "first", 0).status == 404
        assert reload(gateway, config(policy("first"), policy("second")), tmp_path).status == 200

        assert values(gateway) == {"policy/first/enabled": None, "policy/second/enabled": None}
        assert statuses(gateway) == {403}


def test_a_slot_is_kept_while_a_request_uses_the_plan_that_reads_it(tmp_path: Path) -> None:
    released = threading.Event()

    def slow(peer: Peer) -> None:
        peer.read_request()
        released.wait(60)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        peer.wait_closed()

    with Upstream(slow) as upstream:
        routes = [named({"name": "r", "path": "/*", "upstream": upstream.url})]
        with gateway_with(tmp_path, {"routes": routes, "policies": [policy("first")]}, 2) as gateway:
            sock = socket.create_connection(("127.0.0.1", gateway.port))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            upstream.wait_for_peers(1)
            for number in range(3):
                changed = {"routes": routes, "policies": [policy(f"p{number}")]}
                assert reload(gateway, changed, tmp_path).status == 200
            assert slots(gateway) == 4

            released.set()
            assert read_answer(sock) == "ok"
            sock.close()
            until(lambda: slots(gateway) == 1, "the slots of the old plans are freed")


def test_a_config_with_more_names_than_slots_is_refused_and_counted(tmp_path: Path) -> None:
    memory = {"memory": {"runtime_slots": 64}}
    few = [policy(f"p{i}", "request.path == '/no'") for i in range(40)]
    many = [policy(f"q{i}", "request.path == '/no'") for i in range(30)]
    with gateway_with(tmp_path, config(*few, **memory), 2, allow="runtime_slots") as gateway:
        assert switch(gateway, "p0", 0).status == 200

        for _ in range(3):
            refused = reload(gateway, config(*few, *many, **memory), tmp_path)
            assert refused.status == 422
            assert refused.json["errors"][0]["path"] == "$.memory.runtime_slots"
            assert "all 64 slots are taken: 70 names, 30 of them new" in refused.json["errors"][0]["text"]

        until(
            lambda: scrape(gateway.admin).get(("fastgate_runtime_table_full_total", frozenset())) == 3,
            "three refusals are counted",
        )
        assert values(gateway)["policy/p0/enabled"] == 0
        assert slots(gateway) == 40
        assert reload(gateway, config(*few, *many[:24], **memory), tmp_path).status == 200
        assert slots(gateway) == 64


def test_what_is_no_number_or_has_no_name_is_refused(tmp_path: Path) -> None:
    with gateway_with(tmp_path, config(policy("first")), 1) as gateway:
        path = "/api/runtime/policy/first/enabled"
        assert call(gateway.admin, path, "PUT", body={"value": 2**63}).status == 400
        assert call(gateway.admin, path, "PUT", body={"value": "1"}).status == 400
        assert switch(gateway, "unknown", 1).status == 404
        assert switch(gateway, "unknown", None).status == 404
        assert values(gateway) == {"policy/first/enabled": None}
