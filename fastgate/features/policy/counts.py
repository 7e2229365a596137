"""Request counts: the variables that conditions read, and the windows of the action `limit`."""

from __future__ import annotations

from typing import Final

from fastgate._core.limits.keyed import KeyedLimiter
from fastgate._core.limits.limits import SlidingWindow
from fastgate._core.pipeline.context import RequestContext
from fastgate._core.shm.table import LimiterTable

__all__ = ["Counts", "key_of", "keyed"]

LIMIT_KEYS: Final = 10_000
"""Keys of a `limit` action without a host table: in `fastgate explain` and in tests."""

COUNTED: Final = 1_000_000_000
"""Limit of a window that only counts; far above the requests per hour of any gateway."""


class Counts:
    """Requests per consumer, client address or route in the last minute or hour, over all workers."""

    def __init__(self, table: LimiterTable | None) -> None:
        self._table = table
        self._windows: dict[tuple[str, int], KeyedLimiter] = {}

    def count(self, kind: str, window: int, ctx: RequestContext, now_ns: int) -> int:
        """Counts this request and returns the count, including it."""
        limiter = self._windows.get((kind, window))
        if limiter is None:
            limiter = self._windows[kind, window] = keyed(
                SlidingWindow(COUNTED, window), f"policy count {kind} {window}", self._table
            )
        decision = limiter.take(key_of(kind, ctx), 1, now_ns)
        return COUNTED - decision.remaining


def keyed(limit: SlidingWindow, scope: str, table: LimiterTable | None) -> KeyedLimiter:
    """A limiter in the host's table, or in a private one if there is none."""
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
