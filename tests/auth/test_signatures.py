"""RFC 9421: the vectors of its appendix B, what another implementation signed, and what is forged."""

from __future__ import annotations

import base64
import contextlib
import datetime
import itertools
import json
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms

from fastgate._core.pipeline.identity import Identity
from fastgate.auth.nonces import NonceWindow
from fastgate.auth.scheme import REJECTED, Unavailable
from fastgate.auth.signature_base import Message, signature_base
from fastgate.auth.signature_keys import ALGORITHMS, public_verifier
from fastgate.auth.signatures import Signatures, load_key
from fastgate.auth.signing_settings import SignatureKeyConfig, SignaturesConfig
from fastgate.auth.structured_fields import InnerList, dictionary
from fastgate.settings import SECOND
from fastgate.state.memory import HostMemory
from tests.auth.messages import Request, identify
from tests.auth.rfc9421 import CREATED, DIGEST, PUBLIC, SECRET, VECTORS, Vector

NONCES = itertools.count()
LIBRARY = {
    "hmac-sha256": algorithms.HMAC_SHA256,
    "rsa-pss-sha512": algorithms.RSA_PSS_SHA512,
    "rsa-v1_5-sha256": algorithms.RSA_V1_5_SHA256,
    "ecdsa-p256-sha256": algorithms.ECDSA_P256_SHA256,
    "ecdsa-p384-sha384": algorithms.ECDSA_P384_SHA384,
    "ed25519": algorithms.ED25519,
}
RSA = rsa.generate_private_key(65537, 2048)
PRIVATE: dict[str, Any] = {
    "hmac-sha256": SECRET,
    "rsa-pss-sha512": RSA,
    "rsa-v1_5-sha256": RSA,
    "ecdsa-p256-sha256": ec.generate_private_key(ec.SECP256R1()),
    "ecdsa-p384-sha384": ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def key_config(algorithm: str, consumer: str = "acme") -> SignatureKeyConfig:
    settings: dict[str, Any] = {"algorithm": algorithm, "consumer": consumer}
    if algorithm == "hmac-sha256":
        settings["secret"] = "base64:" + base64.b64encode(SECRET).decode()
    else:
        settings["public_key"] = pem(PRIVATE[algorithm])
    return SignatureKeyConfig(**settings)


KEYS = {
    **{f"key-{algorithm}": key_config(algorithm) for algorithm in ALGORITHMS},
    "key-disabled": key_config("ed25519", "disabled"),
}


class Resolver(HTTPSignatureKeyResolver):
    """The signer's keys."""

    def resolve_public_key(self, key_id: str) -> Any:
        raise NotImplementedError

    def resolve_private_key(self, key_id: str) -> Any:
        return PRIVATE.get(key_id.removeprefix("key-"), PRIVATE["ed25519"])


def scheme(memory: HostMemory | None = None, *, clock: Any = time.time, **settings: Any) -> Signatures:
    config = SignaturesConfig(**{"keys": KEYS, **settings})
    nonces = NonceWindow((memory or HostMemory.private()).nonces, "signatures", Signatures.valid_ns(config))
    counts: dict[str, int] = {}

    class Counter:
        def __init__(self, name: str) -> None:
            self.name = name

        def add(self, n: int = 1) -> None:
            counts[self.name] = counts.get(self.name, 0) + n

    made = Signatures(
        config, identify, nonces, lambda name, /, **labels: Counter(labels["outcome"]), clock=clock
    )
    made.counts = counts  # type: ignore[attr-defined]
    return made


COVERED = ("@method", "@authority", "@path", "@query")


def signed(
    algorithm: str = "ed25519",
    method: str = "GET",
    url: str = "http://gateway.test/orders?b=2&a=1",
    *,
    covered: tuple[str, ...] = COVERED,
    key_id: str | None = None,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    nonce: str | None = "",
    **more: Any,
) -> Request:
    """A request that http-message-signatures has signed. The nonce is a fresh one unless it is given."""
    fields = dict(headers or {})
    message = SimpleNamespace(method=method, url=url, headers=fields)
    HTTPMessageSigner(signature_algorithm=LIBRARY[algorithm], key_resolver=Resolver()).sign(
        message,
        key_id=key_id or f"key-{algorithm}",
        covered_component_ids=covered,
        nonce=f"nonce-{next(NONCES)}" if nonce == "" else nonce,
        body=body or None,
        use_existing_digest="Content-Digest" in fields,
        **more,
    )
    return Request(method, url, message.headers, body)


def edited(request: Request, name: str, old: str, new: str) -> Request:
    value = request.headers[name]
    assert old in value
    request.headers.set(name, value.replace(old, new))
    return request


# The vectors


def vector_message(vector: Vector) -> Message:
    authority, fields = vector.message
    return Message(
        "POST",
        "https",
        authority,
        "/foo?param=Value&Pet=dog",
        lambda name: [fields[name]] if name in fields else [],
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.label)
def test_the_base_of_a_vector_is_the_rfcs(vector: Vector) -> None:
    covered = dictionary(f"{vector.label}={vector.covered}")[vector.label]
    assert isinstance(covered, InnerList)

    base = signature_base(vector_message(vector), covered)

    assert base.decode().split("\n") == [*vector.lines, f'"@signature-params": {vector.covered}']


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.label)
def test_the_signature_of_a_vector_verifies(vector: Vector) -> None:
    if vector.algorithm == "hmac-sha256":
        config = SignatureKeyConfig(
            algorithm="hmac-sha256", consumer="rfc", secret="base64:" + base64.b64encode(SECRET).decode()
        )
    else:
        config = SignatureKeyConfig(
            algorithm=vector.algorithm,
            consumer="rfc",
            public_key=PUBLIC[vector.key_id],  # type: ignore[arg-type]
        )
    authority, fields = vector.message
    request = Request(
        "POST",
        f"https://{authority}/foo?param=Value&Pet=dog",
        {
            **{name: value for name, value in fields.items() if name != "host"},
            "Signature-Input": f"{vector.label}={vector.covered}",
            "Signature": f"{vector.label}=:{vector.signature}:",
        },
        b'{"hello": "world"}',
    )

    def at(now: float) -> Any:
        return scheme(keys={vector.key_id: config}, required=(), nonce="ignored", clock=lambda: now).verify(
            request
        )

    found = at(CREATED + 1)
    assert isinstance(found, Identity)
    assert (found.consumer, found.key_id, found.method) == ("rfc", vector.key_id, "signatures")
    assert at(CREATED + 3600) is REJECTED
    for name in ("date", "content-digest", "content-type", "client-cert"):
        if f'"{name}"' in vector.covered:
            request.headers.set(name, "sha-512=:AAAA:")
            assert at(CREATED + 1) is REJECTED


