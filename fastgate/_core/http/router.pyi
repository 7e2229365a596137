from collections.abc import Callable, Iterator
from typing import Any, Literal, Never, final

__all__ = ["Match", "Route", "Router"]

@final
class Route:
    value: Any
    pattern: str
    predicates: int
    host: str | None
    param_names: tuple[bytes, ...]
    kind: Literal["literal", "params", "regex", "prefix"]
    order: int
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...

@final
class Match:
    route: Route
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def value(self) -> Any: ...
    @property
    def params(self) -> dict[str, str]: ...

@final
class Router:
    frozen: bool
    @property
    def routes(self) -> tuple[Route, ...]: ...
    def __len__(self) -> int: ...
    def add(
        self, pattern: str, value: object = None, *, host: str | None = None, predicates: int = 0
    ) -> Route: ...
    def freeze(self) -> None: ...
    def freezing(self, every: int = 64) -> Iterator[None]: ...
    def match(
        self, host: str | bytes | None, path: str | bytes, accept: Callable[[Route], object] | None = None
    ) -> Match | None: ...
    def candidates(self, host: str | bytes | None, path: str | bytes) -> list[Route]: ...

def live_objects() -> int: ...
