"""Authorization by scopes, roles and permissions.

A consumer has scopes and roles, its own or those of its token. A role in the root section `roles` grants
permissions and may inherit other roles. A route requires:

    scopes        all of these scopes           any_scopes    one of these scopes
    roles         one of these roles            permissions   all of these permissions, granted by the roles
    rbac: true    a grant of one of the roles that names this route and method

All requirements of a route must be met. `Roles` resolves inheritance once per config, `Access` evaluates the
requirements of one route, and the compiled gate caches its verdicts per identity (`_core/gates/authorize`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import msgspec
from msgspec import Meta

from fastgate._core.gates.authorize import AuthorizeGate
from fastgate._core.pipeline.identity import Identity
from fastgate.errors import REASONS, Reason
from fastgate.plugin import FeatureEnv
from fastgate.settings import Settings, Text, wildcard_matches

__all__ = [
    "Access",
    "Grant",
    "GrantConfig",
    "RoleConfig",
    "Roles",
    "RootKeys",
    "RouteKeys",
    "asks",
    "build",
    "explain",
]

Refusal = tuple[Reason, dict[str, Any] | None, list[tuple[str, str]]]

REALM: Final = "fastgate"


class GrantConfig(Settings, frozen=True, kw_only=True):
    """One grant of a role. A bare string is short for `{permission: …}`."""

    shorthand: ClassVar[str] = "permission"

    permission: Annotated[
        Text | None,
        Meta(
            description=(
                "The permission that routes require with `permissions`: `orders:read`. `*` matches "
                "any text: `orders:*`. Default: none; the grant is then for routes with `rbac: "
                "true`."
            )
        ),
    ] = None
    routes: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description="Names of the routes where the grant applies; `*` matches any text. Default: all.",
        ),
    ] = ()
    methods: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description="Methods for which the grant applies; GET includes HEAD. Default: all.",
        ),
    ] = ()


class RoleConfig(Settings, frozen=True, kw_only=True):
    """A role. A bare list is short for `{permissions: […]}`."""

    shorthand: ClassVar[str] = "permissions"

    permissions: Annotated[
        tuple[GrantConfig, ...],
        Meta(
            extra={"one_or_many": True},
            description="Permissions of the role: `orders:read`, or `{routes: […], methods: […]}`.",
        ),
    ] = ()
    inherits: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Roles that this role inherits: it has their permissions and satisfies requirements for them."
            ),
        ),
    ] = ()


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 110

    scopes: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Scopes that a request must have, all of them; else 403 with the missing scopes (RFC 6750)."
            ),
        ),
    ] = ()
    any_scopes: Annotated[
        tuple[Text, ...],
        Meta(extra={"one_or_many": True}, description="Scopes of which a request must have at least one."),
    ] = ()
    roles: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Roles of which a consumer must have at least one, directly or by inheritance; else 403."
            ),
        ),
    ] = ()
    permissions: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description="Permissions that the consumer's roles must grant, all of them; else 403.",
        ),
    ] = ()
    rbac: Annotated[
        bool,
        Meta(
            description=(
                "Allow only consumers with a role that grants this route and method (`roles` in the root)."
            )
        ),
    ] = False
    enforce_authorization: Annotated[
        bool,
        Meta(
            description=(
                "`false` (shadow mode): count what scopes, roles and permissions would reject, and let "
                "it pass."
            )
        ),
    ] = True


class RootKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in the root."""

    manual_order: ClassVar[int] = 10

    roles: Annotated[
        dict[str, RoleConfig],
        Meta(description="Roles by name: the permissions of each, and the roles it inherits."),
    ] = msgspec.field(default_factory=dict)


class Grant(NamedTuple):
    """A GrantConfig in the form used for evaluation."""

    permission: str | None
    routes: tuple[str, ...]
    methods: frozenset[str]

    def holds_on(self, route: str, method: str) -> bool:
        return (not self.methods or method in self.methods) and (
            not self.routes or any(wildcard_matches(pattern, route) for pattern in self.routes)
        )


class Roles:
    """The roles of a config with inheritance resolved."""

    def __init__(self, roles: Mapping[str, RoleConfig]) -> None:
        self._counts_as: dict[str, frozenset[str]] = {}
        self._grants: dict[str, tuple[Grant, ...]] = {}
        for name in roles:
            reached = _reached(name, roles)
            self._counts_as[name] = frozenset(reached)
            self._grants[name] = tuple(
                Grant(grant.permission, grant.routes, _methods(grant.methods))
                for role in reached
                if role in roles
                for grant in roles[role].permissions
            )

    def counting_as(self, held: frozenset[str]) -> frozenset[str]:
        """These roles and all roles that they inherit."""
        return held.union(*(self._counts_as.get(role, ()) for role in held))

    def grants(self, held: frozenset[str]) -> list[Grant]:
        """The grants of these roles."""
        return [grant for role in held for grant in self._grants.get(role, ())]


