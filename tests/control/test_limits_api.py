"""The limits of one client over the admin API: read, changed, reset, banned."""

from __future__ import annotations

from typing import Any

from tests.auth.test_api_keys import make, use
from tests.client import get
from tests.control.admin_client import call
from tests.gateway import Gateway

ROUTE = {"path": "/*", "name": "all", "auth": ["api_key"], "respond": {"status": 200, "body": "in"}}
CONFIG: dict[str, Any] = {
    "routes": [ROUTE],
    "tiers": {"small": {"per_minute": 5, "per_day": 100}},
    "consumers": {"acme": {"tier": "small"}},
}


def spent(gateway: Gateway, key: str, times: int = 30) -> int:
    """How many of so many requests pass."""
    return [use(gateway, key) for _ in range(times)].count(200)


def limit_of(row: dict[str, Any], limit_type: str) -> dict[str, Any]:
    (found,) = [limit for limit in row["rules"][0]["limits"] if limit["limit_type"] == limit_type]
    return found  # type: ignore[no-any-return]


def test_what_a_client_used_and_has_left_is_shown() -> None:
    with Gateway(CONFIG, workers=2) as gateway:
        key = make(gateway)
        for _ in range(3):
            assert use(gateway, key["api_key"]) == 200

        row = call(gateway.admin, "/api/limits?consumer=acme").json
        by_key = call(gateway.admin, f"/api/limits?key={key['key_id']}").json

        assert (row["tier"], row["own_limits"], row["banned_s"]) == ("small", None, {})
        assert (limit_of(row, "per_minute")["limit"], limit_of(row, "per_minute")["remaining"]) == (5, 2)
        assert (limit_of(row, "per_day")["limit"], limit_of(row, "per_day")["remaining"]) == (100, 97)
        assert row["rules"][0]["requests"] == 3
        assert limit_of(by_key, "per_minute")["remaining"] == 2
        assert (by_key["consumer"], by_key["key"]) == ("acme", key["key_id"])


def test_a_reset_gives_the_whole_limit_again() -> None:
    with Gateway(CONFIG, workers=2) as gateway:
        key = make(gateway)["api_key"]
        assert spent(gateway, key) == 5

        assert call(gateway.admin, "/api/limits/reset?consumer=acme", "POST").json == {
            "consumer": "acme",
            "reset": 1,
        }

        assert spent(gateway, key) == 5


def test_a_changed_quota_is_in_force_on_every_worker_when_it_is_answered() -> None:
    with Gateway(CONFIG, workers=2) as gateway:
        key = make(gateway)["api_key"]
        assert spent(gateway, key) == 5

        changed = call(gateway.admin, "/api/limits?consumer=acme", "PUT", body={"per_minute": 20})

        assert changed.json["own_limits"] == {"per_minute": 20}
        assert limit_of(changed.json, "per_minute")["remaining"] == 15
        assert spent(gateway, key) == 15
        assert call(gateway.admin, "/api/limits?consumer=acme", "DELETE").json["own_limits"] is None
        assert spent(gateway, key) == 0
        call(gateway.admin, "/api/limits?consumer=acme", "PUT", body={"per_minute": None, "per_day": None})
        assert spent(gateway, key) == 30


def test_a_key_may_have_limits_of_its_own() -> None:
    with Gateway(CONFIG) as gateway:
        key = make(gateway, limits={"per_minute": 8})

        assert spent(gateway, key["api_key"]) == 8
        changed = call(
            gateway.admin, f"/api/keys/{key['key_id']}", "PATCH", body={"limits": {"per_minute": 10}}
        )
        assert changed.json["limits"] == {"per_minute": 10}
        assert spent(gateway, key["api_key"]) == 2


def test_a_ban_and_its_pardon() -> None:
    route = {
        "path": "/*",
        "name": "all",
        "respond": "in",
        "limits": {"per_minute": 1000, "by": "ip", "penalty": {}},
    }
    with Gateway({"routes": [route]}, workers=2) as gateway:
        assert get(gateway.port).status == 200

        banned = call(gateway.admin, "/api/limits/ban?ip=127.0.0.1", "POST", body={"for": "1h"})

        assert 3590 < banned.json["banned_s"] <= 3600
        assert {get(gateway.port).status for _ in range(10)} == {429}
        assert call(gateway.admin, "/api/limits?ip=127.0.0.1").json["banned_s"]["ip"] > 3500
        assert call(gateway.admin, "/api/limits/pardon?ip=127.0.0.1", "POST").json["pardoned"] is True
        assert {get(gateway.port).status for _ in range(10)} == {200}


def test_statistics_and_bad_calls() -> None:
    with Gateway(CONFIG) as gateway:
        assert "entries" in call(gateway.admin, "/api/limits/statistics").json
        for path, method, status in (
            ("/api/limits", "GET", 400),
            ("/api/limits?ip=nonsense", "GET", 400),
            ("/api/limits?key=key_unknown", "GET", 404),
            ("/api/limits?consumer=a&tier=gold", "GET", 400),
            ("/api/limits/ban?ip=127.0.0.1&consumer=a", "POST", 400),
            ("/api/limits/reset", "POST", 400),
        ):
            assert call(gateway.admin, path, method).status == status, path
        for body, text in (
            ({"per_minute": 0}, "Expected `int` >= 1"),
            ({"per_minute": "many"}, "Expected `int | null`"),
            ({"per_fortnight": 1}, "unknown field `per_fortnight`"),
            ({"per_minute": 1000}, "per_minute"),
            ([], "Expected `object`"),
        ):
            refused = call(gateway.admin, "/api/limits?consumer=acme", "PUT", body=body)
            assert (refused.status, text in refused.json["error"]) == (400, True), refused
