"""`fastgate explain` asks the running gateway: its keys, limits and policies decide; nothing is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastgate.cli.main import main
from tests.client import Client, request
from tests.control.admin_client import call
from tests.gateway import Gateway

CONFIG: dict[str, Any] = {
    "consumers": {"alice": {}},
    "routes": [
        {"path": "/open", "respond": "open"},
        {"path": "/orders/{id}", "respond": "orders", "auth": ["api_key"]},
        {"path": "/few", "respond": "few", "limits": {"per_hour": 2}},
        {"path": "/api/*", "host": "api.example.com", "respond": "api", "methods": ["GET", "POST"]},
    ],
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway(CONFIG) as running:
        yield running


def explain(gateway: Gateway, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(
        main, ["explain", *arguments, "-c", str(gateway.path), "--admin", gateway.ready["admin"]]
    )
    assert result.exit_code == code, result.output
    return result


def told(gateway: Gateway, *arguments: str, code: int = 0) -> dict[str, Any]:
    return dict(json.loads(explain(gateway, "--json", *arguments, code=code).stdout))


def status(gateway: Gateway, target: str, *fields: str) -> int:
    with Client(gateway.port) as client:
        client.send(request(target, "GET", *fields))
        return client.read_response().status


def test_a_key_of_the_running_gateway_is_known(gateway: Gateway) -> None:
    made = call(gateway.ready["admin"], "/api/keys", "POST", body={"consumer": "alice"}).json
    field = f"X-API-Key: {made['api_key']}"

    answer = told(gateway, "/orders/7", "-H", field)

    assert status(gateway, "/orders/7", field) == 200
    assert (answer["route"], answer["refused"], answer["source"]) == ("/orders/{id}", "", "gateway")
    assert f"consumer alice, by api_key, key {made['key_id']}" == answer["identity"].replace(
        ", tier free", ""
    )
    assert told(gateway, "/orders/7")["refused"] == "credentials_missing"
    assert told(gateway, "/orders/7", "-H", f"{field}x")["refused"] == "credentials_unknown"

    call(gateway.ready["admin"], f"/api/keys/{made['key_id']}", "DELETE")
    assert told(gateway, "/orders/7", "-H", field)["refused"] == "credentials_unknown"
    shown = call(gateway.ready["admin"], f"/api/keys/{made['key_id']}").json
    assert shown.get("requests", shown.get("uses", 1)) <= 1  # the explanations were none


def test_limits_are_shown_and_no_token_is_taken(gateway: Gateway) -> None:
    for _ in range(5):
        answer = told(gateway, "/few")
        assert (answer["refused"], answer["status"]) == ("", 200)
    assert [status(gateway, "/few") for _ in range(3)] == [200, 200, 429]

    answer = told(gateway, "/few")

    assert (answer["refused"], answer["status"]) == ("rate_limited", 429)
    assert told(gateway, "/few", "--client", "192.0.2.7")["refused"] == ""
    explained = explain(gateway, "/few").stdout
    assert "rate_limited" in explained


def test_policies_set_at_run_time_decide(gateway: Gateway) -> None:
    policy = {"name": "closed", "routes": ["/open"], "when": "true", "action": "deny"}
    admin = gateway.ready["admin"]
    assert told(gateway, "/open")["refused"] == ""
    before = call(admin, "/api/policies/violations").json["total"]

    put = call(admin, "/api/policies", "PUT", body={"policies": [policy]})
    assert put.status == 200, put.body
    try:
        answer = told(gateway, "/open")
        assert answer["refused"] == "policy_denied"
        assert any("closed" in decision for decision in answer["decisions"])
        assert call(admin, "/api/policies/violations").json["total"] == before
    finally:
        call(admin, "/api/policies", "DELETE")
    assert told(gateway, "/open")["refused"] == ""


def test_explanations_count_no_requests(gateway: Gateway) -> None:
    before = call(gateway.ready["admin"], "/api/gateway/stats").json["requests"]
    told(gateway, "/open")
    assert call(gateway.ready["admin"], "/api/gateway/stats").json["requests"] == before


@pytest.mark.parametrize(
    ("url", "nearest", "difference"),
    [
        ("/opne", "/open", "does not match /open"),
        ("/open/", "/open", "the trailing slash is significant"),
        ("/OPEN", "/open", "in case"),
        ("/orders", "/orders/{id}", "is shorter than /orders/{id}"),
        ("/orders/7/items", "/orders/{id}", "is longer than /orders/{id}"),
        ("http://other.example.com/api/x", "/api/*", "host other.example.com is not api.example.com"),
    ],
)
def test_without_a_route_the_nearest_is_named(
    gateway: Gateway, url: str, nearest: str, difference: str
) -> None:
    answer = told(gateway, url, code=1)

    assert (answer["route"], answer["status"]) == ("", 404)
    assert nearest in answer["nearest"]
    assert difference in answer["difference"]
    printed = explain(gateway, url, code=1).stdout
    assert "nearest" in printed
    assert difference in " ".join(printed.split())


def test_what_is_no_request_is_refused(gateway: Gateway) -> None:
    assert "expected a method" in explain(gateway, "G T", "/open", code=2).output
    assert call(gateway.ready["admin"], "/api/gateway/explain", "POST", body={"url": 7}).status == 400
    assert call(gateway.ready["admin"], "/api/gateway/explain", "POST", body={}).status == 400
    assert (
        call(gateway.ready["admin"], "/api/gateway/explain", "POST", body={"url": "/", "x": 1}).status == 400
    )


def test_the_workers_and_the_controller_live_on(gateway: Gateway) -> None:
    before = gateway.worker_pids()
    for _ in range(10):
        told(gateway, "/open")
    assert gateway.worker_pids() == before
    assert status(gateway, "/open") == 200
    assert call(gateway.ready["admin"], "/health").json["status"] == "healthy"


def test_offline_the_file_decides_and_says_so(gateway: Gateway) -> None:
    result = CliRunner().invoke(
        main, ["explain", "--offline", "/orders/7", "-H", "X-API-Key: fg_x", "-c", str(gateway.path)]
    )

    assert "credentials_invalid" in result.stdout
    assert "without the keys and policies of a running gateway" in result.stdout


def test_without_a_gateway_the_file_decides_and_says_so(gateway: Gateway, tmp_path: Any) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("admin: 127.0.0.1:1\nroutes: [{path: /a, respond: x}]\n")

    result = CliRunner().invoke(main, ["explain", "/a", "-c", str(file)])

    assert result.exit_code == 0
    assert "explained from the config file only" in result.stderr
    assert "route" in result.stdout
