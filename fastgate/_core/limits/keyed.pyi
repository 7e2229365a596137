from collections.abc import Iterable, Sequence
from typing import Literal, final

from fastgate._core.limits.decision import Decision, Refusal
from fastgate._core.limits.limits import Limit
from fastgate._core.shm.shm import SharedMemory
from fastgate._core.shm.table import LimiterTable, _Statistics

__all__ = ["KeyedLimiter", "Reservation", "live_objects"]

class KeyedLimiter:
    table: LimiterTable
    limits: tuple[Limit, ...]
    scope: str
    def __new__(
        cls,
        limits: Limit | Iterable[Limit],
        *,
        capacity: int | None = None,
        shared: SharedMemory | None = None,
        table: LimiterTable | None = None,
        scope: str = "",
        when_full: str = "refuse",
    ) -> KeyedLimiter: ...
    def take(
        self,
        key: str | bytes,
        amount: int | Sequence[int] = 1,
        now_ns: int | None = None,
        source: str | bytes | None = None,
    ) -> Decision: ...
    def peek(
        self, key: str | bytes, amount: int | Sequence[int] = 1, now_ns: int | None = None
    ) -> Decision: ...
    def reserve(
        self, key: str | bytes, amount: int | Sequence[int] = 1, now_ns: int | None = None
    ) -> Reservation | Refusal: ...
    def charge(self, key: str | bytes, amount: int | Sequence[int], now_ns: int | None = None) -> bool: ...
    def forget(self, key: str | bytes) -> bool: ...
    def statistics(self) -> _Statistics: ...
    @staticmethod
    def size(limits: Limit | Iterable[Limit], capacity: int) -> int: ...

@final
class Reservation:
    taken_ns: int
    is_open: bool
    def settle(self, amount: int | Sequence[int], now_ns: int | None = None) -> bool: ...
    def refund(self, now_ns: int | None = None) -> bool: ...
    def __bool__(self) -> Literal[True]: ...

def live_objects() -> int: ...
