"""A plugin in plain Python that uses every phase: it maps tokens to tenants and sends the tenant upstream.

    routes:
      - path: /api/{rest...}
        upstream: http://127.0.0.1:9000
        plugins:
          - {use: "tenant_plugin:Tenant", tokens: /etc/fastgate/tokens.json}

`tokens` is a JSON object of token to tenant. For an unknown token the file is read again, off the event
loop, and only that request waits. docs/plugins.md describes the phases.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from fastgate.plugin import (
    CONTINUE,
    REASONS,
    SUSPEND,
    Plugin,
    PluginEnv,
    RequestContext,
    RequestHead,
    ResponseHead,
    Settings,
)


class TenantConfig(Settings, frozen=True, kw_only=True):
    """Settings of the plugin. Unknown keys and wrong types are config errors with their path."""

    tokens: Annotated[str, Meta(min_length=1, description="JSON file: token to tenant.")]
    usage: Annotated[str | None, Meta(description="File for the counts, written at the end.")] = None
    shout: Annotated[bool, Meta(description="Send responses in capitals.")] = False
    enforce: Annotated[
        bool, Meta(description="false: only count and log requests that would be rejected.")
    ] = True


class Tenant(Plugin):
    Config = TenantConfig
    config: TenantConfig
    tenants: dict[str, str]
    requests: Counter[str]
    received: Counter[str]

    @classmethod
    def build(cls, config: TenantConfig, env: PluginEnv) -> Tenant:
        """No I/O here: `fastgate check` and `explain` may build a plugin that never starts."""
        plugin = super().build(config, env)
        plugin.tenants = {}
        plugin.requests, plugin.received = Counter(), Counter()
        return plugin

    async def start(self) -> None:
        """Before the first request, and again only after a reload that changed this plugin's settings."""
        self.tenants = await asyncio.to_thread(self._read)

    async def close(self) -> None:
        """When no request can reach the plugin any more; also after a failed start."""
        if self.config.usage is not None:
            usage = {name: {"requests": n, "bytes": self.received[name]} for name, n in self.requests.items()}
            await asyncio.to_thread(self._write, usage)

    def decide(self, ctx: RequestContext) -> int | None:
        """The common case, without a task: 0.3 µs."""
        token = self._token(ctx)
        if token is None:
            return ctx.refuse(REASONS["unauthorized"], headers=[("WWW-Authenticate", "Bearer")])
        tenant = self.tenants.get(token)
        if tenant is None:
            return SUSPEND
        ctx.remember(self, tenant)
        return CONTINUE

    async def request(self, ctx: RequestContext) -> int | None:
        """After SUSPEND: may await, at the cost of a task."""
        self.tenants = await asyncio.to_thread(self._read)
        tenant = self.tenants.get(self._token(ctx) or "")
        if tenant is None:
            return ctx.refuse(REASONS["forbidden"], {"hint": "this token is not known"})
        ctx.remember(self, tenant)
        return CONTINUE

    def upstream_request(self, ctx: RequestContext, head: RequestHead) -> None:
        """Once per attempt: the upstream receives the tenant, never the token."""
        head.headers.remove("Authorization")
        head.headers.set("X-Tenant", ctx.recall(self, "nobody"))

    def cache_key(self, ctx: RequestContext) -> str:
        """On a route with a cache: the value that the edits depend on, so that tenants share no response."""
        return str(ctx.recall(self, "nobody"))

    def upstream_response(self, ctx: RequestContext, head: ResponseHead) -> None:
        """The upstream response, before any other step."""
        head.headers.remove("X-Powered-By")

    def response(self, ctx: RequestContext, head: ResponseHead) -> None:
        """Every response, including refusals."""
        head.headers.set("X-Served-For", ctx.recall(self, "nobody"))

    def request_chunk(self, ctx: RequestContext, chunk: bytes, last: bool) -> bytes:
        """A chunk of the request body, as it arrives."""
        self.received[ctx.recall(self, "nobody")] += len(chunk)
        return chunk

    def response_chunk(self, ctx: RequestContext, chunk: bytes, last: bool) -> bytes:
        """A chunk of the response body, with arbitrary boundaries."""
        return chunk.upper() if self.config.shout else chunk

    def log(self, ctx: RequestContext) -> None:
        """Last, exactly once for every request, regardless of its outcome."""
        self.requests[ctx.recall(self, "nobody")] += 1

    def _token(self, ctx: RequestContext) -> str | None:
        scheme, _, token = ctx.headers.get("Authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" and token else None

    def _read(self) -> dict[str, str]:
        tenants: dict[str, str] = json.loads(Path(self.config.tokens).read_text())
        return tenants

    def _write(self, usage: dict[str, Any]) -> None:
        # One file per worker process: they do not share memory.
        Path(f"{self.config.usage}.{os.getpid()}").write_text(json.dumps(usage))
