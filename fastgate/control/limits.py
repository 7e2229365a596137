"""Limits of a client over the admin API: read, change the quota, reset, statistics."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fastgate.control.answers import Refused

__all__ = ["LimitsShape", "check_tier"]

Amount = Annotated[int, Meta(ge=0, le=1 << 40)]


class LimitsShape(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of a tier, of a consumer or of a key. Null takes one away."""

    per_second: Amount | msgspec.UnsetType | None = msgspec.UNSET
    per_minute: Amount | msgspec.UnsetType | None = msgspec.UNSET
    per_hour: Amount | msgspec.UnsetType | None = msgspec.UNSET
    per_day: Amount | msgspec.UnsetType | None = msgspec.UNSET
    burst: Amount | msgspec.UnsetType | None = msgspec.UNSET
    concurrent: Amount | msgspec.UnsetType | None = msgspec.UNSET
    cost_per_hour: Annotated[float, Meta(ge=0, le=1000000000000.0)] | msgspec.UnsetType | None = msgspec.UNSET


def check_tier(tier: str, config: Any) -> None:
    """Refused: 400 for a tier that nobody defined."""
    tiers = getattr(config, "tiers", None)
    if tier and tiers is not None and tier not in tiers:
        raise Refused(400, f"tier: expected one of {', '.join(tiers)}, got {tier[:60]!r}", path="$.tier")
