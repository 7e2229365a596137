"""Checks of allow and deny lists."""

from __future__ import annotations

from typing import Any

from fastgate.checks import Path, Report, RouteSite, check_network
from fastgate.features.access.build import AccessConfig

__all__ = ["check_root", "check_route"]


def check_root(config: Any, report: Report) -> None:
    """The root's lists."""
    if config.access is not None:
        _check_access(config.access, ("access",), report)


def check_route(route: Any, site: RouteSite) -> None:
    """A route's own lists."""
    if route.access is not None:
        _check_access(route.access, (*site.path, "access"), site.report)


def _check_access(settings: AccessConfig, path: Path, report: Report) -> None:
    for section, networks in (("allow", settings.allow), ("deny", settings.deny)):
        for index, network in enumerate(networks):
            check_network(network, (*path, section, index), report)
