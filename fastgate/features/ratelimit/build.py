"""Limits: how much of something may be, for whom, per time and at once; tiers; penalties.

Config Structs, what is wrong between their values, and from both to the compiled gate of a route. How limits
are counted is in `_core/gates/limits.pyx`; what error each algorithm can make is in docs/limits.md. Counts
live in the host's LimiterTable under stable names (`tier`, `root:…`, `route:<name>:…`), so they survive
reloads and dead workers, and the admin API finds them: `LimitDesk` reads and resets those of one client.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from fastgate._core.clock import monotonic_ns
from fastgate._core.gates.limits import (
    CostedLimitGate,
    Health,
    LimitGate,
    LimitRule,
    TierBook,
    Usual,
    client_key,
)
from fastgate._core.limits.inflight import InflightTable
from fastgate._core.limits.penalty import PenaltyBox
from fastgate._core.pipeline.identity import Identity
from fastgate._core.shm.table import LimiterTable
from fastgate.errors import REASONS
from fastgate.plugin import FeatureEnv
from fastgate.settings import DAY, HOUR, MINUTE, SECOND, Duration, Settings, Size, Text

__all__ = [
    "SHIPPED_TIERS",
    "AdaptiveConfig",
    "Amounts",
    "CostConfig",
    "KeyPart",
    "LimitDesk",
    "LimitsConfig",
    "PenaltyConfig",
    "RootKeys",
    "RouteKeys",
    "RuleConfig",
    "TierConfig",
    "amounts_of",
    "amounts_problems",
    "build",
    "build_watched",
    "tiers_of",
]

log = logging.getLogger("fastgate")

Algorithm = Literal["sliding_window", "token_bucket", "fixed_window"]
Dimension = Literal["consumer", "key", "ip", "route", "gateway"]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]

MOST_FILL_NS: Final = 730 * DAY
"""A bucket that takes two years to fill is a mistake; the compiled limits count in 60 bits."""


class Amounts(Settings, frozen=True, kw_only=True):
    """How much may be. What is left out is not limited."""

    per_second: Annotated[Count | None, Meta(description="Requests in a second.")] = None
    per_minute: Annotated[Count | None, Meta(description="Requests in a minute.")] = None
    per_hour: Annotated[Count | None, Meta(description="Requests in an hour.")] = None
    per_day: Annotated[Count | None, Meta(description="Requests in a day.")] = None
    burst: Annotated[
        Count | None,
        Meta(
            description=(
                "Requests at one go: a bucket of this size that fills at the rate of the shortest window "
                "above. With `token_bucket` it is the size of that window's own bucket."
            )
        ),
    ] = None
    concurrent: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(description="Requests that may be under way at once, over all workers."),
    ] = None
    cost_per_hour: Annotated[
        Annotated[float, Meta(ge=0.001, le=100_000_000)] | None,
        Meta(description="Sum of what requests cost in an hour; see `cost`."),
    ] = None


AMOUNT_NAMES: Final = Amounts.__struct_fields__


class TierConfig(Amounts, frozen=True, kw_only=True):
    """What the consumers of a tier may use, each of them, on all routes together. `{}` is no limit."""

    algorithm: Annotated[Algorithm, Meta(description="How windows are counted; see limits.md.")] = (
        "sliding_window"
    )


SHIPPED_TIERS: Final[dict[str, TierConfig]] = {
    "free": TierConfig(
        per_minute=60, per_hour=1_000, per_day=10_000, burst=20, concurrent=2, cost_per_hour=1_000
    ),
    "basic": TierConfig(
        per_minute=300, per_hour=10_000, per_day=100_000, burst=60, concurrent=10, cost_per_hour=10_000
    ),
    "premium": TierConfig(
        per_minute=1_200, per_hour=50_000, per_day=500_000, burst=200, concurrent=50, cost_per_hour=100_000
    ),
    "enterprise": TierConfig(
        per_minute=12_000,
        per_hour=500_000,
        per_day=10_000_000,
        burst=2_000,
        concurrent=500,
        cost_per_hour=2_000_000,
    ),
    "internal": TierConfig(),
    "system": TierConfig(),
}


class KeyPart(Settings, frozen=True, kw_only=True):
    """A header's value, or a network of the client's address. Exactly one of them."""

    header: Annotated[
        Text | None,
        Meta(description="The value of this request header. Requests without it count together."),
    ] = None
    ip_v4: Annotated[
        Annotated[int, Meta(ge=8, le=32)] | None,
        Meta(description="The client's network: bits of an IPv4 address."),
    ] = None
    ip_v6: Annotated[
        Annotated[int, Meta(ge=16, le=128)] | None,
        Meta(description="The client's network: bits of an IPv6 address."),
    ] = None


class RuleConfig(Amounts, frozen=True, kw_only=True):
    """Limits that are counted together, and by what."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9_-]{0,40}$(?!\n)",
            description=(
                "Goes before its limits in `RateLimit` and is what its counts are found by after a reload. "
                "Default: what it counts by."
            ),
        ),
    ] = ""
    by: Annotated[
        tuple[Dimension | KeyPart, ...],
        Meta(
            min_length=1,
            max_length=5,
            extra={"one_or_many": True},
            description=(
                "What is counted together: one of these, or a combination as a list. `consumer` (who is not "
                "known by name counts by address), `key` (each key of a consumer by itself), `ip` (an IPv4 "
                "address, or the /64 of an IPv6 address), `{ip_v4: 24, ip_v6: 48}`, `route`, `gateway`, "
                "`{header: X-Tenant}`."
            ),
        ),
    ] = ("consumer",)
    algorithm: Annotated[Algorithm, Meta(description="How windows are counted; see limits.md.")] = (
        "sliding_window"
    )


