"""HMAC request signing: what is accepted, and everything that must not be."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import time
from typing import Any

import pytest

from fastgate._core.pipeline.identity import Identity
from fastgate.auth.hmac import Hmac, canonical_string, sorted_query
from fastgate.auth.nonces import NonceWindow
from fastgate.auth.scheme import REJECTED
from fastgate.auth.signing_settings import HmacConfig
from fastgate.settings import SECOND
from fastgate.state.memory import HostMemory
from fastgate.state.records import secret_digest
from tests.auth.messages import Request, identify

SECRET = b"a secret of the client"
NONCES = itertools.count()


def scheme(memory: HostMemory | None = None, *, clock: Any = time.time, **settings: Any) -> Hmac:
    config = HmacConfig(**settings)
    counts: dict[str, int] = {}

    class Counter:
        def __init__(self, name: str) -> None:
            self.name = name

        def add(self, n: int = 1) -> None:
            counts[self.name] = counts.get(self.name, 0) + n

    made = Hmac(
        config,
        {"acme": ("acme", SECRET), "off": ("disabled", SECRET)},
        identify,
        NonceWindow((memory or HostMemory.private()).nonces, "hmac", Hmac.valid_ns(config)),
        lambda name, /, **labels: Counter(labels["outcome"]),
        clock=clock,
    )
    made.counts = counts  # type: ignore[attr-defined]
    return made


def signed(
    method: str = "GET",
    url: str = "http://gateway.test/orders?b=2&a=1",
    *,
    key: str = "acme",
    secret: bytes = SECRET,
    ts: str | None = None,
    nonce: str | None = None,
    headers: dict[str, str] | None = None,
    listed: str = "",
    body: bytes = b"",
    query: str | None = None,
) -> Request:
    fields = dict(headers or {})
    if body:
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        fields.setdefault("Content-Digest", f"sha-256=:{digest}:")
    request = Request(method, url, fields, body)
    ts = str(int(time.time())) if ts is None else ts
    nonce = f"nonce-{next(NONCES):08}" if nonce is None else nonce
    path, _, own_query = request.request_target.partition("?")
    text = canonical_string(
        ts=ts,
        nonce=nonce,
        method=method,
        host=request.host_field,
        path=path,
        query=own_query if query is None else query,
        content_digest=fields.get("Content-Digest", ""),
        headers=[(name, ", ".join(request.headers.get_all(name))) for name in listed.split()],
    )
    signature = base64.b64encode(hmac.digest(secret, text, "sha256")).decode()
    parts = [f'key="{key}"', f'ts="{ts}"', f'nonce="{nonce}"']
    if listed:
        parts.append(f'headers="{listed}"')
    request.headers.set("Authorization", f'HMAC-SHA256 {", ".join(parts)}, signature="{signature}"')
    return request


def changed(old: str, new: str) -> Any:
    def change(request: Request) -> None:
        value = request.headers["authorization"]
        assert old in value
        request.headers.set("authorization", value.replace(old, new))

    return change


def test_the_canonical_string_is_the_documented_one() -> None:
    text = canonical_string(
        ts="1732154000",
        nonce="Zk3abcdef",
        method="POST",
        host="API.example.com:8443",
        path="/orders/%7Eme",
        query="b=2&a=1",
        content_digest="sha-256=:AAAA:",
        headers=[("content-type", "application/json")],
    )

    assert text.decode().split("\n") == [
        "HMAC-SHA256",
        "1732154000",
        "Zk3abcdef",
        "POST",
        "api.example.com:8443",
        "/orders/%7Eme",
        "b=2&a=1",
        "sha-256=:AAAA:",
        "content-type:application/json",
    ]


def test_a_signed_request_is_accepted_once() -> None:
    made = scheme()
    request = signed("POST", body=b"{}")

    found = made.verify(request)

    assert isinstance(found, Identity)
    assert (found.consumer, found.method, found.key_id) == ("acme", "hmac", "acme")
    assert made.verify(request) is REJECTED
    assert made.counts == {"ok": 1, "replayed": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda r: setattr(r, "method", "DELETE"),
        lambda r: setattr(r, "request_target", "/orders?a=1&b=2"),
        lambda r: setattr(r, "request_target", "/orders?b=2&a=1&"),
        lambda r: setattr(r, "request_target", "/orders/?b=2&a=1"),
        lambda r: setattr(r, "request_target", "/%6Frders?b=2&a=1"),
        lambda r: setattr(r, "host_field", "other.test"),
        lambda r: setattr(r, "host_field", "gateway.test:81"),
        lambda r: r.headers.set("content-type", "text/html"),
        lambda r: r.headers.add("content-type", "text/html"),
        lambda r: r.headers.remove("content-type"),
        lambda r: r.headers.set("content-digest", "sha-256=:AAAA:"),
        changed('ts="1', 'ts="2'),
        changed('nonce="n', 'nonce="m'),
        changed('headers="content-type"', 'headers=""'),
        changed('headers="content-type", ', ""),
        changed('headers="content-type"', 'headers="content-type content-type"'),
        changed('headers="content-type"', 'headers="Content-Type"'),
        changed('headers="content-type"', 'headers="content-type x-none"'),
        changed('signature="', 'signature="AAAA'),
        changed('key="acme"', 'key="nobody"'),
        changed('key="acme"', 'key="off"'),
        changed('key="acme"', 'key=""'),
        changed('key="acme", ', ""),
        changed('key="acme"', "key=acme"),
        changed('key="acme"', 'key="acme", key="acme"'),
        changed('key="acme"', 'key="acme", extra="x"'),
        changed("signature=", "Signature="),
        lambda r: r.headers.set("authorization", "HMAC-SHA256"),
        lambda r: r.headers.set("authorization", "HMAC-SHA256 x"),
        lambda r: r.headers.set("authorization", r.headers["authorization"] + ","),
        lambda r: r.headers.set("authorization", r.headers["authorization"][:-2] + '"'),
        lambda r: r.headers.add("authorization", r.headers["authorization"]),
        lambda r: r.headers.add("authorization", "Bearer x"),
    ],
)
def test_a_request_that_was_changed_is_rejected(change: Any) -> None:
    request = signed("POST", headers={"Content-Type": "application/json"}, listed="content-type", body=b"{}")
    change(request)

    assert scheme().verify(request) is REJECTED


def test_other_credentials_are_other_schemes_business() -> None:
    assert scheme().verify(Request()) is None
    assert scheme().verify(Request(headers={"Authorization": "Bearer x"})) is None


def test_the_scheme_word_is_taken_in_any_case() -> None:
    request = signed()
    request.headers.set(
        "authorization", request.headers["authorization"].replace("HMAC-SHA256", "hmac-Sha256")
    )

    assert isinstance(scheme().verify(request), Identity)


@pytest.mark.parametrize(
    ("offset_s", "accepted"), [(0, True), (60, True), (-60, True), (61, False), (-61, False), (10**9, False)]
)
def test_a_timestamp_may_be_off_by_the_skew(offset_s: int, accepted: bool) -> None:
    now = 1_700_000_000

    found = scheme(clock=lambda: now).verify(signed(ts=str(now + offset_s)))

    assert isinstance(found, Identity) == accepted


@pytest.mark.parametrize("ts", ["", "x", "-1", "1e9", "1700000000.0", "+1700000000"])
def test_a_timestamp_is_decimal_digits(ts: str) -> None:
    assert scheme(clock=lambda: 1_700_000_000).verify(signed(ts=ts)) is REJECTED


@pytest.mark.parametrize("nonce", ["", "short", "a" * 129, "with space 1", "semi;colon"])
def test_a_nonce_is_8_to_128_characters(nonce: str) -> None:
    assert scheme().verify(signed(nonce=nonce)) is REJECTED


def test_a_replay_is_refused_for_as_long_as_the_timestamp_would_be_taken() -> None:
    now = [1_700_000_000.0]
    memory = HostMemory.private()
    made = scheme(memory, clock=lambda: now[0])
    request = signed(ts=str(1_700_000_060))  # from a clock that is a minute ahead
    window = NonceWindow(memory.nonces, "check", Hmac.valid_ns(HmacConfig()))

    assert isinstance(made.verify(request), Identity)

    assert window.window_ns > 2 * HmacConfig().clock_skew_ns
    assert window.first_use("k", "n", 10**9)
    assert not window.first_use("k", "n", 10**9 + 120)
    now[0] += 121
    assert made.verify(request) is REJECTED
    assert made.counts["expired"] == 1


def test_captured_requests_are_refused_in_any_order() -> None:
    made = scheme()
    requests = [signed(url=f"http://gateway.test/{i}") for i in range(20)]
    for request in reversed(requests):
        assert isinstance(made.verify(request), Identity)

    for request in requests + requests[::3]:
        assert made.verify(request) is REJECTED


def test_a_forged_request_does_not_use_up_a_nonce() -> None:
    made = scheme()
    request = signed()
    request.method = "PUT"
    assert made.verify(request) is REJECTED
    request.method = "GET"

    assert isinstance(made.verify(request), Identity)


def test_keys_have_nonces_of_their_own() -> None:
    window = NonceWindow(HostMemory.private().nonces, "x", SECOND)

    assert window.first_use("a", "bc", 10**9)
    assert window.first_use("ab", "c", 10**9)
    assert not window.first_use("ab", "c", 10**9)


@pytest.mark.parametrize("elsewhere_s", [0, 3600])
def test_a_clock_that_is_set_back_lets_no_replay_pass(elsewhere_s: int) -> None:
    now = [1_700_000_000.0]
    made = scheme(clock=lambda: now[0])
    request = signed(ts=str(1_700_000_000))
    assert isinstance(made.verify(request), Identity)

    now[0] += 600  # the window of the nonce has passed
    now[0] += elsewhere_s
    assert made.verify(request) is REJECTED
    assert made.outcome == "expired"
    now[0] = 1_700_000_000.0 + 30  # and the signature is valid once more

    assert made.verify(request) is REJECTED
    assert made.outcome == "replayed"


def test_a_body_needs_a_digest_unless_the_config_says_otherwise() -> None:
    request = signed("POST")
    request.has_body = True
    assert scheme().verify(request) is REJECTED

    assert isinstance(scheme(body="optional").verify(request), Identity)


def test_required_headers_must_be_listed_when_they_are_there() -> None:
    made = scheme(required_headers=("x-tenant",))

    assert isinstance(made.verify(signed()), Identity)
    assert made.verify(signed(headers={"X-Tenant": "a"})) is REJECTED
    assert isinstance(made.verify(signed(headers={"X-Tenant": "a"}, listed="x-tenant")), Identity)


def test_a_sorted_query_may_be_reordered_but_not_its_equal_names() -> None:
    assert sorted_query("b=2&a=1&b=1&a") == "a=1&a&b=2&b=1"
    made = scheme(query="sorted")
    request = signed(query="a=1&b=2&b=1", url="http://gateway.test/?b=2&b=1&a=1")
    request.request_target = "/?b=2&a=1&b=1"
    assert isinstance(made.verify(request), Identity)

    request = signed(query="a=1&b=2&b=1", url="http://gateway.test/?b=2&b=1&a=1")
    request.request_target = "/?b=1&b=2&a=1"
    assert made.verify(request) is REJECTED


def test_an_unknown_key_computes_a_signature_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scheme()
    counted = []
    digest = hmac.digest

    def counting(*arguments: Any) -> bytes:
        counted.append(len(arguments[1]))
        return digest(*arguments)

    known, unknown = signed(secret=b"wrong"), signed(key="nobody")
    broken = signed()
    broken.headers.set("authorization", "HMAC-SHA256 nothing")
    monkeypatch.setattr("fastgate.auth.hmac.hmac.digest", counting)

    for request in (known, unknown, broken):
        assert made.verify(request) is REJECTED

    assert len(counted) == 3
    assert made.counts == {"signature": 1, "unknown_key": 1, "malformed": 1}


@pytest.mark.parametrize(
    "target", ["http://gateway.test/orders?b=2&a=1", "HTTP://gateway.test/orders?b=2&a=1"]
)
def test_an_absolute_target_is_signed_as_its_path(target: str) -> None:
    request = signed()
    request.request_target = target

    assert isinstance(scheme().verify(request), Identity)


def test_a_secret_of_the_store_serves_until_it_is_removed() -> None:
    memory = HostMemory.private()
    config = HmacConfig()
    nonces = NonceWindow(memory.nonces, "hmac", Hmac.valid_ns(config))
    made = Hmac(config, {"acme": ("acme", SECRET)}, identify, nonces, directory=memory.directory)
    memory.directory.put(secret_digest("hmac/bob/2"), b"hex:" + SECRET.hex().encode())
    memory.directory.put(secret_digest("hmac/eve"), b"short")

    found = made.verify(signed(key="bob/2"))
    assert isinstance(found, Identity)
    assert (found.consumer, found.key_id) == ("bob", "bob/2")
    assert isinstance(made.verify(signed(key="acme")), Identity)
    assert made.verify(signed(key="bob")) is REJECTED
    assert made.verify(signed(key="eve", secret=b"short")) is REJECTED
    memory.directory.remove(secret_digest("hmac/bob/2"))

    assert made.verify(signed(key="bob/2")) is REJECTED
