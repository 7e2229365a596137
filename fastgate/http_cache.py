"""The HTTP caching rules (RFC 9111) for any service: public names of `fastgate._core.cache`."""

from __future__ import annotations

from fastgate._core.cache.http_cache import (
    BYPASS,
    FRESH,
    MISS,
    ONLY_IF_CACHED,
    REVALIDATE,
    STALE_WHILE_REVALIDATE,
    Rules,
    judge,
)
from fastgate._core.cache.http_decision import Decision
from fastgate._core.cache.http_keys import Vary, merge_vary
from fastgate._core.cache.http_request import RequestRules
from fastgate._core.cache.http_stored import StoredResponse

__all__ = [
    "BYPASS",
    "FRESH",
    "MISS",
    "ONLY_IF_CACHED",
    "REVALIDATE",
    "STALE_WHILE_REVALIDATE",
    "Decision",
    "RequestRules",
    "Rules",
    "StoredResponse",
    "Vary",
    "judge",
    "merge_vary",
]
