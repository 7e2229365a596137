"""Limits: how much of something may be, for whom, per time and at once; tiers; penalties.

From the config to the compiled gates of a route. How limits are counted is in `_core/gates/limits.pyx`; what
error each algorithm can make is in docs/limits.md. Counts live in the host's LimiterTable under stable names
(`tier`, `root:…`, `route:<name>:…`), so they survive reloads and dead workers, and the admin API finds them:
`client.py` reads and resets those of one client.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import msgspec

from fastgate._core.gates.limits import (
    CostedLimitGate,
    Health,
    LimitGate,
    LimitRule,
    TierBook,
    Usual,
)
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
    """The rules of a section, the narrow ones first: what they refuse never reaches the wide ones."""
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
    """Makes the rules of tiers, and of consumers whose own limits take the place of their tier's."""

    def __init__(
        self, tiers: dict[str, TierConfig], when_full: str, table: Any, inflight: Any, unknown: Any
    ) -> None:
        self._tiers = tiers
        self._make = partial(_tier_rule, when_full=when_full, table=table, inflight=inflight)
        self._unknown = unknown
        self._told: set[str] = set()

    def book(self) -> TierBook:
        rules = {name: self._make(tier, tier.algorithm) for name, tier in self._tiers.items()}
        # A tier without limits is known, too: None is what `rule_of` then finds by asking here.
        return TierBook({name: rule for name, rule in rules.items() if rule is not None}, self.rule)

    def rule(self, identity: Identity) -> LimitRule | None:
        tier = self._tiers.get(identity.tier)
        if tier is None:
            tier = TierConfig()
            if identity.tier:
                # An undefined tier must not be a tier without limits.
                tier = self._tiers["free"]
                self._unknown.add(1)
                if identity.tier not in self._told and len(self._told) < 100:
                    self._told.add(identity.tier)
                    log.warning("limits: tier %r is not defined, its consumers are in free", identity.tier)
        amounts: Amounts = tier
        if identity.limits:
            try:
                # One by one: null takes a limit of the tier away
                amounts = amounts_of({**amounts_dict(tier), **identity.limits})
                if any(True for _ in amounts_problems(amounts, tier.algorithm) if _[0] == ("burst",)):
                    raise msgspec.ValidationError("burst without a window, or too large for it")
            except (msgspec.ValidationError, TypeError) as error:
                log.warning("limits of consumer %r are not taken: %s", identity.consumer, error)
                amounts = tier
        return self._make(amounts, tier.algorithm)


def _penalty_box(penalty: PenaltyConfig, table: LimiterTable, enforced: bool) -> PenaltyBox:
    """A ban in shadow mode must not become one of those that are enforced."""
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
    """The gate of the limits that a route enforces, or None where there are none."""
    return _build(settings, env, enforced=True)


def build_watched(settings: LimitsConfig | None, env: FeatureEnv) -> LimitGate | None:
    """The gate of those in shadow mode. Root and route say each for their own limits whether they are."""
    return _build(settings, env, enforced=False)


def _build(settings: LimitsConfig | None, env: FeatureEnv, *, enforced: bool) -> LimitGate | None:
    root: LimitsConfig | None = env.config.limits
    own = settings or root or LimitsConfig()
    memory = env.around.memory
    table = memory.limits
    inflight = env.service("limits.inflight", None, lambda: memory.inflight.for_seat(env.around.slot))
    from_route = settings is not None and settings.enforce == enforced
    from_root = root is not None and own.inherit and root.enforce == enforced
    # Tiers are the gateway's, as the root's limits are.
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
    # What the section that counts for this route says beside its limits belongs to the gate of that section.
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
