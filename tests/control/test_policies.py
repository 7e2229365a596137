"""Policies at run time: put, in force on every worker on return, listed, refused with paths, kept over a
restart."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from tests.client import get
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.upstream import Upstream

pytest.importorskip("cel_expr_python")

DENY = {"name": "no-delete", "when": "request.method == 'DELETE'", "routes": "*"}


def send(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def config(upstream: Upstream, store: Path, **more: Any) -> dict[str, Any]:
    return {
        "store": {"path": str(store / "fastgate.db")},
        "upstreams": {"u": {"targets": upstream.url}},
        "routes": [{"name": "all", "path": "/*", "upstream": "u"}],
        **more,
    }


def test_policies_are_in_force_everywhere_when_the_call_returns(tmp_path: Path) -> None:
    with Upstream() as upstream:
        with Gateway(config(upstream, tmp_path), workers=2) as gateway:
            for round_ in range(5):
                assert {get(gateway.port, method="DELETE").status for _ in range(8)} == {200}, round_
                status, told = send(gateway.admin, "PUT", "/api/policies", {"policies": [DENY]})
                assert (status, told["version"] > 0) == (200, True), told
                assert {get(gateway.port, method="DELETE").status for _ in range(8)} == {403}, round_
                assert get(gateway.port).status == 200
                if round_ < 4:
                    assert send(gateway.admin, "DELETE", "/api/policies") == (200, {"removed": True})

        with Gateway(config(upstream, tmp_path), workers=2) as gateway:
            assert get(gateway.port, method="DELETE").status == 403, "kept over a restart"
            rows = call(gateway.admin, "/api/policies").json["policies"]
            assert [(row["name"], row["set_by"], row["in_force"]) for row in rows] == [
                ("no-delete", "api", True)
            ]


def test_one_set_at_run_time_takes_the_place_of_the_configs(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        Gateway(config(upstream, tmp_path, policies=[DENY]), workers=1) as gateway,
    ):
        assert get(gateway.port, method="DELETE").status == 403
        put = {"policies": [{**DENY, "enforce": False}]}

        assert send(gateway.admin, "PUT", "/api/policies", put)[0] == 200

        assert get(gateway.port, method="DELETE").status == 200
        rows = call(gateway.admin, "/api/policies").json["policies"]
        assert [(row["set_by"], row["in_force"]) for row in rows] == [("api", True), ("config", False)]


def test_violations_of_all_workers_are_listed(tmp_path: Path) -> None:
    shadow = {**DENY, "name": "no-put", "when": "request.method == 'PUT'", "enforce": False}
    with (
        Upstream() as upstream,
        Gateway(config(upstream, tmp_path, policies=[DENY, shadow]), workers=2) as gateway,
    ):
        for n in range(20):
            get(gateway.port, f"/delete/{n}?secret=1", "User-Agent: test", method="DELETE")
        get(gateway.port, "/put", method="PUT")

        told = call(gateway.admin, "/api/policies/violations?limit=5").json
        assert told["total"] == 21 and len(told["violations"]) == 5
        newest, second = told["violations"][:2]
        assert (newest["policy"], newest["enforced"], newest["path"]) == ("no-put", False, "/put")
        assert (second["policy"], second["action"], second["enforced"]) == ("no-delete", "deny", True)
        assert (second["path"], second["method"], second["route"]) == ("/delete/19", "DELETE", "all")
        assert second["client_ip"] == "127.0.0.1" and len(second["request_id"]) == 32
        assert call(gateway.admin, "/api/policies/violations?limit=0").status == 400


@pytest.mark.parametrize(
    ("policies", "path", "problem"),
    [
        (
            [{**DENY, "when": "request.pth == ''"}],
            "$.policies[0].when",
            "character 8: unknown name request.pth",
        ),
        ([DENY, DENY], "$.policies[1].name", "a name of its own"),
        ([{**DENY, "routes": "nowhere"}], "$.policies[0].routes[0]", "the name of a route"),
        ([{**DENY, "action": "explode"}], "$.policies[0].action", "allow"),
        ([{"name": "x"}], "$.policies[0].when", "missing key"),
        ([7], "$.policies[0]", "a mapping"),
    ],
)
def test_bad_ones_are_refused_with_their_path(
    gateway: Gateway, policies: list[Any], path: str, problem: str
) -> None:
    status, told = send(gateway.admin, "PUT", "/api/policies", {"policies": policies})

    assert status == 400
    assert told["errors"][0]["path"] == path
    assert problem in json.dumps(told["errors"][0])
    assert call(gateway.admin, "/api/policies").json["policies"] == []


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Upstream() as upstream, Gateway(config(upstream, tmp_path_factory.mktemp("store"))) as running:
        yield running
