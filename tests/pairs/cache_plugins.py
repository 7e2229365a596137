"""Plugins for the tests of the cache with other features."""

from __future__ import annotations

from fastgate.plugin import CONTINUE, Plugin, RequestContext, RequestHead


class ByTenant(Plugin):
    """Tells the upstream the tenant, which it takes from a field that it removes."""

    def decide(self, ctx: RequestContext) -> int:
        ctx.remember(self, ctx.headers.get("X-Token") or "nobody")
        return CONTINUE

    def upstream_request(self, ctx: RequestContext, head: RequestHead) -> None:
        head.headers.remove("X-Token")
        head.headers.set("X-Tenant", ctx.recall(self))


class ByTenantKeyed(ByTenant):
    """The same, and says so."""

    def cache_key(self, ctx: RequestContext) -> str | None:
        tenant = str(ctx.recall(self))
        return None if tenant == "secret" else tenant


class Failing(ByTenant):
    """Its cache_key is broken."""

    def cache_key(self, ctx: RequestContext) -> str | None:
        raise ValueError("told to fail")
