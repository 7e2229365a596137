"""Allow and deny lists by the client's address, for a route and for the whole gateway.

The address is the one that limits and logs go by: the peer's, or what trusted proxies say it is. The gate is
compiled (`_core/gate_limits.AccessGate`): two binary searches. The root and the route have a gate each, so
that shadow mode of one does not weaken the other.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from fastgate._core.gates.limits import AccessGate
from fastgate._core.http.cidr import CidrSet
from fastgate.errors import REASONS
from fastgate.plugin import FeatureEnv
from fastgate.settings import Settings

__all__ = ["AccessConfig", "RootKeys", "RouteKeys", "build", "build_root"]


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


class RouteKeys(Settings, frozen=True, kw_only=True):
    """Its keys in a route."""

    manual_order: ClassVar[int] = 40

    access: Annotated[
        AccessConfig | None, Meta(description="Who may use this route, by address, beside the root's lists.")
    ] = None


class RootKeys(Settings, frozen=True, kw_only=True):
    """Its keys in the root."""

    manual_order: ClassVar[int] = 70

    access: Annotated[AccessConfig | None, Meta(description="Who may come at all, by address.")] = None


def build_root(_settings: AccessConfig | None, env: FeatureEnv) -> AccessGate | None:
    """The gate of the root's lists, which a route's `enforce: false` does not touch."""
    return _gate(env.config.access, env)


def build(settings: AccessConfig | None, env: FeatureEnv) -> AccessGate | None:
    """The gate of a route's own lists, or None where it has none."""
    return _gate(settings, env)


def _gate(lists: AccessConfig | None, env: FeatureEnv) -> AccessGate | None:
    if lists is None or not (lists.deny or lists.allow):
        return None
    gate = AccessGate(
        CidrSet(lists.deny) if lists.deny else None,
        CidrSet(lists.allow) if lists.allow else None,
        REASONS["address_denied"],
        env.around.memory.metrics,
    )
    gate.enforce = lists.enforce
    return gate
