from typing import final

from fastgate._core.shm.shm import SharedMemory

__all__ = ["RetryBudget", "live_objects"]

@final
class RetryBudget:
    ratio: float
    min_retries_per_s: float
    burst: int
    def __new__(
        cls,
        ratio: float = 0.2,
        *,
        min_retries_per_s: float = 3.0,
        burst: int = 100,
        shared: SharedMemory | None = None,
    ) -> RetryBudget: ...
    def deposit(self, now_ns: int | None = None) -> None: ...
    def withdraw(self, now_ns: int | None = None) -> bool: ...
    def balance(self, now_ns: int | None = None) -> float: ...
    @staticmethod
    def size() -> int: ...

def live_objects() -> int: ...
