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
from tests.server.gateway_rig import until
from tests.strict import Message
from tests.upstream import Upstream, answer

SECRET = "0123456789abcdef0123456789abcdef"


class Rig(NamedTuple):
    gateway: Gateway
    upstream: Upstream
    key: str


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
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
            yield Rig(gateway, upstream, made.json["api_key"])


def ask(rig: Rig, target: str, *fields: str) -> tuple[Message, Message | None]:
    """The response, and the request as the upstream saw it."""
    rig.upstream.script = answer()
    before = len(rig.upstream.requests)
    answered = get(rig.gateway.port, target, *fields)
    seen = rig.upstream.requests[before:]
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
    rig: Rig, path: str, one: str, other: str, other_key: str
) -> None:
    wrong = rig.key if other_key == "same" else "fg_" + "x" * 43
    query = "&".join(
        PLACES[place][0].format(key).lstrip("?")
        for place, key in ((one, rig.key), (other, wrong))
        if PLACES[place][0]
    )
    fields = [field.format(rig.key) for field in PLACES[one][1]] + [
        field.format(wrong) for field in PLACES[other][1]
    ]
    for place, (alone, shown) in PLACES.items():  # known to the gateway's memory
        if place in (one, other):
            assert (
                ask(rig, path + alone.format(rig.key), *(field.format(rig.key) for field in shown))[0].status
                == 200
            )

    answered, seen = ask(rig, path + (f"?{query}" if query else ""), *fields)

    assert (answered.status, seen) == (401, None)
    assert body(answered)["code"] == "credentials_repeated"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", ["/key", "/both", "/open", "/shadow"])
def test_no_key_goes_upstream(rig: Rig, path: str, place: str) -> None:
    query, fields = PLACES[place]

    answered, seen = ask(rig, path + query.format(rig.key), *(field.format(rig.key) for field in fields))

    assert answered.status == 200
    assert seen is not None
    assert rig.key.encode() not in seen.raw


@pytest.mark.parametrize("place", ["header", "query"])
def test_no_key_goes_upstream_beside_another_credential(rig: Rig, place: str) -> None:
    query, fields = PLACES[place]
    for _ in range(2):  # the second time the token is known
        bearer = f"Authorization: Bearer {token(n=1)}"
        answered, seen = ask(
            rig, "/both" + query.format(rig.key), bearer, *(field.format(rig.key) for field in fields)
        )
        assert answered.status == 200
        assert seen is not None
        assert rig.key.encode() not in seen.raw
        assert seen.get("x-consumer-id") == b"ada"


@pytest.mark.parametrize("place", PLACES)
def test_no_wrong_key_goes_upstream_in_shadow_mode(rig: Rig, place: str) -> None:
    query, fields = PLACES[place]
    wrong = "fg_" + "y" * 43

    answered, seen = ask(rig, "/shadow" + query.format(wrong), *(field.format(wrong) for field in fields))

    assert answered.status == 200
    assert seen is not None
    assert wrong.encode() not in seen.raw


def test_another_spelling_of_the_header_is_no_second_place(rig: Rig) -> None:
    answered, seen = ask(rig, "/key", f"X-API-Key: {rig.key}", f"X_API.Key: {rig.key}")

    assert answered.status == 200
    assert seen is not None
    assert rig.key.encode() not in seen.raw


def test_a_credential_for_the_upstream_passes_beside_the_key(rig: Rig) -> None:
    for _ in range(2):
        answered, seen = ask(rig, "/key", f"X-API-Key: {rig.key}", "Authorization: Basic eDp5")
        assert answered.status == 200
        assert seen is not None
        assert seen.get("authorization") == b"Basic eDp5"
    answered, _ = ask(rig, "/key", f"Authorization: Bearer {rig.key}", "Authorization: Basic eDp5")
    assert answered.status == 401


def test_two_tokens_are_refused(rig: Rig) -> None:
    good = f"Authorization: Bearer {token()}"
    assert ask(rig, "/jwt", good)[0].status == 200

    answered, seen = ask(rig, "/jwt", good, good)

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
def test_a_401_tells_the_client_little_and_the_operator_all(rig: Rig, case: str) -> None:
    path, fields, code, reason, has_error = WRONG[case]

    def refused() -> float:
        return value(scrape(rig.gateway.admin), "fastgate_refusals_total", route=path[1:], reason=reason)

    before = refused()

    answered, _ = ask(rig, path, *fields)

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
    rig: Rig, target: str, method: str, status: int, code: str
) -> None:
    with Client(rig.gateway.port) as client:
        client.send(request(target, method))
        answered = client.read_response()

    assert answered.status == status
    assert body(answered)["code"] == code


def test_the_body_of_a_429_has_its_code_and_the_request_id(rig: Rig) -> None:
    answered = [ask(rig, "/limited")[0] for _ in range(2)][-1]

    assert answered.status == 429
    told = body(answered)
    assert list(told) == ["error", "code", "limit_type", "retry_after", "request_id"]
    assert told["code"] == "rate_limited"