class CostConfig(Settings, frozen=True, kw_only=True):
    """What a request costs, for `cost_per_hour` and the running totals. A number alone is `{fixed: …}`.

    The sum of what is known is taken before the request goes upstream; when it is over, the difference to
    what it really was is taken or given back.
    """

    shorthand: ClassVar[str] = "fixed"

    fixed: Annotated[float, Meta(ge=0, le=1_000_000, description="Every request, three decimals.")] = 1.0
    request_unit_bytes: Annotated[
        Size, Meta(ge=0, description="One more for so many bytes received; 0 for none.")
    ] = 0
    response_unit_bytes: Annotated[
        Size, Meta(ge=0, description="One more for so many bytes sent; 0 for none.")
    ] = 0
    header: Annotated[
        Text | None,
        Meta(description="And what the upstream says in this response header: `12` or `0.25`."),
    ] = None
    reserve: Annotated[
        Annotated[float, Meta(ge=0, le=1_000_000)] | None,
        Meta(
            description=(
                "Taken before the request goes upstream, in place of `fixed`; it stands when the upstream "
                "says nothing. Default: `fixed`."
            ),
        ),
    ] = None


class AdaptiveConfig(Settings, frozen=True, kw_only=True):
    """Limits that move between bounds: with the upstream's health, and with what is usual for a client."""

    lowest: Annotated[
        float, Meta(ge=0.01, le=1, description="The least they come to, as a share of what is configured.")
    ] = 0.2
    highest: Annotated[
        float,
        Meta(ge=1, le=10, description="The most they come to, while the upstream is well."),
    ] = 1.0
    errors: Annotated[
        float,
        Meta(gt=0, le=1, description="Share of failed answers (5xx, none at all) above which they fall."),
    ] = 0.1
    latency_ns: Annotated[
        Duration, Meta(description="An answer that begins later counts as failed; 0 for never.")
    ] = 0
    interval_ns: Annotated[
        Duration,
        Meta(
            ge=100_000_000,
            le=HOUR,
            description="Between two steps: down to 0.7 of what it was, or up a twentieth of the range.",
        ),
    ] = SECOND
    usual: Annotated[
        Annotated[float, Meta(ge=1, le=1000)] | None,
        Meta(
            description=(
                "No client may send more than this many times what it usually does (the mean of the minutes "
                "in which it sent anything), however high its limit; never less than `lowest` of it. "
                "Default: not looked at."
            ),
        ),
    ] = None


