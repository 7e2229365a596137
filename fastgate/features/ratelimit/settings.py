"""The config Structs of limits and tiers, and the checks and derived values that need nothing else."""

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
    "explain",
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
"""A bucket that takes more than two years to fill is a mistake; the compiled limits count in 60 bits."""


class Amounts(Settings, frozen=True, kw_only=True):
    """Amounts. An omitted amount is unlimited."""

    per_second: Annotated[Count | None, Meta(description="Requests per second.")] = None
    per_minute: Annotated[Count | None, Meta(description="Requests per minute.")] = None
    per_hour: Annotated[Count | None, Meta(description="Requests per hour.")] = None
    per_day: Annotated[Count | None, Meta(description="Requests per day.")] = None
    burst: Annotated[
        Count | None,
        Meta(
            description=(
                "Requests in a burst: size of a bucket that refills at the rate of the shortest "
                "window above. With `token_bucket`, the size of that window's own bucket."
            )
        ),
    ] = None
    concurrent: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(description="Concurrent requests, over all workers."),
    ] = None
    cost_per_hour: Annotated[
        Annotated[float, Meta(ge=0.001, le=100_000_000)] | None,
        Meta(description="Sum of the costs of requests per hour; see `cost`."),
    ] = None


AMOUNT_NAMES: Final = Amounts.__struct_fields__


class TierConfig(Amounts, frozen=True, kw_only=True):
    """Limits of each consumer of a tier, over all routes together. `{}` means unlimited."""

    algorithm: Annotated[Algorithm, Meta(description="Algorithm of the windows; see limits.md.")] = (
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
    """The value of a header, or a network of the client's address. Exactly one of them."""

    header: Annotated[
        Text | None,
        Meta(description="The value of this request header. Requests without it share one count."),
    ] = None
    ip_v4: Annotated[
        Annotated[int, Meta(ge=8, le=32)] | None,
        Meta(description="The client's network: prefix length of an IPv4 address."),
    ] = None
    ip_v6: Annotated[
        Annotated[int, Meta(ge=16, le=128)] | None,
        Meta(description="The client's network: prefix length of an IPv6 address."),
    ] = None


class RuleConfig(Amounts, frozen=True, kw_only=True):
    """Limits that share one key."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9_-]{0,40}$(?!\n)",
            description=(
                "Prefix of its limits in `RateLimit`, and the name under which its counts are kept "
                "across reloads. Default: the parts of `by`."
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
                "Key of the counts: one of these, or a list for a combination. `consumer` (clients "
                "without a consumer are counted by address), `key` (each API key separately), `ip` "
                "(an IPv4 address, or the /64 of an IPv6 address), `{ip_v4: 24, ip_v6: 48}`, "
                "`route`, `gateway`, `{header: X-Tenant}`."
            ),
        ),
    ] = ("consumer",)
    algorithm: Annotated[Algorithm, Meta(description="Algorithm of the windows; see limits.md.")] = (
        "sliding_window"
    )


class CostConfig(Settings, frozen=True, kw_only=True):
    """Cost of a request, for `cost_per_hour` and the running totals. A number alone is short for `{fixed:
    …}`.

    The known part of the cost is charged before the request goes upstream. When the request ends, the
    difference to the actual cost is charged or refunded.
    """

    shorthand: ClassVar[str] = "fixed"

    fixed: Annotated[
        float, Meta(ge=0, le=1_000_000, description="Cost of every request, up to three decimals.")
    ] = 1.0
    request_unit_bytes: Annotated[
        Size, Meta(ge=0, description="Adds 1 per this many bytes received; 0 for none.")
    ] = 0
    response_unit_bytes: Annotated[
        Size, Meta(ge=0, description="Adds 1 per this many bytes sent; 0 for none.")
    ] = 0
    header: Annotated[
        Text | None,
        Meta(description="Adds the value of this upstream response header: `12` or `0.25`."),
    ] = None
    reserve: Annotated[
        Annotated[float, Meta(ge=0, le=1_000_000)] | None,
        Meta(
            description=(
                "Charged before the request goes upstream, in place of `fixed`; final if the "
                "upstream reports no cost. Default: `fixed`."
            ),
        ),
    ] = None


class AdaptiveConfig(Settings, frozen=True, kw_only=True):
    """Limits that adapt between bounds: to the upstream's health, and to the usual rate of a client."""

    lowest: Annotated[
        float, Meta(ge=0.01, le=1, description="Lower bound, as a share of the configured limits.")
    ] = 0.2
    highest: Annotated[
        float,
        Meta(
            ge=1,
            le=10,
            description="Upper bound while the upstream is healthy, as a multiple of the configured limits.",
        ),
    ] = 1.0
    errors: Annotated[
        float,
        Meta(
            gt=0, le=1, description="Share of failed responses (5xx or none) above which the limits decrease."
        ),
    ] = 0.1
    latency_ns: Annotated[
        Duration, Meta(description="A response that starts later counts as failed; 0 to disable.")
    ] = 0
    interval_ns: Annotated[
        Duration,
        Meta(
            ge=100_000_000,
            le=HOUR,
            description=(
                "Interval between two steps: a decrease to 0.7 of the current value, or an "
                "increase by a twentieth of the range."
            ),
        ),
    ] = SECOND
    usual: Annotated[
        Annotated[float, Meta(ge=1, le=1000)] | None,
        Meta(
            description=(
                "Maximum rate of a client as a multiple of its usual rate (the mean over the "
                "minutes in which it sent requests), even below its limit; never less than "
                "`lowest` of the limit. Default: not checked."
            ),
        ),
    ] = None


class PenaltyConfig(Settings, frozen=True, kw_only=True):
    """Clients that repeatedly exceed limits are banned for increasing periods."""

    by: Annotated[
        Literal["ip", "consumer", "key"],
        Meta(description="Subject of the bans. A client without a consumer is banned by its address."),
    ] = "ip"
    strikes: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Refusals within `within` that start a ban.")
    ] = 100
    within_ns: Annotated[
        Duration, Meta(ge=1_000_000, description="Period in which the refusals must occur.")
    ] = MINUTE
    bans_ns: Annotated[
        tuple[Annotated[Duration, Meta(ge=1_000_000)], ...],
        Meta(
            min_length=1,
            max_length=16,
            description="Duration of the first ban, the second, and so on; the last one repeats.",
        ),
    ] = (MINUTE, 10 * MINUTE, HOUR, DAY)
    forget_ns: Annotated[
        Duration,
        Meta(ge=1_000_000, description="Time after its last ban when the bans of a client are forgotten."),
    ] = DAY


