import os
from typing import final

from typing_extensions import Buffer

__all__ = ["SharedMemory"]

@final
class SharedMemory(Buffer):
    size: int
    path: str | None
    def __new__(cls, size: int, path: str | os.PathLike[str] | None = None) -> SharedMemory: ...
    def isolate(self) -> None: ...
    def __len__(self) -> int: ...
