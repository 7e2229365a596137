"""Allow and deny lists by client address, for a route and for the whole gateway.

The address is the one that limits and logs use: that of the TCP peer, or the one reported by a trusted proxy.
The gate is compiled (`_core/gates/access.pyx`): two binary searches. The root and the route have separate
gates, so shadow mode of one does not weaken the other.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from fastgate._core.gates.access import AccessGate
from fastgate._core.http.cidr import CidrSet
from fastgate.errors import REASONS
from fastgate.plugin import FeatureEnv
from fastgate.settings import Settings

__all__ = ["AccessConfig", "RootKeys", "RouteKeys", "build", "build_root"]


class AccessConfig(Settings, frozen=True, kw_only=True):
    """Access lists by client address. A client must pass both the root's lists and the route's."""

    allow: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Addresses and networks (CIDR) that are allowed; all others are rejected with 403. "
                "Default: all."
            ),
        ),
    ] = ()
    deny: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description="Addresses and networks (CIDR) that are rejected, even if `allow` contains them.",
        ),
    ] = ()
    enforce: Annotated[
        bool,
        Meta(
            description=(
                "`false` (shadow mode): count and log the requests that would be rejected, and let them pass."
            )
        ),
    ] = True


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 40

    access: Annotated[
        AccessConfig | None,
        Meta(description="Access lists of this route by client address, in addition to the root's."),
    ] = None


class RootKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in the root."""

    manual_order: ClassVar[int] = 70

    access: Annotated[
        AccessConfig | None, Meta(description="Access lists of the gateway by client address.")
    ] = None


def build_root(_settings: AccessConfig | None, env: FeatureEnv) -> AccessGate | None:
    """The gate of the root's lists. A route's `enforce: false` does not affect it."""
    return _gate(env.config.access, env)


def build(settings: AccessConfig | None, env: FeatureEnv) -> AccessGate | None:
    """The gate of a route's own lists, or None if it has none."""
    return _gate(settings, env)


def _gate(lists: AccessConfig | None, env: FeatureEnv) -> AccessGate | None:
    if lists is None or not (lists.deny or lists.allow):
        return None
    gate = AccessGate(
        CidrSet(lists.deny) if lists.deny else None,
        CidrSet(lists.allow) if lists.allow else None,
        REASONS["address_denied"],
        env.context.memory.metrics,
    )
    gate.enforce = lists.enforce
    return gate