class LimitsConfig(RuleConfig, frozen=True, kw_only=True):
    """Limits of a route, or of every route. The amounts of the section are one rule; `rules` adds more. All
    rules are evaluated as one decision: a request that one of them rejects is counted by none."""

    example: ClassVar[str] = "{per_minute: 100}"

    rules: Annotated[
        tuple[RuleConfig, ...],
        Meta(max_length=8, description="Additional rules, each with its own key."),
    ] = ()
    tier: Annotated[
        bool,
        Meta(description="Whether the limits of the consumer's tier apply, on routes with `auth`."),
    ] = True
    inherit: Annotated[
        bool, Meta(description="Whether the root's limits apply to this route too. Only in routes.")
    ] = True
    cost: Annotated[CostConfig, Meta(description="Cost of a request.")] = CostConfig()
    adaptive: Annotated[
        AdaptiveConfig | None, Meta(description="Adapts the limits of this route between bounds.")
    ] = None
    penalty: Annotated[
        PenaltyConfig | None, Meta(description="Bans for clients that repeatedly exceed limits.")
    ] = None
    warn_at: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(
            description=(
                "Used share of a limit from which responses carry `X-RateLimit-Warning`: 0.8. Default: never."
            ),
        ),
    ] = None
    headers: Annotated[
        bool, Meta(description="Whether responses carry `RateLimit` and `RateLimit-Policy`.")
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
        Meta(description="`false` (shadow mode): count and log what would be rejected, and let it pass."),
    ] = True


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 50
    elsewhere: ClassVar[dict[str, str]] = {
        "tier": "a consumer has a tier; limits: {tier: false} excludes it",
    }

    limits: Annotated[
        LimitsConfig | None,
        Meta(description="Limits of this route: `{per_minute: 100}`, in addition to the root's."),
    ] = None


class RootKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in the root."""

    manual_order: ClassVar[int] = 60

    tiers: Annotated[
        dict[str, TierConfig],
        Meta(
            description=(
                "Limits of consumers by tier. `free`, `basic`, `premium`, `enterprise`, `internal` "
                "and `system` are predefined; an entry of the same name replaces the whole tier."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    limits: Annotated[
        LimitsConfig | None,
        Meta(
            description=(
                "Limits of all routes together, and default settings of routes without their own limits."
            )
        ),
    ] = None


Problem = tuple[tuple[str | int, ...], str, str, str]
"""Path below the section, found, expected, hint."""

PERIODS: Final = {"per_second": 1, "per_minute": 60, "per_hour": 3600, "per_day": 86_400}


def amounts_problems(amounts: Amounts, algorithm: str) -> Iterator[Problem]:
    """The problems of a combination of amounts."""
    windows = [name for name in PERIODS if getattr(amounts, name) is not None]
    if amounts.burst is not None and not windows:
        yield (
            ("burst",),
            "burst without a window",
            "one of per_second, per_minute, per_hour and per_day with it",
            "",
        )
    if amounts.burst is not None and windows:
        rate = getattr(amounts, windows[0])
        if amounts.burst * PERIODS[windows[0]] * SECOND > rate * MOST_FILL_NS:
            hint = f"at {windows[0]}: {rate} it takes more than two years to fill"
            yield ("burst",), str(amounts.burst), "a smaller burst", hint
    for shorter, longer in pairwise(windows):
        if getattr(amounts, shorter) > getattr(amounts, longer):
            found = f"{shorter}: {getattr(amounts, shorter)} above {longer}: {getattr(amounts, longer)}"
            yield (
                (shorter,),
                found,
                "no more than the longer window allows",
                f"the limit for {longer} is always reached first",
            )


def tiers_of(config: Any) -> dict[str, TierConfig]:
    """All tiers: the predefined ones, replaced by those of the same name in the config, and the config's
    own."""
    return {**SHIPPED_TIERS, **config.tiers}


def amounts_of(limits: dict[str, Any]) -> Amounts:
    """Limits of one consumer, from the config or the store. Raises msgspec.ValidationError."""
    return msgspec.convert(limits, Amounts)


def rules_of(settings: LimitsConfig) -> list[tuple[int | None, RuleConfig]]:
    """The rules of a section with their index; None for the section's own amounts."""
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
    """Name of a rule within its section, under which its counts are kept."""
    return rule.name or "+".join(_part_text(part) for part in rule.by)


def amounts_dict(amounts: Amounts) -> dict[str, Any]:
    return {name: getattr(amounts, name) for name in AMOUNT_NAMES if getattr(amounts, name) is not None}


def explain(route: Any) -> dict[str, str]:
    """Whether the route has limits of its own."""
    return {} if route.limits is None else {"limits": "yes"}
