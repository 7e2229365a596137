"""Plugins that edit answers, for the tests of the cache."""

from __future__ import annotations

from fastgate.plugin import Plugin, RequestContext, ResponseHead


class Chunks(Plugin):
    """Upper case, and a mark at the end."""

    def response_chunk(self, ctx: RequestContext, chunk: bytes, last: bool) -> bytes:
        return chunk.upper() + (b"<END>" if last else b"")


class Failing(Plugin):
    """Fails in every body."""

    def response_chunk(self, ctx: RequestContext, chunk: bytes, last: bool) -> bytes:
        raise ValueError("told to fail")


class Whole(Plugin):
    """Takes bodies whole, and adds a mark."""

    response_body_bytes = 100_000

    def response(self, ctx: RequestContext, response: ResponseHead) -> None:
        if response.body is not None:
            response.body = response.body + b"|r"
