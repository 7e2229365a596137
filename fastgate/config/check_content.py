"""What is wrong with `cors`, `security_headers` and `validation`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from fastgate.config.shape import Report
from fastgate.config.source import Path
from fastgate.features.cors.build import CorsConfig, read_origin
from fastgate.features.security_headers.build import HEADERS, SecurityHeadersConfig
from fastgate.features.validation.build import ValidationConfig, compile_schema
from fastgate.settings import DAY

__all__ = ["check_cors", "check_security_headers", "check_validation"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_FIELD_VALUE = re.compile(r"[!-~]([ -~\t]*[!-~])?|", re.ASCII)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+", re.ASCII)
# Those the gateway writes itself, and those whose removal would make another message of an answer.
_NOT_REMOVABLE: Final = frozenset(
    (
        "connection",
        "content-length",
        "content-type",
        "content-encoding",
        "date",
        "transfer-encoding",
        "upgrade",
    )
)
# https://hstspreload.org asks for no less
_PRELOAD_NS: Final = 365 * DAY


def check_cors(config: CorsConfig, methods: Collection[str], path: Path, report: Report) -> None:
    """methods: those of the route; empty for any."""
    many = len(config.origins) > 1
    for index, origin in enumerate(config.origins):
        where = (*path, "origins", index) if many else (*path, "origins")
        if origin == "*":
            if config.credentials:
                report(
                    where,
                    '"*" beside credentials: true',
                    "",
                    "every site could act as its visitors; list the origins that may",
                )
            if many:
                report(where, '"*" among others', "", "the others say nothing beside it")
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
                    where, '"*" beside credentials: true', "", "it means a field called * then (Fetch §3.2.5)"
                )
            elif name != "*" and not _TOKEN.fullmatch(name):
                report(where, f'"{name}"', "a method" if section == "methods" else "a field name", "")
            elif section == "methods" and name != "*" and methods and name not in (*methods, "HEAD"):
                report(where, f'"{name}"', "", f"the route takes {', '.join(methods)} only")
            elif section == "methods" and name != name.upper():
                report(where, f'"{name}"', "", f"methods are case-sensitive: write {name.upper()}")


def check_security_headers(config: SecurityHeadersConfig, path: Path, report: Report) -> None:
    """Values that can stand in a header, and an HSTS that preload lists take."""
    for name in HEADERS:
        value = getattr(config, name)
        if isinstance(value, str) and not _FIELD_VALUE.fullmatch(value):
            report((*path, name), f'"{value}"', "printable ASCII in one line", "")
    for index, name in enumerate(config.remove):
        if not _TOKEN.fullmatch(name) or name.lower() in _NOT_REMOVABLE:
            report((*path, "remove", index), f'"{name}"', "a field name that is not the gateway's own", "")
    hsts = config.hsts
    if hsts is not None and hsts.preload and not (hsts.include_subdomains and hsts.max_age_ns >= _PRELOAD_NS):
        report(
            (*path, "hsts", "preload"),
            "preload without include_subdomains and a year",
            "",
            "the lists take no other; see hstspreload.org",
        )


def check_validation(config: ValidationConfig, path: Path, report: Report) -> None:
    """Content types, and schemas that compile."""
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
        report(where, "another value", str(error), "")
    except OSError as error:
        report(where, f'"{config.schema_file}"', "a file that can be read", (error.strerror or "").lower())
