"""Checks of `validation`."""

from __future__ import annotations

import re
from typing import Any

from fastgate.checks import Path, Report, RouteSite
from fastgate.features.validation.build import ValidationConfig, compile_schema

__all__ = ["check_route"]

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+", re.ASCII)


def check_route(route: Any, site: RouteSite) -> None:
    """Checks the requirements of a route for request bodies."""
    if route.validation is not None:
        _check_validation(route.validation, (*site.path, "validation"), site.report)


def _check_validation(config: ValidationConfig, path: Path, report: Report) -> None:
    """Checks that content types are valid and schemas compile."""
    for index, name in enumerate(config.content_types):
        if not _MEDIA_TYPE.fullmatch(name) or name.count("*") > 1:
            report((*path, "content_types", index), f'"{name}"', "a media type such as application/json", "")
    if config.schema is not None and config.schema_file is not None:
        report(path, "schema and schema_file", "one of them", "")
        return
    where = (*path, "schema" if config.schema_file is None else "schema_file")
    try:
        compile_schema(config)
    except ValueError as error:
        report(where, "one that cannot be used", str(error), "")
    except OSError as error:
        report(where, f'"{config.schema_file}"', "a file that can be read", (error.strerror or "").lower())