def test_a_derived_component_is_what_the_rfc_says() -> None:
    message = Message(
        "POST", "https", "Www.Example.com:443", "/path?q=a&r=&r=b&v=1%20x+y&a~=%7e", lambda name: []
    )

    def value(component: str) -> str:
        covered = dictionary(f"s=({component})")["s"]
        assert isinstance(covered, InnerList)
        return signature_base(message, covered).decode().split("\n")[0].partition(": ")[2]

    assert value('"@authority"') == "www.example.com"
    assert value('"@target-uri"') == "https://Www.Example.com:443/path?q=a&r=&r=b&v=1%20x+y&a~=%7e"
    assert value('"@request-target"') == "/path?q=a&r=&r=b&v=1%20x+y&a~=%7e"
    assert value('"@scheme"') == "https"
    assert value('"@query"') == "?q=a&r=&r=b&v=1%20x+y&a~=%7e"
    assert value('"@query-param";name="v"') == "1%20x%20y"
    assert value('"@query-param";name="a%7E"') == "%7E"
    for wrong in ('"@query-param";name="r"', '"@query-param";name="z"', '"@query-param"', '"@status"'):
        with pytest.raises(ValueError):
            value(wrong)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", "?"),
        ("/a?", "/a", "?"),
        ("http://h/p?q", "/p", "?q"),
        ("http://h?q", "/", "?q"),
        ("*", "*", "?"),
    ],
)
def test_path_and_query_of_every_form_of_target(target: str, path: str, query: str) -> None:
    covered = dictionary('s=("@path" "@query")')["s"]
    assert isinstance(covered, InnerList)

    base = signature_base(Message("GET", "http", "h", target, lambda name: []), covered)

    assert base.decode().split("\n")[:2] == [f'"@path": {path}', f'"@query": {query}']


