"""The units of values in the config file: durations, sizes, shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from fastgate.settings import (
    MAX_DURATION_NS,
    MAX_SIZE_BYTES,
    PPM,
    duration_text,
    parse_duration,
    parse_share,
    parse_size,
    share_text,
    size_text,
)

__all__ = ["UNITS", "Unit"]


class Unit(NamedTuple):
    """One unit, by the name that `Meta(extra={"unit": …})` has."""

    parse: Callable[[str], int]
    """The integer of a text. Raises ValueError."""
    show: Callable[[int], str]
    """The shortest text of an integer."""
    kind: str
    example: str
    examples: str
    suffix: str
    """What is usually missing after a bare number."""
    most: int
    pattern: str
    """Of the JSON Schema: surrounding white space is accepted, and case where it does not matter."""


UNITS: Final[dict[str, Unit]] = {
    "duration": Unit(
        parse_duration,
        duration_text,
        "a duration",
        "30s",
        "30s, 100ms, 5m or 1h30m",
        "s",
        MAX_DURATION_NS,
        r"^\s*(0|([0-9]+(\.[0-9]+)?(us|µs|ms|s|m|h|d))+)\s*$",
    ),
    "size": Unit(
        parse_size,
        size_text,
        "a size",
        "10MB",
        "512B, 64KB, 10MB or 1GiB",
        "B",
        MAX_SIZE_BYTES,
        r"^\s*(0|[0-9]+(\.[0-9]+)? ?([bB]|[kKmMgGtT][iI]?[bB]))\s*$",
    ),
    "share": Unit(
        parse_share,
        share_text,
        "a share",
        "20%",
        "20% or 0.5%",
        "%",
        PPM,
        r"^\s*(0|[0-9]+(\.[0-9]{1,4})? ?%)\s*$",
    ),
}
