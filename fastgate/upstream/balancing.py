"""Balancing over the targets of an upstream: checks of the config, and the TargetSet that it describes.

The strategies themselves are compiled: `fastgate._core.balance.strategies`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from fastgate._core.balance.strategies import (
    KeyHash,
    LatencyWeighted,
    P2cEwma,
    P2cRequests,
    Random,
    RoundRobin,
    Scored,
)
from fastgate._core.balance.targets import Strategy, TargetSet
from fastgate._core.resilience.breaker import CircuitBreaker
from fastgate._core.resilience.health import HealthTable
from fastgate.checks import TOKEN, Path, Report
from fastgate.settings import DAY, MINUTE, PPM, SECOND, duration_text, short_key
from fastgate.upstream.balance_key import BalanceKey
from fastgate.upstream.balance_settings import (
    BalanceConfig,
    BreakerConfig,
    EjectionConfig,
    FailureSettings,
    Locality,
)
from fastgate.upstream.settings import TargetConfig, UpstreamConfig

__all__ = ["check_balance", "make_target_set", "tiers_of"]

STRICT: Final = 1000.0
"""Spill factor of strategies whose first tier keeps all requests while it has a usable target."""
SPILL_FACTOR: Final = 1.4
"""Envoy's overprovisioning factor: a tier keeps all requests while 5/7 of its weight is usable."""
RETURNED_AFTER: Final = 3
"""Good responses in a row after which an ejection is forgotten."""
MOST_PROBES: Final = 4000
"""Requests in flight at a target that returns from an ejection: in effect no limit."""

_KEYS: Final = ("consumer", "key", "ip", "header:NAME", "cookie:NAME")


def _scored(config: BalanceConfig, targets: Sequence[TargetConfig]) -> Strategy:
    return Scored(
        [target.quality for target in targets],
        latency=config.latency,
        cost=config.cost,
        health=config.health,
        quality_share=config.quality,
        choices=config.choices,
    )


def _hashed(config: BalanceConfig, targets: Sequence[TargetConfig]) -> Strategy:
    return KeyHash(
        [target.url for target in targets],
        [target.weight for target in targets],
        load_factor=config.load_factor,
    )


STRATEGIES: Final[dict[str, Callable[[BalanceConfig, Sequence[TargetConfig]], Strategy]]] = {
    "round_robin": lambda config, targets: RoundRobin(),
    "least_requests": lambda config, targets: P2cRequests(choices=config.choices),
    "p2c_ewma": lambda config, targets: P2cEwma(choices=config.choices),
    "random": lambda config, targets: Random(),
    "hash": _hashed,
    "priority": lambda config, targets: RoundRobin(),
    "latency": lambda config, targets: LatencyWeighted(),
    "cost": lambda config, targets: RoundRobin(),
    "intelligent": _scored,
}

_ONLY_WITH: Final = {
    "slow_start_ns": tuple(name for name in STRATEGIES if name != "hash"),
    "choices": ("least_requests", "p2c_ewma", "intelligent"),
    "by": ("hash",),
    "load_factor": ("hash",),
    "latency": ("intelligent",),
    "cost": ("intelligent",),
    "health": ("intelligent",),
    "quality": ("intelligent",),
}
"""Keys that have an effect with these strategies only."""


def tiers_of(config: UpstreamConfig, targets: Sequence[TargetConfig], here: Locality) -> list[int]:
    """The tier of each target, from 0: by `priority`, then by distance, then by what the strategy prefers."""
    listed = config.balance.strategy == "priority" and not any(target.priority for target in targets)

    def rank(index: int, target: TargetConfig) -> tuple[float, ...]:
        distance = 0
        if here.zone is not None and target.zone not in (None, here.zone):
            distance = 1 if target.region is not None and target.region == here.region else 2
        elif here.region is not None and target.region not in (None, here.region):
            distance = 2
        cost = target.cost if config.balance.strategy == "cost" else 0.0
        return (index if listed else target.priority, distance, cost)

    ranks = [rank(index, target) for index, target in enumerate(targets)]
    place = {rank: index for index, rank in enumerate(sorted(set(ranks)))}
    return [place[rank] for rank in ranks]


def make_target_set(
    name: str,
    config: UpstreamConfig,
    targets: Sequence[TargetConfig],
    here: Locality,
    table: HealthTable,
    slot: int,
) -> tuple[TargetSet, BalanceKey | None]:
    """The set of these targets, and the key if they are chosen by key. Raises HealthTableFull."""
    balance = config.balance
    strategy = STRATEGIES[balance.strategy](balance, targets)
    made = TargetSet(
        [target.url for target in targets],
        [table.hold(f"target/{name}/{target.url}", slot) for target in targets],
        table.hold(f"upstream/{name}", slot),
        strategy,
        [target.weight for target in targets],
        costs=[target.cost for target in targets],
        tiers=tiers_of(config, targets, here),
        spill_factor=STRICT if balance.strategy in ("priority", "cost") else SPILL_FACTOR,
        breaker=None if config.breaker is None else _breaker(config.breaker, config.timeouts.first_byte_ns),
        ejection=None if config.ejection is None else _ejection(config.ejection),
        max_ejected=0.0 if config.ejection is None else config.ejection.max_ejected_ppm / PPM,
        slow_start_s=balance.slow_start_ns / SECOND,
        half_life_s=balance.latency_half_life_ns / SECOND,
    )
    return made, BalanceKey(balance.by, strategy) if isinstance(strategy, KeyHash) else None


