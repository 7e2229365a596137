"""The list of features: the name, the checks and the builders of each.

Only packages above the features read this list: `fastgate.config` runs the checks, `fastgate.plan` runs the
builders. Neither knows a feature by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fastgate.auth import build as auth
from fastgate.auth import check as auth_check
from fastgate.auth import section as auth_section
from fastgate.caching import build as caching
from fastgate.caching import check as caching_check
from fastgate.caching import settings as caching_settings
from fastgate.checks import Report, RouteSite
from fastgate.features.access import build as access
from fastgate.features.access import check as access_check
from fastgate.features.cors import build as cors
from fastgate.features.cors import check as cors_check
from fastgate.features.policy import build as policy
from fastgate.features.policy import check as policy_check
from fastgate.features.policy import settings as policy_settings
from fastgate.features.policy import violations as policy_violations
from fastgate.features.ratelimit import build as ratelimit
from fastgate.features.ratelimit import check as ratelimit_check
from fastgate.features.ratelimit import settings as ratelimit_settings
from fastgate.features.rbac import build as rbac
from fastgate.features.rbac import check as rbac_check
from fastgate.features.retry import build as retry
from fastgate.features.retry import check as retry_check
from fastgate.features.routing import build as routing
from fastgate.features.routing import check as routing_check
from fastgate.features.security_headers import build as security_headers
from fastgate.features.security_headers import check as security_headers_check
from fastgate.features.transform import build as transform
from fastgate.features.transform import check as transform_check
from fastgate.features.validation import build as validation
from fastgate.features.validation import check as validation_check
from fastgate.plugin import FeatureEnv, Plugin
from fastgate.settings import Settings

__all__ = ["FEATURES", "Feature", "runtime_names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature. Fields that a feature does not need are omitted."""

    name: str
    """Its name, which is also its key in a route if it has one: builders receive the value of that key."""
    route: type[Settings] | None = None
    """The keys it adds to a route, for the parser, the schema and the manual."""
    root: type[Settings] | None = None
    """The keys it adds to the root."""
    check_root: Callable[[Any, Report], None] | None = None
    """Checks its sections of the root (config, report). Runs even if other sections cannot be parsed."""
    check_route: Callable[[Any, RouteSite], None] | None = None
    """Checks its sections of one route. Runs for each route that can be parsed, whatever the state of the
    root."""
    check_together: Callable[[Any, Sequence[Any], Report], None] | None = None
    """Checks that need the root and all routes (config, routes, report). Runs if everything can be parsed."""
    build: tuple[Callable[[Any, FeatureEnv], Plugin | None], ...] = ()
    """Each builds a plugin from (the route's settings, FeatureEnv), or returns None if there is nothing to
    do. They are called for every route, including those without the key, because many features have a default
    in the root of the config."""
    runtime_names: Callable[[Any], Iterable[str]] | None = None
    """The names of the values in the runtime table that its plugins read, from the config. Slots are assigned
    before the plan is built; `env.context.memory.runtime.value(name, default)` returns them."""
    scope: Literal["guard", "action"] = "guard"
    """When its plugins decide: a guard before the plugins of the config, an action after them and instead of
    the upstream."""
    route_parts: Callable[[FeatureEnv], Mapping[str, Any]] | None = None
    """What it adds to the plan of a route without a step of its own: keyword arguments of RoutePlan."""
    destination_parts: Callable[[FeatureEnv, Sequence[Plugin]], Mapping[str, Any]] | None = None
    """What it adds to a route's destination (FeatureEnv, the route's plugins): keyword arguments of
    Destination."""
    owned_headers: Callable[[FeatureEnv], Iterable[bytes]] | None = None
    """Request fields that only the gateway sets on this route, in lower case, in addition to `owned` of its
    plugins."""
    explain: Callable[[Any], Mapping[str, str]] | None = None
    """What `fastgate explain` prints about one route's settings (the route's config): label to text."""
    explain_decisions: Callable[[Any], Callable[[], list[str]]] | None = None
    """For `fastgate explain`: begins to observe decisions (HostMemory). The function it returns is called
    after the request and returns the decisions as sentences."""
    explain_fields: tuple[str, ...] = ()
    """Response fields that `fastgate explain` prints, in lower case."""
    is_explained: bool = True
    """False: `fastgate explain` runs requests without it, because it would store something."""


