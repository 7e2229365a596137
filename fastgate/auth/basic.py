"""User name and password (RFC 7617), hashed off the loop in one thread and behind a bounded queue.

The gate caches a verified pair under a keyed hash, so a password is hashed once in `cache`. An unknown user
costs the same as a known one with a wrong password: a hash as expensive as those of existing users. Guessing
therefore only fills the queue; requests that do not fit get 503 at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from fastgate._core.pipeline.context import RequestContext
from fastgate.auth.claims import Resolve
from fastgate.auth.passwords import hash_password, password_checker
from fastgate.auth.scheme import LATER, REJECTED, CounterOf, Scheme, Unavailable, authorization
from fastgate.auth.settings import BasicConfig

__all__ = ["BasicScheme", "read_pair"]

MAX_CREDENTIAL_CHARACTERS = 2048

Check = Callable[[bytes], bool]


def read_pair(text: str) -> tuple[str, bytes]:
    """(user, password) from base64 `user:password` in UTF-8. Raises ValueError for anything else."""
    if len(text) > MAX_CREDENTIAL_CHARACTERS:
        raise ValueError("too long")
    try:
        decoded = base64.b64decode(text.encode("ascii"), validate=True).decode()
    except binascii.Error:
        raise ValueError("base64") from None
    user, colon, password = decoded.partition(":")
    # RFC 7617 §2: no control characters in either
    if not colon or not user.isprintable() or any(ord(c) < 32 or ord(c) == 127 for c in password):
        raise ValueError("user:password")
    return user, password.encode()


class BasicScheme(Scheme):
    """The scheme `basic`."""

    name = "basic"
    needs = ("authorization",)
    cacheable = True
    outcomes: ClassVar[tuple[str, ...]] = (
        *("ok", "malformed", "repeated", "unknown", "password", "consumer", "too_many", "unavailable"),
    )

    def __init__(
        self,
        config: BasicConfig,
        consumers: Mapping[str, str],
        resolve: Resolve,
        counter: CounterOf | None = None,
    ) -> None:
        """consumers: password hashes by the name of the consumer, in addition to `users`."""
        super().__init__(counter)
        self._config = config
        self.cache_ns = config.cache_ns
        self.cacheable = config.cache_ns > 0
        self.challenge = f'Basic realm="{config.realm}", charset="UTF-8"'
        self._resolve = resolve
        self._checks: dict[str, Check] = {}
        # One decoy hash per cost. The decoy for an unknown user depends on its name and stays the same.
        decoys: dict[str, Check] = {}
        for user, text in {**consumers, **config.users}.items():
            dear, self._checks[user] = password_checker(text)
            decoys.setdefault(dear, self._checks[user])
        if not decoys:
            decoys[""] = password_checker(hash_password(secrets.token_hex()))[1]
        self._decoys = list(decoys.values())
        self._secret = secrets.token_bytes(32)
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = 0

    async def start(self) -> None:
        # One thread: hashing is slow by design and must not use more than one CPU.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastgate-basic")

    async def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def verify(self, ctx: RequestContext) -> Any:
        text = authorization(ctx, "basic")
        if text is None or text is REJECTED:
            return text
        try:
            read_pair(str(text))
        except ValueError:
            self.count("malformed")
            return REJECTED
        return LATER

    async def verify_later(self, ctx: RequestContext) -> Any:
        text = authorization(ctx, "basic")
        if not isinstance(text, str):
            return text
        user, password = read_pair(text)
        if self._waiting >= self._config.max_waiting or self._thread is None:
            self.count("too_many")
            raise Unavailable("too many passwords are waiting to be checked")
        known = self._checks.get(user)
        check = known if known is not None else self._decoy(user)
        self._waiting += 1
        # Counted until the thread has finished, even if the request is gone
        hashing = asyncio.get_running_loop().run_in_executor(self._thread, check, password)
        hashing.add_done_callback(self._hashed)
        is_right = await asyncio.shield(hashing)
        if known is None or not is_right:
            self.count("unknown" if known is None else "password")
            return REJECTED
        identity = self._resolve(user, method=self.name, default_tier=self._config.tier or "")
        if identity is None:
            self.count("consumer")
            return REJECTED
        self.count("ok")
        return identity

    def _hashed(self, hashing: asyncio.Future[bool]) -> None:
        self._waiting -= 1
        if not hashing.cancelled():
            hashing.exception()

    def _decoy(self, user: str) -> Check:
        if len(self._decoys) == 1:
            return self._decoys[0]
        digest = hashlib.blake2b(user.encode(), digest_size=8, key=self._secret).digest()
        return self._decoys[int.from_bytes(digest, "little") % len(self._decoys)]
