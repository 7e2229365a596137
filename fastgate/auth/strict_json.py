"""Strict JSON, which every parser reads alike: UTF-8, unique keys, no NaN, bounded nesting."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["strict_json"]


def strict_json(data: bytes) -> Any:
    """The document. Raises ValueError with the error.

    Parsers differ in which of two equal keys they use (RFC 7515 §4 forbids them).
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a repeated key")
    return out


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not valid JSON")
