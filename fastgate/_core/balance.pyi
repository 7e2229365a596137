from collections.abc import Iterable
from typing import final

__all__ = ["SmoothWeighted"]

@final
class SmoothWeighted:
    size: int
    def __new__(cls, weights: Iterable[int], start: int = 0) -> SmoothWeighted: ...
    def __len__(self) -> int: ...
    def pick(self) -> int: ...