FEATURES: Final[tuple[Feature, ...]] = (
    Feature(
        name="cors",
        route=cors.RouteKeys,
        root=cors.RootKeys,
        check_root=cors_check.check_root,
        check_route=cors_check.check_route,
        build=(cors.build,),
    ),
    Feature(
        name="security_headers",
        route=security_headers.RouteKeys,
        root=security_headers.RootKeys,
        check_root=security_headers_check.check_root,
        check_route=security_headers_check.check_route,
        build=(security_headers.build,),
    ),
    Feature(
        name="access",
        route=access.RouteKeys,
        root=access.RootKeys,
        check_root=access_check.check_root,
        check_route=access_check.check_route,
        build=(access.build_root, access.build),
    ),
    Feature(
        name="auth",
        route=auth_section.RouteKeys,
        root=auth_section.RootKeys,
        check_root=auth_check.check_root,
        check_route=auth_check.check_route,
        check_together=auth_check.check_together,
        build=(auth.build, auth.build_digest),
        explain=auth_section.explain,
    ),
    Feature(
        name="rbac",
        route=rbac.RouteKeys,
        root=rbac.RootKeys,
        check_together=rbac_check.check_together,
        build=(rbac.build,),
        explain=rbac.explain,
    ),
    Feature(
        name="policies",
        route=policy_settings.RouteKeys,
        root=policy_settings.RootKeys,
        check_together=policy_check.check_together,
        build=(policy.build,),
        runtime_names=policy.runtime_names,
        explain_decisions=policy_violations.observe,
    ),
    Feature(
        name="limits",
        route=ratelimit_settings.RouteKeys,
        root=ratelimit_settings.RootKeys,
        check_root=ratelimit_check.check_root,
        check_route=ratelimit_check.check_route,
        build=(ratelimit.build, ratelimit.build_watched),
        explain=ratelimit_settings.explain,
        explain_fields=("ratelimit", "ratelimit-policy", "retry-after"),
    ),
    # Reads bodies, therefore after authentication, authorization and limits.
    Feature(
        name="validation",
        route=validation.RouteKeys,
        check_route=validation_check.check_route,
        build=(validation.build,),
        explain=validation.explain,
    ),
    Feature(
        name="routing",
        route=routing.RouteKeys,
        check_route=routing_check.check_route,
        build=(routing.build_redirect, routing.build_respond),
        scope="action",
        route_parts=routing.route_parts,
    ),
    Feature(
        name="transform",
        route=transform.RouteKeys,
        check_route=transform_check.check_route,
        route_parts=transform.route_parts,
        owned_headers=transform.owned_headers,
    ),
    Feature(
        name="retry",
        route=retry.RouteKeys,
        check_route=retry_check.check_route,
        check_together=retry_check.check_together,
        destination_parts=retry.destination_parts,
        owned_headers=retry.owned_headers,
        explain=retry.explain,
    ),
    Feature(
        name="cache",
        route=caching_settings.RouteKeys,
        root=caching_settings.RootKeys,
        check_root=caching_check.check_root,
        check_route=caching_check.check_route,
        destination_parts=caching.destination_parts,
        explain=caching_settings.explain,
        is_explained=False,
    ),
)
"""In the order in which a request passes them, followed by the plugins of the config."""


def runtime_names(config: Any) -> list[str]:
    """The names of all values in the runtime table that a plan of this config reads."""
    return [
        name
        for feature in FEATURES
        if feature.runtime_names is not None
        for name in feature.runtime_names(config)
    ]