def test_a_field_can_be_covered_in_every_way_of_the_rfc() -> None:
    fields = {
        "x-twice": [" a ", "b"],
        "content-digest": ["sha-512=:AAAA:,  sha-256=:AAA=:"],
        "example": ["Ab"],
        "priority": ["u=1,i"],
    }
    message = Message("GET", "http", "h", "/", lambda name: fields.get(name, []))
    covered = dictionary(
        's=("x-twice" "x-twice";bs "content-digest";key="sha-256" "priority";sf "priority";key="i")'
    )["s"]
    assert isinstance(covered, InnerList)

    assert signature_base(message, covered).decode().split("\n")[:-1] == [
        '"x-twice": a, b',
        '"x-twice";bs: :YQ==:, :Yg==:',
        '"content-digest";key="sha-256": :AAA=:',
        '"priority";sf: u=1, i',
        '"priority";key="i": ?1',
    ]


@pytest.mark.parametrize(
    "component",
    [
        '"example";sf', '"Example"', '"gone"', '"example";req', '"example";tr', '"example";bs;sf',
        '"example" "example"', '"@method";req', '"content-digest";key="md5"', "example",
        '"example" "example";bs "example"', '"@signature-params"', '"e x"',
        '"priority";sf;key="u" "priority";key="u";sf', '"example";bs=1',
    ],
)  # fmt: skip
def test_a_component_that_cannot_be_had_is_an_error(component: str) -> None:
    fields = {"example": ["Ab"], "content-digest": ["sha-512=:AAAA:"], "priority": ["u=1"]}
    covered = dictionary(f"s=({component})")["s"]
    assert isinstance(covered, InnerList)

    with pytest.raises(ValueError):
        signature_base(Message("GET", "http", "h", "/", lambda name: fields.get(name, [])), covered)


# Signed by another implementation


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_another_implementation_signs_is_accepted_once(algorithm: str) -> None:
    made = scheme()
    request = signed(algorithm, "POST", body=b'{"n":1}')

    found = made.verify(request)

    assert isinstance(found, Identity)
    assert (found.consumer, found.key_id) == ("acme", f"key-{algorithm}")
    assert made.verify(request) is REJECTED
    assert made.counts == {"ok": 1, "replayed": 1}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "change",
    [
        lambda r: setattr(r, "method", "DELETE"),
        lambda r: setattr(r, "request_target", "/orders?a=1&b=2"),
        lambda r: setattr(r, "request_target", "/order?b=2&a=1"),
        lambda r: setattr(r, "host_field", "other.test"),
        lambda r: edited(r, "signature-input", "nonce-", "nonce-x"),
        lambda r: edited(r, "signature-input", '"@method" ', ""),
        lambda r: edited(r, "signature-input", "created=1", "created=2"),
        lambda r: edited(r, "signature-input", '"@path"', '"@PATH"'),
        lambda r: r.headers.set("signature", r.headers["signature"][:-5] + "AAA=:"),
        lambda r: r.headers.set("signature", "pyhms=:AAAA:"),
        lambda r: r.headers.set("signature", "pyhms=AAAA"),
        lambda r: r.headers.set("signature", "other=:AAAA:"),
        lambda r: r.headers.remove("signature"),
        lambda r: r.headers.set("signature-input", "pyhms=()"),
        lambda r: r.headers.set("signature-input", "((("),
        lambda r: r.headers.add("signature-input", r.headers["signature-input"]),
    ],
)
def test_a_request_that_was_changed_is_rejected(algorithm: str, change: Any) -> None:
    request = signed(algorithm)
    change(request)

    assert scheme().verify(request) is REJECTED


def test_the_algorithm_is_the_keys_and_never_the_requests() -> None:
    public = pem(PRIVATE["rsa-pss-sha512"])
    forged = SimpleNamespace(method="GET", url="http://gateway.test/", headers={})

    class PublicAsSecret(Resolver):
        def resolve_private_key(self, key_id: str) -> Any:
            return public.encode()

    HTTPMessageSigner(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=PublicAsSecret()).sign(
        forged, key_id="key-rsa-pss-sha512", covered_component_ids=COVERED, nonce="n"
    )

    assert scheme().verify(Request("GET", "http://gateway.test/", forged.headers)) is REJECTED


def test_an_alg_that_is_not_the_keys_is_rejected_though_the_signature_fits() -> None:
    made = scheme()
    message = SimpleNamespace(method="GET", url="http://gateway.test/", headers={})
    algorithm = type("Renamed", (algorithms.RSA_PSS_SHA512,), {"algorithm_id": "rsa-v1_5-sha256"})
    HTTPMessageSigner(signature_algorithm=algorithm, key_resolver=Resolver()).sign(
        message, key_id="key-rsa-pss-sha512", covered_component_ids=COVERED, nonce="n"
    )

    assert made.verify(Request("GET", "http://gateway.test/", message.headers)) is REJECTED
    assert made.counts == {"algorithm": 1}


