"""The config Structs of limits and tiers, and what follows from their values alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from fastgate.settings import DAY, HOUR, MINUTE, SECOND, Duration, Settings, Size, Text

__all__ = [
    "AMOUNT_NAMES",
    "SHIPPED_TIERS",
    "AdaptiveConfig",
    "Amounts",
    "CostConfig",
    "KeyPart",
    "LimitsConfig",
    "PenaltyConfig",
    "Problem",
    "RootKeys",
    "RouteKeys",
    "RuleConfig",
    "TierConfig",
    "amounts_dict",
    "amounts_of",
    "amounts_problems",
    "is_address",
    "is_empty",
    "rule_id",
    "rules_of",
    "tiers_of",
]

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
        Duration,
        Meta(ge=1_000_000, description="How long after its last ban the bans of a client are forgotten."),
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


def amounts_dict(amounts: Amounts) -> dict[str, Any]:
    return {name: getattr(amounts, name) for name in AMOUNT_NAMES if getattr(amounts, name) is not None}