def _breaker(config: BreakerConfig, probe_ns: int) -> CircuitBreaker:
    """probe_ns: the longest wait for the head of a response, 0 = no limit."""
    longest_ns = config.max_recovery_timeout_ns
    if longest_ns is None:
        longest_ns = 10 * config.recovery_timeout_ns
    return _with_rates(
        config,
        failure_threshold=config.failure_threshold or None,
        recovery_timeout_s=config.recovery_timeout_ns / SECOND,
        max_recovery_timeout_s=longest_ns / SECOND,
        success_threshold=config.success_threshold,
        half_open_permits=config.half_open_requests,
        # Of a killed worker's probes.
        permit_timeout_s=min(max(config.recovery_timeout_ns, probe_ns or MINUTE), DAY) / SECOND,
        backoff=config.backoff,
        adaptive=config.adaptive,
    )


def _ejection(config: EjectionConfig) -> CircuitBreaker:
    return _with_rates(
        config,
        failure_threshold=config.consecutive_failures or None,
        recovery_timeout_s=config.time_ns / SECOND,
        max_recovery_timeout_s=config.max_time_ns / SECOND,
        success_threshold=RETURNED_AFTER,
        half_open_permits=MOST_PROBES,
        backoff="linear",
    )


def _with_rates(config: FailureSettings, **settings: Any) -> CircuitBreaker:
    return CircuitBreaker(
        failure_ratio=None if config.error_rate_ppm is None else config.error_rate_ppm / PPM,
        slow_call_s=None if config.slow_call_ns is None else config.slow_call_ns / SECOND,
        slow_ratio=None if config.slow_rate_ppm is None else config.slow_rate_ppm / PPM,
        window_s=config.window_ns / SECOND,
        min_calls=config.min_requests,
        jitter_ratio=0.1,  # several machines do not all try at the same moment
        **settings,
    )


def check_balance(config: UpstreamConfig, path: Path, report: Report) -> None:
    """`balance`, `ejection` and `breaker` of an upstream."""
    balance, at = config.balance, (*path, "balance")
    for key, strategies in _ONLY_WITH.items():
        if getattr(balance, key) != getattr(BalanceConfig(), key) and balance.strategy not in strategies:
            report(
                (*at, short_key(key)),
                f"strategy: {balance.strategy}",
                f"a strategy that uses it ({', '.join(strategies)})",
                "",
            )
    if balance.strategy == "hash" and not balance.by:
        report((*at, "by"), "missing key", f"what identifies a request ({', '.join(_KEYS)})", "")
    for index, part in enumerate(balance.by):
        kind, colon, name = part.partition(":")
        named = kind in ("header", "cookie")
        if (not named and (kind not in _KEYS or colon)) or (named and not TOKEN.fullmatch(name)):
            report((*at, "by", index), f'"{part}"', f"one of {', '.join(_KEYS)}", "")
    if config.ejection is not None:
        _check_rates(config.ejection, (*path, "ejection"), "consecutive_failures", report)
        if config.ejection.max_time_ns < config.ejection.time_ns:
            report(
                (*path, "ejection", "max_time"),
                duration_text(config.ejection.max_time_ns),
                f"at least time ({duration_text(config.ejection.time_ns)})",
                "",
            )
    if config.breaker is not None:
        _check_rates(config.breaker, (*path, "breaker"), "failure_threshold", report)
        longest_ns = config.breaker.max_recovery_timeout_ns
        if longest_ns is not None and longest_ns < config.breaker.recovery_timeout_ns:
            report(
                (*path, "breaker", "max_recovery_timeout"),
                duration_text(longest_ns),
                f"at least recovery_timeout ({duration_text(config.breaker.recovery_timeout_ns)})",
                "",
            )


def _check_rates(config: FailureSettings, path: Path, consecutive: str, report: Report) -> None:
    if (config.slow_rate_ppm is None) != (config.slow_call_ns is None):
        missing = "slow_rate_ppm" if config.slow_rate_ppm is None else "slow_call_ns"
        report((*path, short_key(missing)), "missing key", "both slow_call and slow_rate, or neither", "")
    if not (getattr(config, consecutive) or config.error_rate_ppm or config.slow_rate_ppm):
        report(path, "no condition", f"one of {consecutive}, error_rate and slow_rate", "")
