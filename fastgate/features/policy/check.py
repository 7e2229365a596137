"""What is wrong with policies, those of the root and those of routes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastgate.checks import Path, Report, nearest
from fastgate.features.policy.build import Language, PolicyConfig, check_policy, language
from fastgate.settings import wildcard_matches

__all__ = ["check_together"]


def check_together(config: Any, routes: Sequence[Any], report: Report) -> None:
    """Every policy of the config. `routes` are all of the config, in order, each with its name."""
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
    config: Any,
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
