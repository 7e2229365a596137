"""The plugins whose cost the `hooks` scenario measures: what the interface itself takes, with nothing in
it.
"""

from __future__ import annotations

from fastgate.plugin import CONTINUE, Plugin, RequestContext

__all__ = ["Await", "Decide", "Nothing"]


class Nothing(Plugin):
    """Overrides no phase: the walk over a route's hooks, empty."""


class Decide(Plugin):
    """One synchronous Python hook."""

    def decide(self, ctx: RequestContext) -> int:
        return CONTINUE


class Await(Plugin):
    """One asynchronous Python hook: the request gets a task."""

    async def request(self, ctx: RequestContext) -> None:
        return None
