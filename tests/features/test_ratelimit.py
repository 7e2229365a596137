"""Limits through a real socket: what clients see, what is counted with what, what survives."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest

from fastgate.config import check
from fastgate.features.ratelimit.client import ClientLimits
from fastgate.state.memory import HostMemory
from tests.client import Client, get, request
from tests.control.admin_client import call, scrape, scrape_idle, value
from tests.gateway import Gateway
from tests.strict import Malformed, Message
from tests.upstream import Peer, Upstream, answer

SECRET = "a secret that only this test knows 0123"
AUTH = {"jwt": {"issuers": [{"issuer": "https://issuer.test", "secret": SECRET, "algorithms": ["HS256"]}]}}
FORWARDED = "X-Forwarded-For: {}"


def gateway(upstream: Upstream, limits: Any, *, workers: int = 1, route: Any = None, **root: Any) -> Gateway:
    config = {
        "trusted_proxies": ["127.0.0.1"],
        "routes": [
            {
                "name": "main",
                "path": "/*",
                "upstream": upstream.url,
                **({"limits": limits} if limits else {}),
                **(route or {}),
            }
        ],
        **root,
    }
    return Gateway(config, workers=workers)


def token(consumer: str, **claims: Any) -> str:
    payload = {"iss": "https://issuer.test", "sub": consumer, "exp": int(time.time()) + 600, **claims}
    return "Authorization: Bearer " + jwt.encode(payload, SECRET, "HS256")


def statuses(port: int, count: int, *fields: str, target: str = "/") -> list[int]:
    return [get(port, target, *fields).status for _ in range(count)]


# --- what the client sees


def test_a_refusal_is_429_with_the_limit_and_the_wait() -> None:
    with Upstream() as upstream, gateway(upstream, {"per_minute": 2}) as served:
        assert statuses(served.port, 2) == [200, 200]

        refused = get(served.port)

        body = json.loads(refused.body)
        assert refused.status == 429
        assert list(body) == ["error", "code", "limit_type", "retry_after", "request_id"]
        assert body["error"] == "Rate limit exceeded"
        assert body["code"] == "rate_limited"
        assert body["request_id"].encode() == refused.get("x-request-id")
        assert body["limit_type"] == "per_minute"
        assert 1 <= body["retry_after"] <= 120
        assert refused.get("retry-after") == str(body["retry_after"]).encode()
        assert refused.get("content-type") == b"application/json"
        assert refused.get("ratelimit-policy") == b'"per_minute";q=2;w=60'
        assert refused.get("ratelimit") == f'"per_minute";r=0;t={body["retry_after"]}'.encode()
        assert refused.get("x-request-id")
        assert len(upstream.requests) == 2


def test_every_answer_tells_policy_and_what_is_left() -> None:
    limits = {"per_minute": 10, "per_day": 1000, "concurrent": 5}
    with Upstream() as upstream, gateway(upstream, limits) as served:
        first, second = get(served.port), get(served.port)

    policy = b'"per_minute";q=10;w=60, "per_day";q=1000;w=86400, "concurrent";q=5;qu="concurrent-requests"'
    assert first.get("ratelimit-policy") == policy
    left = re.fullmatch(rb'"per_minute";r=9;t=([0-9]+)', first.get("ratelimit") or b"")
    assert left is not None
    assert 1 <= int(left[1]) <= 120
    assert (second.get("ratelimit") or b"").startswith(b'"per_minute";r=8;')
    assert first.get("x-ratelimit-warning") is None


def test_a_warning_comes_before_the_limit() -> None:
    limits = {"per_minute": 10, "warn_at": 0.8, "headers": False}
    with Upstream() as upstream, gateway(upstream, limits) as served:
        answers = [get(served.port) for _ in range(11)]

        assert [message.get("x-ratelimit-warning") is not None for message in answers] == (
            [False] * 7 + [True] * 3 + [False]
        )
        assert re.fullmatch(
            rb'"per_minute";used=8;q=10;t=[0-9]+', answers[7].get("x-ratelimit-warning") or b""
        )
        assert all(message.get("ratelimit") is None for message in answers)
        assert value(scrape(served.admin), "fastgate_limits_warned_total") == 3


def test_head_and_a_keep_alive_connection_are_refused_as_any_other() -> None:
    with (
        Upstream() as upstream,
        gateway(upstream, {"per_minute": 1}) as served,
        Client(served.port) as client,
    ):
        for expected in (200, 429, 429):
            client.send(request("/", "HEAD"))
            refused = client.read_response("HEAD")
            assert refused.status == expected
            assert refused.body == b""


def test_refusals_are_counted_by_limit_and_by_reason() -> None:
    with Upstream() as upstream, gateway(upstream, {"per_minute": 5, "burst": 2}) as served:
        statuses(served.port, 6)
        samples = scrape_idle(served.admin)

        assert value(samples, "fastgate_limits_refused_total", limit="burst") == 4
        assert value(samples, "fastgate_refusals_total", route="main", reason="rate_limited") == 4


# --- what is counted together


@pytest.mark.parametrize(
    ("by", "fields", "expected"),
    [
        ("ip", ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.2"], [200, 200]),
        ("ip", ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: ::ffff:10.0.0.1"], [200, 429]),
        ("ip", ["X-Forwarded-For: 2001:db8::1", "X-Forwarded-For: 2001:db8::2"], [200, 429]),
        ({"ip_v4": 24}, ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.2"], [200, 429]),
        ({"ip_v4": 24}, ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.1.2"], [200, 200]),
        ({"header": "X-Tenant"}, ["x-tenant: a", "X-TENANT: b", "X-Tenant: a"], [200, 200, 429]),
        ({"header": "X-Tenant"}, ["X-Other: a", "X-Other: b"], [200, 429]),
        ("gateway", ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.2"], [200, 429]),
        ("route", ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.2"], [200, 429]),
        ("consumer", ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.2"], [200, 200]),
        (
            ["ip", {"header": "X-Tenant"}],
            ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.1\r\nX-Tenant: a"],
            [200, 200],
        ),
    ],
)
def test_what_a_rule_counts_by(by: Any, fields: list[str], expected: list[int]) -> None:
    with Upstream() as upstream, gateway(upstream, {"per_minute": 1, "by": by}) as served:
        assert [get(served.port, "/", *field.split("\r\n")).status for field in fields] == expected


def test_what_one_rule_refuses_is_taken_from_no_other() -> None:
    limits = {"rules": [{"by": "ip", "per_minute": 2}, {"by": "gateway", "per_minute": 10}]}
    with Upstream() as upstream, gateway(upstream, limits) as served:
        one, other = FORWARDED.format("10.0.0.1"), FORWARDED.format("10.0.0.2")
        assert statuses(served.port, 30, one) == [200] * 2 + [429] * 28

        for number in range(4):
            assert statuses(served.port, 2, FORWARDED.format(f"10.0.1.{number}")) == [200, 200]
        refused = get(served.port, "/", other)  # 10 are used up now: the wide rule refuses
        assert refused.status == 429
        assert (refused.get("ratelimit") or b"").startswith(b'"route.gateway.per_minute";r=0')


def test_what_a_wide_rule_refuses_is_given_back_to_the_narrow_one() -> None:
    limits = {
        "rules": [{"by": "ip", "per_minute": 100}, {"by": "gateway", "per_second": 3, "name": "all"}],
        "warn_at": 0.01,
    }
    with Upstream() as upstream, gateway(upstream, limits) as served:
        seen = statuses(served.port, 60)
        time.sleep(2.1)  # both windows of a second are over
        left = get(served.port)

        granted = seen.count(200)
        used = re.search(rb"used=([0-9]+);q=(100|3)", left.get("x-ratelimit-warning") or b"")
        assert used is not None
        # The tightest is told, and that may be either: only the narrow one says how many.
        if used[2] == b"100":
            assert int(used[1]) == granted + 1


def test_rules_of_the_root_hold_on_every_route_together() -> None:
    with Upstream() as upstream:
        config = {
            "limits": {"per_minute": 3, "by": "ip"},
            "routes": [
                {"path": "/a", "upstream": upstream.url},
                {"path": "/b", "upstream": upstream.url, "limits": {"per_minute": 1}},
                {"path": "/c", "upstream": upstream.url, "limits": {"per_minute": 9, "inherit": False}},
            ],
        }
        with Gateway(config) as served:
            assert statuses(served.port, 2, target="/b") == [200, 429]
            assert statuses(served.port, 3, target="/a") == [200, 200, 429]
            assert statuses(served.port, 10, target="/c") == [200] * 9 + [429]


# --- tiers and consumers


def tiered(upstream: Upstream, **root: Any) -> Gateway:
    return gateway(upstream, root.pop("limits", None), route={"auth": ["jwt"]}, auth=AUTH, **root)


def test_a_consumer_of_the_free_tier_has_its_burst() -> None:
    root = {"consumers": {"acme": {"tier": "free"}, "globex": {"tier": "internal"}}}
    with Upstream() as upstream, tiered(upstream, **root) as served:
        acme, globex = token("acme"), token("globex")
        assert statuses(served.port, 22, acme) == [200] * 20 + [429] * 2
        refused = get(served.port, "/", acme)
        assert json.loads(refused.body)["limit_type"] == "burst"
        assert (refused.get("ratelimit-policy") or b"").startswith(
            b'"burst";q=20;w=20, "per_minute";q=60;w=60'
        )

        assert statuses(served.port, 40, globex) == [200] * 40
        assert get(served.port, "/", globex).get("ratelimit") is None


def test_a_tier_can_be_redefined_and_consumers_have_limits_of_their_own() -> None:
    root = {
        "tiers": {"free": {"per_minute": 2}, "tiny": {"per_day": 1}},
        "consumers": {
            "acme": {"tier": "free"},
            "globex": {"tier": "free", "limits": {"per_minute": 4}},
            "initech": {"tier": "tiny", "limits": {"per_day": None, "per_hour": 3}},
            "hooli": {"limits": {"per_minute": 1}},
            "umbrella": {},
        },
    }
    with Upstream() as upstream, tiered(upstream, **root) as served:
        granted = {
            name: statuses(served.port, 6, token(name)).count(200)
            for name in ("acme", "globex", "initech", "hooli", "umbrella")
        }

    assert granted == {"acme": 2, "globex": 4, "initech": 3, "hooli": 1, "umbrella": 6}


def test_the_tier_counts_over_all_routes_and_a_route_can_leave_it_out() -> None:
    with Upstream() as upstream:
        routes = [
            {"path": f"/{name}", "upstream": upstream.url, "auth": ["jwt"], **extra}
            for name, extra in (("a", {}), ("b", {}), ("c", {"limits": {"tier": False, "per_minute": 100}}))
        ]
        config = {
            "auth": AUTH,
            "tiers": {"free": {"per_minute": 5}},
            "consumers": {"acme": {"tier": "free"}},
            "routes": routes,
        }
        with Gateway(config) as served:
            acme = token("acme")
            assert statuses(served.port, 3, acme, target="/a") == [200] * 3
            assert statuses(served.port, 3, acme, target="/b") == [200, 200, 429]
            assert statuses(served.port, 9, acme, target="/c") == [200] * 9


def test_the_anonymous_are_counted_each_by_itself() -> None:
    root = {
        "auth": {**AUTH, "anonymous": {"tier": "guest"}},
        "tiers": {"guest": {"per_minute": 2}, "gold": {"per_minute": 4}},
        "consumers": {"acme": {"tier": "gold"}},
    }
    with (
        Upstream() as upstream,
        gateway(upstream, None, route={"auth": ["jwt", "anonymous"]}, **root) as served,
    ):
        one, other = FORWARDED.format("10.0.0.1"), FORWARDED.format("10.0.0.2")
        assert statuses(served.port, 3, one) == [200, 200, 429]
        assert statuses(served.port, 3, other) == [200, 200, 429]
        assert statuses(served.port, 5, one, token("acme")) == [200] * 4 + [429]


def test_a_claim_names_the_tier() -> None:
    issuer = {**AUTH["jwt"]["issuers"][0], "claims": {"tier": "tier"}}
    root = {"auth": {"jwt": {"issuers": [issuer]}}, "tiers": {"free": {"per_minute": 1}}}
    with Upstream() as upstream, gateway(upstream, None, route={"auth": ["jwt"]}, **root) as served:
        assert statuses(served.port, 3, token("acme", tier="internal")) == [200] * 3
        assert statuses(served.port, 3, token("globex", tier="free")) == [200, 429, 429]


# --- one client, from outside


def client_limits(memory: HostMemory, **config: Any) -> ClientLimits:
    checked, errors = check(json.dumps({"routes": [{"path": "/*", "respond": "ok"}], **config}), "json")
    assert checked is not None, errors
    return ClientLimits(checked, memory)


def test_a_tier_nobody_defined_is_free() -> None:
    rows = client_limits(HostMemory.private()).read(consumer="acme", tier="nonsense")

    assert [limit["limit"] for limit in rows[0]["limits"]] == [20, 60, 1000, 10_000, 1000.0, 2]


def test_client_limits_reads_and_resets_what_a_gateway_counted() -> None:
    memory = HostMemory.private()
    root = {"limits": {"per_minute": 10, "by": "ip"}, "tiers": {"free": {"per_day": 5}}}
    own = {"per_hour": 50}
    routes = [{"name": "main", "path": "/*", "respond": "ok", "limits": {"per_hour": 7, "by": ["consumer"]}}]
    looking = client_limits(memory, **root, routes=routes)
    for _, _, rule, parts in looking._rules("acme", "free", own, None, "10.0.0.1"):
        for _ in range(3):
            assert rule.decide(parts)[0]

    rows = looking.read(consumer="acme", tier="free", limits=own, ip="10.0.0.1")

    assert {
        row["rule"]: [(each["limit_type"], each["remaining"]) for each in row["limits"]] for row in rows
    } == {
        "tier": [("per_hour", 47), ("per_day", 2)],
        "gateway.ip": [("per_minute", 7)],
        "route.consumer": [("per_hour", 4)],
    }
    assert all(row["requests"] == 3 for row in rows)
    assert looking.reset(consumer="acme", tier="free", ip="10.0.0.1") == 3
    assert looking.reset(consumer="acme", tier="free", ip="10.0.0.1") == 0


def test_bans_by_hand() -> None:
    looking = client_limits(HostMemory.private())

    looking.ban("10.0.0.1", 90 * 86_400)
    looking.ban("acme", 60, by="consumer")

    assert looking.banned_s("::ffff:10.0.0.1") == pytest.approx(90 * 86_400, abs=5)
    assert looking.banned_s("10.0.0.2") == 0
    assert 50 < looking.banned_s("acme", by="consumer") <= 60
    assert looking.pardon("10.0.0.1")
    assert looking.banned_s("10.0.0.1") == 0


# --- a full table


@pytest.mark.parametrize(
    ("when_full", "expected"), [("deny", {200, 503}), ("allow", {200}), ("evict", {200})]
)
def test_a_flood_of_keys_meets_what_was_chosen(when_full: str, expected: set[int]) -> None:
    limits = {"per_day": 1, "by": {"header": "X-Key"}, "when_full": when_full}
    with (
        Upstream() as upstream,
        gateway(upstream, limits, memory={"limiter_keys": 1024}) as served,
        Client(served.port) as client,
    ):
        seen = set()
        for number in range(2500):
            client.send(request("/", "GET", f"X-Key: {number}"))
            seen.add(client.read_response().status)

        assert seen == expected
        full = value(scrape(served.admin), "fastgate_limits_full_total")
        assert (full > 0) is (when_full != "evict")


FLOODED = {"per_day": 5, "by": {"header": "X-Key"}}


def flood(client: Client, target: str, keys: int, fields: Callable[[int], str]) -> dict[int, int]:
    """Requests with invented keys on one connection, pipelined; how often each status came."""
    seen: dict[int, int] = {}
    for start in range(0, keys, 50):
        client.send(b"".join(request(target, "GET", fields(number)) for number in range(start, start + 50)))
        for _ in range(50):
            status = client.read_response().status
            seen[status] = seen.get(status, 0) + 1
    return seen


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("when_full", ["deny", "evict"])
@pytest.mark.parametrize(
    "other", [{"per_minute": 5, "by": "ip"}, {"per_day": 5, "by": {"header": "X-Tenant"}}]
)
def test_a_flood_of_keys_leaves_the_clients_of_other_routes_alone(
    other: dict[str, Any], when_full: str, workers: int
) -> None:
    config = {
        "trusted_proxies": ["127.0.0.1"],
        "memory": {"limiter_keys": 2000},
        "routes": [
            {"path": "/flooded", "respond": "ok", "limits": {**FLOODED, "when_full": when_full}},
            {"path": "/other", "respond": "ok", "limits": other},
        ],
    }

    def who(number: int) -> tuple[str, str]:
        address = FORWARDED.format(f"10.0.{number // 250}.{number % 250}")
        return address, f"X-Tenant: tenant {number}"

    with Gateway(config, workers=workers) as served, Client(served.port) as client:
        early = [get(served.port, "/other", *who(number)).status for number in range(50)]
        flood(client, "/flooded", 10_000, lambda number: f"X-Key: invented {number}")

        late = [get(served.port, "/other", *who(number)).status for number in range(50, 250)]
        exact = [statuses(served.port, 5, *who(number), target="/other") for number in range(50)]
        figures = scrape(served.admin)

    assert early == [200] * 50
    assert late.count(200) >= 198
    assert exact == [[200] * 4 + [429]] * 50
    full = value(figures, "fastgate_limits_full_total")
    assert (full > 5000) is (when_full == "deny")
    refused = value(figures, "fastgate_table_keys_total", table="limits", event="refused")
    assert refused == full
    assert value(figures, "fastgate_table_keys_total", table="limits", event="displaced") > 0


def test_a_network_that_floods_a_rule_leaves_the_others_in_the_same_rule_alone() -> None:
    routes = [{"path": "/*", "respond": "ok", "limits": {"per_day": 3, "by": "ip"}}]
    config = {"trusted_proxies": ["127.0.0.1"], "memory": {"limiter_keys": 2000}, "routes": routes}
    with Gateway(config) as served, Client(served.port) as client:
        spread = flood(client, "/", 10_000, lambda number: FORWARDED.format(f"2001:db8:1:{number:x}::1"))
        others = [get(served.port, "/", FORWARDED.format(f"192.0.{n}.1")).status for n in range(150)]
        again = [get(served.port, "/", FORWARDED.format(f"192.0.{n}.1")).status for n in range(150)]

    assert spread[503] > 5000
    assert others.count(200) >= 147
    assert again.count(200) >= 147


def test_a_full_rule_that_allows_does_not_switch_the_other_rules_off() -> None:
    limits = {
        "when_full": "allow",
        "rules": [FLOODED, {"by": "gateway", "per_day": 6000, "name": "whole"}],
    }
    routes = [{"path": "/*", "respond": "ok", "limits": limits}]
    with (
        Gateway({"memory": {"limiter_keys": 1024}, "routes": routes}) as served,
        Client(served.port) as client,
    ):
        seen = flood(client, "/", 8000, lambda number: f"X-Key: invented {number}")

    assert seen == {200: 6000, 429: 2000}


def test_the_fields_are_structured_fields() -> None:
    limits = {
        "per_minute": 5,
        "burst": 3,
        "concurrent": 4,
        "cost_per_hour": 10.5,
        "warn_at": 0.1,
        "rules": [{"by": ["ip", {"header": "X-A"}], "per_day": 9}, {"by": "gateway", "per_hour": 8}],
    }
    with Upstream() as upstream, gateway(upstream, limits) as served:
        message = get(served.port)

    for name in ("ratelimit-policy", "ratelimit", "x-ratelimit-warning"):
        items = re.split(', (?=")', (message.get(name) or b"").decode())
        # RFC 9651: a list of strings with parameters, whole numbers or strings (sections 3.1, 3.3.3)
        for item in items:
            assert re.fullmatch(r'"[a-z0-9_.+-]+"(;[a-z]+=([0-9]{1,15}|"[a-z-]+"))+', item), item
    policies = (message.get("ratelimit-policy") or b"").decode()
    names = re.findall(r'"([^"]+)";q=', policies)
    assert len(names) == len(set(names)) == 6


# --- at once


def hold(seconds: float) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            time.sleep(seconds)
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    return script


def test_more_at_once_than_allowed_are_refused_and_the_end_of_one_makes_room() -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            release.wait(60)
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with Upstream(script) as upstream, gateway(upstream, {"concurrent": 2}) as served:
        clients = [Client(served.port) for _ in range(2)]
        for client in clients:
            client.send(request())
        upstream.wait_for_peers(2)

        refused = get(served.port)

        assert refused.status == 429
        assert json.loads(refused.body) == {
            "error": "Rate limit exceeded",
            "code": "rate_limited",
            "limit_type": "concurrent",
            "retry_after": 1,
            "request_id": (refused.get("x-request-id") or b"").decode(),
        }
        assert refused.get("ratelimit") == b'"concurrent";r=0'
        release.set()
        assert [client.read_response().status for client in clients] == [200, 200]
        assert get(served.port).status == 200
        for client in clients:
            client.close()


@pytest.mark.parametrize("ending", ["close", "reset", "half_answer", "upstream_dies", "refused_later"])
def test_however_a_request_ends_its_place_is_free_again(ending: str) -> None:
    go = threading.Event()
    arrived = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            arrived.release()
            if ending == "upstream_dies":
                peer.reset()
                return
            if ending == "half_answer":
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                peer.close()
                return
            go.wait(60)
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    limits = {"concurrent": 1}
    extra = {"max_body": "10B"} if ending == "refused_later" else {}
    with Upstream(script) as upstream, gateway(upstream, limits, route=extra) as served:
        for _ in range(5):
            client = Client(served.port)
            if ending == "refused_later":
                client.send(request("/", "POST", "Transfer-Encoding: chunked") + b"20\r\n" + b"x" * 32)
                assert client.read_response().status == 413
            else:
                client.send(request())
                if ending in ("close", "reset"):
                    assert arrived.acquire(timeout=60)
                else:
                    with contextlib.suppress(Exception):
                        client.read_response()
            client.reset() if ending == "reset" else client.close()
            assert in_flight(served) == 0
        go.set()
        if ending in ("close", "reset"):
            assert get(served.port).status == 200


def in_flight(served: Gateway) -> int:
    """Requests under way, once what was ended has ended."""
    deadline = time.monotonic() + 60
    while True:
        samples = scrape(served.admin)
        active = int(sum(n for (name, _), n in samples.items() if name == "fastgate_requests_active"))
        if active == 0 or time.monotonic() > deadline:
            return active
        time.sleep(0.01)


# --- cost


def costly(*costs: str) -> Callable[[Peer], None]:
    left = list(costs)

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            line = f"X-Cost: {left.pop(0)}\r\n" if left else ""
            peer.send(f"HTTP/1.1 200 OK\r\n{line}Content-Length: 2\r\n\r\nok".encode())

    return script


def remaining(message: Message) -> tuple[str, int]:
    told = re.match(rb'"([a-z_.]+)";r=([0-9]+)', message.get("ratelimit") or b"")
    assert told is not None, message.headers
    return told[1].decode(), int(told[2])


def test_what_the_upstream_says_a_request_cost_is_settled_after_it() -> None:
    limits = {"cost_per_hour": 100, "cost": {"fixed": 0, "header": "X-Cost", "reserve": 10}}
    script = costly("30", "0.5", "nonsense")
    with Upstream(script) as upstream, gateway(upstream, limits) as served, Client(served.port) as client:
        told = []
        for _ in range(5):
            client.send(request())
            told.append(remaining(client.read_response()))

    # 10 are reserved for each. Known costs: 30, 0.5; two said nothing: what was reserved stands.
    assert told == [
        ("cost_per_hour", 90),
        ("cost_per_hour", 60),
        ("cost_per_hour", 59),
        ("cost_per_hour", 49),
        ("cost_per_hour", 39),
    ]


def test_bytes_cost_both_ways() -> None:
    body = b"x" * 5000
    limits = {
        "cost_per_hour": 1000,
        "cost": {"fixed": 1, "request_unit": "1KB", "response_unit": "100B"},
    }
    big = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b"y" * 10000)
    with Upstream(big) as upstream, gateway(upstream, limits) as served:
        first = get(served.port, "/", method="POST", body=body)
        second = get(served.port)

    assert remaining(first)[1] == 994  # one, and five for the body announced
    assert 886 <= remaining(second)[1] <= 893  # and what was sent: 10 000 bytes and the head


def test_a_request_that_got_no_answer_costs_nothing_of_what_is_settled() -> None:
    limits = {"cost_per_hour": 100, "cost": {"fixed": 1, "header": "X-Cost", "reserve": 50}}

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.reset()

    with Upstream(script) as upstream, gateway(upstream, limits) as served:
        assert [get(served.port, method="POST", body=b"x").status for _ in range(6)] == [502] * 6


def test_a_client_that_leaves_before_the_first_byte_pays_what_was_reserved() -> None:
    limits = {"cost_per_hour": 100, "by": "ip", "cost": {"fixed": 1, "header": "X-Cost", "reserve": 30}}
    arrived = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        arrived.set()
        peer.read_some()  # until the gateway gives up

    with Upstream(script) as upstream, gateway(upstream, limits) as served:
        with Client(served.port) as client:
            client.send(request())
            assert arrived.wait(60)
        deadline = time.monotonic() + 60
        while not value(scrape(served.admin), "fastgate_refusals_total", reason="client_closed"):
            assert time.monotonic() < deadline
            time.sleep(0.02)

        rows = call(served.admin, "/api/limits?ip=127.0.0.1").json["rules"]

    assert [row["limits"][0]["remaining"] for row in rows] == [70.0]


@pytest.mark.parametrize(
    ("limits", "policy"),
    [
        # A bucket is full again after limit / rate: that is the window its limit holds for.
        (
            {"algorithm": "token_bucket", "per_minute": 60, "burst": 5},
            b'"per_minute";q=5;w=5',
        ),
        (
            {"algorithm": "token_bucket", "per_minute": 7, "burst": 100},
            b'"per_minute";q=100;w=858',
        ),
        ({"algorithm": "token_bucket", "per_minute": 7}, b'"per_minute";q=7;w=60'),
        (
            {"algorithm": "token_bucket", "per_second": 3, "per_hour": 1000, "burst": 9},
            b'"per_second";q=9;w=3, "per_hour";q=1000;w=3600',
        ),
        ({"per_minute": 7, "burst": 3}, b'"burst";q=3;w=26, "per_minute";q=7;w=60'),
    ],
)
def test_the_window_of_a_policy_holds(limits: dict[str, Any], policy: bytes) -> None:
    with Upstream() as upstream, gateway(upstream, limits) as served:
        assert get(served.port).get("ratelimit-policy") == policy


# --- shadow, penalties, health


def test_shadow_mode_lets_pass_and_counts() -> None:
    with Upstream() as upstream, gateway(upstream, {"per_minute": 2, "enforce": False}) as served:
        answers = [get(served.port) for _ in range(5)]

        assert [message.status for message in answers] == [200] * 5
        assert answers[4].get("retry-after") is None
        samples = scrape_idle(served.admin)
        assert value(samples, "fastgate_shadow_refusals_total", route="main") == 3
        assert value(samples, "fastgate_limits_refused_total", limit="per_minute") == 3


def test_shadow_mode_leaves_what_other_gates_have_added() -> None:
    limits = {"per_minute": 1, "enforce": False}
    route = {"cors": {"origins": ["https://app.test"]}}
    with Upstream() as upstream, gateway(upstream, limits, route=route) as served:
        answers = [get(served.port, "/", "Origin: https://app.test") for _ in range(2)]

        assert [message.status for message in answers] == [200, 200]
        for message in answers:
            assert message.get("access-control-allow-origin") == b"https://app.test"


def test_who_keeps_running_into_limits_is_banned_for_longer_each_time() -> None:
    penalty = {"strikes": 3, "within": "60s", "bans": ["1s", "600s"], "forget": "1h"}
    with Upstream() as upstream, gateway(upstream, {"per_second": 1, "penalty": penalty}) as served:
        abuser, other = FORWARDED.format("10.0.0.1"), FORWARDED.format("10.0.0.2")
        while (refused := get(served.port, "/", abuser)).status == 200 or b"Rate limit" in refused.body:
            pass

        assert json.loads(refused.body) == {
            "error": "Too many violations",
            "code": "client_banned",
            "limit_type": "ban",
            "retry_after": 1,
            "request_id": (refused.get("x-request-id") or b"").decode(),
        }
        assert refused.status == 429
        assert refused.get("retry-after") == b"1"
        assert get(served.port, "/", other).status == 200
        time.sleep(1.1)
        assert get(served.port, "/", abuser).status in (200, 429)
        while b"ban" not in (refused := get(served.port, "/", abuser)).body:
            pass
        assert 500 <= json.loads(refused.body)["retry_after"] <= 600
        samples = scrape_idle(served.admin)
        assert value(samples, "fastgate_limits_bans_total") == 2
        assert value(samples, "fastgate_refusals_total", route="main", reason="client_banned") >= 1


def test_limits_fall_while_the_upstream_fails_and_rise_again() -> None:
    bad = threading.Event()

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            status = b"503 Service Unavailable" if bad.is_set() else b"200 OK"
            peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    adaptive = {"lowest": 0.1, "errors": 0.2, "interval": "100ms"}
    limits = {"per_day": 100_000, "adaptive": adaptive}
    with Upstream(script) as upstream, gateway(upstream, limits) as served, Client(served.port) as client:

        def left() -> int:
            client.send(request())
            return remaining(client.read_response())[1]

        usual = left()
        assert usual > 99_000
        bad.set()
        deadline = time.monotonic() + 60
        while left() > 12_000 and time.monotonic() < deadline:
            time.sleep(0.002)
        assert left() <= 12_000
        bad.clear()
        while left() < 50_000 and time.monotonic() < deadline + 60:
            time.sleep(0.002)
        assert left() >= 50_000


# --- reloads, kills, workers


def hammer(port: int, threads: int, each: int, *fields: str) -> int:
    """How many of threads * each requests were granted. Workers may die meanwhile."""
    granted = [0] * threads

    def work(number: int) -> None:
        todo = each
        while todo > 0:
            try:
                with Client(port) as client:
                    while todo > 0:
                        todo -= 1
                        client.send(request("/", "GET", *fields))
                        granted[number] += client.read_response().status == 200
            except Exception:  # the worker was killed: the answer is lost, the request may be counted
                continue

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(granted)


ALGORITHMS = ["sliding_window", "fixed_window", "token_bucket"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_together_grant_exactly_the_limit(algorithm: str, workers: int) -> None:
    limits = {"per_day": 150, "algorithm": algorithm, "by": "gateway"}
    with Upstream() as upstream, gateway(upstream, limits, workers=workers) as served:
        assert hammer(served.port, 8, 50) == 150
        assert len(upstream.requests) == 150


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_several_rules_under_parallel_load_grant_exactly_the_tightest(algorithm: str) -> None:
    limits = {
        "algorithm": algorithm,
        "rules": [
            {"by": "ip", "per_day": 400, "algorithm": algorithm},
            {"by": "gateway", "per_day": 120, "algorithm": algorithm},
        ],
    }
    with Upstream() as upstream, gateway(upstream, limits, workers=4) as served:
        assert hammer(served.port, 8, 50) == 120


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_reload_with_other_amounts_keeps_the_count(algorithm: str, workers: int) -> None:
    limits = {"per_day": 60, "algorithm": algorithm, "by": "gateway"}
    with Upstream() as upstream, gateway(upstream, limits, workers=workers) as served:
        assert hammer(served.port, 4, 10) == 40
        config = dict(served._config)  # type: ignore[call-overload]
        config["routes"] = [{**config["routes"][0], "limits": {**limits, "per_day": 100}}]
        served.write_config(config)
        assert call(served.admin, "/api/gateway/reload", "POST").status == 200

        more = hammer(served.port, 8, 25)

    # A window goes on at 40 of 100. A bucket remembers its time: 40 of 60 a day are 66 of 100 a day, and one
    # comes back every 864 s.
    assert more == (60 if algorithm != "token_bucket" else 33)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_killed_workers_lose_no_count(algorithm: str) -> None:
    limits = {"per_day": 300, "algorithm": algorithm, "by": "gateway"}
    with Upstream() as upstream, gateway(upstream, limits, workers=2) as served:
        stop = threading.Event()
        killed: set[int] = set()
        kills = threading.Thread(target=_kill_workers, args=(served, stop, 4, random.Random(3), killed))
        kills.start()
        granted = hammer(served.port, 6, 120)
        stop.set()
        kills.join()
        wait_for_workers(served, 2, killed)

        # Never one too many; an answer that died with its worker was counted, but not seen.
        assert granted <= 300
        assert len(upstream.requests) <= 300
        assert granted >= 300 - 6 * 4 * 2
        assert hammer(served.port, 2, 20) == 0


def wait_for_workers(served: Gateway, count: int, killed: set[int]) -> None:
    """Until the killed ones are missed, so many others accept, and a request of before has ended on each."""
    deadline = time.monotonic() + 60
    # A dead worker counts as ready until the supervisor has reaped it, and its heir may still be starting.
    while not killed <= died(served):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while value(scrape(served.admin), "fastgate_workers", state="ready") < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert in_flight(served) == 0
    served.seen |= set(served.children())
    served.settle()


def died(served: Gateway) -> set[int]:
    """The workers whose death the supervisor has told."""
    lines = [line for line in served.stderr_text.splitlines() if '"worker died"' in line]
    return {int(json.loads(line)["worker"]) for line in lines}


def _kill_workers(
    served: Gateway, stop: threading.Event, count: int, rng: random.Random, killed: set[int]
) -> None:
    for _ in range(count):
        if stop.wait(0.15 + rng.random() * 0.1):
            return
        pids = served.worker_pids()
        if pids:
            killed.add(kill_one(pids, rng))


def kill_one(pids: list[int], rng: random.Random) -> int:
    """Kills one of these children of the supervisor (dead ones stay in the list until they are reaped)."""
    pid = rng.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def _leases_never_leak(seconds: float, seed: int) -> None:
    """Random requests, some cut, some reset, workers killed: in the end nothing is held any more."""
    print(f"seed {seed}")
    most = 3
    rng = random.Random(seed)
    answered = [0] * 6
    killed: set[int] = set()

    def script(peer: Peer) -> None:
        own = random.Random(rng.random())
        while True:
            peer.read_request()
            time.sleep(own.random() * 0.01)
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def work(number: int, until: float) -> None:
        own = random.Random(seed * 1000 + number)
        while time.monotonic() < until:
            with contextlib.suppress(OSError, Malformed), Client(served.port) as client:
                for _ in range(own.randrange(1, 6)):
                    client.send(request())
                    what = own.random()
                    if what < 0.15:
                        client.reset()
                        break
                    if what < 0.3:
                        break
                    answered[number] += client.read_response().status == 200

    with Upstream(script) as upstream, gateway(upstream, {"concurrent": most}, workers=2) as served:
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=work, args=(number, until)) for number in range(6)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(0.2 + rng.random() * 0.3)
            pids = served.worker_pids()
            if pids:
                killed.add(kill_one(pids, rng))
        for thread in threads:
            thread.join()
        assert sum(answered) > 0
        wait_for_workers(served, 2, killed)

        # Every place can be had again: exactly as many at once as allowed.
        release = threading.Event()

        def slow(peer: Peer) -> None:
            while True:
                peer.read_request()
                release.wait(60)
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        upstream.forget()
        upstream.script = slow
        clients = [Client(served.port) for _ in range(most)]
        for client in clients:
            client.send(request())
        upstream.wait_for_peers(most)
        assert get(served.port).status == 429
        release.set()
        assert [client.read_response().status for client in clients] == [200] * most
        for client in clients:
            client.close()


@pytest.mark.parametrize("seed", range(2))
def test_leases_never_leak(seed: int) -> None:
    _leases_never_leak(2.0, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10, 20))
def test_leases_never_leak_for_long(seed: int) -> None:
    _leases_never_leak(60.0, seed)


# --- the config


def problems_of(config: dict[str, Any]) -> Iterator[str]:
    route = {"path": "/*", "respond": "ok", **config.get("route", {})}
    rest = {key: section for key, section in config.items() if key != "route"}
    _, errors = check(json.dumps({"routes": [route], **rest}), "json")
    return map(str, errors)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"route": {"limits": {"burst": 5}}}, r"\$.routes\[0\].limits.burst: .*one of per_second"),
        ({"route": {"limits": {"per_minutes": 5}}}, r"per_minutes: unknown key .*per_minute"),
        ({"route": {"limits": {"per_minute": 0}}}, r"limits.per_minute: expected .*at least 1|>= 1|1 to"),
        (
            {"route": {"limits": {"per_minute": 9, "per_hour": 5}}},
            r"limits.per_minute: .*per_hour is always",
        ),
        ({"limits": {"rules": [{"by": "ip"}]}}, r"\$.limits.rules\[0\]: .*a rule without limits"),
        (
            {"limits": {"rules": [{"by": "ip", "per_day": 1}, {"by": "ip", "per_hour": 1}]}},
            r"\$.limits.rules\[1\].by: .*counts by the same",
        ),
        ({"limits": {"per_day": 1, "by": ["ip", "ip"]}}, r"limits.by: .*each part once"),
        ({"limits": {"per_day": 1, "by": [{}]}}, r"limits.by\[0\]: .*either header"),
        ({"limits": {"per_day": 1, "by": [{"header": "a b"}]}}, r"limits.by\[0\].header"),
        ({"limits": {"per_day": 1, "inherit": False}}, r"limits.inherit: .*route"),
        ({"limits": {"per_day": 1, "cost": {"header": "a b"}}}, r"limits.cost.header"),
        (
            {"limits": {"per_day": 1, "penalty": {"bans": ["10s", "5s"]}}},
            r"penalty.bans\[1\]: .*increasing",
        ),
        ({"tiers": {"gold": {"burst": 3}}}, r"\$.tiers.gold.burst"),
        ({"consumers": {"acme": {"tier": "fre"}}}, r"\$.consumers.acme.tier: .*did you mean free"),
        ({"consumers": {"acme": {"limits": {"per_minut": 3}}}}, r"\$.consumers.acme.limits.*per_minut"),
        ({"consumers": {"acme": {"limits": {"burst": 3}}}}, r"\$.consumers.acme.limits.burst"),
        ({"access": {"deny": ["10.0.0.1/8"]}}, r"\$.access.deny\[0\]: .*10.0.0.0/8"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_with_its_path(config: dict[str, Any], expected: str) -> None:
    found = list(problems_of(config))

    assert any(re.search(expected, text) for text in found), found
