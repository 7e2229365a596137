"""Checks of `cors`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastgate.checks import TOKEN, Path, Report, RouteSite
from fastgate.features.cors.build import CorsConfig, read_origin

__all__ = ["check_root", "check_route"]


def check_root(config: Any, report: Report) -> None:
    """The root's section, the default of routes."""
    if config.cors is not None:
        _check_cors(config.cors, (), ("cors",), report)


def check_route(route: Any, site: RouteSite) -> None:
    """A route's own section."""
    if route.cors is not None:
        _check_cors(route.cors, route.methods, (*site.path, "cors"), site.report)


def _check_cors(config: CorsConfig, methods: Collection[str], path: Path, report: Report) -> None:
    """Reports errors of one section. `methods` are those of the route; empty means any."""
    many = len(config.origins) > 1
    for index, origin in enumerate(config.origins):
        where = (*path, "origins", index) if many else (*path, "origins")
        if origin == "*":
            if config.credentials:
                report(
                    where,
                    '"*" with credentials: true',
                    "",
                    "every site could act on behalf of its visitors; list the allowed origins",
                )
            if many:
                report(where, '"*" among others', "", '"*" already allows the others')
            continue
        try:
            read_origin(origin)
        except ValueError as error:
            report(where, f'"{origin}"', str(error), "")
    for section, names in (
        ("methods", config.methods or ()),
        ("headers", config.headers),
        ("expose", config.expose),
    ):
        for index, name in enumerate(names):
            where = (*path, section, index)
            if name == "*" and section == "expose" and config.credentials:
                report(
                    where,
                    '"*" with credentials: true',
                    "",
                    "with credentials it means a field named * (Fetch §3.2.5)",
                )
            elif name != "*" and not TOKEN.fullmatch(name):
                report(where, f'"{name}"', "a method" if section == "methods" else "a field name", "")
            elif section == "methods" and name != "*" and methods and name not in (*methods, "HEAD"):
                report(where, f'"{name}"', "", f"the route accepts only {', '.join(methods)}")
            elif section == "methods" and name != name.upper():
                report(where, f'"{name}"', "", f"methods are case-sensitive: write {name.upper()}")
