"""Consumers over the admin API, and what they give their keys."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import jwt

from fastgate.config import check
from tests.auth.test_api_keys import ROUTE, make, statuses, use
from tests.client import get
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.upstream import Upstream

CONSUMERS = {"acme": {"tier": "internal", "scopes": ["orders:read"], "metadata": {"city": "Bern"}}}


def told(upstream: Upstream, name: str) -> bytes | None:
    """What the upstream was told in the last request."""
    return upstream.requests[-1].get(name)


def test_a_consumer_is_made_changed_shown_and_removed() -> None:
    with Gateway({"routes": [ROUTE]}) as gateway:
        made = call(gateway.admin, "/api/consumers", "POST", body={"name": "CN=a/b, O=c", "tier": "basic"})
        assert (made.status, made.json["source"], made.json["keys"]) == (201, "store", 0)
        assert call(gateway.admin, "/api/consumers", "POST", body={"name": "CN=a/b, O=c"}).status == 409

        path = "/api/consumers/CN=a/b,%20O=c"
        changed = call(gateway.admin, path, "PATCH", body={"roles": ["admin"], "metadata": {"n": 1}})
        assert (changed.status, changed.json["tier"], changed.json["roles"]) == (200, "basic", ["admin"])
        assert call(gateway.admin, path).json == changed.json
        assert [row["name"] for row in call(gateway.admin, "/api/consumers").json["consumers"]] == [
            "CN=a/b, O=c"
        ]

        assert call(gateway.admin, path, "DELETE").json == {"removed": "CN=a/b, O=c"}
        assert call(gateway.admin, path).status == 404
        assert call(gateway.admin, path, "DELETE").status == 404


def test_a_key_has_what_its_consumer_has_and_follows_its_changes() -> None:
    with Upstream() as upstream:
        route = {"path": "/*", "auth": ["api_key"], "upstream": upstream.url}
        with Gateway({"routes": [route], "consumers": CONSUMERS}, workers=2) as gateway:
            key = make(gateway)["api_key"]
            own = make(gateway, scopes=["orders:write"], tier="system")["api_key"]

            assert use(gateway, key) == 200
            assert (told(upstream, "X-Consumer-Tier"), told(upstream, "X-Consumer-Scopes")) == (
                b"internal",
                b"orders:read",
            )
            assert use(gateway, own) == 200
            assert (told(upstream, "X-Consumer-Tier"), told(upstream, "X-Consumer-Scopes")) == (
                b"system",
                b"orders:write",
            )

            body = {"scopes": ["orders:read", "stock:read"], "roles": ["reader"]}
            assert call(gateway.admin, "/api/consumers/acme", "PATCH", body=body).json["source"] == "both"

            for _ in range(8):
                assert use(gateway, key) == 200
                assert told(upstream, "X-Consumer-Roles") == b"reader"
                assert set((told(upstream, "X-Consumer-Scopes") or b"").split()) == {
                    b"orders:read",
                    b"stock:read",
                }
            assert use(gateway, own) == 200
            assert told(upstream, "X-Consumer-Scopes") == b"orders:write"

            # What was said at run time is taken back: the file counts again.
            body = {"scopes": None, "roles": None}
            assert call(gateway.admin, "/api/consumers/acme", "PATCH", body=body).json["scopes"] == [
                "orders:read"
            ]
            for _ in range(8):
                assert use(gateway, key) == 200
                assert told(upstream, "X-Consumer-Roles") is None


def test_disabling_a_consumer_ends_all_its_keys_at_once_and_enabling_brings_them_back() -> None:
    with Gateway({"routes": [ROUTE], "consumers": CONSUMERS}, workers=2) as gateway:
        keys = [make(gateway)["api_key"] for _ in range(3)]
        other = make(gateway, consumer="other")["api_key"]

        call(gateway.admin, "/api/consumers/acme", "PATCH", body={"disabled": True})

        assert [statuses(gateway, key, 10) for key in keys] == [{401}] * 3
        assert statuses(gateway, other, 10) == {200}
        assert call(gateway.admin, "/api/keys", "POST", body={"consumer": "acme"}).status == 409

        call(gateway.admin, "/api/consumers/acme", "PATCH", body={"disabled": None})

        assert [statuses(gateway, key, 10) for key in keys] == [{200}] * 3


def test_disabling_reaches_tokens_whose_consumer_nobody_had_declared() -> None:
    secret = "0123456789abcdef0123456789abcdef"
    config = {
        "routes": [{**ROUTE, "auth": ["jwt"]}],
        "auth": {"jwt": {"issuers": [{"issuer": "test", "secret": secret}]}},
    }
    claims = {"iss": "test", "sub": "ghost", "exp": int(time.time()) + 3600}
    field = f"Authorization: Bearer {jwt.encode(claims, secret)}"
    with Gateway(config, workers=2) as gateway:
        assert {get(gateway.port, "/", field).status for _ in range(40)} == {200}

        call(gateway.admin, "/api/consumers", "POST", body={"name": "ghost", "disabled": True})
        assert {get(gateway.port, "/", field).status for _ in range(40)} == {401}

        call(gateway.admin, "/api/consumers/ghost", "DELETE")
        assert {get(gateway.port, "/", field).status for _ in range(40)} == {200}


def test_api_keys_without_a_controller_are_refused() -> None:
    text = "admin: off\nroutes: [{path: /*, auth: [api_key], respond: in}]\n"

    errors = [str(error) for error in check(text, "yaml", {})[1]]

    assert len(errors) == 1
    assert '$.routes[0].auth[0]: "api_key" with admin.listen off' in errors[0]


def test_names_and_words_of_consumers_in_the_file_are_checked() -> None:
    text = """
