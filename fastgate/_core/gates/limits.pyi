from collections.abc import Callable, Iterable, Mapping
from typing import final

from fastgate._core.gates.limit_factor import Health, Usual
from fastgate._core.gates.limit_rule import LimitRule
from fastgate._core.limits.penalty import PenaltyBox
from fastgate._core.pipeline.context import Reason
from fastgate._core.pipeline.identity import Identity
from fastgate._core.pipeline.pipeline import Plugin
from fastgate._core.shm.metric import MetricTable

__all__ = ["CostedLimitGate", "LimitGate", "TierBook"]

@final
class TierBook:
    rules: dict[str, LimitRule]
    def __new__(
        cls, rules: dict[str, LimitRule], make: Callable[[Identity], LimitRule | None]
    ) -> TierBook: ...

class LimitGate(Plugin):
    rules: tuple[LimitRule, ...]
    tiers: TierBook | None
    health: Health | None
    usual: Usual | None
    box: PenaltyBox | None
    def __new__(
        cls,
        rules: Iterable[LimitRule],
        tiers: TierBook | None,
        *,
        metrics: MetricTable,
        reasons: Mapping[str, Reason],
        box: PenaltyBox | None = None,
        box_by: str = "ip",
        health: Health | None = None,
        usual: Usual | None = None,
        tells: bool = True,
        warn_at: float | None = None,
        when_full: str = "deny",
        cost: float = 1.0,
        reserve: float | None = None,
        request_unit: int = 0,
        response_unit: int = 0,
        cost_header: str | None = None,
        v4_bits: int = 32,
        v6_bits: int = 64,
    ) -> LimitGate: ...

class CostedLimitGate(LimitGate): ...
