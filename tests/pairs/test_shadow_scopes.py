"""Shadow mode at one scope never weakens another: every feature that the root and a route can both set."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client import Client, get, request
from tests.control.admin_client import scrape_idle, value
from tests.gateway import Gateway

EVERYBODY = ["127.0.0.0/8"]
OFF = {"enforce": False}


def statuses(gateway: Gateway, count: int, *fields: str) -> list[int]:
    return [get(gateway.port, "/", *fields).status for _ in range(count)]


@pytest.mark.parametrize("route", [OFF, {"deny": EVERYBODY, **OFF}, {"allow": ["10.0.0.0/8"], **OFF}])
def test_a_route_in_shadow_mode_leaves_the_roots_access_list_in_force(route: dict[str, Any]) -> None:
    config = {"access": {"deny": EVERYBODY}, "routes": [{"path": "/*", "respond": "ok", "access": route}]}
    with Gateway(config) as gateway:
        assert statuses(gateway, 1) == [403]


@pytest.mark.parametrize("route", [{"deny": EVERYBODY}, {"allow": ["10.0.0.0/8"]}])
def test_a_root_in_shadow_mode_leaves_a_routes_access_list_in_force(route: dict[str, Any]) -> None:
    root = {"deny": EVERYBODY, "enforce": False}
    config = {
        "access": root,
        "routes": [
            {"name": "main", "path": "/*", "respond": "ok", "access": route},
            {"name": "other", "path": "/other", "respond": "ok"},
        ],
    }
    with Gateway(config) as gateway:
        assert statuses(gateway, 1) == [403]
        assert get(gateway.port, "/other").status == 200
        samples = scrape_idle(gateway.admin)

    assert value(samples, "fastgate_shadow_refusals_total", route="main") == 1
    assert value(samples, "fastgate_shadow_refusals_total", route="other") == 1


def limited(root: dict[str, Any], route: dict[str, Any], **more: Any) -> Gateway:
    entry = {"name": "main", "path": "/*", "respond": "ok", "limits": route, **more.pop("entry", {})}
    return Gateway({"limits": root, "routes": [entry], **more})


def test_a_route_in_shadow_mode_leaves_the_roots_limits_in_force() -> None:
    with limited({"per_minute": 2}, {"per_minute": 1, "enforce": False}) as gateway:
        answers = [get(gateway.port) for _ in range(3)]
        samples = scrape_idle(gateway.admin)

    assert [one.status for one in answers] == [200, 200, 429]
    assert value(samples, "fastgate_shadow_refusals_total", route="main") == 1
    assert len(answers[1].values("ratelimit")) == 1


def test_a_root_in_shadow_mode_leaves_a_routes_limits_in_force() -> None:
    with limited({"per_minute": 1, "enforce": False}, {"per_minute": 2}) as gateway:
        assert statuses(gateway, 3) == [200, 200, 429]


def test_places_of_both_scopes_are_given_back() -> None:
    with limited({"concurrent": 1}, {"concurrent": 1, "enforce": False}) as gateway:
        assert statuses(gateway, 5) == [200] * 5


def test_a_route_in_shadow_mode_leaves_the_tier_in_force() -> None:
    more = {
        "auth": {"anonymous": {"tier": "little"}},
        "tiers": {"little": {"per_minute": 1}},
        "entry": {"auth": ["anonymous"]},
    }
    with limited({"per_minute": 100}, {"per_minute": 1, "enforce": False}, **more) as gateway:
        assert statuses(gateway, 2) == [200, 429]


def test_violations_in_shadow_mode_ban_nobody_elsewhere() -> None:
    penalty = {"strikes": 1, "within": "60s", "bans": ["60s"], "forget": "1h"}
    with limited({"per_minute": 50, "penalty": penalty}, {"per_minute": 1, "enforce": False}) as gateway:
        assert statuses(gateway, 5) == [200] * 5


def test_authentication_in_shadow_mode_leaves_the_authorization_in_force() -> None:
    config = {
        "routes": [
            {
                "path": "/*",
                "respond": "ok",
                "auth": {"schemes": ["api_key"], "enforce": False},
                "scopes": ["orders:read"],
            }
        ]
    }
    with Gateway(config) as gateway:
        assert statuses(gateway, 1) == [401]


def test_authorization_in_shadow_mode_leaves_the_authentication_in_force() -> None:
    config = {
        "routes": [
            {
                "path": "/*",
                "respond": "ok",
                "auth": ["api_key"],
                "scopes": ["orders:read"],
                "enforce_authorization": False,
            }
        ]
    }
    with Gateway(config) as gateway:
        assert statuses(gateway, 1) == [401]


@pytest.mark.parametrize("shadow", ["root", "route"])
@pytest.mark.parametrize("kind", ["deny", "limit"])
def test_a_policy_in_shadow_mode_leaves_the_others_in_force(shadow: str, kind: str) -> None:
    more = {"action": "limit", "limit": {"requests": 1}} if kind == "limit" else {}
    root = {"name": "a", "when": "true", "routes": "*", "enforce": shadow != "root", **more}
    own = {"name": "b", "when": "true", "enforce": shadow != "route", **more}
    config = {"policies": [root], "routes": [{"path": "/*", "respond": "ok", "policies": [own]}]}
    with Gateway(config) as gateway:
        assert statuses(gateway, 2) == ([403, 403] if kind == "deny" else [200, 429])


def test_an_allow_in_shadow_mode_opens_nothing() -> None:
    root = {"name": "a", "when": "true", "routes": "*"}
    own = {"name": "b", "when": "true", "action": "allow", "priority": 9, "enforce": False}
    config = {"policies": [root], "routes": [{"path": "/*", "respond": "ok", "policies": [own]}]}
    with Gateway(config) as gateway:
        assert statuses(gateway, 1) == [403]


def test_validation_in_shadow_mode_leaves_the_bound_of_the_server_in_force() -> None:
    config = {
        "server": {"max_body": "10B"},
        "routes": [
            {
                "path": "/*",
                "respond": "ok",
                "validation": {"content_types": ["application/json"], "json": True, "enforce": False},
            }
        ],
    }
    with Gateway(config) as gateway:
        fields = ("POST", "Content-Type: application/json")
        assert post(gateway, *fields, body=b"{" * 5) == 200
        assert post(gateway, *fields, body=b"{" * 11) == 413


def post(gateway: Gateway, method: str, *fields: str, body: bytes) -> int:
    with Client(gateway.port) as client:
        client.send(request("/", method, *fields, body=body))
        return client.read_response().status
