"""JWT: what is believed, what is not, and the usual attacks. Issuers over sockets: test_jwks.py."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from fastgate._core.pipeline.identity import Identity
from fastgate.auth.jwt import JwtScheme
from fastgate.auth.scheme import REJECTED
from fastgate.auth.settings import ClaimsConfig, JwtConfig, JwtIssuerConfig
from tests.auth.issuer import Key, forge, segment
from tests.auth.requests import Counts, request, resolve

SECRET = "a secret of thirty-two bytes ...."
ISSUER = "https://issuer.example"
NOW = int(time.time())


@pytest.fixture(scope="module")
def rsa_key() -> Key:
    return Key("RS256", "one")


def claims(**more: Any) -> dict[str, Any]:
    return {"iss": ISSUER, "sub": "alice", "exp": NOW + 300, **more}


class Harness:
    """A scheme and its counters."""

    def __init__(self, *issuers: JwtIssuerConfig, **options: Any) -> None:
        self.counts = Counts()
        config = JwtConfig(issuers=issuers, **options)
        self.scheme = JwtScheme(config, resolve, ("free", "gold"), counter=self.counts, clock=lambda: NOW)

    def ask(self, token: str) -> Any:
        return self.scheme.verify(request(("Authorization", f"Bearer {token}")))

    def accepts(self, token: str) -> Identity:
        said = self.ask(token)
        assert isinstance(said, Identity), (said, self.counts.outcomes())
        return said

    def refuses(self, token: str, why: str) -> None:
        before = self.counts.of(why)
        assert self.ask(token) is REJECTED
        assert self.counts.of(why) == before + 1, self.counts.outcomes()


def shared(**more: Any) -> Harness:
    return Harness(JwtIssuerConfig(issuer=ISSUER, secret=SECRET, **more))


def public(tmp_path: Path, key: Key, **more: Any) -> Harness:
    path = tmp_path / "key.pem"
    path.write_bytes(key.pem)
    return Harness(JwtIssuerConfig(issuer=ISSUER, public_key=str(path), **more))


def key_set(tmp_path: Path, *keys: Key | dict[str, Any], **more: Any) -> Harness:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [key.jwk if isinstance(key, Key) else key for key in keys]}))
    return Harness(JwtIssuerConfig(issuer=ISSUER, jwks_file=str(path), **more))


def hs256(data: dict[str, Any], secret: str | bytes = SECRET, **headers: Any) -> str:
    """Signed by hand, since PyJWT would not sign with a public key as the secret."""
    header = {"alg": "HS256", "typ": "JWT", **headers}
    signed = f"{segment(json.dumps(header).encode())}.{segment(json.dumps(data).encode())}"
    raw = secret.encode() if isinstance(secret, str) else secret
    return f"{signed}.{segment(hmac.new(raw, signed.encode(), hashlib.sha256).digest())}"


# who it is


def test_a_good_token_says_who_it_is() -> None:
    identity = shared().accepts(hs256(claims(scope="orders:read orders:write")))

    assert (identity.consumer, identity.method) == ("alice", "jwt")
    assert identity.scopes == {"orders:read", "orders:write"}
    assert abs(identity.expires_ns / 1e9 - (NOW + 330)) < 1
    assert identity.claims is not None and identity.claims["iss"] == ISSUER


def test_claims_are_mapped() -> None:
    mapped = ClaimsConfig(
        consumer="client.id",
        tier="plan",
        scopes="scp",
        roles="realm_access.roles",
        metadata=("https://a.b/c",),
    )
    token = hs256(
        claims(
            client={"id": 42},
            plan="gold",
            scp=["a", "b", 3],
            realm_access={"roles": ["admin", None]},
            **{"https://a.b/c": "d"},
        )
    )

    identity = shared(claims=mapped, tier="free").accepts(token)

    assert (identity.consumer, identity.tier) == ("42", "gold")
    assert (identity.scopes, identity.roles) == ({"a", "b"}, {"admin"})
    assert identity.metadata == {"https://a.b/c": "d"}


@pytest.mark.parametrize("tier", ["platinum", ["gold"], None, 3])
def test_a_tier_nobody_defined_is_ignored(tier: Any) -> None:
    harness = shared(claims=ClaimsConfig(tier="plan"), tier="free")

    assert harness.accepts(hs256(claims(plan=tier))).tier == "free"


@pytest.mark.parametrize(
    "name", ["", " a", "a\r\nX-Admin: 1", "a\u0000b", "ü", ["a"], {"a": 1}, None, True, "a" * 300]
)
def test_a_consumer_that_cannot_be_named_is_refused(name: Any) -> None:
    shared().refuses(hs256(claims(sub=name)), "consumer")


def test_what_is_no_token_is_left_to_other_methods() -> None:
    scheme = shared().scheme

    assert scheme.verify(request()) is None
    assert scheme.verify(request(("Authorization", "Basic YTpi"))) is None
    assert scheme.verify(request(("Authorization", "Bearer fg_abc"))) is None


def test_two_authorization_headers_are_refused() -> None:
    good = ("Authorization", f"Bearer {hs256(claims())}")

    assert shared().scheme.verify(request(good, good)) is REJECTED


def test_a_token_in_another_header() -> None:
    harness = Harness(JwtIssuerConfig(issuer=ISSUER, secret=SECRET), header="X-Token")

    for prefix in ("", "Bearer "):
        assert isinstance(harness.scheme.verify(request(("x-token", prefix + hs256(claims())))), Identity)
    assert harness.ask(hs256(claims())) is None


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA"])
def test_every_algorithm_verifies(tmp_path: Path, algorithm: str) -> None:
    key = Key(algorithm)
    other = Key(algorithm)
    harness = public(tmp_path, key, algorithms=(algorithm,))

    assert harness.accepts(key.sign(claims())).consumer == "alice"
    harness.refuses(other.sign(claims()), "signature")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_longer_secrets_verify(algorithm: str) -> None:
    secret = SECRET * 2
    harness = Harness(JwtIssuerConfig(issuer=ISSUER, secret=secret, algorithms=(algorithm,)))

    assert harness.accepts(jwt.encode(claims(), secret, algorithm)).consumer == "alice"
    harness.refuses(hs256(claims(), secret), "algorithm")


def test_a_key_id_picks_the_key(tmp_path: Path, rsa_key: Key) -> None:
    second = Key("ES256", "two")
    harness = key_set(tmp_path, rsa_key, second)

    assert harness.accepts(rsa_key.sign(claims())).consumer == "alice"
    assert harness.accepts(second.sign(claims())).consumer == "alice"
    harness.refuses(second.sign(claims(), kid="one"), "algorithm")
    harness.refuses(second.sign(claims(), kid="three"), "unknown_key")


def test_several_issuers_each_have_their_own_keys() -> None:
    other = "https://other.example"
    harness = Harness(
        JwtIssuerConfig(issuer=ISSUER, secret=SECRET),
        JwtIssuerConfig(issuer=other, secret=SECRET[::-1]),
        JwtIssuerConfig(secret=SECRET[1:] + "!"),
    )

    assert harness.accepts(hs256(claims())).consumer == "alice"
    assert harness.accepts(hs256(claims(iss=other), SECRET[::-1])).consumer == "alice"
    harness.refuses(hs256(claims(iss=other), SECRET), "signature")  # one issuer speaking for another
    without = claims()
    del without["iss"]
    assert harness.accepts(hs256(without, SECRET[1:] + "!")).consumer == "alice"
    harness.refuses(hs256(without, SECRET), "signature")


# when, from whom, for whom


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"exp": NOW - 31}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": None}, "claims"),
        ({"exp": str(NOW + 300)}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": -1}, "claims"),
        ({"exp": 1e300}, "claims"),
        ({"exp": [NOW + 300]}, "claims"),
        ({"nbf": NOW + 60}, "not_yet"),
        ({"nbf": "0"}, "claims"),
        ({"iat": NOW + 60}, "not_yet"),
        ({"iat": {}}, "claims"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": ISSUER + "/"}, "issuer"),
        ({"iss": [ISSUER]}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"aud": "somebody else"}, "audience"),
        ({"aud": []}, "audience"),
    ],
)
def test_claims_that_are_wrong(more: dict[str, Any], why: str) -> None:
    shared().refuses(hs256(claims(**more)), why)


@pytest.mark.parametrize(
    "more", [{"exp": NOW - 20}, {"nbf": NOW + 20}, {"iat": NOW + 20}, {"exp": NOW + 0.5}]
)
def test_clocks_may_differ_by_the_leeway(more: dict[str, Any]) -> None:
    shared().accepts(hs256(claims(**more)))
    if more.get("exp") != NOW + 0.5:
        harness = shared(leeway_ns=0)
        assert harness.ask(hs256(claims(**more))) is REJECTED


def test_a_token_without_an_end_is_refused_unless_it_may() -> None:
    endless = {"iss": ISSUER, "sub": "alice"}

    shared().refuses(hs256(endless), "claims")
    assert shared(require_exp=False).accepts(hs256(endless)).expires_ns == 0


def test_old_tokens_can_be_refused() -> None:
    harness = shared(max_age_ns=60 * 10**9)

    harness.accepts(hs256(claims(iat=NOW - 30)))
    harness.refuses(hs256(claims(iat=NOW - 120)), "too_old")
    harness.refuses(hs256(claims()), "claims")


@pytest.mark.parametrize(
    ("ours", "theirs", "good"),
    [
        (("api",), "api", True),
        (("api",), ["web", "api"], True),
        (("api", "web"), "web", True),
        (("api",), "API", False),
        (("api",), ["web"], False),
        (("api",), None, False),
        (("api",), [], False),
        (("api",), ["api", 3], False),
        (("api",), {"api": 1}, False),
        (("*",), "anything", True),
        (("*",), None, True),
        ((), None, True),
    ],
)
def test_audiences(ours: tuple[str, ...], theirs: Any, good: bool) -> None:
    token = hs256(claims() if theirs is None else claims(aud=theirs))

    if good:
        shared(audience=ours).accepts(token)
    else:
        shared(audience=ours).refuses(token, "audience")


def test_types_can_be_required() -> None:
    harness = shared(types=("at+jwt",))

    harness.accepts(hs256(claims(), typ="application/AT+JWT"))
    harness.refuses(hs256(claims(), typ="JWT"), "type")


# attacks


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", "HS256 "])
@pytest.mark.parametrize("signature", [b"", b"x"])
def test_no_algorithm_is_no_signature(tmp_path: Path, rsa_key: Key, name: str, signature: bytes) -> None:
    for harness in (shared(), public(tmp_path, rsa_key), key_set(tmp_path, rsa_key)):
        harness.refuses(forge({"alg": name, "typ": "JWT"}, claims(), signature), "algorithm")


def test_a_signature_cannot_be_left_out() -> None:
    good = hs256(claims())

    assert shared().ask(good.rpartition(".")[0]) is None  # two segments are no token
    shared().refuses(good.rpartition(".")[0] + ".", "signature")


def test_a_public_key_is_no_secret(tmp_path: Path, rsa_key: Key) -> None:
    # The classic: sign with HS256 and the public key, which everybody has, as the secret.
    for harness in (public(tmp_path, rsa_key), key_set(tmp_path, rsa_key)):
        for secret in (rsa_key.pem, rsa_key.pem.rstrip(), json.dumps(rsa_key.jwk).encode(), b""):
            harness.refuses(hs256(claims(), secret, kid="one"), "algorithm")
    with pytest.raises(ValueError, match="asymmetric"):
        Harness(JwtIssuerConfig(issuer=ISSUER, secret=rsa_key.pem.decode()))


def test_the_algorithm_is_the_keys_and_not_the_tokens(tmp_path: Path, rsa_key: Key) -> None:
    harness = key_set(tmp_path, rsa_key, algorithms=("RS256", "PS256", "ES256"))

    harness.accepts(rsa_key.sign(claims()))
    harness.refuses(jwt.encode(claims(), rsa_key.private, "PS256", {"kid": "one"}), "algorithm")
    harness.refuses(jwt.encode(claims(), rsa_key.private, "RS512", {"kid": "one"}), "algorithm")


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_that_the_token_brings_along_is_ignored(tmp_path: Path, rsa_key: Key, name: str) -> None:
    evil = Key("RS256", "one")
    value: Any = {"jwk": evil.jwk, "x5c": ["MIIB"]}.get(name, "https://evil.example/keys")
    harness = key_set(tmp_path, rsa_key)

    harness.refuses(evil.sign(claims(), **{name: value}), "signature")
    harness.accepts(rsa_key.sign(claims(), **{name: value}))


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "' OR 1=1 --",
        "one\x00",
        "| cat /etc/passwd",
        "http://evil.example/k",
        "ONE",
        "",
        " one",
    ],
)
def test_a_key_id_is_compared_and_nothing_else(tmp_path: Path, rsa_key: Key, kid: str) -> None:
    harness = key_set(tmp_path, rsa_key)

    harness.refuses(hs256(claims(), b"", kid=kid), "unknown_key")
    harness.refuses(rsa_key.sign(claims(), kid=kid), "unknown_key")


@pytest.mark.parametrize("kid", [7, None, ["one"], {"one": 1}, True])
def test_a_key_id_that_is_no_text(tmp_path: Path, rsa_key: Key, kid: Any) -> None:
    harness = key_set(tmp_path, rsa_key)
    signed = rsa_key.sign(claims()).split(".")
    header = json.dumps({"alg": "RS256", "kid": kid}).encode()

    assert harness.ask(".".join([segment(header), *signed[1:]])) is REJECTED


@pytest.mark.parametrize(
    "header", [{"crit": ["exp"]}, {"crit": []}, {"b64": False}, {"b64": True}, {"crit": None}]
)
def test_critical_extensions_are_refused(header: dict[str, Any]) -> None:
    shared().refuses(hs256(claims(), **header), "malformed")


def signed_bytes(header: bytes, payload: bytes) -> str:
    signed = f"{segment(header)}.{segment(payload)}"
    return f"{signed}.{segment(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest())}"


GOOD_HEADER = b'{"alg":"HS256"}'
GOOD_PAYLOAD = json.dumps(claims()).encode()


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (b'{"alg":"HS256","alg":"HS256"}', GOOD_PAYLOAD),
        (b'{"alg":"none","alg":"HS256"}', GOOD_PAYLOAD),
        (GOOD_HEADER, GOOD_PAYLOAD[:-1] + b',"sub":"admin"}'),
        (GOOD_HEADER, GOOD_PAYLOAD[:-1] + b',"s\\u0075b":"admin"}'),
        (GOOD_HEADER, GOOD_PAYLOAD[:-1] + b',"a":{"b":1,"b":2}}'),
        (GOOD_HEADER, GOOD_PAYLOAD[:-1] + b',"exp":NaN}'),
        (GOOD_HEADER, GOOD_PAYLOAD[:-1] + b',"nbf":-Infinity}'),
        (GOOD_HEADER, b"[" + GOOD_PAYLOAD + b"]"),
        (GOOD_HEADER, b'"text"'),
        (GOOD_HEADER, b""),
        (GOOD_HEADER, b"[" * 100_000),
        (GOOD_HEADER, GOOD_PAYLOAD + b"{}"),
        (GOOD_HEADER, GOOD_PAYLOAD.decode().encode("utf-16")),
        (GOOD_HEADER, b"\xef\xbb\xbf" + GOOD_PAYLOAD),
        (GOOD_HEADER, GOOD_PAYLOAD[:-1] + b',"x":"\xff"}'),
        (b"[]", GOOD_PAYLOAD),
        (b'"HS256"', GOOD_PAYLOAD),
        (b"", GOOD_PAYLOAD),
        (b"{}", GOOD_PAYLOAD),
        (b'{"alg":["HS256"]}', GOOD_PAYLOAD),
        (b'{"alg":null}', GOOD_PAYLOAD),
    ],
    ids=map(str, itertools.count()),
)
def test_json_that_two_readers_might_read_differently(header: bytes, payload: bytes) -> None:
    harness = Harness(JwtIssuerConfig(issuer=ISSUER, secret=SECRET), max_token_bytes=1 << 20)
    harness.accepts(signed_bytes(GOOD_HEADER, GOOD_PAYLOAD))

    harness.refuses(signed_bytes(header, payload), "malformed")


def odd_base64(token: str) -> list[str]:
    head, body, tail = token.split(".")
    spare = base64.urlsafe_b64encode(b"x" * 31).rstrip(b"=").decode()  # ends with two spare bits
    twisted = spare[:-1] + chr(ord(spare[-1]) + 1)
    return [
        f"{head}=.{body}.{tail}",
        f"{head}.{body}==.{tail}",
        f"{head}.{body}.{tail}=",
        f"{head}.{body}\t.{tail}",
        f" {head}.{body}.{tail} x",
        f"{head}.{body[:5]} {body[5:]}.{tail}",
        f"{head}.{body}.{tail}!",
        f"{head}.{body}.+{tail[1:]}",
        f"{head}.{body}./{tail[1:]}",
        f"{head}.{body}.{twisted}",
        f"{head}.{body}.ü",
        "..",
        f".{body}.{tail}",
        f"{head}..{tail}",
    ]


def test_only_the_one_way_to_write_base64_is_read() -> None:
    harness = shared()

    for token in odd_base64(hs256(claims())):
        before = harness.counts.of("malformed")
        assert (
            harness.scheme.verify(request(("Authorization", b"Bearer " + token.encode("latin-1"))))
            is REJECTED
        )  # type: ignore[arg-type]
        assert harness.counts.of("malformed") == before + 1, token


def test_the_last_character_of_a_signature_has_one_spelling() -> None:
    # 32 bytes are 43 characters, the last of which has two spare bits: four spellings of one signature
    token = hs256(claims())
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = alphabet.index(token[-1])
    harness = shared()

    harness.accepts(token)
    for other in range(at - at % 4, at - at % 4 + 4):
        if other != at:
            harness.refuses(token[:-1] + alphabet[other], "malformed")


def test_every_changed_byte_is_noticed() -> None:
    token = hs256(claims())
    harness = shared()

    for at in range(len(token)):
        if token[at] != ".":
            changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
            assert harness.ask(changed) is REJECTED, at


def test_long_tokens_are_refused_unread() -> None:
    shared().refuses(hs256(claims(x="a" * 10_000)), "too_long")


def test_a_signature_of_zeros_is_none(tmp_path: Path) -> None:
    # "Psychic signatures": (r, s) = (0, 0) verified anything in a well-known runtime
    key = Key("ES256", "one")
    harness = key_set(tmp_path, key)
    signed = key.sign(claims()).rpartition(".")[0]

    for signature in (b"\0" * 64, b"\xff" * 64, b"", b"\0" * 63, b"\0" * 128):
        harness.refuses(f"{signed}.{segment(signature)}", "signature")


def test_only_verifying_public_keys_are_taken_from_a_set(tmp_path: Path, rsa_key: Key) -> None:
    private = jwt.algorithms.RSAAlgorithm.to_jwk(Key("RS256").private, as_dict=True)
    weak = {**rsa_key.jwk, "kid": "weak", "n": segment(b"\xc1" + b"\x55" * 127)}
    unusable = [
        {**private, "kid": "private", "key_ops": ["verify"]},
        {**rsa_key.jwk, "kid": "enc", "use": "enc"},
        {**rsa_key.jwk, "kid": "ops", "key_ops": ["encrypt"]},
        {**rsa_key.jwk, "kid": "alg", "alg": "HS256"},
        {**rsa_key.jwk, "kid": "none", "alg": "none"},
        {**rsa_key.jwk, "kid": 7},
        weak,
        {"kty": "RSA", "kid": "broken", "n": "AA"},
        {"kty": "EC", "kid": "curve", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "oct", "kid": "short", "k": segment(b"short")},
        {"kty": ["RSA"]},
        "text",
    ]

    harness = key_set(tmp_path, rsa_key, *unusable)  # type: ignore[arg-type]

    harness.accepts(rsa_key.sign(claims()))
    for kid in ("private", "enc", "ops", "alg", "none", "weak", "broken", "curve", "short"):
        harness.refuses(rsa_key.sign(claims(), kid=kid), "unknown_key")
    with pytest.raises(ValueError, match="usable"):
        key_set(tmp_path, *unusable)  # type: ignore[arg-type]


def test_a_shared_secret_in_a_file_verifies(tmp_path: Path) -> None:
    harness = key_set(tmp_path, {"kty": "oct", "kid": "s", "k": segment(SECRET.encode())})

    harness.accepts(hs256(claims(), kid="s"))


def test_short_secrets_are_a_config_error() -> None:
    for secret, algorithms in (("short", ()), (SECRET, ("HS512",)), (SECRET, ("RS256",))):
        with pytest.raises(ValueError, match="HS"):
            Harness(JwtIssuerConfig(issuer=ISSUER, secret=secret, algorithms=algorithms))
