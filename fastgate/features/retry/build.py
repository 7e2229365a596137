"""Config of retries, and the policy that it describes. The attempts themselves: `proxy/attempt.pyx`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from fastgate._core.resilience.backoff import Backoff
from fastgate._core.resilience.retry_policy import RetryPolicy
from fastgate.errors import REASONS
from fastgate.plugin import FeatureEnv, Plugin
from fastgate.settings import (
    MILLISECOND,
    PERCENT,
    PPM,
    SECOND,
    Duration,
    Settings,
    Share,
    Size,
    Text,
    share_text,
)

__all__ = [
    "CONDITIONS",
    "BackoffConfig",
    "BudgetConfig",
    "RetryConfig",
    "RouteKeys",
    "destination_parts",
    "explain",
]

CONDITIONS: Final[dict[str, tuple[str, ...]]] = {
    "connect_failed": ("upstream_connect_failed", "upstream_connect_timeout", "upstream_tls_failed"),
    "reset": ("upstream_closed", "bad_upstream_response"),
    "timeout": ("upstream_first_byte_timeout", "per_try_timeout"),
}
"""The reasons that each word of `on` names."""


class BackoffConfig(Settings, frozen=True, kw_only=True):
    """The wait before a retry. A bare duration is short for `{base: …}`."""

    shorthand: ClassVar[str] = "base"

    strategy: Annotated[
        Literal["constant", "linear", "exponential", "fibonacci"],
        Meta(description="How the wait grows from retry to retry."),
    ] = "exponential"
    base_ns: Annotated[Duration, Meta(ge=1_000_000, description="Wait before the first retry.")] = (
        25 * MILLISECOND
    )
    max_ns: Annotated[Duration, Meta(ge=1_000_000, description="Longest wait before a retry.")] = SECOND
    jitter: Annotated[
        Literal["full", "equal", "none"],
        Meta(
            description=(
                "`full`: a random part of the wait, so that retries of many clients do not come together. "
                "`equal`: at least half of it. `none`: all of it."
            )
        ),
    ] = "full"


class BudgetConfig(Settings, frozen=True, kw_only=True):
    """Bound on the retries of a route, over all workers. A bare share is short for `{share: …}`."""

    shorthand: ClassVar[str] = "share"

    share_ppm: Annotated[
        Share, Meta(description="Retries as a share of the requests. 0 permits only `min_per_second`.")
    ] = 20 * PERCENT
    min_per_second: Annotated[
        float,
        Meta(ge=0, le=10_000, description="Retries per second that are permitted in any case."),
    ] = 3.0
    burst: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Retries that can be saved up and used at once.")
    ] = 100


class RetryConfig(Settings, frozen=True, kw_only=True):
    """Further attempts after a failure. A request is sent twice only if that is safe: its method is
    idempotent, it has an `Idempotency-Key`, or nothing of it was sent. A bare number is short for `{attempts:
    …}`.
    """

    shorthand: ClassVar[str] = "attempts"

    attempts: Annotated[int, Meta(ge=1, le=20, description="Attempts in all, the first included.")] = 3
    on: Annotated[
        tuple[Literal["connect_failed", "reset", "timeout"] | Annotated[int, Meta(ge=400, le=599)], ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Failures that lead to another attempt: `connect_failed`, `reset` (the connection was closed "
                "before a response, or the response was malformed), `timeout` (of the first byte, or of the "
                "attempt), and statuses of the response."
            ),
        ),
    ] = ("connect_failed", "reset", 502, 503, 504)
    per_try_timeout_ns: Annotated[
        Annotated[Duration, Meta(ge=1_000_000)] | None,
        Meta(
            description=(
                "Time limit of an attempt, from its begin to the head of the response; then 504 "
                "`per_try_timeout` if there is no other attempt. Default: only the time-outs of the upstream."
            )
        ),
    ] = None
    backoff: Annotated[BackoffConfig, Meta(description="Wait before a retry.")] = BackoffConfig()
    budget: Annotated[BudgetConfig, Meta(description="Bound on the retries.")] = BudgetConfig()
    retry_after_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Longest Retry-After of a response that is waited for. A response that asks for more is "
                "passed to the client."
            )
        ),
    ] = SECOND
    max_body_bytes: Annotated[
        Size,
        Meta(
            le=16_000_000,
            description=(
                "A request with a larger body is sent only once. If the bodies in memory of a worker exceed "
                "32MiB, those above 64KiB are not kept."
            ),
        ),
    ] = 65_536
    attempt_header: Annotated[
        Text | None,
        Meta(
            description=(
                "Request header that tells the upstream the number of the attempt: 1, 2 … Default: none."
            )
        ),
    ] = None


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The key of this feature in a route."""

    manual_order: ClassVar[int] = 105

    retry: Annotated[
        RetryConfig | None,
        Meta(
            extra={"needs_upstream": True},
            description=(
                "Further attempts after a failure. Default: another target if the connection fails, and one "
                "replay if a reused connection was closed."
            ),
        ),
    ] = None


def destination_parts(env: FeatureEnv, _gates: Sequence[Plugin]) -> Mapping[str, Any]:
    """The retry policy of a destination."""
    config: RetryConfig | None = env.route.retry
    if config is None:
        return {}
    memory, route = env.context.memory, env.route.name
    labels = [
        label for condition in config.on if isinstance(condition, str) for label in CONDITIONS[condition]
    ]
    policy = RetryPolicy(
        memory.health.hold(f"route/{route}", env.context.slot),
        [REASONS[label] for label in labels],
        [condition for condition in config.on if isinstance(condition, int)],
        attempts=config.attempts,
        backoff=Backoff(
            config.backoff.base_ns / SECOND,
            config.backoff.max_ns / SECOND,
            shape=config.backoff.strategy,
            jitter=config.backoff.jitter,
        ),
        budget=(config.budget.share_ppm / PPM, config.budget.min_per_second, config.budget.burst),
        retried=memory.metrics.counter("fastgate_retries_total", route=route),
        over_budget=memory.metrics.counter("fastgate_retries_over_budget_total", route=route),
        per_try_ns=config.per_try_timeout_ns or 0,
        retry_after_ns=config.retry_after_ns,
        body_bytes=config.max_body_bytes,
        attempt_header=config.attempt_header.encode() if config.attempt_header else None,
    )
    return {"retry": policy}


def explain(route: Any) -> dict[str, str]:
    """What `fastgate explain` prints."""
    config: RetryConfig | None = route.retry
    if config is None:
        return {}
    causes = ", ".join(map(str, config.on))
    return {"retry": f"{config.attempts} attempts on {causes}; budget {share_text(config.budget.share_ppm)}"}


def owned_headers(env: FeatureEnv) -> tuple[bytes, ...]:
    """The field with the number of the attempt: clients may not set it."""
    config: RetryConfig | None = env.route.retry
    return (config.attempt_header.lower().encode(),) if config and config.attempt_header else ()