def test_without_an_alg_the_keys_own_is_used() -> None:
    assert isinstance(scheme().verify(signed(include_alg=False)), Identity)


@pytest.mark.parametrize("missing", COVERED)
def test_a_signature_must_cover_what_is_required(missing: str) -> None:
    made = scheme()

    assert made.verify(signed(covered=tuple(name for name in COVERED if name != missing))) is REJECTED
    assert made.counts == {"coverage": 1}


def test_the_target_uri_covers_its_parts_but_not_the_method() -> None:
    assert isinstance(scheme().verify(signed(covered=("@method", "@target-uri"))), Identity)
    assert scheme().verify(signed(covered=("@target-uri",))) is REJECTED
    assert scheme().verify(signed(covered=("@method", "@request-target"))) is REJECTED


def test_a_body_needs_its_digest_covered() -> None:
    request = signed(method="POST")
    request.has_body = True

    assert scheme().verify(request) is REJECTED
    assert isinstance(scheme().verify(signed(method="POST", body=b"x")), Identity)
    assert (
        scheme().verify(edited(signed(method="POST", body=b"x"), "content-digest", "sha-256=:", "sha-256=:A"))
        is REJECTED
    )


def test_one_member_of_a_digest_does_not_cover_it() -> None:
    request = signed(
        method="POST",
        covered=(*COVERED, '"content-digest";key="sha-512"'),
        headers={"Content-Digest": DIGEST},
    )
    request.has_body = True

    assert scheme().verify(request) is REJECTED


def test_a_field_that_is_there_must_be_covered_when_the_config_says_so() -> None:
    made = scheme(required_if_present=("content-type",))

    assert isinstance(made.verify(signed()), Identity)
    assert made.verify(signed(headers={"Content-Type": "text/plain"})) is REJECTED
    covered = (*COVERED, "content-type")
    assert isinstance(made.verify(signed(headers={"Content-Type": "text/plain"}, covered=covered)), Identity)


@pytest.mark.parametrize(
    ("created_s", "expires_s", "accepted"),
    [
        (0, None, True), (-300, None, True), (-331, None, False), (29, None, True), (32, None, False),
        (0, 60, True), (0, -29, True), (0, -32, False), (-10_000, 60, False),
    ],
)  # fmt: skip
def test_a_signature_has_its_time(created_s: int, expires_s: int | None, accepted: bool) -> None:
    now = 1_700_000_000
    at = datetime.datetime.fromtimestamp
    expires = None if expires_s is None else at(now + expires_s)

    found = scheme(clock=lambda: now).verify(signed(created=at(now + created_s), expires=expires))

    assert isinstance(found, Identity) == accepted


@pytest.mark.parametrize("value", ["1.0", '"1"', "?1", "x", "999999999999999", "-1"])
def test_a_created_that_is_no_time_is_rejected(value: str) -> None:
    request = signed()
    text = request.headers["signature-input"]
    start = text.index("created=")
    request.headers.set("signature-input", text[:start] + f"created={value}" + text[text.index(";", start) :])

    assert scheme().verify(request) is REJECTED


def test_a_nonce_is_required_unless_the_config_says_otherwise() -> None:
    assert scheme().verify(signed(nonce=None)) is REJECTED
    assert isinstance(scheme(nonce="optional").verify(signed(nonce=None)), Identity)
    for mode, again in (("optional", False), ("ignored", True)):
        made = scheme(nonce=mode)
        request = signed()
        assert isinstance(made.verify(request), Identity)
        assert isinstance(made.verify(request), Identity) == again


def test_a_nonce_belongs_to_its_key() -> None:
    made = scheme()

    assert isinstance(made.verify(signed("ed25519", nonce="same")), Identity)
    assert isinstance(made.verify(signed("hmac-sha256", nonce="same")), Identity)
    assert made.verify(signed("hmac-sha256", url="http://gateway.test/other", nonce="same")) is REJECTED


def test_a_forged_request_does_not_use_up_a_nonce() -> None:
    made = scheme()
    request = signed(nonce="precious")
    request.method = "PUT"
    assert made.verify(request) is REJECTED

    request.method = "GET"

    assert isinstance(made.verify(request), Identity)


def test_captured_requests_are_refused_in_any_order() -> None:
    made = scheme()
    requests = [signed(url=f"http://gateway.test/{i}") for i in range(20)]
    for request in reversed(requests):
        assert isinstance(made.verify(request), Identity)

    for request in requests + requests[::3]:
        assert made.verify(request) is REJECTED


