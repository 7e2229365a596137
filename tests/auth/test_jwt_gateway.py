"""Tokens through the whole gateway: what the client sees, what the upstream sees, what is counted."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.auth.issuer import Issuer, Key
from tests.client import Client, get, request
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Upstream

KEY = Key("ES256", "one")


def config(issuer: Issuer, upstream: Upstream, **more: Any) -> dict[str, Any]:
    return {
        "auth": {"jwt": {"issuers": [{"issuer": issuer.url, "discovery": True, **more}]}},
        "routes": [{"path": "/*", "upstream": upstream.url, "auth": ["api_key", "jwt"]}],
    }


def ask(gateway: Gateway, token: str | None, *lines: str) -> Message:
    with Client(gateway.port) as client:
        headers = [*lines] if token is None else [f"Authorization: Bearer {token}", *lines]
        client.send(request("/orders", "GET", *headers))
        return client.read_response()


def counted(gateway: Gateway, **labels: str) -> int:
    """What /metrics says of fastgate_auth_total with these labels."""
    host, _, port = gateway.admin.rpartition(":")
    with Client(int(port)) as client:
        client.send(request("/metrics", host=host))
        text = client.read_response().body.decode()
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return sum(
        int(float(line.split()[-1]))
        for line in text.splitlines()
        if line.startswith("fastgate_auth_total{") and all(one in line for one in wanted)
    )


def test_a_token_lets_in_and_its_owner_is_told_upstream() -> None:
    with Issuer(KEY) as issuer, Upstream() as upstream, Gateway(config(issuer, upstream)) as gateway:
        token = KEY.sign(issuer.claims(scope="orders:read"))
        for _ in range(5):
            assert ask(gateway, token, "X-Consumer-Id: admin").status == 200
        assert counted(gateway, method="jwt", outcome="ok") == 1  # the others were known

        seen = upstream.requests[-1]
        assert seen.get("x-consumer-id") == b"alice"
        assert seen.get("x-consumer-scopes") == b"orders:read"
        assert seen.get("authorization") == b"Bearer " + token.encode()  # the upstream may look at it too


def test_every_wrong_token_gets_the_same_answer() -> None:
    with Issuer(KEY) as issuer, Upstream() as upstream, Gateway(config(issuer, upstream)) as gateway:
        good = KEY.sign(issuer.claims())
        wrong = [
            None,
            "nonsense",
            "a.b.c",
            good[:-4] + "AAAA",
            KEY.sign(issuer.claims(exp=int(time.time()) - 100)),
            KEY.sign(issuer.claims(iss="https://evil.example")),
            KEY.sign(issuer.claims(), kid="two"),
            Key("ES256", "one").sign(issuer.claims()),
            good.rpartition(".")[0] + ".",
        ]
        answers = [ask(gateway, token) for token in wrong]

        assert {answer.status for answer in answers} == {401}
        bodies = [json.loads(answer.body) for answer in answers]
        assert {body["code"] for body in bodies} == {"credentials_missing", "credentials_invalid"}
        assert {body["code"] for body in bodies[3:]} == {"credentials_invalid"}  # whatever is wrong
        assert {body["error"] for body in bodies} == {"Unauthorized"}
        assert all(b"Bearer" in (answer.get("www-authenticate") or b"") for answer in answers)
        assert upstream.requests == []
        assert issuer.fetches <= 2


def test_an_issuer_that_is_away_is_503_and_not_a_hang() -> None:
    with Issuer(KEY) as issuer, Upstream() as upstream:
        issuer.mute.set()
        settings = config(issuer, upstream, jwks={"timeout": "300ms"})
        settings["routes"].append({"path": "/open/*", "upstream": upstream.url})
        with Gateway(settings, allow="keys of") as gateway:
            answer = ask(gateway, KEY.sign(issuer.claims()))
            assert answer.status == 503
            assert get(gateway.port, "/open/x").status == 200
            assert counted(gateway, method="jwt", outcome="unavailable") >= 1

            settings["auth"]["jwt"]["on_error"] = "allow"
            gateway.write_config(settings)


def test_a_token_stays_good_over_a_reload() -> None:
    with Issuer(KEY) as issuer, Upstream() as upstream:
        settings = config(issuer, upstream)
        with Gateway(settings) as gateway:
            token = KEY.sign(issuer.claims())
            assert ask(gateway, token).status == 200
            settings["routes"].append({"path": "/more/*", "upstream": upstream.url, "auth": ["jwt"]})
            gateway.write_config(settings)
            assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200
            assert get(gateway.port, "/more/x").status == 401
            assert ask(gateway, token).status == 200
            assert ask(gateway, KEY.sign(issuer.claims(n=2))).status == 200
        assert issuer.fetches == 1


def test_a_tier_that_a_reload_defines_counts_for_tokens_seen_before() -> None:
    with Issuer(KEY) as issuer, Upstream() as upstream:
        settings = config(issuer, upstream)
        settings["auth"]["jwt"]["issuers"][0]["claims"] = {"tier": "plan"}
        with Gateway(settings) as gateway:
            token = KEY.sign(issuer.claims(plan="gold"))
            assert ask(gateway, token).status == 200
            assert upstream.requests[-1].get("x-consumer-tier") is None  # no such tier yet

            settings["tiers"] = {"gold": {"per_minute": 1000}}
            gateway.write_config(settings)
            assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200
            assert ask(gateway, token).status == 200

        assert upstream.requests[-1].get("x-consumer-tier") == b"gold"
