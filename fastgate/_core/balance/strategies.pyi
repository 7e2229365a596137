from collections.abc import Iterable
from typing import Any

from fastgate._core.balance.consistent import Maglev
from fastgate._core.balance.targets import Strategy, TargetSet

__all__ = ["KeyHash", "LatencyWeighted", "P2cEwma", "P2cRequests", "Random", "RoundRobin", "Scored"]

class RoundRobin(Strategy): ...
class Random(Strategy): ...

class PowerOfChoices(Strategy):
    choices: int
    def __new__(cls, *, choices: int = 2) -> PowerOfChoices: ...

class P2cRequests(PowerOfChoices): ...
class P2cEwma(PowerOfChoices): ...

class Scored(PowerOfChoices):
    latency_share: float
    cost_share: float
    health_share: float
    quality_share: float
    def __new__(
        cls,
        quality: Iterable[float] | None = None,
        *,
        latency: float = 1.0,
        cost: float = 1.0,
        health: float = 1.0,
        quality_share: float = 1.0,
        choices: int = 2,
    ) -> Scored: ...
    def explain(self, targets: TargetSet, *, now_ns: int | None = None) -> list[dict[str, Any]]: ...

class LatencyWeighted(Strategy): ...

class KeyHash(Strategy):
    table: Maglev
    load_factor: float
    def __new__(
        cls,
        names: Iterable[str],
        weights: Iterable[int] | None = None,
        *,
        load_factor: float | None = None,
        seed: int = 0,
    ) -> KeyHash: ...
    def point(self, key: str | bytes) -> int: ...
