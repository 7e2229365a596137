"""Every 401 that the gateway makes has a challenge (RFC 9110 §11.6.1), and its code tells a wrong credential
from none (RFC 6750 §3.1)."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jwt
import pytest

from fastgate.auth import passwords
from tests.auth.test_introspection import Server
from tests.auth.test_schemes_gateway import Judge
from tests.auth.test_signed_requests import SECRET, hmac_request
from tests.client import Client, get
from tests.gateway import Gateway
from tests.upstream import Upstream, answer

JWT_SECRET = "0123456789abcdef0123456789abcdef"
BEARER = b'Bearer realm="fastgate"'


class Harness(NamedTuple):
    gateway: Gateway
    upstream: Upstream


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Upstream(answer()) as upstream, Judge(401) as judge, Server() as server:

        def route(name: str, *schemes: str, **more: Any) -> dict[str, Any]:
            return {
                "name": name,
                "path": f"/{name}",
                "upstream": upstream.url,
                "auth": list(schemes),
                **more,
            }

        def deny(name: str) -> dict[str, Any]:
            return {"policies": [{"name": name, "when": "true", "action": "deny", "status": 401}]}

        config = {
            "auth": {
                "hmac": {"keys": {"acme-2": {"consumer": "acme", "secret": SECRET}}},
                "signatures": {
                    "keys": {"shared": {"algorithm": "hmac-sha256", "consumer": "acme", "secret": SECRET}}
                },
                "jwt": {
                    "header": "X-Token",
                    "issuers": [{"issuer": "us", "secret": JWT_SECRET, "audience": ["me"]}],
                },
                "basic": {"users": {"ada": passwords.hash_password("p")}},
                "introspection": {
                    "url": f"{server.url}/introspect",
                    "client_id": "g",
                    "client_secret": "s",
                    "timeout": "60s",
                },
                "forward": {"url": judge.url, "timeout": "60s"},
                "mtls": {},
            },
            "consumers": {"acme": {}},
            "routes": [
                *(
                    route(name, name)
                    for name in (
                        *("api_key", "hmac", "signatures", "jwt"),
                        *("basic", "introspection", "forward", "mtls"),
                    )
                ),
                route("key_or_basic", "api_key", "basic"),
                route("scoped", "anonymous", scopes=["a"]),
                {"name": "denied", "path": "/denied", "respond": "ok", **deny("a")},
                route("denied_anonymous", "anonymous", **deny("b")),
                {"name": "fixed", "path": "/fixed", "respond": {"status": 401}},
                {
                    "name": "fixed_edited",
                    "path": "/fixed_edited",
                    "respond": {"status": 401},
                    "response_headers": {"set": {"X-A": "b"}},
                },
                {
                    "name": "fixed_own",
                    "path": "/fixed_own",
                    "respond": {"status": 401, "headers": {"www-authenticate": "Own a=b"}},
                },
                route("edited", "mtls", response_headers={"set": {"X-A": "b"}}),
            ],
        }
        with Gateway(config, allow="connect") as gateway:
            yield Harness(gateway, upstream)


CHALLENGES = {
    "api_key": BEARER,
    "hmac": b'HMAC-SHA256 realm="fastgate"',
    "signatures": b'Signature realm="fastgate"',
    "jwt": BEARER + b', header="x-token"',
    "basic": b'Basic realm="',
    "introspection": BEARER,
    "forward": b'Forward realm="fastgate"',
    "mtls": b'Certificate realm="fastgate"',
    "key_or_basic": BEARER,
    "scoped": BEARER + b', scope="a"',
    "denied": BEARER,
    "denied_anonymous": BEARER,
    "fixed": BEARER,
    "fixed_edited": BEARER,
    "fixed_own": b"Own a=b",
    "edited": b'Certificate realm="fastgate"',
}


@pytest.mark.parametrize("name", CHALLENGES)
def test_every_401_of_the_gateway_has_a_challenge(harness: Harness, name: str) -> None:
    answered = get(harness.gateway.port, f"/{name}")

    assert answered.status == 401
    first = answered.values("www-authenticate")[0]
    assert first.startswith(CHALLENGES[name])
    assert len(answered.values("www-authenticate")) == (2 if name == "key_or_basic" else 1)


def test_the_401_of_a_wrong_body_digest_has_a_challenge(harness: Harness) -> None:
    other = base64.b64encode(bytes(32)).decode()
    for data in (
        hmac_request("/hmac", digest=f"sha-256=:{other}:"),
        hmac_request("/hmac", "POST", body=b"x", digest=f"sha-256=:{other}:"),
    ):
        with Client(harness.gateway.port) as client:
            client.send(data)
            answered = client.read_response()

        assert answered.status == 401
        assert answered.values("www-authenticate") == [b'HMAC-SHA256 realm="fastgate"']


def test_the_challenge_of_an_upstream_is_not_the_gateways_to_add(harness: Harness) -> None:
    harness.upstream.script = answer(b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n")
    token = jwt.encode(
        {"iss": "us", "sub": "acme", "aud": "me", "exp": int(time.time()) + 600}, JWT_SECRET, "HS256"
    )

    answered = get(harness.gateway.port, "/jwt", f"X-Token: {token}")

    assert (answered.status, answered.get("www-authenticate")) == (401, None)


def basic(pair: str) -> str:
    return "Authorization: Basic " + base64.b64encode(pair.encode()).decode()


# Scheme, credential → (code, whether the Bearer challenge says invalid_token)
SHOWN: list[tuple[str, tuple[str, ...], str, bool]] = [
    ("api_key", (), "missing", False),
    ("api_key", ("Authorization: Bearer fg_unknown",), "invalid", True),
    ("api_key", ("Authorization: Bearer opaque",), "invalid", True),
    ("api_key", ("Authorization: bearer a.b.c",), "invalid", True),
    ("api_key", ("Authorization: Bearer",), "invalid", True),
    ("api_key", ("Authorization: Bearerx y",), "missing", False),
    ("api_key", (basic("ada:p"),), "missing", False),
    ("api_key", ("X-API-Key: opaque",), "invalid", False),
    ("api_key", ("X-API-Key:",), "invalid", False),
    ("hmac", (), "missing", False),
    ("hmac", ("Authorization: Bearer opaque",), "missing", False),
    ("hmac", ("Authorization: HMAC-SHA256",), "invalid", False),
    ("hmac", ("Authorization: hmac-sha256 nonsense",), "invalid", False),
    ("signatures", (), "missing", False),
    ("signatures", ("Signature-Input: nonsense(",), "invalid", False),
    ("signatures", ('Signature-Input: a=();keyid="b"',), "invalid", False),
    ("signatures", ("Signature: a=:AAAA:",), "invalid", False),
    ("jwt", (), "missing", False),
    ("jwt", ("X-Token: opaque",), "invalid", False),
    ("jwt", ("X-Token: Bearer opaque",), "invalid", False),
    ("jwt", ("X-Token: a.b.c",), "invalid", False),
    ("jwt", ("Authorization: Basic eDp5",), "missing", False),
    ("basic", (), "missing", False),
    ("basic", (basic("ada:q"),), "invalid", False),
    ("basic", ("Authorization: Basic",), "invalid", False),
    ("basic", ("Authorization: Basic !",), "invalid", False),
    ("basic", ("Authorization: Bearer opaque",), "missing", False),
    ("introspection", (), "missing", False),
    ("introspection", ("Authorization: Bearer",), "invalid", True),
    ("introspection", ("Authorization: Bearer a b",), "invalid", True),
    ("introspection", (basic("ada:p"),), "missing", False),
    ("mtls", ("Authorization: Bearer opaque",), "missing", False),
    ("key_or_basic", ("Authorization: Bearer opaque",), "invalid", True),
    ("key_or_basic", (basic("ada:q"),), "invalid", False),
    ("key_or_basic", ("Authorization: Digest a=b",), "missing", False),
]


@pytest.mark.parametrize(("name", "fields", "code", "says_invalid"), SHOWN)
def test_a_credential_that_is_shown_and_wrong_is_not_missing(
    harness: Harness, name: str, fields: tuple[str, ...], code: str, says_invalid: bool
) -> None:
    answered = get(harness.gateway.port, f"/{name}", *fields)

    assert answered.status == 401
    assert json.loads(answered.body)["code"] == f"credentials_{code}"
    assert (b'error="invalid_token"' in answered.values("www-authenticate")[0]) == says_invalid