class PenaltyConfig(Settings, frozen=True, kw_only=True):
    """Who runs into limits again and again is banned, each time for longer."""

    by: Annotated[
        Literal["ip", "consumer", "key"],
        Meta(description="Who is banned. A client that is not known by name is banned by its address."),
    ] = "ip"
    strikes: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Refusals within `within` that start a ban.")
    ] = 100
    within_ns: Annotated[Duration, Meta(ge=1_000_000, description="The span they must fall in.")] = MINUTE
    bans_ns: Annotated[
        tuple[Annotated[Duration, Meta(ge=1_000_000)], ...],
        Meta(
            min_length=1,
            max_length=16,
            description="How long the first ban is, the second, and so on; the last repeats.",
        ),
    ] = (MINUTE, 10 * MINUTE, HOUR, DAY)
    forget_ns: Annotated[
        Duration, Meta(ge=1_000_000, description="So long after its last ban a client begins anew.")
    ] = DAY


class LimitsConfig(RuleConfig, frozen=True, kw_only=True):
    """Limits of a route, or of every route. Its own amounts are one rule; `rules` are more of them. All are
    asked as one decision: what one of them refuses is taken from none.
    """

    example: ClassVar[str] = "{per_minute: 100}"

    rules: Annotated[
        tuple[RuleConfig, ...],
        Meta(max_length=8, description="Several rules at once, each counted by something else."),
    ] = ()
    tier: Annotated[
        bool,
        Meta(description="Whether the limits of the consumer's tier hold, where a route has `auth`."),
    ] = True
    inherit: Annotated[
        bool, Meta(description="Whether the root's limits hold on this route too. For routes.")
    ] = True
    cost: Annotated[CostConfig, Meta(description="What a request costs.")] = CostConfig()
    adaptive: Annotated[
        AdaptiveConfig | None, Meta(description="Moves the limits of this route between bounds.")
    ] = None
    penalty: Annotated[PenaltyConfig | None, Meta(description="Bans for who keeps running into them.")] = None
    warn_at: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(
            description=(
                "Share of a limit from which on answers carry `X-RateLimit-Warning`: 0.8. Default: never."
            ),
        ),
    ] = None
    headers: Annotated[
        bool, Meta(description="Whether answers carry `RateLimit` and `RateLimit-Policy`.")
    ] = True
    when_full: Annotated[
        Literal["deny", "allow", "evict"],
        Meta(
            description=(
                "What to do with a new key that finds no room (`memory.limiter_keys`). No rule can take the "
                "room of the others: this happens to a rule that has filled its share. `deny` (default) "
                "responds 503; `allow` does not count the request in this rule; `evict` forgets the least "
                "used key of the same rule. `deny` and `allow` are counted in `fastgate_limits_full_total`."
            )
        ),
    ] = "deny"
    enforce: Annotated[
        bool,
        Meta(description="False only counts and logs what would be refused, and lets it pass."),
    ] = True


class RouteKeys(Settings, frozen=True, kw_only=True):
    """Its keys in a route."""

    manual_order: ClassVar[int] = 50
    elsewhere: ClassVar[dict[str, str]] = {
        "tier": "a consumer has a tier; limits: {tier: false} leaves it out",
    }

    limits: Annotated[
        LimitsConfig | None,
        Meta(description="How much of this route may be used: `{per_minute: 100}`, beside the root's."),
    ] = None