def _methods(methods: tuple[str, ...]) -> frozenset[str]:
    return frozenset(methods) | {"HEAD"} if "GET" in methods else frozenset(methods)


def _reached(name: str, roles: Mapping[str, RoleConfig]) -> list[str]:
    """The role and everything it inherits, each once."""
    found = [name]
    for role in found:  # grows during iteration
        found += [below for below in (roles[role].inherits if role in roles else ()) if below not in found]
    return found


class Access:
    """The requirements of one route."""

    __slots__ = ("_any", "_count", "_permissions", "_rbac", "_roles", "_route", "_scopes", "_table")

    def __init__(
        self,
        route: str,
        table: Roles,
        *,
        scopes: tuple[str, ...] = (),
        any_scopes: tuple[str, ...] = (),
        roles: tuple[str, ...] = (),
        permissions: tuple[str, ...] = (),
        rbac: bool = False,
        count: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._route, self._table = route, table
        self._scopes, self._any = scopes, any_scopes
        self._roles, self._permissions, self._rbac = frozenset(roles), permissions, rbac
        self._count = count

    def judge(self, identity: Identity | None, method: str) -> Refusal | None:
        """None if the identity may use the route with this method, else the refusal."""
        if identity is None or identity.method == "anonymous":
            held: frozenset[str] = identity.scopes if identity is not None else frozenset()
            roles: frozenset[str] = identity.roles if identity is not None else frozenset()
        else:
            held, roles = identity.scopes, identity.roles
        refusal = self._judge(held, roles, method)
        if refusal is not None and (identity is None or identity.method == "anonymous"):
            # The request has no credentials, so this is a 401. RFC 6750 §3.1: the challenge then has no error
            # code.
            self._count("unidentified")
            scope = f', scope="{" ".join(self._scopes)}"' if self._scopes else ""
            challenge = f'Bearer realm="{REALM}"{scope}'
            return REASONS["credentials_missing"], None, [("WWW-Authenticate", challenge)]
        return refusal

    def _judge(self, held: frozenset[str], roles: frozenset[str], method: str) -> Refusal | None:
        missing = [scope for scope in self._scopes if scope not in held]
        if missing:
            return self._scope_refusal(list(self._scopes), {"missing_scopes": missing})
        if self._any and held.isdisjoint(self._any):
            return self._scope_refusal([*self._scopes, self._any[0]], {"any_scopes": list(self._any)})
        if self._roles and self._roles.isdisjoint(self._table.counting_as(roles)):
            self._count("role")
            return REASONS["forbidden"], {"detail": "none of the required roles"}, []
        if not self._permissions and not self._rbac:
            return None
        grants = [grant for grant in self._table.grants(roles) if grant.holds_on(self._route, method)]
        lacking = [
            permission
            for permission in self._permissions
            if not any(
                g.permission is not None and wildcard_matches(g.permission, permission) for g in grants
            )
        ]
        if lacking:
            self._count("permission")
            return REASONS["forbidden"], {"missing_permissions": lacking}, []
        if self._rbac and not any(grant.permission is None for grant in grants):
            self._count("route")
            return REASONS["forbidden"], {"detail": "no role grants this route and method"}, []
        return None

    def _scope_refusal(self, wanted: list[str], detail: dict[str, Any]) -> Refusal:
        self._count("scope")
        challenge = f'Bearer realm="{REALM}", error="insufficient_scope", scope="{" ".join(wanted)}"'
        return REASONS["insufficient_scope"], detail, [("WWW-Authenticate", challenge)]


OUTCOMES: Final = ("scope", "role", "permission", "route", "unidentified")


def asks(route: Any) -> bool:
    """True if the route has any requirement."""
    return bool(route.scopes or route.any_scopes or route.roles or route.permissions or route.rbac)


def build(_settings: Any, env: FeatureEnv) -> AuthorizeGate | None:
    """The gate of a route, or None if the route has no requirement."""
    route = env.route
    if not asks(route):
        return None
    roles = env.config.roles
    table = env.service("roles", roles, lambda: Roles(roles))
    counter = env.context.memory.metrics.counter
    counters = {
        outcome: counter("fastgate_authorization_refused_total", cause=outcome) for outcome in OUTCOMES
    }
    access = Access(
        route.name,
        table,
        scopes=route.scopes,
        any_scopes=route.any_scopes,
        roles=route.roles,
        permissions=route.permissions,
        rbac=route.rbac,
        count=lambda outcome: counters[outcome].add(),
    )
    gate = AuthorizeGate(access.judge)
    gate.enforce = route.enforce_authorization
    return gate


def explain(route: Any) -> dict[str, str]:
    """What the route requires, by key."""
    names = ("scopes", "any_scopes", "roles", "permissions")
    return {name: ", ".join(getattr(route, name)) for name in names if getattr(route, name)}
