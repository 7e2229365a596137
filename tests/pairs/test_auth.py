"""Credentials in two places, of two kinds, in shadow mode; and what a refusal says to whom."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jwt
import pytest

from tests.client import Client, get, request
from tests.control.admin_client import call, scrape, value
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.strict import Message
from tests.upstream import Upstream, answer

SECRET = "0123456789abcdef0123456789abcdef"


class Harness(NamedTuple):
    gateway: Gateway
    upstream: Upstream
    key: str


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Upstream(answer()) as upstream:

        def route(name: str, auth: Any, **more: Any) -> dict[str, Any]:
            return {"name": name, "path": f"/{name}", "upstream": upstream.url, "auth": auth, **more}

        config = {
            "auth": {
                "api_key": {"query": "api_key"},
                "jwt": {"issuers": [{"issuer": "us", "secret": SECRET, "audience": ["me"]}]},
            },
            "routes": [
                route("key", ["api_key"]),
                route("both", ["jwt", "api_key"]),
                route("open", ["api_key", "anonymous"]),
                route("shadow", {"schemes": ["api_key"], "enforce": False}),
                route("jwt", ["jwt"]),
                route("limited", ["anonymous"], limits={"per_minute": 1}),
                {
                    "name": "policy",
                    "path": "/policy",
                    "respond": "ok",
                    "policies": [{"name": "p", "when": "true"}],
                },
                {"name": "dead", "path": "/dead", "upstream": "http://127.0.0.1:9"},
            ],
        }
        with Gateway(config, allow="connect") as gateway:
            made = call(gateway.admin, "/api/auth/api-key", "POST", body={"consumer": "acme"})
            yield Harness(gateway, upstream, made.json["api_key"])


def ask(harness: Harness, target: str, *fields: str) -> tuple[Message, Message | None]:
    """The response, and the request as the upstream saw it."""
    harness.upstream.script = answer()
    before = len(harness.upstream.requests)
    answered = get(harness.gateway.port, target, *fields)
    seen = harness.upstream.requests[before:]
    return answered, seen[-1] if seen else None


def body(answered: Message) -> dict[str, Any]:
    """The error body, whose request id is the field's."""
    told: dict[str, Any] = json.loads(answered.body)
    assert told["request_id"].encode() == answered.get("x-request-id")
    return told


def token(**claims: Any) -> str:
    """A good token but for `claims`. It lasts a day: some are made long before they are used."""
    now = int(time.time())
    return jwt.encode(
        {"iss": "us", "sub": "ada", "aud": "me", "exp": now + 86400, **claims}, SECRET, algorithm="HS256"
    )


PLACES = {
    "header": ("", ("X-API-Key: {}",)),
    "bearer": ("", ("Authorization: Bearer {}",)),
    "bearer-lower": ("", ("authorization: bearer {}",)),
    "query": ("?api_key={}", ()),
    "encoded": ("?a=1&api%5Fkey={}", ()),
}
PAIRS = [(one, other) for one in PLACES for other in PLACES if one <= other]


@pytest.mark.parametrize("other_key", ["same", "wrong"])
@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("path", ["/key", "/open", "/both"])
def test_two_keys_are_refused_wherever_they_stand(
    harness: Harness, path: str, one: str, other: str, other_key: str
) -> None:
    wrong = harness.key if other_key == "same" else "fg_" + "x" * 43
    query = "&".join(
        PLACES[place][0].format(key).lstrip("?")
        for place, key in ((one, harness.key), (other, wrong))
        if PLACES[place][0]
    )
    fields = [field.format(harness.key) for field in PLACES[one][1]] + [
        field.format(wrong) for field in PLACES[other][1]
    ]
    for place, (alone, shown) in PLACES.items():  # known to the gateway's memory
        if place in (one, other):
            assert (
                ask(
                    harness, path + alone.format(harness.key), *(field.format(harness.key) for field in shown)
                )[0].status
                == 200
            )

    answered, seen = ask(harness, path + (f"?{query}" if query else ""), *fields)

    assert (answered.status, seen) == (401, None)
    assert body(answered)["code"] == "credentials_repeated"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", ["/key", "/both", "/open", "/shadow"])
def test_no_key_goes_upstream(harness: Harness, path: str, place: str) -> None:
    query, fields = PLACES[place]

    answered, seen = ask(
        harness, path + query.format(harness.key), *(field.format(harness.key) for field in fields)
    )

    assert answered.status == 200
    assert seen is not None
    assert harness.key.encode() not in seen.raw


@pytest.mark.parametrize("place", ["header", "query"])
def test_no_key_goes_upstream_beside_another_credential(harness: Harness, place: str) -> None:
    query, fields = PLACES[place]
    for _ in range(2):  # the second time the token is known
        bearer = f"Authorization: Bearer {token(n=1)}"
        answered, seen = ask(
            harness,
            "/both" + query.format(harness.key),
            bearer,
            *(field.format(harness.key) for field in fields),
        )
        assert answered.status == 200
        assert seen is not None
        assert harness.key.encode() not in seen.raw
        assert seen.get("x-consumer-id") == b"ada"


