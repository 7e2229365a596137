"""Content-Digest (RFC 9530): verifies that the received body has the signed digest.

A scheme that verifies a signature over the head knows that the digest is the sender's. `BodyDigest`, a plugin
after the authentication gate, verifies the body. A request whose signature does not cover a digest is never
buffered, and the body of a request that is rejected for another reason, such as a limit, is not read.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from fastgate._core.pipeline.context import CONTINUE, SUSPEND, RequestContext
from fastgate._core.pipeline.pipeline import Plugin
from fastgate.auth.structured_fields import Item, dictionary
from fastgate.errors import REASONS
from fastgate.state.memory import HostMemory

__all__ = ["ALGORITHMS", "BodyDigest", "content_digest", "digests_match"]

# The secure algorithms of the IANA registry; `md5`, `sha`, `crc32c` and others are not (RFC 9530 §6.2).
ALGORITHMS: Final = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


def content_digest(field: str) -> dict[str, bytes]:
    """The digests of a Content-Digest value by algorithm, limited to the supported ones. Raises ValueError if
    there is none, or if the value is malformed."""
    found: dict[str, bytes] = {}
    for name, member in dictionary(field).items():
        if name not in ALGORITHMS:
            continue
        if not isinstance(member, Item) or not isinstance(member.value, bytes):
            raise ValueError(f"{name} is not a byte sequence")
        if len(member.value) != ALGORITHMS[name]().digest_size:
            raise ValueError(f"{name} has {len(member.value)} bytes")
        found[name] = member.value
    if not found:
        raise ValueError(f"expected one of {', '.join(ALGORITHMS)}")
    return found


def digests_match(field: str, body: bytes) -> bool:
    """True if every supported digest of a Content-Digest value is that of the body."""
    try:
        wanted = content_digest(field)
    except ValueError:
        return False
    fits = True
    for name, digest in wanted.items():
        fits = hmac.compare_digest(ALGORITHMS[name](body).digest(), digest) and fits
    return fits


class BodyDigest(Plugin):
    """Verifies the body of a request that one of `methods` has authenticated against its Content-Digest.

    Waits for the body only if such a request has both. A request without a body must have the digest of an
    empty one.
    """

    def __init__(self, methods: frozenset[str], max_body_bytes: int, memory: HostMemory) -> None:
        self.name = "body_digest"
        self._counters = {
            method: memory.metrics.counter("fastgate_auth_total", method=method, outcome="digest")
            for method in methods
        }
        self.methods = methods
        self.request_body_bytes = max_body_bytes

    def decide(self, ctx: RequestContext) -> int:
        """Decides whether the body must be read."""
        if ctx.identity is None or ctx.identity.method not in self.methods:
            return CONTINUE
        fields = ctx.headers.get_all("content-digest")
        if not fields:
            return CONTINUE
        if ctx.has_body:
            if not self.enforce and not 0 <= ctx.content_length <= self.request_body_bytes:
                return CONTINUE  # buffering could end in a refusal, which shadow mode must not do
            return SUSPEND
        return CONTINUE if digests_match(", ".join(fields), b"") else self._refuse(ctx)

    async def request(self, ctx: RequestContext) -> int:
        """Verifies the whole body."""
        fields = ctx.headers.get_all("content-digest")
        return CONTINUE if digests_match(", ".join(fields), ctx.body or b"") else self._refuse(ctx)

    def _refuse(self, ctx: RequestContext) -> int:
        if ctx.identity is not None:
            self._counters[ctx.identity.method].add(1)
        return ctx.refuse(REASONS["digest_mismatch"])
