"""How often something happened: what conditions read, and what the action `limit` counts by."""

from __future__ import annotations

from typing import Final

from fastgate._core.limits.keyed import KeyedLimiter
from fastgate._core.limits.limits import SlidingWindow
from fastgate._core.pipeline.context import RequestContext
from fastgate._core.shm.table import LimiterTable

__all__ = ["Counts", "key_of", "keyed"]

LIMIT_KEYS: Final = 10_000
"""Keys of a `limit` action where there is no table of the host's: `fastgate explain`, tests."""

COUNTED: Final = 1_000_000_000
"""The bound of a window that only counts: more requests in an hour than any gateway sees."""


class Counts:
    """Requests of a consumer, a client address or a route in the last minute or hour, over all workers."""

    def __init__(self, table: LimiterTable | None) -> None:
        self._table = table
        self._windows: dict[tuple[str, int], KeyedLimiter] = {}

    def count(self, kind: str, window: int, ctx: RequestContext, now_ns: int) -> int:
        """Counts this request and says how many there are."""
        limiter = self._windows.get((kind, window))
        if limiter is None:
            limiter = self._windows[kind, window] = keyed(
                SlidingWindow(COUNTED, window), f"policy count {kind} {window}", self._table
            )
        decision = limiter.take(key_of(kind, ctx), 1, now_ns)
        return COUNTED - decision.remaining


def keyed(limit: SlidingWindow, scope: str, table: LimiterTable | None) -> KeyedLimiter:
    """A limiter in the host's table, or in one of its own where there is none."""
    if table is None:
        return KeyedLimiter(limit, capacity=LIMIT_KEYS, scope=scope, when_full="evict")
    return KeyedLimiter(limit, table=table, scope=scope, when_full="evict")


def key_of(by: str, ctx: RequestContext) -> str:
    if by == "route":
        name: str = ctx.route.name
        return name
    if by == "all":
        return ""
    if by == "consumer":
        identity = getattr(ctx, "identity", None)
        if identity is not None and identity.consumer:
            return f"c:{identity.consumer}"
    return f"a:{ctx.client_ip}"