consumers:
  " acme": {}
  bob: {scopes: ["a b"], tier: gold}
routes: [{path: /*, respond: in}]
"""

    errors = "\n".join(str(error) for error in check(text, "yaml", {})[1])

    assert "$.consumers. acme" in errors or '$.consumers[" acme"]' in errors
    assert "$.consumers.bob.scopes[0]" in errors
    assert "$.consumers.bob.tier" in errors


def test_a_consumer_disabled_in_the_file_loses_its_keys_with_the_reload() -> None:
    config: dict[str, Any] = {"routes": [ROUTE], "consumers": CONSUMERS}
    with Gateway(config, workers=2) as gateway:
        key = make(gateway)["api_key"]
        gateway.write_config({**config, "consumers": {"acme": {"disabled": True}}})
        assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200

        assert statuses(gateway, key) == {401}

        gateway.write_config(config)
        assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200
        assert statuses(gateway, key) == {200}


def test_what_was_said_of_a_consumer_survives_the_controller_and_a_restart(tmp_path: Path) -> None:
    config = {"routes": [ROUTE], "consumers": CONSUMERS, "store": {"path": str(tmp_path / "a.db")}}
    with Gateway(config, allow="controller died") as gateway:
        key = make(gateway)["api_key"]
        call(gateway.admin, "/api/consumers/acme", "PATCH", body={"disabled": True})
        os.kill(call(gateway.admin, "/api/gateway/status").json["controller_pid"], signal.SIGKILL)
        assert statuses(gateway, key, 10) == {401}
        until(lambda: call(gateway.admin, "/api/gateway/status").json["controller_restarts"], "a restart")
        assert statuses(gateway, key, 10) == {401}

    with Gateway(config) as gateway:
        assert use(gateway, key) == 401
        assert call(gateway.admin, "/api/consumers/acme").json["disabled"] is True


def test_a_consumer_with_keys_is_not_removed_by_accident() -> None:
    with Gateway({"routes": [ROUTE], "consumers": CONSUMERS}, workers=2) as gateway:
        call(gateway.admin, "/api/consumers", "POST", body={"name": "guest"})
        key = make(gateway, consumer="guest")["api_key"]

        assert call(gateway.admin, "/api/consumers/guest", "DELETE").status == 409
        assert statuses(gateway, key, 10) == {200}
        assert call(gateway.admin, "/api/consumers/guest?keys=revoke", "DELETE").status == 200
        assert statuses(gateway, key, 10) == {401}
        in_file = call(gateway.admin, "/api/consumers/acme", "DELETE")
        assert (in_file.status, "config file" in in_file.json["error"]) == (409, True)


def test_bad_calls_are_told_what_is_wrong() -> None:
    with Gateway({"routes": [ROUTE], "consumers": CONSUMERS}) as gateway:
        for body, text in (
            ({}, "missing required field `name`"),
            ({"name": " a"}, "a name of 1 to 255"),
            ({"name": "a", "tier": "gold"}, "tier: expected one of free"),
            ({"name": "a", "limits": {"per_minute": 0}}, "limits: Expected `int` >= 1"),
            ({"name": "a", "limits": {"burst": 5}}, "limits.burst: expected one of per_second"),
            ({"name": "a", "colour": "red"}, "unknown field `colour`"),
        ):
            refused = call(gateway.admin, "/api/consumers", "POST", body=body)
            assert (refused.status, text in refused.json["error"]) == (400, True), refused
        assert call(gateway.admin, "/api/consumers/nobody").status == 404
        assert call(gateway.admin, "/api/consumers/nobody", "PATCH", body={}).status == 404
