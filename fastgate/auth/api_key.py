"""API keys: a secret the gateway made, looked up by its SHA-256 in the directory all workers share."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from fastgate._core.context import RequestContext
from fastgate._core.directory import Directory
from fastgate._core.identity import Identity
from fastgate.auth.scheme import REJECTED, CounterOf, Scheme, Verdict, authorization
from fastgate.auth.section import ApiKeyConfig

__all__ = ["ApiKeyScheme"]

MAX_KEY_CHARACTERS = 512


class ApiKeyScheme(Scheme):
    """Keys in a header field, behind Bearer, or in the query."""

    name = "api_key"
    cacheable = True
    outcomes = ("ok", "unknown", "malformed", "expired", "repeated")

    def __init__(self, config: ApiKeyConfig, directory: Directory, counter: CounterOf | None = None) -> None:
        super().__init__(counter)
        self._config = config
        self._directory = directory
        self.hide = config.hide
        self.challenge = 'Bearer realm="fastgate"' if config.bearer else 'ApiKey realm="fastgate"'
        self.credential_headers = tuple(
            name for name in (config.header, "Authorization" if config.bearer else None) if name
        )

    def verify(self, ctx: RequestContext) -> Identity | Verdict | None:
        key = self._key(ctx)
        if key is None or isinstance(key, Verdict):
            return key
        # Whatever is wrong with a key, it is hashed and looked up: time and answer are those of any wrong
        # key.
        digest = hashlib.sha256(key[:MAX_KEY_CHARACTERS].encode("utf-8", "surrogateescape")).digest()
        found = self._directory.get(digest)
        if found is None or len(key) > MAX_KEY_CHARACTERS:
            self.count("unknown" if key.startswith("fg_") else "malformed")
            return REJECTED
        index, version, blob = found
        identity = identity_of(msgspec.msgpack.decode(blob), index, version)
        self.count("ok")
        return identity

    def _key(self, ctx: RequestContext) -> str | Verdict | None:
        config = self._config
        if config.header is not None:
            values = ctx.headers.get_all(config.header)
            if len(values) > 1:
                self.count("repeated")
                return REJECTED
            if values:
                return values[0]
        if config.bearer:
            token = authorization(ctx, "bearer")
            # A token of another kind is another method's business.
            if token is not None and (isinstance(token, Verdict) or token.startswith("fg_")):
                return token
        if config.query is not None:
            values = [
                unquote_plus(value)
                for name, _, value in (part.partition("=") for part in ctx.query.split("&"))
                if unquote_plus(name) == config.query
            ]
            if len(values) > 1:
                self.count("repeated")
                return REJECTED
            if values:
                return values[0]
        return None


def identity_of(key: dict[str, Any], index: int, version: int) -> Identity:
    """Who the key of this record belongs to."""
    return Identity(
        key["consumer"],
        tier=key.get("tier") or "",
        method="api_key",
        key_id=key.get("key_id"),
        scopes=key.get("scopes") or (),
        roles=key.get("roles") or (),
        metadata=key.get("metadata"),
        limits=key.get("limits"),
        expires_ns=key.get("expires_ns") or 0,
        record=index,
        version=version,
    )
