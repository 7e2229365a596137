"""Limits: rates, concurrency and cost per client; tiers; penalties.

Builds the compiled gates of a route from the config. `_core/gates/limit_rule.pyx` counts; docs/limits.md
has the error bounds of the algorithms. Counts are in the host's LimiterTable under stable names (`tier`,
`root:…`, `route:<name>:…`), so they survive reloads and worker deaths and can be found by the admin API:
`client.py` reads and resets those of one client.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import msgspec

from fastgate._core.gates.limit_factor import Health, Usual
from fastgate._core.gates.limit_rule import LimitRule
from fastgate._core.gates.limits import CostedLimitGate, LimitGate, TierBook
from fastgate._core.limits.inflight import InflightTable
from fastgate._core.limits.penalty import PenaltyBox
from fastgate._core.pipeline.identity import Identity
from fastgate._core.shm.table import LimiterTable
from fastgate.errors import REASONS
from fastgate.features.ratelimit.settings import (
    Amounts,
    KeyPart,
    LimitsConfig,
    PenaltyConfig,
    RuleConfig,
    TierConfig,
    amounts_dict,
    amounts_of,
    amounts_problems,
    is_empty,
    rule_id,
    rules_of,
    tiers_of,
)
from fastgate.plugin import FeatureEnv

__all__ = ["build", "build_watched"]

log = logging.getLogger("fastgate")


def _made(
    rule: RuleConfig,
    scope: str,
    label: str,
    route: str,
    when_full: str,
    table: LimiterTable,
    inflight: InflightTable,
) -> LimitRule:
    by: list[Any] = []
    v4_bits, v6_bits = 32, 64
    for part in rule.by:
        if isinstance(part, KeyPart):
            if part.header is not None:
                by.append(("header", part.header))
            else:
                by.append("ip")
                v4_bits, v6_bits = part.ip_v4 or 32, part.ip_v6 or 64
        elif part == "route":
            by.append(("constant", f"route {route}"))
        elif part == "gateway":
            by.append(("constant", "gateway"))
        else:
            by.append(part)
    return LimitRule(
        table,
        inflight,
        f"{scope}:{rule_id(rule)}",
        by,
        amounts_dict(rule),
        algorithm=rule.algorithm,
        name=rule_id(rule),
        label=label,
        when_full=when_full,
        v4_bits=v4_bits,
        v6_bits=v6_bits,
    )


def _section_rules(
    settings: LimitsConfig, place: str, scope: str, route: str, labelled: bool, table: Any, inflight: Any
) -> list[LimitRule]:
    """The rules of a section, narrow ones first: requests they reject do not count against the wider ones."""
    chosen = [rule for _, rule in rules_of(settings) if not is_empty(rule)]
    chosen.sort(key=lambda rule: all(part in ("route", "gateway") for part in rule.by))
    unnamed = [rule for rule in chosen if not rule.name]
    made = []
    for rule in chosen:
        label = rule.name
        if not label and (labelled or len(chosen) > 1):
            label = place if len(unnamed) == 1 else f"{place}.{rule_id(rule)}"
        made.append(_made(rule, scope, label, route, settings.when_full, table, inflight))
    return made


def _tier_rule(
    amounts: Amounts, algorithm: str, when_full: str, table: Any, inflight: Any
) -> LimitRule | None:
    if is_empty(amounts):
        return None
    return LimitRule(
        table,
        inflight,
        "tier",
        ("consumer",),
        amounts_dict(amounts),
        algorithm=algorithm,
        name="tier",
        when_full=when_full,
        keep_s=86_400,
    )


class _Tiers:
    """Builds the rules of tiers, and those of consumers whose own limits override their tier's."""

    def __init__(
        self, tiers: dict[str, TierConfig], when_full: str, table: Any, inflight: Any, unknown: Any
    ) -> None:
        self._tiers = tiers
        self._make = partial(_tier_rule, when_full=when_full, table=table, inflight=inflight)
        self._unknown = unknown
        self._told: set[str] = set()

    def book(self) -> TierBook:
        rules = {name: self._make(tier, tier.algorithm) for name, tier in self._tiers.items()}
        # A tier without limits is defined too: `rule_of` then returns the None that this lookup finds.
        return TierBook({name: rule for name, rule in rules.items() if rule is not None}, self.rule)

    def rule(self, identity: Identity) -> LimitRule | None:
        tier = self._tiers.get(identity.tier)
        if tier is None:
            tier = TierConfig()
            if identity.tier:
                # An undefined tier must not become a tier without limits.
                tier = self._tiers["free"]
                self._unknown.add(1)
                if identity.tier not in self._told and len(self._told) < 100:
                    self._told.add(identity.tier)
                    log.warning(
                        "limits: tier %r is not defined, its consumers get the limits of free", identity.tier
                    )
        amounts: Amounts = tier
        if identity.limits:
            try:
                # Overrides one amount at a time: null removes a limit of the tier
                amounts = amounts_of({**amounts_dict(tier), **identity.limits})
                if any(True for _ in amounts_problems(amounts, tier.algorithm) if _[0] == ("burst",)):
                    raise msgspec.ValidationError("burst without a window, or too large for it")
            except (msgspec.ValidationError, TypeError) as error:
                log.warning("limits of consumer %r are ignored: %s", identity.consumer, error)
                amounts = tier
        return self._make(amounts, tier.algorithm)