def test_a_full_table_of_nonces_refuses_and_says_so() -> None:
    memory = HostMemory.private()
    made = scheme(memory)
    window = NonceWindow(memory.nonces, "others", 600 * SECOND)
    for i in range(20_000):  # 1024 places; a nonce has some of them to choose from
        with contextlib.suppress(Unavailable):
            window.first_use("k", f"{i}", 10**9)

    with pytest.raises(Unavailable, match=r"memory\.nonces"):
        for _ in range(2000):  # more than the eighth of the places that the others leave
            made.verify(signed("hmac-sha256"))


def test_the_first_acceptable_of_several_signatures_counts() -> None:
    request = signed("ed25519", label="mine")
    other = signed("hmac-sha256", label="proxy")
    edited(request, "signature", "mine=:", "mine=:AAAA")
    for name in ("signature-input", "signature"):
        request.headers.add(name, other.headers[name])

    found = scheme().verify(request)

    assert isinstance(found, Identity)
    assert found.key_id == "key-hmac-sha256"


def test_signatures_with_another_tag_are_no_credential() -> None:
    made = scheme(tag="fastgate")

    assert made.verify(signed(tag="else")) is None
    assert made.verify(signed()) is None
    assert isinstance(made.verify(signed(tag="fastgate")), Identity)
    assert made.verify(edited(signed(tag="else"), "signature-input", "else", "fastgate")) is REJECTED


def test_a_request_cannot_ask_for_any_number_of_verifications() -> None:
    made = scheme()
    good = signed(label="z")
    inputs = ", ".join(f's{i}=("@method");created=1;keyid="key-rsa-pss-sha512"' for i in range(4))
    values = ", ".join(f"s{i}=:AAAA:" for i in range(4))
    good.headers.set("signature-input", f"{inputs}, {good.headers['signature-input']}")
    good.headers.set("signature", f"{values}, {good.headers['signature']}")

    assert made.verify(good) is REJECTED


def test_no_signature_is_no_credential() -> None:
    assert scheme().verify(Request()) is None
    assert scheme().verify(Request(headers={"Signature": "a=:AAAA:"})) is None


def test_an_unknown_key_and_a_disabled_consumer_are_rejected_alike() -> None:
    made = scheme()

    assert made.verify(signed(key_id="key-nobody")) is REJECTED
    assert made.verify(signed(key_id="key-disabled")) is REJECTED
    assert made.counts == {"unknown_key": 1, "consumer": 1}


# Keys


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "hmac-sha256"}, "a secret"),
        ({"algorithm": "hmac-sha256", "secret": "short"}, "at least 16 bytes"),
        ({"algorithm": "hmac-sha256", "secret": "base64:!"}, "base64"),
        ({"algorithm": "hmac-sha256", "secret": "hex:zz"}, "hex"),
        ({"algorithm": "ed25519"}, "exactly one"),
        ({"algorithm": "ed25519", "public_key": "x", "public_key_file": "y"}, "exactly one"),
        ({"algorithm": "ed25519", "public_key": "x"}, "PEM"),
        ({"algorithm": "ed25519", "public_key": pem(RSA)}, "Ed25519"),
        ({"algorithm": "rsa-pss-sha512", "public_key": pem(PRIVATE["ed25519"])}, "RSA"),
        ({"algorithm": "ecdsa-p256-sha256", "public_key": pem(PRIVATE["ecdsa-p384-sha384"])}, "P-256"),
        ({"algorithm": "ecdsa-p384-sha384", "public_key": pem(PRIVATE["ecdsa-p256-sha256"])}, "P-384"),
        (
            {"algorithm": "rsa-v1_5-sha256", "public_key": pem(rsa.generate_private_key(65537, 1024))},
            "2048 bits",
        ),
    ],
)
def test_a_key_that_is_not_one_of_its_algorithm_is_a_config_error(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_key("k", SignatureKeyConfig(consumer="acme", **settings))


def test_a_signature_of_another_length_never_fits() -> None:
    verify, size = public_verifier("ecdsa-p256-sha256", pem(PRIVATE["ecdsa-p256-sha256"]).encode())

    assert size == 64
    for length in (0, 1, 63, 65, 96, 128):
        assert not verify(b"\0" * length, b"x")
    assert not verify(b"\0" * 64, b"x")
    assert not verify(b"\xff" * 64, b"x")


def test_the_settings_travel_as_msgpack() -> None:
    config = SignaturesConfig(keys=KEYS)

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=SignaturesConfig) == config
    assert json.dumps(config.required)
