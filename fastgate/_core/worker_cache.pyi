from collections.abc import Iterable
from typing import Any

from fastgate._core.cache import Cache
from fastgate._core.edits import Template
from fastgate._core.epochs import Epochs
from fastgate._core.http_cache import Rules
from fastgate._core.pipeline import Plugin

__all__ = ["RESULTS", "Fill", "RouteCache", "WorkerCache"]

RESULTS: tuple[str, ...]

class Fill:
    @property
    def key(self) -> bytes: ...

class WorkerCache:
    def __new__(cls, memory: Cache | None, epochs: Epochs, tiers: Any, counter: Any) -> WorkerCache: ...
    @property
    def memory(self) -> Cache | None: ...
    @property
    def epochs(self) -> Epochs: ...
    @property
    def tiers(self) -> Any: ...
    @property
    def source(self) -> int: ...
    @property
    def background(self) -> int: ...
    @property
    def forms(self) -> dict[tuple[int, frozenset[bytes]], Rules]: ...
    def purge_applied(self) -> None: ...

class RouteCache:
    def __new__(
        cls,
        rules: Rules,
        store: WorkerCache,
        *,
        coalesce: bool,
        wait_ns: int,
        counter: Any,
        route: str,
        strategy: Any = None,
        purge_header: str | None = None,
        predict: Any = None,
        guarded: bool = False,
        places: Template | None = None,
        plugins: Iterable[Plugin] = (),
        written: Iterable[bytes] = (),
        sends: bool = False,
    ) -> RouteCache: ...
    @property
    def guarded(self) -> bool: ...
    @property
    def places(self) -> Template | None: ...
    @property
    def plugins(self) -> tuple[Plugin, ...]: ...
    @property
    def written(self) -> frozenset[bytes]: ...
    @property
    def sends(self) -> bool: ...
    @property
    def plain(self) -> bool: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def store(self) -> WorkerCache: ...
    @property
    def coalesce(self) -> bool: ...
    @property
    def wait_ns(self) -> int: ...
    @property
    def strategy(self) -> Any: ...
    @property
    def purge_header(self) -> bytes | None: ...
    @property
    def predict(self) -> Any: ...