def _penalty_box(penalty: PenaltyConfig, table: LimiterTable, enforced: bool) -> PenaltyBox:
    """The box of a penalty section. Bans in shadow mode are stored apart from enforced ones."""
    return PenaltyBox(
        penalty.strikes,
        penalty.within_ns / 1e9,
        [ban / 1e9 for ban in penalty.bans_ns],
        penalty.forget_ns / 1e9,
        table=table,
        scope=f"penalty by {penalty.by}" + ("" if enforced else ", watched"),
        when_full="share",
    )


def build(settings: LimitsConfig | None, env: FeatureEnv) -> LimitGate | None:
    """The gate of a route's enforced limits, or None if there are none."""
    return _build(settings, env, enforced=True)


def build_watched(settings: LimitsConfig | None, env: FeatureEnv) -> LimitGate | None:
    """The gate of the limits in shadow mode. Root and route set `enforce` for their own limits separately."""
    return _build(settings, env, enforced=False)


def _build(settings: LimitsConfig | None, env: FeatureEnv, *, enforced: bool) -> LimitGate | None:
    root: LimitsConfig | None = env.config.limits
    own = settings or root or LimitsConfig()
    memory = env.context.memory
    table = memory.limits
    inflight = env.service("limits.inflight", None, lambda: memory.inflight.for_seat(env.context.slot))
    from_route = settings is not None and settings.enforce == enforced
    from_root = root is not None and own.inherit and root.enforce == enforced
    # Tiers belong to the root's section, as do the root's limits.
    has_tier = own.tier and env.route.auth is not None
    with_tier = has_tier and (root is None or root.enforce) == enforced
    name = env.route.name
    rules: list[LimitRule] = []
    if settings is not None and from_route:
        rules += _section_rules(settings, "route", f"route:{name}", name, has_tier, table, inflight)
    if root is not None and from_root:
        has_own = settings is not None and any(not is_empty(rule) for _, rule in rules_of(settings))
        both = has_tier or has_own
        rules += _section_rules(root, "gateway", "root", name, both, table, inflight)
    penalty = None
    if settings is not None and from_route:
        penalty = settings.penalty
    if penalty is None and root is not None and from_root:
        penalty = root.penalty
    if not rules and not with_tier and penalty is None:
        return None
    # The settings that accompany the limits belong to the gate of the section that counts for this route.
    is_own = own.enforce == enforced
    alone = own.enforce is False and not (own.inherit and root is not None and root.enforce)
    metrics = memory.metrics
    tiers = None
    if with_tier:
        defined = tiers_of(env.config)
        when_full = root.when_full if root is not None else own.when_full
        unknown = metrics.counter("fastgate_limits_unknown_tier_total")
        tiers = env.service(
            "limits.tiers",
            (defined, when_full),
            lambda: _Tiers(defined, when_full, table, inflight, unknown).book(),
        )
    adaptive = own.adaptive if is_own else None
    health = usual = None
    if adaptive is not None:
        health = Health(
            table, f"route {name}", adaptive.lowest, adaptive.highest, adaptive.errors, adaptive.latency_ns,
            adaptive.interval_ns,
        )  # fmt: skip
        if adaptive.usual is not None:
            usual = Usual(table, f"route {name}", adaptive.usual, adaptive.lowest)
    cost = own.cost
    kind = LimitGate if cost.header is None else CostedLimitGate
    gate = kind(
        rules,
        tiers,
        metrics=metrics,
        reasons=REASONS,
        box=None if penalty is None else _penalty_box(penalty, table, enforced),
        box_by="ip" if penalty is None else penalty.by,
        health=health,
        usual=usual,
        tells=own.headers and (enforced or (alone and not has_tier)),
        warn_at=own.warn_at if is_own else None,
        when_full=own.when_full,
        cost=cost.fixed,
        reserve=cost.reserve,
        request_unit=cost.request_unit_bytes,
        response_unit=cost.response_unit_bytes,
        cost_header=cost.header,
    )
    gate.enforce = enforced
    return gate
