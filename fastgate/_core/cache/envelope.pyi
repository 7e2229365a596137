from typing import Any, Final

from typing_extensions import Buffer

from fastgate._core.shm.epochs import Epochs

__all__ = ["SLOW", "look", "open_fields", "seal_fields"]

SLOW: Final[object]

def open_fields(
    data: Buffer, skip: int, key: bytes | None
) -> tuple[int, int, tuple[bytes, ...], int, bytes, bool] | str | None: ...
def look(
    env: Any, answers: Any, secret: bytes, key: bytes, epochs: Epochs, skip: int, piece: int
) -> bytes | object | None: ...
def seal_fields(head: bytes, key: bytes, labels: bytes, stored: bytes) -> bytes: ...
