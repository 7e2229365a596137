"""JSON Web Tokens: parsing, issuer, signature, audience, lifetime and identity.

A token is parsed strictly before any of its contents are trusted: three segments of canonical base64url
without padding, JSON without repeated keys, no `crit`. Of its header only `alg`, `kid` and `typ` are used:
keys that a token contains or refers to (`jwk`, `jku`, `x5c`, `x5u`) are ignored, and `kid` is only compared
with the ids of known keys. `iss` selects the issuer whose keys are tried. PyJWT checks the signature before
any other claim is evaluated.

Verification costs as much as in PyJWT. The gate caches the result, so each worker verifies a token once.

Sources: RFC 7515, RFC 7519, RFC 8725, RFC 9068, RFC 6750.
"""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.identity import Identity
from fastgate.auth.claims import ClaimsReader, Resolve
from fastgate.auth.jwks import (
    FileKeys,
    KeySet,
    RemoteKeys,
    key_of_pem,
    key_of_secret,
    keys_of_jwks,
)
from fastgate.auth.scheme import LATER, REJECTED, CounterOf, Scheme, Unavailable, authorization
from fastgate.auth.settings import JwtConfig, JwtIssuerConfig
from fastgate.auth.strict_json import strict_json
from fastgate.settings import SECOND
from fastgate.upstream.fetch import Fetcher

__all__ = ["JwtScheme", "Token", "keys_of_issuer", "read_token"]

# Requests that wait for keys, per worker. More are rejected at once: they are likely an attack.
MAX_WAITING: Final = 1024
FETCHES: Final = ("ok", "failed")


class Token(NamedTuple):
    """A parsed token, not verified."""

    algorithm: str
    kid: str | None
    type: str
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


class Keys(Protocol):
    """A source of keys."""

    keys: KeySet | None

    def may_learn(self, kid: str | None) -> bool: ...
    async def learn(self) -> None: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...


class _Given:
    """Keys given in the config."""

    def __init__(self, keys: KeySet) -> None:
        self.keys: KeySet | None = keys

    def may_learn(self, kid: str | None) -> bool:
        return False

    async def learn(self) -> None: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...


class _Issuer(NamedTuple):
    config: JwtIssuerConfig
    keys: Keys
    audience: frozenset[str]
    types: frozenset[str]
    reader: ClaimsReader


def read_token(text: str) -> Token:
    """The parts of a token in compact form (RFC 7515 §7.1). Raises ValueError for anything else."""
    try:
        raw = text.encode("ascii")
        header_part, payload_part, signature_part = raw.split(b".")
    except ValueError:
        raise ValueError("three segments") from None
    header = strict_json(_segment(header_part))
    claims = strict_json(_segment(payload_part))
    signature = _segment(signature_part)
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise ValueError("two JSON objects")
    if "crit" in header or "b64" in header:
        raise ValueError("no critical extensions (`crit`)")  # RFC 7515 §4.1.11
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "")
    if (
        not isinstance(algorithm, str)
        or not isinstance(kind, str)
        or not (kid is None or isinstance(kid, str))
    ):
        raise ValueError("text values for alg, typ and kid")
    return Token(algorithm, kid, kind, claims, raw[: -len(signature_part) - 1], signature)


def _segment(part: bytes) -> bytes:
    """The bytes of a base64url segment. Only the canonical encoding is accepted: no padding, no white space,
    no spare bits, no `+/`."""
    try:
        decoded = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except binascii.Error:
        raise ValueError("base64url") from None
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part:
        raise ValueError("canonical base64url")
    return decoded


def keys_of_issuer(
    config: JwtIssuerConfig, fetcher: Callable[[], Fetcher], count: Callable[[str], None]
) -> Keys:
    """The source of this issuer's keys. Raises ValueError or OSError if a key or file cannot be used."""
    allowed = config.algorithms
    if config.secret is not None:
        return _Given(KeySet([key_of_secret(config.secret, allowed)], alone=True))
    if config.public_key is not None:
        return FileKeys(config.public_key, lambda data: KeySet([key_of_pem(data, allowed)], alone=True))
    if config.jwks_file is not None:
        return FileKeys(
            config.jwks_file, lambda data: keys_of_jwks(strict_json(data), allowed, symmetric=True)
        )
    issuer = config.issuer if config.discovery else None
    return RemoteKeys(fetcher(), config.jwks, allowed, url=config.jwks_url, issuer=issuer, count=count)


