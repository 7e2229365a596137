from collections.abc import Iterable
from typing import final

__all__ = ["HashRing", "Maglev"]

@final
class HashRing:
    names: tuple[str, ...]
    def __new__(
        cls,
        names: Iterable[str],
        weights: Iterable[int] | None = None,
        *,
        points_per_weight: int = 160,
        load_factor: float | None = None,
        seed: int = 0,
    ) -> HashRing: ...
    def __len__(self) -> int: ...
    @property
    def in_flight(self) -> tuple[int, ...]: ...
    def pick(self, key: str | bytes) -> int: ...
    def pick_among(self, key: str | bytes, usable: Iterable[object]) -> int: ...
    def finished(self, index: int) -> None: ...

@final
class Maglev:
    names: tuple[str, ...]
    table_size: int
    def __new__(
        cls,
        names: Iterable[str],
        weights: Iterable[int] | None = None,
        *,
        table_size: int = 65_537,
        load_factor: float | None = None,
        seed: int = 0,
    ) -> Maglev: ...
    def __len__(self) -> int: ...
    @property
    def in_flight(self) -> tuple[int, ...]: ...
    def pick(self, key: str | bytes) -> int: ...
    def pick_among(self, key: str | bytes, usable: Iterable[object]) -> int: ...
    def finished(self, index: int) -> None: ...

def live_objects() -> int: ...
