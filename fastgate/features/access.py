"""Allow and deny lists by the client's address, for a route and for the whole gateway.

The address is the one that limits and logs go by: the peer's, or what trusted proxies say it is. The gate is
compiled (`_core/gate_limits.AccessGate`): two binary searches.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from fastgate._core.cidr import CidrSet
from fastgate._core.gate_limits import AccessGate
from fastgate.errors import REASONS
from fastgate.settings import Settings

__all__ = ["AccessConfig", "build"]


class AccessConfig(Settings, frozen=True, kw_only=True):
    """Who may come, by address. A route's lists hold beside the root's: both must let a client pass."""

    allow: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Addresses and networks (CIDR) that may come; any other is refused with 403. Default: all."
            ),
        ),
    ] = ()
    deny: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description="Addresses and networks (CIDR) that are refused, also where `allow` names them.",
        ),
    ] = ()
    enforce: Annotated[
        bool,
        Meta(description="False only counts and logs who would be refused, and lets them pass."),
    ] = True


def build(settings: AccessConfig | None, env: Any) -> AccessGate | None:
    """The gate of a route, or None where every address may come."""
    both = [lists for lists in (env.config.access, settings) if lists is not None]
    denied = [CidrSet(lists.deny) for lists in both if lists.deny]
    allowed = [CidrSet(lists.allow) for lists in both if lists.allow]
    if not denied and not allowed:
        return None
    gate = AccessGate(denied, allowed, REASONS["address_denied"], env.around.memory.metrics)
    # One gate, one word: the root's lists are only watched where everything here is.
    gate.enforce = all(lists.enforce for lists in both) if settings is None else settings.enforce
    return gate
