"""Mapping of the claims of a token or an authorization server to an Identity.

The claims are verified before. External text becomes a consumer name, a scope or a role only if it is valid
for it: a claim of another type counts as absent, and a token without a valid consumer name is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from fastgate._core.pipeline.identity import Identity
from fastgate.auth.settings import ClaimsConfig

__all__ = ["MAX_NAME", "ClaimsReader", "Resolve", "TooManyWords", "claim", "name_of", "words"]

# The name is a key of limits, a word in logs and a header value: as NAME_PATTERN of fastgate.auth.consumers.
MAX_NAME: Final = 255
# Scopes and roles of one token, more than real ones have. A token with more is rejected.
MAX_WORDS: Final = 256


class TooManyWords(ValueError):
    """More scopes or roles than a token may have."""


Resolve = Callable[..., Identity | None]
"""`Consumers.identity`: combines the consumer of the config and the store with the properties of the
credential; None if the consumer is not accepted.
"""


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of exactly this name, else the one at this dotted path, else None."""
    if name in claims:
        return claims[name]
    if "." not in name:
        return None
    found: Any = claims
    for step in name.split("."):
        if not isinstance(found, dict) or step not in found:
            return None
        found = found[step]
    return found


def name_of(value: Any) -> str:
    """A value as a consumer's name: printable ASCII, or a number; "" if it is not valid."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 1 << 64 else ""
    if not isinstance(value, str) or not value or len(value) > MAX_NAME or not _is_plain(value):
        return ""
    return "" if value != value.strip() else value


def words(value: Any) -> list[str]:
    """A space-separated text (RFC 6749 §3.3) or a list of texts, as a list of words. Raises TooManyWords
    instead of truncating, so that a policy that denies a word cannot miss it."""
    found: list[str] = []
    if isinstance(value, str):
        found = [word for word in value.split(" ") if word and _is_plain(word)]
    elif isinstance(value, list):
        found = [word for word in value if isinstance(word, str) and word and _is_plain(word)]
    if len(found) > MAX_WORDS:
        raise TooManyWords(f"more than {MAX_WORDS} scopes or roles")
    return found


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


class ClaimsReader:
    """Reads claims according to one config."""

    def __init__(
        self,
        config: ClaimsConfig,
        method: str,
        consumer: tuple[str, ...],
        tier: str | None,
        tiers: Iterable[str] | None,
        resolve: Resolve,
    ) -> None:
        self._config = config
        self._method = method
        self._consumer = (config.consumer,) if config.consumer is not None else consumer
        self._tier = tier or ""
        self._tiers = None if tiers is None else frozenset(tiers)
        self._resolve = resolve

    def identity(
        self, claims: Mapping[str, Any], expires_ns: int, key_id: str | None = None
    ) -> Identity | None:
        """The identity of these claims; None without a consumer, or if the consumer is not accepted."""
        config = self._config
        consumer = ""
        for name in self._consumer:
            consumer = name_of(claim(claims, name))
            if consumer:
                break
        else:
            return None
        tier = claim(claims, config.tier) if config.tier is not None else None
        if not isinstance(tier, str) or (self._tiers is not None and tier not in self._tiers):
            tier = ""
        scopes = claim(claims, config.scopes)
        try:
            granted = None if scopes is None else words(scopes)
            roles = words(claim(claims, config.roles)) if config.roles is not None else []
        except TooManyWords:
            return None
        return self._resolve(
            consumer,
            method=self._method,
            tier=tier,
            default_tier=self._tier,
            scopes=granted,
            roles=roles,
            metadata={name: claim(claims, name) for name in config.metadata},
            claims=claims,
            key_id=key_id,
            expires_ns=expires_ns,
            must_exist=config.known_only,
        )
