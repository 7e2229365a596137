from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal, ParamSpec, TypeVar, final

from typing_extensions import Buffer

__all__ = ["CircuitBreaker", "CircuitOpen"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Classes = type[BaseException] | Iterable[type[BaseException]]

class CircuitOpen(Exception):
    name: str
    retry_after_ns: int
    def __init__(self, name: str, retry_after_ns: int) -> None: ...

@final
class CircuitBreaker:
    SIZE: int
    name: str
    on_transition: Callable[[CircuitBreaker, str, str], object] | None
    times_calls: bool
    failures: tuple[type[BaseException], ...]
    ignore: tuple[type[BaseException], ...]
    def __new__(
        cls,
        *,
        failure_threshold: int | None = 5,
        recovery_timeout_s: float = 30.0,
        success_threshold: int = 1,
        half_open_permits: int = 1,
        permit_timeout_s: float | None = None,
        backoff: Literal["constant", "linear", "exponential", "fibonacci"] = "constant",
        max_recovery_timeout_s: float | None = None,
        jitter_ratio: float = 0.0,
        failure_ratio: float | None = None,
        slow_call_s: float | None = None,
        slow_ratio: float | None = None,
        window_s: float = 10.0,
        min_calls: int = 20,
        adaptive: bool = False,
        adaptive_calls: int = 1000,
        adaptive_factor: float = 3.0,
        adaptive_floor_ratio: float = 0.2,
        failures: _Classes | None = None,
        ignore: _Classes = (),
        on_transition: Callable[[CircuitBreaker, str, str], object] | None = None,
        name: str = "",
        memory: Buffer | None = None,
        offset: int = 0,
        seed: int | None = None,
    ) -> CircuitBreaker: ...
    def allow(self, now_ns: int | None = None) -> bool: ...
    def acquire(self, now_ns: int | None = None) -> int: ...
    def admit(self) -> int: ...
    def record(
        self, ok: object, latency_ns: int = 0, *, ticket: int = 0, now_ns: int | None = None
    ) -> None: ...
    def forget(self, ticket: int = 0) -> None: ...
    def settle(self, ticket: int, latency_ns: int, error: BaseException | None = None) -> None: ...
    def trip(self, now_ns: int | None = None) -> None: ...
    def reset(self, now_ns: int | None = None) -> None: ...
    def retry_after_ns(self, now_ns: int | None = None) -> int: ...
    def window(self, now_ns: int | None = None) -> tuple[int, int, int]: ...
    @property
    def state(self) -> str: ...
    @property
    def trips(self) -> int: ...
    @property
    def opened_total(self) -> int: ...
    @property
    def refused_total(self) -> int: ...
    @property
    def limits(self) -> tuple[float | None, int | None]: ...
    def __enter__(self) -> CircuitBreaker: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]: ...
    async def __aenter__(self) -> CircuitBreaker: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]: ...
    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]: ...

def live_objects() -> int: ...
