"""Checks of header edits."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from fastgate.checks import Path, Report, RouteSite, check_field_name, check_field_value, check_places
from fastgate.features.transform.build import HeaderEditsConfig

__all__ = ["check_route"]


def check_route(route: Any, site: RouteSite) -> None:
    """Checks the edits of requests and responses."""
    if route.request_headers is not None:
        path: Path = (*site.path, "request_headers")
        _check_edits(route.request_headers, path, site.params, site.report)
        _check_identity_names(route.request_headers, path, site.report)
    if route.response_headers is not None:
        _check_edits(route.response_headers, (*site.path, "response_headers"), site.params, site.report)


def _check_edits(
    edits: HeaderEditsConfig, path: Path, params: Collection[str] | None, report: Report
) -> None:
    for section, fields in (("set", edits.set), ("add", edits.add)):
        for name, value in fields.items():
            where = (*path, section, name)
            if _check_edited_name(name, where, report):
                check_field_value(value, where, report)
                check_places(value, where, params, report)
    for index, name in enumerate(edits.remove):
        _check_edited_name(name, (*path, "remove", index), report)
    for old, new in edits.rename.items():
        where = (*path, "rename", old)
        if _check_edited_name(old, where, report):
            _check_edited_name(new, where, report)


def _check_identity_names(edits: HeaderEditsConfig, path: Path, report: Report) -> None:
    """Only the gateway may set the fields that identify the consumer."""
    made = [
        *(((*path, "rename", old), new) for old, new in edits.rename.items()),
        *(((*path, "set", name), name) for name in edits.set),
        *(((*path, "add", name), name) for name in edits.add),
    ]
    for where, name in made:
        if re.fullmatch(r"x-consumer(-.*)?", re.sub(r"[_.]", "-", name.lower())):
            report(where, f'"{name}"', "another name", "X-Consumer-… identifies the consumer")


def _check_edited_name(name: str, path: Path, report: Report) -> bool:
    if name.lower() == "host":
        report(path, "not allowed", "", "Host is the target's, or the client's with preserve_host")
        return False
    return check_field_name(name, path, report)
