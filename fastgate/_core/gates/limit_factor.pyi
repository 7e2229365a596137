from typing import final

from fastgate._core.shm.table import LimiterTable

__all__ = ["Health", "Usual"]

@final
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

@final
class Usual:
    def __new__(cls, table: LimiterTable, scope: str, multiple: float, lowest: float) -> Usual: ...
    def see(self, client: bytes, now_ns: int) -> float: ...