class RootKeys(Settings, frozen=True, kw_only=True):
    """Its keys in the root."""

    manual_order: ClassVar[int] = 60

    tiers: Annotated[
        dict[str, TierConfig],
        Meta(
            description=(
                "What consumers may use, by tier. `free`, `basic`, `premium`, `enterprise`, `internal` and "
                "`system` are there; an entry of the same name takes the place of the whole tier."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    limits: Annotated[
        LimitsConfig | None,
        Meta(description="Limits of every route together, and what routes without their own go by."),
    ] = None


Problem = tuple[tuple[str | int, ...], str, str, str]
"""Path below the section, found, expected, hint."""

PERIODS: Final = {"per_second": 1, "per_minute": 60, "per_hour": 3600, "per_day": 86_400}


def amounts_problems(amounts: Amounts, algorithm: str) -> Iterator[Problem]:
    """What is wrong with these amounts together."""
    windows = [name for name in PERIODS if getattr(amounts, name) is not None]
    if amounts.burst is not None and not windows:
        yield ("burst",), "a burst alone", "one of per_second, per_minute, per_hour and per_day with it", ""
    if amounts.burst is not None and windows:
        rate = getattr(amounts, windows[0])
        if amounts.burst * PERIODS[windows[0]] * SECOND > rate * MOST_FILL_NS:
            hint = f"at {windows[0]}: {rate} it takes more than two years to fill"
            yield ("burst",), str(amounts.burst), "a smaller burst", hint
    for shorter, longer in pairwise(windows):
        if getattr(amounts, shorter) > getattr(amounts, longer):
            found = f"{shorter}: {getattr(amounts, shorter)} above {longer}: {getattr(amounts, longer)}"
            yield (shorter,), found, "no more than the longer window allows", f"{longer} always ends first"


# --- from the config to rules


def tiers_of(config: Any) -> dict[str, TierConfig]:
    """All tiers: those that are shipped, unless the config has others of the same name, and its own."""
    return {**SHIPPED_TIERS, **config.tiers}


def amounts_of(limits: dict[str, Any]) -> Amounts:
    """Limits of one consumer as they come from the config or the store. msgspec.ValidationError."""
    return msgspec.convert(limits, Amounts)


def rules_of(settings: LimitsConfig) -> list[tuple[int | None, RuleConfig]]:
    """The rules of a section with their index; the section's own amounts have None."""
    return [(None, settings), *enumerate(settings.rules)]


def is_empty(amounts: Amounts) -> bool:
    return all(getattr(amounts, name) is None for name in AMOUNT_NAMES)


def is_address(part: str | KeyPart) -> bool:
    return part == "ip" or (isinstance(part, KeyPart) and part.header is None)


def _part_text(part: str | KeyPart) -> str:
    if not isinstance(part, KeyPart):
        return part
    if part.header is not None:
        return f"header-{part.header.lower()}"
    return f"ip-{part.ip_v4 or 32}-{part.ip_v6 or 64}"


def rule_id(rule: RuleConfig) -> str:
    """What the counts of a rule are found by, within its section."""
    return rule.name or "+".join(_part_text(part) for part in rule.by)


def _amounts_dict(amounts: Amounts) -> dict[str, Any]:
    return {name: getattr(amounts, name) for name in AMOUNT_NAMES if getattr(amounts, name) is not None}


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
        _amounts_dict(rule),
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
        _amounts_dict(amounts),
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
                # A tier that nobody defined must not be one without limits.
                tier = self._tiers["free"]
                self._unknown.add(1)
                if identity.tier not in self._told and len(self._told) < 100:
                    self._told.add(identity.tier)
                    log.warning("limits: tier %r is not defined, its consumers are in free", identity.tier)
        amounts: Amounts = tier
        if identity.limits:
            try:
                # One by one: null takes a limit of the tier away
                amounts = amounts_of({**_amounts_dict(tier), **identity.limits})
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


# --- one client, from outside


class LimitDesk:
    """Reads and resets what is counted for one client, for the admin API and the command line.

    A client is given by what is known of it: `consumer` (with its tier and own limits), `key` (key id), `ip`.
    Rules that count by something else, a header say, are not among the answers.
    """

    def __init__(self, config: Any, memory: Any) -> None:
        self._config = config
        self._memory = memory
        self._sections: list[tuple[str, str, LimitRule]] = []  # (place, route, rule)
        table, inflight = memory.limits, memory.inflight
        if config.limits is not None:
            rules = _section_rules(config.limits, "gateway", "root", "", False, table, inflight)
            self._sections += [("gateway", "", rule) for rule in rules]
        for route in config.each_route():
            if route.limits is not None:
                scope = f"route:{route.name}"
                rules = _section_rules(route.limits, "route", scope, route.name, False, table, inflight)
                self._sections += [("route", route.name, rule) for rule in rules]
        unknown = memory.metrics.counter("fastgate_limits_unknown_tier_total")
        self._tiers = _Tiers(tiers_of(config), "deny", table, inflight, unknown)

    def read(
        self,
        *,
        consumer: str | None = None,
        tier: str = "",
        limits: dict[str, Any] | None = None,
        key: str | None = None,
        ip: str | None = None,
    ) -> list[dict[str, Any]]:
        """Per rule: {rule, route, limits: [{limit_type, limit, remaining, reset_s}], requests, cost}."""
        found = []
        for place, route, rule, parts in self._rules(consumer, tier, limits, key, ip):
            found.append(
                {
                    "rule": f"{place}.{rule.name}" if place != "tier" else "tier",
                    "route": route,
                    **rule.read(parts),
                }
            )
        return found

    def reset(
        self,
        *,
        consumer: str | None = None,
        tier: str = "",
        limits: dict[str, Any] | None = None,
        key: str | None = None,
        ip: str | None = None,
    ) -> int:
        """Forgets what was counted; how many rules had counted anything. Requests under way still count."""
        return sum(rule.reset(parts) for _, _, rule, parts in self._rules(consumer, tier, limits, key, ip))

    def ban(self, client: str, for_s: float, by: str = "ip") -> None:
        """Bans an address, a consumer or a key id for so long, on every route that has a `penalty` by the
        same. RuntimeError: no room to note it.
        """
        if not self._box(by).ban(_penalty_key(client, by), for_s):
            raise RuntimeError("memory.limiter_keys: there is no room to note the ban")

    def pardon(self, client: str, by: str = "ip") -> bool:
        """Ends a ban and forgets the violations; True if there were any."""
        return self._box(by).pardon(_penalty_key(client, by))

    def banned_s(self, client: str, by: str = "ip") -> float:
        """Seconds a ban still lasts; 0 when there is none."""
        return self._box(by).banned(_penalty_key(client, by), monotonic_ns()) / 1e9

    def statistics(self) -> dict[str, int]:
        """Of the table in which all limits are counted."""
        return {**self._memory.limits.statistics(), "in_flight": self._memory.inflight.in_use}

    def _box(self, by: str) -> PenaltyBox:
        # The longest ban bounds what a box believes: as long as any config may say.
        return PenaltyBox(
            1_000_000,
            1,
            [30 * DAY / 1e9],
            table=self._memory.limits,
            scope=f"penalty by {by}",
            when_full="evict",  # what an operator says goes before what clients filled the table with
        )

    def _rules(
        self,
        consumer: str | None,
        tier: str,
        limits: dict[str, Any] | None,
        key: str | None,
        ip: str | None,
    ) -> Iterator[tuple[str, str, LimitRule, list[Any]]]:
        if consumer is not None:
            own = self._tiers.rule(Identity(consumer, tier=tier, limits=limits))
            if own is not None:
                yield "tier", "", own, [consumer.encode()]
        for place, route, rule in self._sections:
            parts = _parts(rule, consumer, key, ip)
            if parts is not None:
                yield place, route, rule, parts


def _penalty_key(client: str, by: str) -> bytes:
    return client_key(client) if by == "ip" else client.encode()


def _parts(rule: LimitRule, consumer: str | None, key: str | None, ip: str | None) -> list[Any] | None:
    """The parts of a rule's key for this client; None when it counts by something that is not known, or by
    nothing of the client's.
    """
    parts: list[Any] = []
    for part in rule.by:
        if part == "ip" and ip is not None:
            parts.append(client_key(ip, rule.v4_bits, rule.v6_bits))
        elif part in ("consumer", "key"):
            known = key if part == "key" and key is not None else consumer
            if known is not None:
                parts.append(known.encode())
            elif ip is not None:
                parts.append(("ip", client_key(ip, rule.v4_bits, rule.v6_bits)))
            else:
                return None
        elif not isinstance(part, tuple) or part[0] != "constant":
            return None
    return parts or None
