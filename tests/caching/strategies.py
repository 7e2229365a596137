"""Cache strategies for tests."""

from __future__ import annotations

from fastgate._core.http.headers import Headers
from fastgate._core.pipeline.context import RequestContext
from fastgate.caching.strategy import Strategy
from fastgate.settings import Settings


class ByGroup(Strategy):
    """One answer for all paths of a group; secrets stay out; nothing lives longer than `seconds`."""

    class Config(Settings, frozen=True, kw_only=True):
        seconds: int = 60

    def key(self, ctx: RequestContext) -> str | None:
        if "uncached" in ctx.path:
            return None
        return "/" + ctx.path.split("/")[1]

    def cacheable(self, ctx: RequestContext, status: int, fields: Headers) -> bool:
        return fields.get("X-Secret") is None

    def ttl(self, ctx: RequestContext, status: int, fields: Headers, ttl_ns: int) -> int:
        return int(self.config.seconds) * 1_000_000_000


class Plain(Strategy):
    """Takes no settings."""


class Failing(Strategy):
    """Fails in every place."""

    def key(self, ctx: RequestContext) -> str | None:
        raise ValueError("no key today")
