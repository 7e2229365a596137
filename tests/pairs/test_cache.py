"""The cache with other features on one route, through the real gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.caching.test_keys_gateway import Echo, Harness, until_hit
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.upstream import Upstream

PLUGINS = "tests.pairs.cache_plugins:"


@contextmanager
def harness(
    *routes: dict[str, Any], root: dict[str, Any] | None = None, allow: str | None = None
) -> Iterator[Harness]:
    """A gateway of one worker whose routes cache, in front of an origin that tells what it was shown."""
    origin = Echo()
    with Upstream(origin.script) as upstream:
        made = [
            {"upstream": upstream.url, "preserve_host": True, "path": "/*", "cache": {"ttl": "60s"}, **route}
            for route in routes
        ]
        with Gateway({**(root or {}), "routes": made}, allow=allow) as gateway:
            served = Harness(gateway, origin)
            served.config = {**(root or {}), "routes": made}
            yield served


def key_of(harness: Harness, consumer: str, **more: Any) -> str:
    made = call(str(harness.gateway.ready["admin"]), "/api/keys", "POST", body={"consumer": consumer, **more})
    assert made.status == 201, made
    return str(made.json["api_key"])


@pytest.mark.parametrize("plugin", ["ByTenant", "Failing"])
def test_a_plugin_that_edits_requests_without_saying_why_keeps_them_out(plugin: str) -> None:
    with harness({"plugins": [PLUGINS + plugin]}, allow="told to fail|the key of request") as made:
        seen = [made.seen("/a", f"X-Token: {token}") for token in ("a", "a", "b", "b")]

        assert [each["fields"]["x-tenant"] for each in seen] == [["a"], ["a"], ["b"], ["b"]]
        assert made.origin.asked == 4


def test_a_plugin_that_says_what_its_edits_depend_on_keeps_clients_apart() -> None:
    with harness({"plugins": [PLUGINS + "ByTenantKeyed"]}) as made:
        first = until_hit(made, "/a", "X-Token: a")

        assert first["fields"]["x-tenant"] == ["a"]
        assert until_hit(made, "/a", "X-Token: b")["fields"]["x-tenant"] == ["b"]
        assert until_hit(made, "/a", "X-Token: a")["number"] == first["number"]
        secret = [made.seen("/a", "X-Token: secret")["number"] for _ in range(2)]
        assert secret[0] != secret[1]


def test_consumers_that_share_are_kept_apart_where_the_response_varies_by_their_tier() -> None:
    route = {
        "auth": ["api_key"],
        "cache": {"ttl": "60s", "key": {"consumer": "shared"}, "share_private": True},
    }
    root = {"tiers": {"gold": {"per_minute": 6000}, "free": {"per_minute": 6000}}}
    with harness(route, root=root) as made:
        keys = {
            name: key_of(made, name, tier="gold" if name != "otto" else "free")
            for name in ("anna", "emma", "otto")
        }
        vary = "X-Say: Vary: X-Consumer-Tier"
        first = until_hit(made, "/a", vary, f"X-API-Key: {keys['anna']}")

        assert until_hit(made, "/a", vary, f"X-API-Key: {keys['emma']}")["number"] == first["number"]
        other = until_hit(made, "/a", vary, f"X-API-Key: {keys['otto']}")
        assert other["fields"]["x-consumer-tier"] == ["free"]


def test_two_keys_of_one_consumer_are_told_apart_as_the_upstream_is_told() -> None:
    with harness({"auth": ["api_key"]}) as made:
        one, two = key_of(made, "anna"), key_of(made, "anna")
        first = until_hit(made, "/a", f"X-API-Key: {one}")

        second = until_hit(made, "/a", f"X-API-Key: {two}")

        assert second["fields"]["x-consumer-key-id"] != first["fields"]["x-consumer-key-id"]


def test_private_is_not_kept_for_a_consumer_whose_cookies_may_say_more() -> None:
    route = {"auth": ["api_key"], "cache": {"ttl": "60s", "private": "consumer"}}
    with harness(route) as made:
        key = key_of(made, "web")
        say = ("X-Say: Cache-Control: private", f"X-API-Key: {key}")

        seen = [made.seen("/a", *say, f"Cookie: user={name}") for name in ("anna", "anna", "otto")]
        without = until_hit(made, "/b", *say)

        assert len({each["number"] for each in seen}) == 3
        assert until_hit(made, "/b", *say)["number"] == without["number"]


def test_the_anonymous_share_and_nothing_private_is_theirs() -> None:
    route = {"auth": ["api_key", "anonymous"], "cache": {"ttl": "60s", "private": "consumer"}}
    with harness(route) as made:
        key = key_of(made, "anna")
        private = [made.seen("/p", "X-Say: Cache-Control: private")["number"] for _ in range(2)]
        nobody = until_hit(made, "/a")

        assert private[0] != private[1]
        assert until_hit(made, "/a")["number"] == nobody["number"]
        assert until_hit(made, "/a", f"X-API-Key: {key}")["number"] != nobody["number"]


def test_a_reload_keeps_what_is_stored_and_a_change_of_the_request_does_not() -> None:
    with harness({}) as made:
        config = made.config
        first = until_hit(made, "/a")["number"]
        for change, kept in (
            ({"limits": {"per_minute": 6000}}, True),
            ({"response_headers": {"set": {"X-A": "b"}}}, True),
            ({"request_headers": {"set": {"X-A": "b"}}}, False),
            ({"rewrite": {"replace_prefix": {"from": "/", "to": "/new"}}}, False),
            ({"host": "here.example"}, False),
            ({}, True),
        ):
            changed = {**config, "routes": [{**config["routes"][0], **change}]}
            made.gateway.write_config(changed)
            told = call(str(made.gateway.ready["admin"]), "/api/gateway/reload", "POST")
            assert told.status == 200, told

            found = until_hit(made, "/a")["number"]

            assert (found == first) is kept, change


def test_a_purge_by_url_is_for_every_route_and_consumer() -> None:
    internal = {
        "headers": {"X-Internal": "1"},
        "name": "internal",
        "cache": {"ttl": "60s", "key": {"query": "none"}},
    }
    with harness(internal, {"auth": ["api_key", "anonymous"], "name": "public"}) as made:
        key = f"X-API-Key: {key_of(made, 'anna')}"
        asks = [
            ("X-Internal: 1",),
            (),
            (key,),
            ("X-Say: Vary: Accept", "Accept: a"),
            ("X-Say: Vary: Accept", "Accept: b"),
        ]
        before = [until_hit(made, "/a?x=1", *fields)["number"] for fields in asks]
        other = until_hit(made, "/b?x=1")["number"]

        told = call(
            str(made.gateway.ready["admin"]),
            "/api/cache/purge",
            "POST",
            body={"url": "http://here.example/a?x=1"},
        )

        assert told.status == 200, told
        after = [until_hit(made, "/a?x=1", *fields)["number"] for fields in asks]
        assert not set(before) & set(after)
        assert until_hit(made, "/b?x=1")["number"] == other


@pytest.mark.parametrize("pattern", ["/a*", "/a/1", "http://here.example/a/?", "http*://*/1"])
def test_a_purge_by_pattern_is_of_urls(pattern: str) -> None:
    with harness({"auth": ["api_key", "anonymous"]}) as made:
        key = f"X-API-Key: {key_of(made, 'anna')}"
        before = [until_hit(made, "/a/1", *fields)["number"] for fields in ((), (key,))]
        kept = until_hit(made, "/b/2")["number"]

        told = call(str(made.gateway.ready["admin"]), "/api/cache/purge", "POST", body={"pattern": pattern})

        assert told.status == 200, told
        after = [until_hit(made, "/a/1", *fields)["number"] for fields in ((), (key,))]
        assert not set(before) & set(after)
        assert until_hit(made, "/b/2")["number"] == kept


def test_behind_a_trusted_proxy_the_key_has_the_scheme_of_the_client() -> None:
    with harness({}, root={"trusted_proxies": "127.0.0.0/8"}) as made:
        secure = until_hit(made, "/a", "X-Forwarded-Proto: https")
        plain = until_hit(made, "/a")

        told = call(
            str(made.gateway.ready["admin"]),
            "/api/cache/purge",
            "POST",
            body={"url": "https://here.example/a"},
        )

        assert told.status == 200, told
        assert until_hit(made, "/a", "X-Forwarded-Proto: https")["number"] != secure["number"]
        assert until_hit(made, "/a")["number"] == plain["number"]


def test_what_a_forged_proxy_says_is_in_nobodys_response() -> None:
    with harness({}) as made:
        first = json.loads(made.get("/a", "X-Forwarded-Host: evil", "X-Forwarded-Prefix: /evil").body)

        assert "evil" not in json.dumps(first)
        assert until_hit(made, "/a")["number"] == first["number"]
