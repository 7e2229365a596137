"""The config Structs of balancing, passive health and circuit breakers of an upstream's targets.

`fastgate.upstream.balancing` checks them and builds what they describe.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from fastgate.settings import DAY, PERCENT, SECOND, Duration, Settings, Share, Text

__all__ = ["BalanceConfig", "BreakerConfig", "EjectionConfig", "FailureSettings", "Locality"]


class Locality(Settings, frozen=True, kw_only=True):
    """Where this gateway runs. Targets in the same zone are preferred, then those in the same region."""

    zone: Annotated[Text | None, Meta(description="Zone of this gateway, for example `eu-1`.")] = None
    region: Annotated[Text | None, Meta(description="Region of this gateway, for example `eu`.")] = None


class BalanceConfig(Settings, frozen=True, kw_only=True):
    """How a target is chosen for a request. A bare word is short for `{strategy: …}`."""

    shorthand: ClassVar[str] = "strategy"

    strategy: Annotated[
        Literal[
            "round_robin",
            "least_requests",
            "p2c_ewma",
            "random",
            "hash",
            "priority",
            "latency",
            "cost",
            "intelligent",
        ],
        Meta(
            description=(
                "`round_robin`: in turns, by weight. `random`: drawn by weight. `least_requests`: of two "
                "drawn targets, the one with fewer requests in flight. `p2c_ewma`: of two drawn targets, the "
                "one with the lower product of latency and requests in flight. `latency`: drawn by weight "
                "divided by latency. `hash`: the same `by` goes to the same target. `priority`: the first "
                "usable target, in listed order or by `priority`. `cost`: the cheapest usable target. "
                "`intelligent`: the best score of latency, cost, health and quality."
            )
        ),
    ] = "round_robin"
    choices: Annotated[
        int,
        Meta(
            ge=2,
            le=100,
            description=(
                "Targets that `least_requests`, `p2c_ewma` and `intelligent` draw and compare for a request."
            ),
        ),
    ] = 2
    by: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "With `hash`: what identifies a request: `consumer`, `key` (the API key), `ip`, "
                "`header:NAME` or `cookie:NAME`; the first of them that it has. A request without any goes "
                "to a random target."
            ),
        ),
    ] = ()
    load_factor: Annotated[
        Annotated[float, Meta(ge=1.01, le=1000)] | None,
        Meta(
            description=(
                "With `hash`: no target has more than this times its fair share of the requests in flight; "
                "further ones go to the next target. 1.25 is usual. Default: no bound."
            )
        ),
    ] = None
    slow_start_ns: Annotated[
        Duration,
        Meta(
            le=DAY,
            description=(
                "A target that was ejected or failed its checks gets 10% of its share when it returns, and "
                "all of it after this time."
            ),
        ),
    ] = 0
    latency_half_life_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description="The latency of a target jumps to each peak, and falls by half in this time.",
        ),
    ] = 10 * SECOND
    latency: Annotated[float, Meta(ge=0, le=1000, description="Weight of the latency in the score.")] = 1.0
    cost: Annotated[float, Meta(ge=0, le=1000, description="Weight of the cost in the score.")] = 1.0
    health: Annotated[
        float, Meta(ge=0, le=1000, description="Weight of the share of failed requests in the score.")
    ] = 1.0
    quality: Annotated[
        float, Meta(ge=0, le=1000, description="Weight of the lack of quality in the score.")
    ] = 1.0


class FailureSettings(Settings, frozen=True, kw_only=True):
    """Rates of failures and of slow responses. A failure to connect, a broken response, a time-out of the
    upstream and the `failure_statuses` count as failures."""

    error_rate_ppm: Annotated[
        Annotated[Share, Meta(ge=1)] | None,
        Meta(description="Share of failed requests in `window`. Default: not counted."),
    ] = None
    slow_call_ns: Annotated[
        Annotated[Duration, Meta(ge=1_000_000, le=DAY)] | None,
        Meta(
            description=(
                "A response is slow if its head comes later than this after the end of the request. Default: "
                "none is."
            )
        ),
    ] = None
    slow_rate_ppm: Annotated[
        Annotated[Share, Meta(ge=1)] | None,
        Meta(description="Share of slow responses in `window`. Requires `slow_call`."),
    ] = None
    window_ns: Annotated[
        Duration, Meta(ge=100_000_000, le=DAY, description="Time over which rates are measured.")
    ] = 10 * SECOND
    min_requests: Annotated[
        int, Meta(ge=1, le=10_000, description="Requests in `window` below which no rate is judged.")
    ] = 20


class EjectionConfig(FailureSettings, frozen=True, kw_only=True):
    """Passive health: a target that fails too often gets no requests for a while. Shared by all workers."""

    consecutive_failures: Annotated[
        int, Meta(ge=0, le=100_000, description="Failures in a row. 0: not counted.")
    ] = 5
    time_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            le=DAY,
            description=(
                "Time of the first ejection. If the target fails again before three good responses in a row, "
                "it is ejected for twice, three times … as long."
            ),
        ),
    ] = 10 * SECOND
    max_time_ns: Annotated[Duration, Meta(ge=1_000_000, le=10 * DAY, description="Longest ejection.")] = (
        300 * SECOND
    )
    max_ejected_ppm: Annotated[
        Share,
        Meta(
            ge=1,
            description=(
                "Largest share of the targets that is ejected at a time, rounded down, but at least one "
                "target."
            ),
        ),
    ] = 50 * PERCENT


class BreakerConfig(FailureSettings, frozen=True, kw_only=True):
    """Circuit breaker of each target: after too many failures its requests go to other targets, or are
    refused with 503 `breaker_open`, until probes succeed. Shared by all workers.
    """

    failure_threshold: Annotated[
        int, Meta(ge=0, le=100_000, description="Failures in a row that open it. 0: not counted.")
    ] = 5
    recovery_timeout_ns: Annotated[
        Duration, Meta(ge=1_000_000, le=DAY, description="Time for which it stays open at first.")
    ] = 30 * SECOND
    max_recovery_timeout_ns: Annotated[
        Annotated[Duration, Meta(le=10 * DAY)] | None,
        Meta(description="Longest time for which it stays open. Default: ten times `recovery_timeout`."),
    ] = None
    backoff: Annotated[
        Literal["constant", "linear", "exponential", "fibonacci"],
        Meta(description="How the time grows each time that a probe fails."),
    ] = "exponential"
    success_threshold: Annotated[int, Meta(ge=1, le=1000, description="Good probes that close it.")] = 3
    half_open_requests: Annotated[
        int, Meta(ge=1, le=1000, description="Probes at a time, over all workers.")
    ] = 1
    adaptive: Annotated[
        bool,
        Meta(
            description=(
                "Learn the usual latency and failure share of each target, and open at three times these; "
                "`error_rate` and `slow_call` are upper bounds."
            )
        ),
    ] = False
