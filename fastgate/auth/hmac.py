"""HMAC request signing: each request proves that its sender knows a secret, without sending it.

    Authorization: HMAC-SHA256 key="acme", ts="1732154000", nonce="Zk3…", signature="…"

`signature` is the base64 of HMAC-SHA256 over the canonical string: these lines, joined by one LF, with no LF
at the end.

    HMAC-SHA256
    1732154000                  ts, as in the header
    Zk3…                        nonce, as in the header
    POST                        the method
    api.example.com             the Host field in lower case, with its port if present
    /orders                     the path exactly as sent, including its percent-encoding
    b=2&a=1                     the query without its question mark, exactly as sent; empty if there is none
    sha-256=:…:                 the Content-Digest field (RFC 9530); empty if there is none
    content-type:application/json       one line for each field in `headers`, in that order: the name in lower
                                        case, a colon, the value; several fields of a name joined by ", "

Lessons from other schemes: nothing is normalized, because different normalizations disagree (a known problem
of AWS SigV4 clients); the client cannot cover less than the first eight lines (Kong's hmac-auth accepts
`headers="date"` as coverage of a whole request); a timestamp alone allows replays within its window, so there
is a nonce, shared by all workers of the machine.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import time
from typing import Any, ClassVar, Final

from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.identity import Identity
from fastgate._core.shm.directory import Directory
from fastgate.auth.consumers import Consumers
from fastgate.auth.nonces import NonceWindow
from fastgate.auth.scheme import REJECTED, CounterOf, Scheme, authorization
from fastgate.auth.secrets import secret_bytes
from fastgate.auth.signing_settings import HmacConfig
from fastgate.checks import LOWER_TOKEN
from fastgate.plugin import FeatureEnv
from fastgate.settings import SECOND
from fastgate.state.records import secret_digest

__all__ = ["Hmac", "canonical_string", "sorted_query"]

MOST_HEADERS: Final = 32

_PARAMETER = re.compile(r'([a-z]+)="([^"\\\x00-\x1f\x7f]*)"(?:[ \t]*,[ \t]*|\Z)', re.ASCII)
_NONCE = re.compile(r"[A-Za-z0-9._~+/=-]{8,128}", re.ASCII)
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)


def sorted_query(query: str) -> str:
    """The query with its parts sorted by name; parts with equal names keep their order."""
    return "&".join(sorted(query.split("&"), key=lambda part: part.partition("=")[0].encode("latin-1")))


def canonical_string(
    *,
    ts: str,
    nonce: str,
    method: str,
    host: str,
    path: str,
    query: str,
    content_digest: str,
    headers: list[tuple[str, str]],
) -> bytes:
    """The signed string."""
    lines = ["HMAC-SHA256", ts, nonce, method, host.lower(), path, query, content_digest]
    lines += [f"{name}:{value}" for name, value in headers]
    return "\n".join(lines).encode("latin-1")


class Hmac(Scheme):
    """The scheme `hmac`."""

    name = "hmac"
    needs = ("authorization",)
    challenge = 'HMAC-SHA256 realm="fastgate"'
    outcomes: ClassVar[tuple[str, ...]] = (
        *(
            "ok",
            "malformed",
            "repeated",
            "unknown_key",
            "signature",
            "expired",
            "coverage",
            "replayed",
            "consumer",
            "digest",
        ),
    )

    def __init__(
        self,
        config: HmacConfig,
        secrets: dict[str, tuple[str, bytes]],
        identify: Any,
        nonces: NonceWindow,
        counter: CounterOf | None = None,
        *,
        directory: Directory | None = None,
        clock: Any = time.time,
    ) -> None:
        """secrets: consumer and secret by key id. identify: returns the Identity of a consumer, or None.
        directory: publishes the secrets of the store."""
        super().__init__(counter)
        self.config = config
        self._secrets = secrets
        self._identify = identify
        self._nonces = nonces
        self._directory = directory
        self._clock = clock
        # The comparison value of an unknown key, so that it costs the same as a known one.
        self._unknown = ("", os.urandom(32))

    @classmethod
    def build(cls, config: HmacConfig, env: FeatureEnv) -> Hmac:
        """The scheme of a worker, from the section `auth` and the consumers of the config."""
        memory = env.context.memory
        counter = memory.metrics.counter
        consumers = env.config.consumers
        secrets = {
            name: (name, secret_bytes(c.hmac_secret)) for name, c in consumers.items() if c.hmac_secret
        }
        secrets |= {key_id: (key.consumer, secret_bytes(key.secret)) for key_id, key in config.keys.items()}
        return cls(
            config,
            secrets,
            Consumers(consumers, memory.directory).identity,
            NonceWindow(memory.nonces, cls.name, cls.valid_ns(config), counter),
            counter,
            directory=memory.directory,
        )

    @staticmethod
    def valid_ns(config: HmacConfig) -> int:
        """Maximum time in which a signature is valid; nonces must be kept for as long."""
        return 2 * config.clock_skew_ns

    def verify(self, ctx: RequestContext) -> Any:
        """See Scheme."""
        credentials = authorization(ctx, "hmac-sha256")
        if credentials is None or credentials is REJECTED:
            return credentials
        parts = _parameters(credentials) if isinstance(credentials, str) else None
        outcome = self._outcome(ctx, parts)
        if isinstance(outcome, str):
            self.count(outcome)
            return REJECTED
        self.count("ok")
        return outcome

    def _secret(self, key_id: str) -> tuple[str, bytes]:
        """The consumer and the secret of a key: from the config, or from the store, in which `hmac/acme` and
        `hmac/acme/2` are secrets of the consumer acme. Both are always looked up."""
        found = self._secrets.get(key_id)
        stored = self._directory.get(secret_digest(f"hmac/{key_id}")) if self._directory is not None else None
        if found is not None:
            return found
        if stored is None:
            return self._unknown
        try:
            return key_id.partition("/")[0], secret_bytes(stored[2].decode())
        except ValueError:
            return self._unknown

    def _outcome(self, ctx: RequestContext, parts: dict[str, str] | None) -> Identity | str:
        """The identity, or the fault. The signature is always computed, so that every invalid credential
        costs the same."""
        given = parts or {}
        key_id = given.get("key", "")
        consumer, secret = self._secret(key_id)
        names = given.get("headers", "").split()
        digest = ", ".join(ctx.headers.get_all("content-digest"))
        path, _, query = _origin_form(ctx.request_target).partition("?")
        if self.config.query == "sorted":
            query = sorted_query(query)
        canonical = canonical_string(
            ts=given.get("ts", ""),
            nonce=given.get("nonce", ""),
            method=ctx.method,
            host=ctx.host_field,
            path=path,
            query=query,
            content_digest=digest,
            headers=[(name, ", ".join(ctx.headers.get_all(name))) for name in names]
            if _are_names(names)
            else [],
        )
        fits = hmac.compare_digest(hmac.digest(secret, canonical, hashlib.sha256), _signature(given))
        if parts is None or not _are_names(names):
            return "malformed"
        if not consumer:
            return "unknown_key"
        if not fits:
            return "signature"
        if not _TIMESTAMP.fullmatch(given["ts"]) or not _NONCE.fullmatch(given["nonce"]):
            return "malformed"
        if abs(int(given["ts"]) - self._clock()) * SECOND > self.config.clock_skew_ns:
            return "expired"
        if ctx.has_body and not digest and self.config.body == "required":
            return "coverage"
        if any(name not in names and name in ctx.headers for name in self.config.required_headers):
            return "coverage"
        identity: Identity | None = self._identify(consumer, method=self.name, key_id=key_id)
        if identity is None:
            return "consumer"
        return identity if self._nonces.first_use(key_id, given["nonce"], self._clock()) else "replayed"


def _parameters(text: str) -> dict[str, str] | None:
    """The parameters of the credentials; None if one is missing, unknown, repeated or malformed."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None or match[1] in found:
            return None
        found[match[1]] = match[2]
        at = match.end()
    known = {"key", "ts", "nonce", "signature"}
    return found if known <= found.keys() <= known | {"headers"} and not text.endswith(",") else None


def _are_names(names: list[str]) -> bool:
    return (
        len(names) <= MOST_HEADERS
        and len(set(names)) == len(names)
        and all(LOWER_TOKEN.fullmatch(name) for name in names)
    )


def _signature(given: dict[str, str]) -> bytes:
    """The bytes of the signature; empty, which never matches, if it is not canonical base64."""
    text = given.get("signature", "")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


def _origin_form(target: str) -> str:
    """Path and query of a target, including one in absolute form (RFC 9112 §3.2)."""
    if target[:1] == "/" or "://" not in target[:8]:
        return target
    rest = target.partition("://")[2]
    cut = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    return rest[cut:] if rest[cut : cut + 1] == "/" else "/" + rest[cut:]
