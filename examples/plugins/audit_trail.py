"""An audit trail: one JSON line in a file for every request that changes something.

    routes:
      - path: /orders/{id}
        upstream: http://127.0.0.1:9001
        plugins:
          - use: examples.plugins.audit_trail:AuditTrail
            file: /var/log/fastgate/audit.jsonl
            actor_header: X-User

A line has the client's address and the value of `actor_header`, the method, path, parameters and the SHA-256
of the body (to match a copy stored elsewhere), the outcome, and the request id as in the access log. Each
line is appended in one write, so that several workers can share a file. A request whose line cannot be
written is served nevertheless, and counted in `fastgate_plugin_errors_total`.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta

from fastgate.plugin import CONTINUE, Plugin, RequestContext, Settings

__all__ = ["AuditTrail"]


class AuditTrail(Plugin):
    """Appends a line for every request with one of the methods, once it is over."""

    class Config(Settings, frozen=True, kw_only=True):
        file: Annotated[str, Meta(min_length=1, description="Where the lines go. Made if it is not there.")]
        methods: Annotated[
            tuple[str, ...], Meta(description="Which requests are noted: those that change something.")
        ] = ("POST", "PUT", "PATCH", "DELETE")
        actor_header: Annotated[
            str | None, Meta(description="The request header that says who asks. Default: none.")
        ] = None

    config: Config
    _descriptor = -1

    async def start(self) -> None:
        # Opened before the first request: a file that cannot be written refuses the config, not a request.
        self._descriptor = os.open(
            self.config.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640
        )

    async def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def decide(self, ctx: RequestContext) -> int:
        if ctx.method in self.config.methods:
            ctx.remember(self, hashlib.sha256())
        return CONTINUE

    def request_chunk(self, ctx: RequestContext, chunk: bytes, last: bool) -> bytes:
        digest = ctx.recall(self)
        if digest is not None:
            digest.update(chunk)
        return chunk

    def log(self, ctx: RequestContext) -> None:
        # Not asked for by `recall`: a request that was refused before this plugin's turn is noted too.
        if ctx.method not in self.config.methods:
            return
        digest = ctx.recall(self)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": ctx.request_id,
            "client": ctx.client_ip,
            "actor": ctx.headers.get(self.config.actor_header) if self.config.actor_header else None,
            "method": ctx.method,
            "path": ctx.path,
            "params": ctx.params,
            "body_sha256": digest.hexdigest() if digest is not None else None,
            "status": ctx.status,
            "reason": ctx.reason.label if ctx.reason is not None else None,
        }
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")
