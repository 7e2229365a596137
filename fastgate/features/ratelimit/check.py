"""Checks of limits and tiers, and of the tiers and limits of consumers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec

from fastgate.checks import WORD_PATTERN, Path, Report, RouteSite, check_field_name, nearest
from fastgate.features.ratelimit.settings import (
    AMOUNT_NAMES,
    Amounts,
    KeyPart,
    LimitsConfig,
    Problem,
    TierConfig,
    amounts_of,
    amounts_problems,
    is_address,
    is_empty,
    rule_id,
    rules_of,
    tiers_of,
)

__all__ = ["check_root", "check_route"]


def check_root(config: Any, report: Report) -> None:
    """Checks the tiers, the consumers' references to them, and the root's limits."""
    _check_tiers(config, report)
    if config.limits is not None:
        _check_limits(config.limits, ("limits",), report, at_root=True)


def check_route(route: Any, site: RouteSite) -> None:
    """Checks a route's own limits."""
    if route.limits is not None:
        _check_limits(route.limits, (*site.path, "limits"), site.report)


def _check_tiers(config: Any, report: Report) -> None:
    """Checks the tiers, and the tiers and limits of consumers."""
    known = tiers_of(config)
    for name, tier in config.tiers.items():
        if not re.fullmatch(WORD_PATTERN, name):
            report(("tiers", name), f'the name "{name}"', "printable ASCII without spaces and quotes", "")
        for inner, found, expected, hint in amounts_problems(tier, tier.algorithm):
            report(("tiers", name, *inner), found, expected, hint)
    for name, consumer in config.consumers.items():
        path: Path = ("consumers", name)
        if consumer.tier is not None and consumer.tier not in known:
            report((*path, "tier"), f'"{consumer.tier}"', "the name of a tier", nearest(consumer.tier, known))
        try:
            amounts = amounts_of(consumer.limits)
        except msgspec.ValidationError as error:
            found = str(error)
            report((*path, "limits"), f"{found[:1].lower()}{found[1:]}", "", "same rules as for a tier")
            continue
        base = known.get(consumer.tier or "", TierConfig())
        whole = {key: getattr(base, key) for key in Amounts.__struct_fields__} | consumer.limits
        amounts = amounts_of(whole)
        for inner, found, expected, hint in amounts_problems(amounts, base.algorithm):
            if inner[0] in consumer.limits:
                report((*path, "limits", *inner), found, expected, hint)


def _check_limits(settings: LimitsConfig, path: Path, report: Report, at_root: bool = False) -> None:
    for inner, found, expected, hint in _problems(settings, at_root):
        report((*path, *inner), found, expected, hint)
    for index, rule in enumerate((settings, *settings.rules)):
        where = path if index == 0 else (*path, "rules", index - 1)
        for at, part in enumerate(rule.by):
            if isinstance(part, KeyPart) and part.header is not None:
                check_field_name(part.header, (*where, "by", at, "header"), report, own_fields=True)
    if settings.cost.header is not None:
        check_field_name(settings.cost.header, (*path, "cost", "header"), report)


def _problems(settings: LimitsConfig, at_root: bool) -> Iterator[Problem]:
    """The problems of one `limits` section."""
    seen: dict[str, str] = {}
    for index, rule in rules_of(settings):
        path: tuple[str | int, ...] = () if index is None else ("rules", index)
        for inner, found, expected, hint in amounts_problems(rule, rule.algorithm):
            yield (*path, *inner), found, expected, hint
        for at, part in enumerate(rule.by):
            if isinstance(part, KeyPart):
                is_ip = part.ip_v4 is not None or part.ip_v6 is not None
                if is_ip == (part.header is not None):
                    yield (*path, "by", at), "neither or both", "either header, or ip_v4 and ip_v6", ""
        if len(set(rule.by)) != len(rule.by):
            yield (*path, "by"), "a repeated part", "each part once", ""
        if sum(is_address(part) for part in rule.by) > 1:
            yield (*path, "by"), "two networks of the client's address", "at most one", ""
        if index is not None and is_empty(rule):
            yield path, "a rule without limits", f"at least one of {', '.join(AMOUNT_NAMES)}", ""
        if not is_empty(rule):
            name = rule_id(rule)
            where = "the limits beside rules" if index is None else f"rules[{index}]"
            if name in seen:
                yield (*path, "by"), name, "another key, or a name", f"{seen[name]} counts by the same key"
            seen.setdefault(name, where)
    if at_root and not settings.inherit:
        yield ("inherit",), "false", "", "only for the limits of a route"
    penalty = settings.penalty
    if penalty is not None:
        for at, (before, after) in enumerate(pairwise(penalty.bans_ns)):
            if after < before:
                yield ("penalty", "bans", at + 1), "shorter than the previous ban", "increasing durations", ""
