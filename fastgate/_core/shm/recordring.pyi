from typing import final

from fastgate._core.shm.shm import SharedMemory

__all__ = ["RecordRing"]

@final
class RecordRing:
    capacity: int
    record_bytes: int
    shared: SharedMemory
    def __new__(
        cls, capacity: int, record_bytes: int = 488, shared: SharedMemory | None = None
    ) -> RecordRing: ...
    @staticmethod
    def size(capacity: int, record_bytes: int = 488) -> int: ...
    @property
    def appended(self) -> int: ...
    def append(self, record: bytes) -> int: ...
    def recent(self, most: int = 100) -> list[tuple[int, bytes]]: ...