@pytest.mark.parametrize("place", PLACES)
def test_no_wrong_key_goes_upstream_in_shadow_mode(harness: Harness, place: str) -> None:
    query, fields = PLACES[place]
    wrong = "fg_" + "y" * 43

    answered, seen = ask(harness, "/shadow" + query.format(wrong), *(field.format(wrong) for field in fields))

    assert answered.status == 200
    assert seen is not None
    assert wrong.encode() not in seen.raw


def test_another_spelling_of_the_header_is_no_second_place(harness: Harness) -> None:
    answered, seen = ask(harness, "/key", f"X-API-Key: {harness.key}", f"X_API.Key: {harness.key}")

    assert answered.status == 200
    assert seen is not None
    assert harness.key.encode() not in seen.raw


def test_a_credential_for_the_upstream_passes_beside_the_key(harness: Harness) -> None:
    for _ in range(2):
        answered, seen = ask(harness, "/key", f"X-API-Key: {harness.key}", "Authorization: Basic eDp5")
        assert answered.status == 200
        assert seen is not None
        assert seen.get("authorization") == b"Basic eDp5"
    answered, _ = ask(harness, "/key", f"Authorization: Bearer {harness.key}", "Authorization: Basic eDp5")
    assert answered.status == 401


def test_two_tokens_are_refused(harness: Harness) -> None:
    good = f"Authorization: Bearer {token()}"
    assert ask(harness, "/jwt", good)[0].status == 200

    answered, seen = ask(harness, "/jwt", good, good)

    assert (answered.status, seen) == (401, None)


WRONG = {
    "missing": ("/jwt", (), "credentials_missing", "credentials_missing", b""),
    "foreign": ("/jwt", ("Authorization: Basic eDp5",), "credentials_missing", "credentials_missing", b""),
    "expired": (
        "/jwt",
        (f"Authorization: Bearer {token(exp=1)}",),
        "credentials_invalid",
        "credentials_expired",
        b"T",
    ),
    "early": (
        "/jwt",
        (f"Authorization: Bearer {token(nbf=1 << 34)}",),
        "credentials_invalid",
        "credentials_not_yet_valid",
        b"T",
    ),
    "audience": (
        "/jwt",
        (f"Authorization: Bearer {token(aud='you')}",),
        "credentials_invalid",
        "wrong_audience",
        b"T",
    ),
    "issuer": (
        "/jwt",
        (f"Authorization: Bearer {token(iss='them')}",),
        "credentials_invalid",
        "credentials_unknown",
        b"T",
    ),
    "signature": (
        "/jwt",
        (f"Authorization: Bearer {token()[:-8]}AAAAAAAA",),
        "credentials_invalid",
        "credentials_wrong",
        b"T",
    ),
    "malformed": (
        "/jwt",
        ("Authorization: Bearer a.b.c",),
        "credentials_invalid",
        "credentials_malformed",
        b"T",
    ),
    "key": ("/key", ("X-API-Key: fg_" + "z" * 43,), "credentials_invalid", "credentials_unknown", b""),
    "key-behind-bearer": (
        "/key",
        ("Authorization: Bearer fg_" + "z" * 43,),
        "credentials_invalid",
        "credentials_unknown",
        b"T",
    ),
    "no-key": ("/key", ("X-API-Key: nonsense",), "credentials_invalid", "credentials_malformed", b""),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_401_tells_the_client_little_and_the_operator_all(harness: Harness, case: str) -> None:
    path, fields, code, reason, has_error = WRONG[case]

    def refused() -> float:
        return value(scrape(harness.gateway.admin), "fastgate_refusals_total", route=path[1:], reason=reason)

    before = refused()

    answered, _ = ask(harness, path, *fields)

    assert answered.status == 401
    told = body(answered)
    assert list(told) == ["error", "code", "request_id"]
    assert (told["error"], told["code"]) == ("Unauthorized", code)
    challenge = answered.get("www-authenticate") or b""
    assert challenge.startswith(b'Bearer realm="fastgate"')
    assert (b'error="invalid_token"' in challenge) == bool(has_error)
    until(lambda: refused() == before + 1, "the refusal is counted")


@pytest.mark.parametrize(
    ("target", "method", "status", "code"),
    [
        ("/policy", "GET", 403, "policy_denied"),
        ("/nowhere", "GET", 404, "no_route"),
        ("/dead", "GET", 502, "upstream_connect_failed"),
    ],
)
def test_every_error_body_has_its_code_and_the_request_id(
    harness: Harness, target: str, method: str, status: int, code: str
) -> None:
    with Client(harness.gateway.port) as client:
        client.send(request(target, method))
        answered = client.read_response()

    assert answered.status == status
    assert body(answered)["code"] == code


def test_the_body_of_a_429_has_its_code_and_the_request_id(harness: Harness) -> None:
    answered = [ask(harness, "/limited")[0] for _ in range(2)][-1]

    assert answered.status == 429
    told = body(answered)
    assert list(told) == ["error", "code", "limit_type", "retry_after", "request_id"]
    assert told["code"] == "rate_limited"
