from typing import Any, Final, Self, final

from typing_extensions import Buffer

from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.metric import Metric

__all__ = ["LATER", "SLOW", "DiskReader", "open_fields", "seal_fields"]

SLOW: Final[object]
LATER: Final[object]

@final
class DiskReader:
    def __new__(cls, epochs: Epochs, hits: Metric, misses: Metric, skip: int, piece: int) -> Self: ...
    @property
    def reading(self) -> int: ...
    def open(self, env: Any, answers: Any, secret: bytes) -> None: ...
    def close(self) -> None: ...
    def get(self, key: bytes) -> bytes | object | None: ...

def open_fields(
    data: Buffer, skip: int, key: bytes | None
) -> tuple[int, int, tuple[bytes, ...], int, bytes, bool] | str | None: ...
def seal_fields(head: bytes, key: bytes, labels: bytes, stored: bytes) -> bytes: ...
