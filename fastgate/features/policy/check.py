"""Checks of policies, in the root and in routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from fastgate.checks import Path, Report, nearest
from fastgate.features.policy.language import INSTALL, ExpressionError, Language, language
from fastgate.features.policy.settings import PolicyConfig
from fastgate.settings import wildcard_matches

__all__ = ["check_policy", "check_together"]


def check_together(config: Any, routes: Sequence[Any], report: Report) -> None:
    """Checks every policy of the config. `routes` are all routes in config order, each with its name."""
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
                report(
                    (*path, "routes"),
                    "a setting without effect",
                    "",
                    "a policy defined in a route applies to that route only",
                )
        elif item not in shared:
            report(path, f'"{item}"', "the name of a policy in $.policies", nearest(item, shared))


def _check_one(
    policy: PolicyConfig,
    path: Path,
    config: Any,
    known: Language | None,
    names: dict[str, str],
    report: Report,
) -> None:
    place = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    first = names.setdefault(policy.name, place)
    if first != place:
        report((*path, "name"), f'"{policy.name}"', "a unique name", f"{first} already has it")
    check_policy(policy, partial(_below, report, path), config.upstreams, known)


def _below(report: Report, path: Path, key: str, found: str, expected: str, hint: str) -> Any:
    return report((*path, key), found, expected, hint)


def check_policy(
    policy: PolicyConfig,
    report: Callable[[str, str, str, str], None],
    upstreams: Iterable[str],
    language: Language | None,
) -> None:
    """Reports (key, found, expected, hint) for every error of one policy. `language` is None if the extra is
    not installed."""
    if language is None:
        report("when", "a condition in CEL", "", f"the policy engine is an optional extra: {INSTALL}")
    else:
        try:
            language.compile(policy.when)
        except ExpressionError as error:
            report("when", "an expression that does not compile", "", str(error))
    needs = {"tag": "tags", "route": "upstream", "limit": "limit"}
    for action, key in needs.items():
        given = bool(getattr(policy, key))
        if policy.action == action and not given:
            report(key, "missing key", f"required by a policy with action {action}", "")
        elif policy.action != action and given:
            report(key, "a setting without effect", "", f"only for policies with action {action}")
    if policy.action != "deny":
        for key, unset in (("status", 403), ("message", "")):
            if getattr(policy, key) != unset:
                report(key, "a setting without effect", "", "only for policies with action deny")
    if any(ord(letter) < 32 for letter in policy.message):
        report("message", "a control character", "one line of text", "")
    if policy.upstream is not None and policy.upstream not in upstreams:
        report("upstream", f'"{policy.upstream}"', "the name of an upstream", "")
