from collections.abc import Iterable
from typing import Any, final

from fastgate._core.limits.inflight import InflightTable
from fastgate._core.shm.table import LimiterTable

__all__ = ["COST_UNIT", "LIMIT_TYPES", "RECORD_WORDS", "LimitRule"]

LIMIT_TYPES: tuple[str, ...]
COST_UNIT: int
RECORD_WORDS: int

@final
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
