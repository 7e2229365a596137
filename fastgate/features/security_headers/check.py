"""Checks of `security_headers`."""

from __future__ import annotations

from typing import Any, Final

from fastgate._core.http.field_names import RESPONSE_FIELDS
from fastgate.checks import FIELD_VALUE, TOKEN, Path, Report, RouteSite
from fastgate.features.security_headers.build import HEADERS, SecurityHeadersConfig
from fastgate.settings import DAY

__all__ = ["check_root", "check_route"]

# Fields written by the gateway itself, and fields whose removal would change the meaning of a response.
_NOT_REMOVABLE: Final = (RESPONSE_FIELDS - {"x-request-id"}) | {"content-encoding", "content-type", "upgrade"}
# minimum required by https://hstspreload.org
_PRELOAD_NS: Final = 365 * DAY


def check_root(config: Any, report: Report) -> None:
    """The root's section, the default of routes."""
    if config.security_headers is not None:
        _check_security_headers(config.security_headers, ("security_headers",), report)


def check_route(route: Any, site: RouteSite) -> None:
    """A route's own section."""
    if route.security_headers is not None:
        _check_security_headers(route.security_headers, (*site.path, "security_headers"), site.report)


def _check_security_headers(config: SecurityHeadersConfig, path: Path, report: Report) -> None:
    """Checks that values are valid in a header, and that `preload` meets the conditions of the preload
    lists."""
    for name in HEADERS:
        value = getattr(config, name)
        if isinstance(value, str) and not FIELD_VALUE.fullmatch(value):
            report((*path, name), f'"{value}"', "printable ASCII in one line", "")
    for index, name in enumerate(config.remove):
        if not TOKEN.fullmatch(name) or name.lower() in _NOT_REMOVABLE:
            report((*path, "remove", index), f'"{name}"', "a field name not owned by the gateway", "")
    hsts = config.hsts
    if hsts is not None and hsts.preload and not (hsts.include_subdomains and hsts.max_age_ns >= _PRELOAD_NS):
        report(
            (*path, "hsts", "preload"),
            "preload without include_subdomains and a year",
            "",
            "required by the preload lists; see hstspreload.org",
        )
