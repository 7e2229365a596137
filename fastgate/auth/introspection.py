"""Opaque tokens, validated by the authorization server (RFC 7662).

Concurrent requests with the same token share one call. The gate caches active tokens for `cache`, this module
caches inactive ones for `negative_cache`, so that a flood of invalid tokens does not reach the server; both
under a keyed hash of the token. Calls in flight are bounded, and each has a time limit.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from urllib.parse import quote_plus, urlencode

from fastgate._core.pipeline.context import RequestContext
from fastgate.auth.claims import ClaimsReader, Resolve
from fastgate.auth.scheme import LATER, REJECTED, CounterOf, Scheme, Unavailable, authorization
from fastgate.auth.settings import IntrospectionConfig
from fastgate.auth.strict_json import strict_json
from fastgate.settings import SECOND
from fastgate.upstream.fetch import Fetcher, FetchError

__all__ = ["IntrospectionScheme"]

# RFC 7662 responses have a few hundred bytes.
MAX_RESPONSE_BYTES = 65536


class IntrospectionScheme(Scheme):
    """The scheme `introspection`."""

    name = "introspection"
    needs = ("authorization",)
    challenge = 'Bearer realm="fastgate"'
    outcomes: ClassVar[tuple[str, ...]] = (
        *("ok", "inactive", "malformed", "repeated", "issuer", "audience", "expired", "not_yet", "claims"),
        *("consumer", "asked", "remembered", "forgotten", "too_many", "bad_answer", "unavailable"),
    )

    def __init__(
        self,
        config: IntrospectionConfig,
        resolve: Resolve,
        fetcher: Fetcher,
        tiers: Iterable[str] | None = None,
        counter: CounterOf | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(counter)
        self.on_error = config.on_error
        self.cacheable = config.cache_ns > 0
        self.cache_ns = config.cache_ns
        self._config = config
        self._audience = frozenset(config.audience)
        self._reader = ClaimsReader(
            config.claims, self.name, ("client_id", "sub"), config.tier, tiers, resolve
        )
        self._fetcher = fetcher
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._inactive: OrderedDict[bytes, float] = OrderedDict()  # hash → until (CLOCK_MONOTONIC seconds)
        self._asking: dict[bytes, asyncio.Task[Any]] = {}
        self._headers = [
            ("Accept", "application/json"),
            ("Accept-Encoding", "identity"),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ]
        self._form: list[tuple[str, str]] = [("token_type_hint", "access_token")]
        if config.client_auth == "basic":
            # RFC 6749 §2.3.1: each half is form-encoded first
            pair = f"{quote_plus(config.client_id)}:{quote_plus(config.client_secret)}".encode()
            self._headers.append(("Authorization", "Basic " + base64.b64encode(pair).decode()))
        else:
            self._form += [("client_id", config.client_id), ("client_secret", config.client_secret)]

    async def close(self) -> None:
        for task in list(self._asking.values()):
            task.cancel()
        await self._fetcher.close()

    def verify(self, ctx: RequestContext) -> Any:
        token = authorization(ctx, "bearer")
        if not isinstance(token, str):
            return token
        if not token or len(token) > self._config.max_token_bytes or not token.isascii() or " " in token:
            self.count("malformed")
            return REJECTED
        if self._is_known_inactive(self._key(token)):
            self.count("remembered")
            return REJECTED
        return LATER

    async def verify_later(self, ctx: RequestContext) -> Any:
        token = authorization(ctx, "bearer")
        if not isinstance(token, str):
            return token
        key = self._key(token)
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= self._config.max_waiting:
                self.count("too_many")
                raise Unavailable("too many introspection calls in flight")
            task = self._asking[key] = asyncio.create_task(self._asked(token, key))
            task.add_done_callback(lambda done: self._over(key, done))
        # A cancelled request does not cancel the call for the others.
        said, outcome = await asyncio.shield(task)
        self.outcome = outcome
        return said

    def _over(self, key: bytes, done: asyncio.Task[Any]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # retrieved, even if all waiting requests are gone

    def _key(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode(), digest_size=16, key=self._secret).digest()

    def _is_known_inactive(self, key: bytes) -> bool:
        until_s = self._inactive.get(key)
        if until_s is None:
            return False
        if time.monotonic() < until_s:
            return True
        del self._inactive[key]
        return False

    async def _asked(self, token: str, key: bytes) -> tuple[Any, str]:
        """The server's response for this token, and the outcome to count."""
        said = await self._ask(token, key)
        return said, self.outcome

    async def _ask(self, token: str, key: bytes) -> Any:
        """The server's response for this token."""
        config = self._config
        self.count("asked")
        try:
            fetched = await self._fetcher.request(
                "POST",
                config.url,
                headers=self._headers,
                body=urlencode([("token", token), *self._form]).encode(),
                timeout_ns=config.timeout_ns,
                max_bytes=MAX_RESPONSE_BYTES,
                repeatable=True,  # introspection has no side effects
            )
        except FetchError as error:
            raise Unavailable(f"introspection: {error}") from None
        if fetched.status != 200:
            # 401 means that the gateway's own credentials are wrong (RFC 7662 §2.3): nothing about the token
            self.count("bad_answer")
            raise Unavailable(f"introspection: status {fetched.status}")
        try:
            said = strict_json(fetched.body)
        except ValueError as error:
            self.count("bad_answer")
            raise Unavailable(f"introspection: {error}") from None
        if not isinstance(said, dict) or not isinstance(said.get("active"), bool):
            self.count("bad_answer")
            raise Unavailable('introspection: a response without "active"')
        if not said["active"]:
            return self._rejected("inactive", key)
        return self._believed(said, key)

    def _believed(self, said: dict[str, Any], key: bytes) -> Any:
        config = self._config
        if config.issuer is not None and said.get("iss", config.issuer) != config.issuer:
            return self._rejected("issuer", key)
        if self._audience:
            audience = said.get("aud")
            theirs = [audience] if isinstance(audience, str) else audience
            if not isinstance(theirs, list) or not any(
                isinstance(one, str) and one in self._audience for one in theirs
            ):
                return self._rejected("audience", key)
        now_s = self._clock()
        for name in ("exp", "nbf"):
            value = said.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                return self._rejected("claims", key)
        exp = said.get("exp")
        if exp is not None and exp <= now_s:
            return self._rejected("expired", key)
        if said.get("nbf") is not None and said["nbf"] > now_s:
            return self._rejected("not_yet", key)
        expires_ns = int(exp * SECOND) if exp is not None and exp < 1 << 33 else 0
        identity = self._reader.identity(said, expires_ns)
        if identity is None:
            return self._rejected("consumer", key)
        self.count("ok")
        return identity

    def _rejected(self, why: str, key: bytes) -> Any:
        if self._config.negative_cache_ns:
            now_s = time.monotonic()
            self._inactive[key] = now_s + self._config.negative_cache_ns / SECOND
            self._inactive.move_to_end(key)
            # All entries have the same lifetime, so the oldest expire first. Each insertion removes up to two
            # of them.
            for _ in range(2):
                if self._inactive[next(iter(self._inactive))] <= now_s:
                    self._inactive.popitem(last=False)
            if len(self._inactive) > self._config.cache_entries:
                self._inactive.popitem(last=False)
                self.count("forgotten")
        self.count(why)  # the last outcome, which the gate reads
        return REJECTED
