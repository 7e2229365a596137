"""Checks of rewrites, redirects and fixed responses."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from fastgate.checks import (
    Path,
    Report,
    RouteSite,
    check_field_name,
    check_field_value,
    check_places,
    check_regex,
    printable,
)
from fastgate.features.routing.build import RedirectConfig, RespondConfig, RewriteConfig

__all__ = ["check_route"]

_GROUP = re.compile(r"\\(?:([1-9][0-9]?)|g<([^>]*)>)")


def check_route(route: Any, site: RouteSite) -> None:
    """Checks the actions of a route other than proxying."""
    if route.rewrite is not None:
        _check_rewrite(route.rewrite, (*site.path, "rewrite"), site.params, site.report)
    if route.redirect is not None:
        _check_redirect(route.redirect, (*site.path, "redirect"), site.params, site.report)
    if route.respond is not None:
        _check_respond(route.respond, (*site.path, "respond"), site.report)


def _check_rewrite(
    rewrite: RewriteConfig, path: Path, params: Collection[str] | None, report: Report
) -> None:
    forms = [
        form
        for form in ("strip_prefix", "replace_prefix", "path", "regex")
        if getattr(rewrite, form) is not None
    ]
    if len(forms) != 1:
        found = " and ".join(forms) or "none of them"
        report(path, found, "exactly one of strip_prefix, replace_prefix, path and regex", "")
    if rewrite.path is not None:
        check_places(rewrite.path, (*path, "path"), params, report)
    if (rewrite.regex is None) != (rewrite.to is None):
        missing, given = ("to", "regex") if rewrite.to is None else ("regex", "to")
        report((*path, missing), "missing key", f"text, because {given} is set", "")
    for name, text in (("path", rewrite.path), ("strip_prefix", rewrite.strip_prefix), ("to", rewrite.to)):
        _check_path_text(text, (*path, name), report)
    if rewrite.replace_prefix is not None:
        _check_path_text(rewrite.replace_prefix.to, (*path, "replace_prefix", "to"), report)
    if rewrite.regex is not None:
        if not rewrite.regex.isascii():
            hint = "percent-encode other characters"
            report((*path, "regex"), f'"{rewrite.regex}"', "ASCII", hint)
        compiled = check_regex(rewrite.regex, (*path, "regex"), report)
        if compiled is not None and rewrite.to is not None:
            _check_groups(compiled, rewrite.to, (*path, "to"), report)


def _check_path_text(text: str | None, path: Path, report: Report) -> None:
    if text is not None and re.search(r"[^!-~]|[?#]", text):
        report(path, f'"{printable(text)}"', "a path in printable ASCII, without spaces, ? and #", "")


def _check_groups(compiled: re.Pattern[str], to: str, path: Path, report: Report) -> None:
    for dollar in re.finditer(r"\$(\{?)([0-9]+)", to):
        report(path, dollar[0], "a group of the regex", f"write \\{dollar[2]}")
    for match in _GROUP.finditer(to):
        group = match[1] or match[2]
        number = int(group) if group.isascii() and group.isdigit() and len(group) < 4 else None
        if not (number <= compiled.groups if number is not None else group in compiled.groupindex):
            known = [*map(str, range(1, compiled.groups + 1)), *compiled.groupindex]
            report(
                path,
                match[0],
                "a group of the regex",
                f"it has {', '.join(known)}" if known else "it has {', '.join(known)}",
            )


def _check_redirect(
    redirect: RedirectConfig, path: Path, params: Collection[str] | None, report: Report
) -> None:
    where = (*path, "to")
    if not re.match(r"https?://[^/]|/(?!/)|\{", redirect.to):
        report(where, f'"{redirect.to}"', "a URL with http:// or https://, or a path that begins with /", "")
    elif re.search(r"[^!-~]", redirect.to):
        report(where, f'"{printable(redirect.to)}"', "a URL in printable ASCII, without spaces", "")
    check_places(redirect.to, where, params, report)


def _check_respond(respond: RespondConfig, path: Path, report: Report) -> None:
    if respond.body is not None and respond.json is not None:
        report(path, "body and json", "at most one of them", "")
    if respond.status in (204, 205, 304) and (respond.body or respond.json is not None):
        report(
            (*path, "status"),
            f"{respond.status} with a body",
            "",
            f"a response with status {respond.status} has no body",
        )
    for name, value in respond.headers.items():
        if name.lower() == "date":
            report((*path, "headers", name), "not allowed", "", "the gateway sets it")
        elif check_field_name(name, (*path, "headers", name), report):
            check_field_value(value, (*path, "headers", name), report)
