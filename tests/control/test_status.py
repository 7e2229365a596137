"""What `fastgate status` and the lists of the admin API say of a gateway that has served requests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from fastgate.cli.main import main
from tests.client import get
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.server.gateway_harness import until


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    config = {
        "routes": [
            {"path": "/open", "respond": "open"},
            {"path": "/key", "respond": "x", "auth": ["api_key"]},
        ]
    }
    with Gateway(config, allow="config refused") as running:
        yield running


def run(gateway: Gateway, *arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--admin", gateway.ready["admin"]])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_status_shows_totals_rate_and_latency(gateway: Gateway) -> None:
    for path in ("/open", "/open", "/open", "/key", "/none"):
        get(gateway.port, path)

    def counted() -> bool:
        return call(gateway.ready["admin"], "/api/gateway/status").json["requests"] == 5

    until(counted, "all requests to be counted")
    answer = json.loads(run(gateway, "status", "--json"))

    assert answer["by_status"] == {"2xx": 3, "4xx": 2}
    assert answer["requests_per_s"] >= 0
    assert 0 < answer["p50_ms"] <= answer["p99_ms"]
    assert answer["requests_active"] == 0
    assert [worker["in_flight"] for worker in answer["workers"]] == [0]
    shown = run(gateway, "status")
    assert "requests: 5" in shown
    assert "by_status: 2xx=3  4xx=2" in shown
    assert "in flight: 0" in shown
    assert "{" not in shown and "None" not in shown and "True" not in shown


def test_a_refused_reload_is_told_in_words(gateway: Gateway) -> None:
    good = gateway.path.read_text()
    gateway.path.write_text(json.dumps({**json.loads(good), "routs": []}))
    try:
        assert call(gateway.ready["admin"], "/api/gateway/reload", "POST").status == 422
        shown = run(gateway, "status")
    finally:
        gateway.path.write_text(good)

    assert "$.routs: unknown key (did you mean routes?)" in shown
    assert "{'" not in shown
    call(gateway.ready["admin"], "/api/gateway/reload", "POST")


def test_watch_looks_again_and_shows_the_rate_in_between(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([None, KeyboardInterrupt()])

    def sleep(_seconds: float) -> None:
        get(gateway.port, "/open")
        error = next(looks)
        if error is not None:
            raise error

    monkeypatch.setattr("fastgate.cli.status.time.sleep", sleep)
    lines = run(gateway, "status", "--watch", "0.2", "--json").splitlines()

    first, second = (json.loads(line) for line in lines)
    assert second["requests"] >= first["requests"]
    assert "requests_per_s" in second


def test_a_consumer_that_only_a_key_names_is_listed_and_shown(gateway: Gateway) -> None:
    admin = gateway.ready["admin"]
    made = call(admin, "/api/keys", "POST", body={"consumer": "bob"}).json

    assert "bob" in run(gateway, "consumers", "list")
    row = call(admin, "/api/consumers/bob").json
    assert (row["name"], row["source"], row["keys"]) == ("bob", "keys", 1)
    assert "no limits" in run(gateway, "limits", "show", "--consumer", "bob")
    assert call(admin, "/api/consumers/bob", "DELETE").status == 409
    assert call(admin, "/api/consumers/bob?keys=revoke", "DELETE").status == 200
    assert call(admin, "/api/consumers/bob").status in (200, 404)
    assert "bob" not in run(gateway, "consumers", "list")
    assert call(admin, f"/api/keys/{made['key_id']}").json["state"] == "revoked"