class JwtScheme(Scheme):
    """The scheme `jwt`. One instance for all routes of a worker."""

    name = "jwt"
    cacheable = True
    outcomes: ClassVar[tuple[str, ...]] = (
        *(
            "ok",
            "malformed",
            "repeated",
            "too_long",
            "issuer",
            "algorithm",
            "unknown_key",
            "signature",
            "type",
            "audience",
        ),
        *("expired", "not_yet", "too_old", "claims", "consumer", "unavailable"),
    )

    def __init__(
        self,
        config: JwtConfig,
        resolve: Resolve,
        tiers: Iterable[str] | None = None,
        fetcher: Callable[[], Fetcher] | None = None,
        counter: CounterOf | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(counter)
        self.on_error = config.on_error
        self.cache_ns = config.max_cached_ns
        self._header = config.header.lower()
        self.needs = (self._header,)
        self._headers = (self._header,)
        self.challenge = 'Bearer realm="fastgate"'
        if self._header != "authorization":
            self.challenge += f', header="{self._header}"'
        self._max_bytes = config.max_token_bytes
        self._clock = clock
        self._waiting = 0
        self._issuers: dict[str | None, _Issuer] = {}
        fetches: dict[str, Any] = {}
        if counter is not None:
            fetches = {word: counter("fastgate_auth_key_fetches_total", outcome=word) for word in FETCHES}

        def count_fetch(word: str) -> None:
            if fetches:
                fetches[word].add(1)

        for issuer in config.issuers:
            if fetcher is None and (issuer.jwks_url is not None or issuer.discovery):
                raise ValueError("keys at a URL need a fetcher")
            self._issuers[issuer.issuer] = _Issuer(
                issuer,
                keys_of_issuer(issuer, fetcher or _no_fetcher, count_fetch),
                frozenset(issuer.audience),
                frozenset(_type(one) for one in issuer.types),
                ClaimsReader(issuer.claims, self.name, ("sub",), issuer.tier, tiers, resolve),
            )

    async def start(self) -> None:
        for issuer in self._issuers.values():
            await issuer.keys.start()

    async def close(self) -> None:
        for issuer in self._issuers.values():
            await issuer.keys.close()

    def verify(self, ctx: RequestContext) -> Any:
        return self._verify(ctx, may_wait=True)

    @property
    def claims(self) -> tuple[str, ...]:
        return (self._header,)

    def unclaimed(self, ctx: RequestContext) -> str | None:
        return "malformed" if self._text(ctx) is not None else None

    async def verify_later(self, ctx: RequestContext) -> Any:
        found = self._token_and_issuer(ctx)
        if not isinstance(found, tuple):
            return found
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many requests wait for the issuer's keys")
        self._waiting += 1
        try:
            await found[1].keys.learn()
        finally:
            self._waiting -= 1
        return self._verify(ctx, may_wait=False)

    def _text(self, ctx: RequestContext) -> Any:
        """The token of this request; None if there is none, REJECTED if there are two."""
        if self._header == "authorization":
            return authorization(ctx, "bearer")
        values = ctx.headers.get_all(self._header)
        if len(values) > 1:
            return REJECTED
        if not values:
            return None
        value = values[0]
        return value[7:].strip(" ") if value[:7].lower() == "bearer " else value

    def _token_and_issuer(self, ctx: RequestContext) -> Any:
        text = self._text(ctx)
        if text is None or text is REJECTED:
            return text
        if text.count(".") != 2:
            return None  # another kind of bearer token: an API key, or an opaque token
        if len(text) > self._max_bytes:
            return self._rejected("too_long")
        try:
            token = read_token(text)
        except ValueError:
            return self._rejected("malformed")
        said = token.claims.get("iss")
        issuer = self._issuers.get(said) if said is None or isinstance(said, str) else None
        if issuer is None:
            return self._rejected("issuer")
        return token, issuer

    def _verify(self, ctx: RequestContext, may_wait: bool) -> Any:
        found = self._token_and_issuer(ctx)
        if not isinstance(found, tuple):
            return found
        token: Token
        issuer: _Issuer
        token, issuer = found
        source = issuer.keys
        keys = source.keys
        if keys is None or not keys.knows(token.kid):
            if may_wait and source.may_learn(token.kid):
                return LATER
            if keys is None:
                raise Unavailable("no keys of this issuer have been fetched yet")
            return self._rejected("unknown_key")
        candidates = keys.find(token.kid, token.algorithm)
        if not candidates:
            return self._rejected("algorithm")
        if not any(key.verifies(token.algorithm, token.signed, token.signature) for key in candidates):
            return self._rejected("signature")
        return self._believed(token, issuer)

    def _believed(self, token: Token, issuer: _Issuer) -> Any:
        """The identity of a token with a valid signature, if its claims are valid too."""
        config, claims = issuer.config, token.claims
        if issuer.types and _type(token.type) not in issuer.types:
            return self._rejected("type")
        if not _is_for_us(claims.get("aud"), issuer.audience):
            return self._rejected("audience")
        now_s = self._clock()
        leeway_s = config.leeway_ns / SECOND
        times: list[float | None] = []
        for name in ("exp", "nbf", "iat"):
            value = claims.get(name)
            if name in claims and not _is_time(value):
                return self._rejected("claims")
            times.append(value)
        exp, nbf, iat = times
        ends_s = math.inf
        if exp is not None:
            ends_s = exp + leeway_s
        elif config.require_exp:
            return self._rejected("claims")
        if now_s >= ends_s:
            return self._rejected("expired")
        if (nbf is not None and nbf > now_s + leeway_s) or (iat is not None and iat > now_s + leeway_s):
            return self._rejected("not_yet")
        if config.max_age_ns:
            if iat is None:
                return self._rejected("claims")
            ends_s = min(ends_s, iat + config.max_age_ns / SECOND + leeway_s)
            if now_s >= ends_s:
                return self._rejected("too_old")
        expires_ns = int(ends_s * SECOND) if ends_s < 1 << 33 else 0
        identity: Identity | None = issuer.reader.identity(claims, expires_ns)
        if identity is None:
            return self._rejected("consumer")
        self.count("ok")
        return identity

    def _rejected(self, why: str) -> Any:
        self.count(why)
        return REJECTED


def _is_time(value: Any) -> bool:
    """True for a NumericDate (RFC 7519 §2) within the range of the clock."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _is_for_us(said: Any, ours: frozenset[str]) -> bool:
    if "*" in ours:
        return True
    if said is None:
        return not ours
    audiences = [said] if isinstance(said, str) else said
    if not isinstance(audiences, list) or not all(isinstance(one, str) for one in audiences):
        return False
    return any(one in ours for one in audiences)


def _type(value: str) -> str:
    """RFC 7515 §4.1.9: case-insensitive, and `application/` may be omitted."""
    return value.lower().removeprefix("application/")


def _no_fetcher() -> Fetcher:
    raise ValueError("keys at a URL need a fetcher")
