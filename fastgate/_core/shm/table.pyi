from typing import TypedDict

from fastgate._core.shm.shm import SharedMemory

__all__ = ["LimiterTable", "live_objects"]

class _Statistics(TypedDict):
    entries: int
    inserted: int
    reused: int
    evicted: int
    refused: int
    recovered: int
    displaced: int
    over_share: int

class LimiterTable:
    capacity: int
    state_words: int
    shared: SharedMemory | None
    def __new__(
        cls, capacity: int, state_words: int = 5, shared: SharedMemory | None = None, processes: int = 256
    ) -> LimiterTable: ...
    @staticmethod
    def size(capacity: int, state_words: int = 5, processes: int = 256) -> int: ...
    def counts(self) -> dict[str, int]: ...
    def statistics(self) -> _Statistics: ...
    def audit(self) -> list[str]: ...

def live_objects() -> int: ...
