"""Checks of roles, and of the requirements of routes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastgate.checks import TOKEN, Path, Report, nearest
from fastgate.features.rbac.build import RoleConfig, asks
from fastgate.settings import wildcard_matches

__all__ = ["check_together", "find_cycle"]

# RFC 6749 §3.3: scopes are space-separated in a quoted header parameter
_SCOPE = re.compile(r"[!#-\[\]-~]+", re.ASCII)


def check_together(config: Any, routes: Sequence[Any], report: Report) -> None:
    """Checks all roles. `routes` are all routes in config order, each with its name."""
    _check_roles(
        config.roles,
        {route.name: route.rbac for route in routes},
        lambda path, found, expected, hint: report(("roles", *path), found, expected, hint),
    )
    for name, role in config.roles.items():
        for index, grant in enumerate(role.permissions):
            for at, method in enumerate(grant.methods):
                if not TOKEN.fullmatch(method) or method != method.upper():
                    where = ("roles", name, "permissions", index, "methods", at)
                    report(where, f'"{method}"', "a method such as GET", "")
    for index, route in enumerate(routes):
        _check_asked(route, config, ("routes", index), report)


def _check_asked(route: Any, config: Any, path: Path, report: Report) -> None:
    for key in ("scopes", "any_scopes"):
        for at, scope in enumerate(getattr(route, key)):
            if not _SCOPE.fullmatch(scope):
                report(
                    (*path, key, at), f'"{scope}"', "a scope: printable ASCII without spaces and quotes", ""
                )
    for at, role in enumerate(route.roles):
        if config.roles and role not in config.roles:
            report((*path, "roles", at), f'"{role}"', "the name of a role", nearest(role, config.roles))
    granted = [
        grant.permission for role in config.roles.values() for grant in role.permissions if grant.permission
    ]
    for at, permission in enumerate(route.permissions):
        if not any(wildcard_matches(pattern, permission) for pattern in granted):
            hint = nearest(permission, granted) or "no role grants a permission"
            report((*path, "permissions", at), f'"{permission}"', "a permission that some role grants", hint)
    if not asks(route):
        if not route.enforce_authorization:
            report(
                (*path, "enforce_authorization"),
                "a setting without effect",
                "",
                "the route has no requirement",
            )
    elif route.auth is None:
        key = next(
            key for key in ("scopes", "any_scopes", "roles", "permissions", "rbac") if getattr(route, key)
        )
        hint = "requests are anonymous on a route without authentication: set auth"
        report((*path, key), "a setting without effect", "", hint)


def _check_roles(
    roles: Mapping[str, RoleConfig],
    guarded: Mapping[str, bool],
    report: Callable[[tuple[str | int, ...], str, str, str], None],
) -> None:
    """Reports (path below `roles`, found, expected, hint) for every error of the roles. `guarded` maps the
    name of every route to its `rbac`."""
    for name, role in roles.items():
        for index, below in enumerate(role.inherits):
            if below not in roles:
                report((name, "inherits", index), f'"{below}"', "the name of a role", "")
        for index, grant in enumerate(role.permissions):
            path = (name, "permissions", index)
            if grant.permission is None and not grant.routes and not grant.methods:
                hint = 'write routes: "*" for every route with rbac: true'
                report(path, "an empty grant", "a permission, routes or methods", hint)
            for at, pattern in enumerate(grant.routes):
                found = [route for route in guarded if wildcard_matches(pattern, route)]
                where = (*path, "routes", at)
                if not found:
                    report(where, f'"{pattern}"', "the name of a route", "")
                elif grant.permission is None and not any(guarded[route] for route in found):
                    report(where, f'"{pattern}"', "a route with rbac: true", "set rbac: true on the route")
    cycle = find_cycle(roles)
    if cycle is not None:
        report((cycle[0], "inherits"), "a circle", "", " inherits ".join(cycle))


def find_cycle(roles: Mapping[str, RoleConfig]) -> list[str] | None:
    """A cycle of roles that inherit each other, with the first one repeated at the end; None if there is
    none."""
    done: set[str] = set()
    for start in roles:
        trail: list[str] = []
        walks = [iter((start,))]
        while walks:
            name = next(walks[-1], None)
            if name is None:
                walks.pop()
                if trail:
                    done.add(trail.pop())
            elif name in trail:
                return [*trail[trail.index(name) :], name]
            elif name in roles and name not in done:
                trail.append(name)
                walks.append(iter(roles[name].inherits))
    return None
