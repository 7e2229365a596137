from collections.abc import Iterable, Sequence

from fastgate._core.resilience.breaker import CircuitBreaker
from fastgate._core.resilience.health import Health
from fastgate._core.shm.runtime import RuntimeValue

__all__ = ["Strategy", "TargetSet"]

class Strategy: ...

class TargetSet:
    size: int
    names: tuple[str, ...]
    healths: tuple[Health, ...]
    upstream: Health
    strategy: Strategy
    breaker: CircuitBreaker | None
    ejection: CircuitBreaker | None
    max_ejected: float
    slow_start_ns: int
    tau_ns: float
    tiers_n: int
    is_panicking: bool
    def __new__(
        cls,
        names: Iterable[str],
        healths: Iterable[Health],
        upstream: Health,
        strategy: Strategy,
        weights: Sequence[float] | None = None,
        *,
        costs: Sequence[float] | None = None,
        tiers: Sequence[int] | None = None,
        spill_factor: float = 1.4,
        breaker: CircuitBreaker | None = None,
        ejection: CircuitBreaker | None = None,
        max_ejected: float = 0.5,
        slow_start_s: float = 0.0,
        half_life_s: float = 10.0,
        drains: Sequence[RuntimeValue] | None = None,
        seed: int | None = None,
    ) -> TargetSet: ...
    def __len__(self) -> int: ...
    def choose(
        self, key: int | None = None, tried: Sequence[int] = (), *, now_ns: int | None = None
    ) -> tuple[int, tuple[int, int] | None]: ...
    def finished(
        self,
        index: int,
        ticket: tuple[int, int],
        ok: bool | None = True,
        latency_ns: int | None = None,
        *,
        now_ns: int | None = None,
    ) -> None: ...
    def usable(self, *, now_ns: int | None = None) -> tuple[float, ...]: ...
    @property
    def tiers_of_targets(self) -> tuple[int, ...]: ...
    def shares(self) -> tuple[float, ...]: ...

def live_objects() -> int: ...
