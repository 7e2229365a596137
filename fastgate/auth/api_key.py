"""API keys: a secret the gateway made, looked up by its SHA-256 in the directory all workers share.

A key that is unknown, revoked, expired, too long or no key at all takes the same way: it is hashed, looked
up, a record is decoded, and the answer is the same 401. What was wrong is told to the metrics only. The
look-up compares hashes: its time says nothing of how much of a key was right.
"""

from __future__ import annotations

import hashlib
import time
from urllib.parse import unquote_plus

from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.identity import Identity
from fastgate._core.shm.directory import Directory
from fastgate.auth.scheme import REJECTED, CounterOf, Scheme, Unavailable, Verdict, authorization
from fastgate.auth.section import ApiKeyConfig
from fastgate.state.records import KeyRecord, decode_key, encode_record

__all__ = ["ApiKeyScheme"]

MAX_KEY_CHARACTERS = 512

_DECOY = encode_record(
    KeyRecord(key_id="key_000000000000", consumer="nobody", tier="free", scopes=("a:read", "a:write"))
)
"""What is decoded for a key that is not there: about as long as a real record."""


class ApiKeyScheme(Scheme):
    """Keys in a header field, behind Bearer, or in the query."""

    name = "api_key"
    cacheable = True
    outcomes = ("ok", "unknown", "malformed", "expired", "not_yet", "repeated", "unavailable")

    def __init__(
        self,
        config: ApiKeyConfig,
        directory: Directory,
        counter: CounterOf | None = None,
        *,
        expects_store: bool = False,
    ) -> None:
        """`expects_store`: a controller loads the directory; until then an unknown key is no wrong key."""
        super().__init__(counter)
        self._config = config
        self._directory = directory
        self._expects_store = expects_store
        self.hide = config.hide
        self.challenge = 'Bearer realm="fastgate"' if config.bearer else 'ApiKey realm="fastgate"'
        self.credential_headers = tuple(
            name for name in (config.header, "Authorization" if config.bearer else None) if name
        )
        self.credential_query = config.query
        self._header = config.header
        if config.bearer and config.header is not None and config.header.lower() == "authorization":
            self._header = None  # it is looked at once

    def verify(self, ctx: RequestContext) -> Identity | Verdict | None:
        key = self._key(ctx)
        if key is None or isinstance(key, Verdict):
            return key
        digest = hashlib.sha256(key[:MAX_KEY_CHARACTERS].encode("utf-8", "surrogateescape")).digest()
        found = self._directory.get(digest)
        index, version, blob = found if found is not None else (-1, 0, _DECOY)
        record = decode_key(blob)
        now_ns = time.time_ns()
        if found is None or len(key) > MAX_KEY_CHARACTERS:
            if self._expects_store and self._directory.loaded != 1:
                raise Unavailable("the store of API keys is not loaded")
            outcome = "unknown" if key.startswith("fg_") else "malformed"
        elif record.expires_ns and record.expires_ns <= now_ns:
            outcome = "expired"
        elif record.not_before_ns > now_ns:
            outcome = "not_yet"
        else:
            self.count("ok")
            return identity_of(record, index, version)
        self.count(outcome)
        return REJECTED

    def credential_field(self, ctx: RequestContext) -> bytes | None:
        if self._header is not None and ctx.headers.get_all(self._header):
            return self._header.lower().encode("latin-1")
        if self._bearer(ctx):
            return b"authorization"
        return None  # it stood in the query

    def unclaimed(self, ctx: RequestContext) -> str | None:
        # RFC 6750 §3.1: a token that is no key of ours is an invalid token, not the lack of one.
        return "malformed" if self._config.bearer and authorization(ctx, "bearer") is not None else None

    def conceal(self, ctx: RequestContext) -> None:
        if self.hide and self._header is not None:
            ctx.headers.remove(self._header)
        if self.hide and self._bearer(ctx):
            ctx.headers.remove("authorization")
        self._query_keys(ctx)

    def _bearer(self, ctx: RequestContext) -> list[str]:
        """The keys behind Bearer. A token of another kind is another method's business."""
        if not self._config.bearer:
            return []
        fields = [value.partition(" ") for value in ctx.headers.get_all("authorization")]
        tokens = [rest.strip(" ") for word, _, rest in fields if word.lower() == "bearer"]
        return [token for token in tokens if token.startswith("fg_")]

    def _key(self, ctx: RequestContext) -> str | Verdict | None:
        """The one key of the request. Two are refused, wherever they stand: only one of them would be the one
        that the upstream, or the next gateway, goes by.
        """
        found = ctx.headers.get_all(self._header) if self._header is not None else []
        found += self._bearer(ctx)
        found += self._query_keys(ctx)
        if len(found) > 1:
            self.count("repeated")
            return REJECTED
        return found[0] if found else None

    def _query_keys(self, ctx: RequestContext) -> list[str]:
        """The keys in the query, of which neither the access log nor, with `hide`, the upstream is told."""
        wanted = self._config.query
        if wanted is None or not ctx.query:
            return []
        found: list[str] = []
        kept: list[str] = []
        shown: list[str] = []
        for part in ctx.query.split("&"):
            name, _, value = part.partition("=")
            if unquote_plus(name) != wanted:
                kept.append(part)
                shown.append(part)
                continue
            found.append(unquote_plus(value, errors="surrogateescape"))
            shown.append(f"{name}=***")
            if not self.hide:
                kept.append(part)
        if found:
            ctx.replace_query("&".join(kept) if kept else None, "&".join(shown))
        return found


def identity_of(key: KeyRecord, index: int, version: int) -> Identity:
    """Who the key of this record belongs to."""
    return Identity(
        key.consumer,
        tier=key.tier,
        method="api_key",
        key_id=key.key_id,
        scopes=key.scopes,
        roles=key.roles,
        metadata=key.metadata,
        limits=key.limits,
        expires_ns=key.expires_ns,
        record=index,
        version=version,
    )
