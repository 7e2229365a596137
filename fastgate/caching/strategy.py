"""Cache strategies: Python code for the key, storage and lifetime of responses.

    from fastgate.caching.strategy import Strategy

    class ByTenant(Strategy):
        def key(self, ctx):
            return ctx.path + "|" + (ctx.headers.get("X-Tenant") or "")

        def ttl(self, ctx, status, fields, ttl_ns):
            return min(ttl_ns, 5_000_000_000)

A route names it with `cache: {strategy: "package.module:ByTenant"}`, or by the name of its entry point (group
`fastgate.cache_strategies`). It can restrict the rules of HTTP and never extend them: a response that must
not be stored is not stored, and a response to an authenticated consumer is served to that consumer only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from fastgate._core.http.headers import Headers
from fastgate._core.pipeline.context import RequestContext
from fastgate.plugin import Registry
from fastgate.settings import Settings, Text

__all__ = ["GROUP", "STRATEGIES", "CarefulStrategy", "Strategy", "StrategyConfig", "make_strategy"]

GROUP = "fastgate.cache_strategies"

log = logging.getLogger("fastgate")


class Strategy:
    """Base class; override what you need. `config` is an instance of Config, or None without one. Must not do
    I/O: the request waits."""

    Config: ClassVar[type[Settings] | None] = None

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def key(self, ctx: RequestContext) -> str | None:
        """Replaces path and query in the key; None: this request bypasses the cache. Host, scheme, consumer
        and the additions of the route's `key` are always part of the key.
        """
        return f"{ctx.path}?{ctx.query}" if ctx.query else ctx.path

    def cacheable(self, ctx: RequestContext, status: int, fields: Headers) -> bool:
        """False prevents storage of a response that the rules allow to store."""
        return True

    def ttl(self, ctx: RequestContext, status: int, fields: Headers, ttl_ns: int) -> int:
        """The freshness lifetime in nanoseconds; `ttl_ns` is that of the rules."""
        return ttl_ns


class CarefulStrategy:
    """Wraps a strategy so that its errors fail no request: an exception is logged once per method, and
    nothing is cached."""

    def __init__(self, strategy: Strategy, name: str) -> None:
        self._strategy = strategy
        self._name = name
        self._told = set[str]()
        self.has_ttl = type(strategy).ttl is not Strategy.ttl

    def key(self, ctx: RequestContext) -> bytes | None:
        try:
            key = self._strategy.key(ctx)
            if key is None:
                return None
            if isinstance(key, str):
                return key.encode("utf-8", "surrogateescape")
            raise TypeError(f"expected str or None, got {type(key).__name__}")
        except Exception:
            self._tell("key")
            return None

    def cacheable(self, ctx: RequestContext, status: int, fields: Headers) -> bool:
        try:
            return bool(self._strategy.cacheable(ctx, status, fields))
        except Exception:
            self._tell("cacheable")
            return False

    def ttl(self, ctx: RequestContext, status: int, fields: Headers, ttl_ns: int) -> int:
        """Never more than the rules allow when they come from the origin: see the caller."""
        try:
            found = self._strategy.ttl(ctx, status, fields, ttl_ns)
            if isinstance(found, int):
                return max(0, min(found, 1 << 60))
            raise TypeError(f"expected nanoseconds as an int, got {type(found).__name__}")
        except Exception:
            self._tell("ttl")
            return 0

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.exception("cache strategy %s failed in %s(); the response is not cached", self._name, what)


class StrategyConfig(Settings, frozen=True, kw_only=True):
    """A cache strategy and its settings. A bare name is short for `{use: …}`."""

    shorthand: ClassVar[str] = "use"

    use: Annotated[
        Text,
        Meta(
            description=(
                "Name of an installed strategy, or the dotted path of its class: `package.module:Class`."
            )
        ),
    ]
    options: Annotated[dict[str, Any], Meta(description="The strategy's own settings.")] = msgspec.field(
        default_factory=dict
    )


STRATEGIES: Final = Registry("cache strategy", GROUP, Strategy, "fastgate.caching.strategy.Strategy")


def make_strategy(name: str, options: Mapping[str, Any]) -> CarefulStrategy:
    """The strategy with its settings. Raises LookupError, TypeError or msgspec.ValidationError with the
    error."""
    found = STRATEGIES.load(name)
    if found.Config is None:
        if options:
            raise TypeError(f"{name!r} takes no settings")
        return CarefulStrategy(found(), name)
    return CarefulStrategy(found(msgspec.convert(dict(options), found.Config)), name)
