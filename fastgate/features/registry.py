"""The one list of features: what each is called, what is checked of it, and what is built from it.

Only what stands above the features reads this list: `fastgate.config` runs the checks, `fastgate.plan`
builds. Neither knows a feature by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastgate.auth import build as auth
from fastgate.auth import check as auth_check
from fastgate.caching import check as caching_check
from fastgate.checks import Report, RouteSite
from fastgate.features.access import build as access
from fastgate.features.access import check as access_check
from fastgate.features.cors import build as cors
from fastgate.features.cors import check as cors_check
from fastgate.features.policy import build as policy
from fastgate.features.policy import check as policy_check
from fastgate.features.ratelimit import build as ratelimit
from fastgate.features.ratelimit import check as ratelimit_check
from fastgate.features.rbac import build as rbac
from fastgate.features.rbac import check as rbac_check
from fastgate.features.routing import check as routing_check
from fastgate.features.security_headers import build as security_headers
from fastgate.features.security_headers import check as security_headers_check
from fastgate.features.transform import check as transform_check
from fastgate.features.validation import build as validation
from fastgate.features.validation import check as validation_check
from fastgate.plugin import Plugin

__all__ = ["FEATURES", "Feature"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature. What it does not need is left out."""

    name: str
    """Its key in a route, whose value the builders are given."""
    check_root: Callable[[Any, Report], None] | None = None
    """Checks its sections of the root (config, report). Runs also when other sections cannot be read."""
    check_route: Callable[[Any, RouteSite], None] | None = None
    """Checks what one route says of it. Runs for each route that can be read, whatever the root is like."""
    check_together: Callable[[Any, Sequence[Any], Report], None] | None = None
    """Checks what only root and routes together tell (config, routes, report). Runs when all can be read."""
    build: tuple[Callable[[Any, Any], Plugin | None], ...] = ()
    """Each makes a plugin from (the route's settings, FeatureEnv), or None where there is nothing to do. They
    are called for every route, also for one that does not set the key, because many features have a default
    in the root of the config."""


FEATURES: Final[tuple[Feature, ...]] = (
    Feature(
        name="cors",
        check_root=cors_check.check_root,
        check_route=cors_check.check_route,
        build=(cors.build,),
    ),
    Feature(
        name="security_headers",
        check_root=security_headers_check.check_root,
        check_route=security_headers_check.check_route,
        build=(security_headers.build,),
    ),
    Feature(
        name="access",
        check_root=access_check.check_root,
        check_route=access_check.check_route,
        build=(access.build_root, access.build),
    ),
    Feature(
        name="auth",
        check_root=auth_check.check_root,
        check_route=auth_check.check_route,
        check_together=auth_check.check_together,
        build=(auth.build, auth.build_digest),
    ),
    Feature(name="rbac", check_together=rbac_check.check_together, build=(rbac.build,)),
    Feature(name="policies", check_together=policy_check.check_together, build=(policy.build,)),
    Feature(
        name="limits",
        check_root=ratelimit_check.check_root,
        check_route=ratelimit_check.check_route,
        build=(ratelimit.build, ratelimit.build_watched),
    ),
    # Reads bodies: only of those who may come, and within their limits.
    Feature(name="validation", check_route=validation_check.check_route, build=(validation.build,)),
    Feature(name="routing", check_route=routing_check.check_route),
    Feature(name="transform", check_route=transform_check.check_route),
    Feature(name="cache", check_root=caching_check.check_root, check_route=caching_check.check_route),
)
"""In the order in which a request meets them; the plugins of the config come after them."""
