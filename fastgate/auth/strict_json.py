"""JSON that every reader reads alike: UTF-8, every key of an object once, no NaN, not nested without end."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["strict_json"]


def strict_json(data: bytes) -> Any:
    """The document. ValueError says what is wrong with it.

    Which of two equal keys counts differs between readers (RFC 7515 §4 forbids them).
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands twice")
    return out


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
