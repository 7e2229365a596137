"""What is wrong with roles, policies, and with what routes ask of them; and with upstream credentials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from fastgate.config.root import Config, RouteConfig
from fastgate.config.shape import Report, nearest
from fastgate.config.source import Path
from fastgate.features.policy.build import Language, PolicyConfig, check_policy, language
from fastgate.features.rbac.build import asks, check_roles
from fastgate.settings import wildcard_matches
from fastgate.upstream.credentials import check_credential
from fastgate.upstream.settings import CredentialConfig, UpstreamConfig

__all__ = ["check_access", "check_credentials", "with_credentials"]

# RFC 6749 §3.3: a scope stands in a header in quotes, between spaces
_SCOPE = re.compile(r"[!#-\[\]-~]+", re.ASCII)
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)


def check_access(config: Config, routes: Sequence[RouteConfig], report: Report) -> None:
    """Everything about roles and policies. `routes` are all of the config, in order, each with its name."""
    check_roles(
        config.roles,
        {route.name: route.rbac for route in routes},
        lambda path, found, expected, hint: report(("roles", *path), found, expected, hint),
    )
    for name, role in config.roles.items():
        for index, grant in enumerate(role.permissions):
            for at, method in enumerate(grant.methods):
                if not _METHOD.fullmatch(method) or method != method.upper():
                    where = ("roles", name, "permissions", index, "methods", at)
                    report(where, f'"{method}"', "a method such as GET", "")
    for index, route in enumerate(routes):
        _check_asked(route, config, ("routes", index), report)
    _check_policies(config, routes, report)


def _check_asked(route: RouteConfig, config: Config, path: Path, report: Report) -> None:
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
            hint = nearest(permission, granted) or "there are no roles that grant anything"
            report((*path, "permissions", at), f'"{permission}"', "a permission that some role grants", hint)
    if not asks(route):
        if not route.enforce_authorization:
            report(
                (*path, "enforce_authorization"), "a setting without effect", "", "the route asks for nothing"
            )
    elif route.auth is None:
        key = next(
            key for key in ("scopes", "any_scopes", "roles", "permissions", "rbac") if getattr(route, key)
        )
        hint = "nobody is known on a route without authentication: set auth"
        report((*path, key), "a setting without effect", "", hint)


def _check_policies(config: Config, routes: Sequence[RouteConfig], report: Report) -> None:
    inline = [
        (("routes", index, "policies", at), item)
        for index, route in enumerate(routes)
        for at, item in enumerate(route.policies)
    ]
    if not config.policies and not inline:
        return
    known: Language | None = language()
    names: dict[str, str] = {}
    for index, policy in enumerate(config.policies):
        _check_one(policy, ("policies", index), config, known, names, report)
        for at, pattern in enumerate(policy.routes):
            if not any(wildcard_matches(pattern, route.name) for route in routes):
                report(("policies", index, "routes", at), f'"{pattern}"', "the name of a route", "")
    shared = {policy.name for policy in config.policies}
    for path, item in inline:
        if isinstance(item, PolicyConfig):
            _check_one(item, path, config, known, names, report)
            if item.routes:
                report((*path, "routes"), "a setting without effect", "", "this policy is this route's own")
        elif item not in shared:
            report(path, f'"{item}"', "the name of a policy in $.policies", nearest(item, shared))


def _check_one(
    policy: PolicyConfig,
    path: Path,
    config: Config,
    known: Language | None,
    names: dict[str, str],
    report: Report,
) -> None:
    place = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    first = names.setdefault(policy.name, place)
    if first != place:
        report((*path, "name"), f'"{policy.name}"', "a name of its own", f"{first} has it already")
    check_policy(policy, partial(_below, report, path), config.upstreams, known)


def _below(report: Report, path: Path, key: str, found: str, expected: str, hint: str) -> Any:
    return report((*path, key), found, expected, hint)


_FIELD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)  # RFC 9110 §5.6.2
_OWN_FIELDS = frozenset(
    ("connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade")
)


def check_credentials(config: Config, report: Report) -> None:
    """The root section `credentials`, and `credentials` of every upstream."""
    found: list[tuple[Path, CredentialConfig]] = [
        (("credentials", name), settings) for name, settings in config.credentials.items()
    ]
    for name, upstream in config.upstreams.items():
        path: Path = ("upstreams", name, "credentials")
        if isinstance(upstream.credentials, str):
            if upstream.credentials not in config.credentials:
                hint = nearest(upstream.credentials, config.credentials)
                found_text = f'"{upstream.credentials}"'
                if not hint.startswith("did you mean"):
                    # Not what was found: it might be the secret itself.
                    found_text = "another text"
                    hint = "a secret never stands in the config: {env: NAME}, {file: path} or {store: name}"
                report(path, found_text, "the name of an entry of $.credentials", hint)
        elif upstream.credentials is not None:
            found.append((path, upstream.credentials))
    for path, settings in found:
        check_credential(settings, partial(_deep_below, report, path))
        shown = settings.name
        if shown is not None and settings.send == "header":
            if not _FIELD.fullmatch(shown) or shown.lower() in _OWN_FIELDS:
                report((*path, "name"), f'"{shown}"', "a header name that is not the connection's own", "")
        elif shown is not None and not (shown.isascii() and shown.isprintable()):
            report((*path, "name"), f'"{shown}"', "printable ASCII", "")


def with_credentials(config: Config) -> dict[str, UpstreamConfig]:
    """The upstreams, with the settings in place of the names of credentials."""
    return {
        name: msgspec.structs.replace(upstream, credentials=config.credentials[upstream.credentials])
        if isinstance(upstream.credentials, str)
        else upstream
        for name, upstream in config.upstreams.items()
    }


def _deep_below(report: Report, path: Path, key: str, found: str, expected: str, hint: str) -> Any:
    return report((*path, *(key.split(".") if key else ())), found, expected, hint)
