from collections.abc import Iterable

from fastgate._core.shm.shm import SharedMemory
from fastgate._core.shm.table import LimiterTable, _Statistics

__all__ = ["PenaltyBox"]

class PenaltyBox:
    table: LimiterTable
    strikes: int
    def __new__(
        cls,
        strikes: int = 10,
        within_s: float = 60,
        bans_s: Iterable[float] = (60, 600, 3600, 86_400),
        forget_s: float = 86_400,
        *,
        capacity: int | None = None,
        shared: SharedMemory | None = None,
        table: LimiterTable | None = None,
        scope: str = "",
        when_full: str = "refuse",
    ) -> PenaltyBox: ...
    def strike(self, key: str | bytes, now_ns: int | None = None) -> int: ...
    def banned(self, key: str | bytes, now_ns: int | None = None) -> int: ...
    def ban(self, key: str | bytes, for_s: float, now_ns: int | None = None) -> bool: ...
    def pardon(self, key: str | bytes) -> bool: ...
    def statistics(self) -> _Statistics: ...
    @staticmethod
    def size(capacity: int) -> int: ...
