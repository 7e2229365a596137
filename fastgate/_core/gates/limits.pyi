from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastgate._core.http.cidr import CidrSet
from fastgate._core.limits.inflight import InflightTable
from fastgate._core.limits.penalty import PenaltyBox
from fastgate._core.pipeline.context import Reason
from fastgate._core.pipeline.identity import Identity
from fastgate._core.pipeline.pipeline import Plugin
from fastgate._core.shm.metric import MetricTable
from fastgate._core.shm.table import LimiterTable

__all__ = [
    "COST_UNIT",
    "LIMIT_TYPES",
    "RECORD_WORDS",
    "AccessGate",
    "CostedLimitGate",
    "Health",
    "LimitGate",
    "LimitRule",
    "TierBook",
    "Usual",
    "client_key",
]

LIMIT_TYPES: tuple[str, ...]
COST_UNIT: int
RECORD_WORDS: int

def client_key(client: str, v4_bits: int = 32, v6_bits: int = 64) -> bytes: ...

class LimitRule:
    name: str
    scope: str
    by: tuple[Any, ...]
    v4_bits: int
    v6_bits: int
    policy_names: list[bytes]
    policy: bytes
    def __new__(
        cls,
        table: LimiterTable,
        inflight: InflightTable | None,
        scope: str,
        by: Iterable[Any],
        amounts: dict[str, Any],
        *,
        algorithm: str = "sliding_window",
        name: str = "",
        label: str = "",
        when_full: str = "deny",
        keep_s: float = 0.0,
        v4_bits: int = 32,
        v6_bits: int = 64,
    ) -> LimitRule: ...
    def decide(
        self,
        parts: Iterable[Any],
        amount: int = 1,
        cost: float = 1,
        now_ns: int | None = None,
        commit: bool = True,
        factor: float = 1.0,
    ) -> tuple[bool, str, int, int, int]: ...
    def refund(
        self,
        parts: Iterable[Any],
        amount: int = 1,
        cost: float = 1,
        taken_ns: int | None = None,
        now_ns: int | None = None,
    ) -> None: ...
    def read(self, parts: Iterable[Any], now_ns: int | None = None) -> dict[str, Any]: ...
    def reset(self, parts: Iterable[Any]) -> bool: ...

class TierBook:
    rules: dict[str, LimitRule]
    def __new__(
        cls, rules: dict[str, LimitRule], make: Callable[[Identity], LimitRule | None]
    ) -> TierBook: ...

class Health:
    def __new__(
        cls,
        table: LimiterTable,
        scope: str,
        lowest: float,
        highest: float,
        error_ratio: float,
        slow_ns: int,
        interval_ns: int = 1_000_000_000,
        least: int = 10,
    ) -> Health: ...
    def see(self, requests: int, bad: int, now_ns: int) -> None: ...
    @property
    def factor(self) -> float: ...

class Usual:
    def __new__(cls, table: LimiterTable, scope: str, multiple: float, lowest: float) -> Usual: ...
    def see(self, client: bytes, now_ns: int) -> float: ...

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

class AccessGate(Plugin):
    def __new__(
        cls, denied: CidrSet | None, allowed: CidrSet | None, why: Reason, metrics: MetricTable
    ) -> AccessGate: ...
