from typing import ClassVar, Literal, final

from fastgate._core.shm.shm import SharedMemory

__all__ = ["Decision", "FixedWindow", "Limit", "Refusal", "SlidingWindow", "TokenBucket", "live_objects"]

class Decision:
    NEVER: ClassVar[int]
    allowed: bool
    limit: int
    remaining: int
    retry_after_ns: int
    reset_ns: int
    def __bool__(self) -> bool: ...
    @property
    def retry_after_s(self) -> float: ...
    @property
    def reset_s(self) -> float: ...

@final
class Refusal(Decision):
    def __bool__(self) -> Literal[False]: ...

class Limit:
    @property
    def limit(self) -> int: ...
    def take(self, amount: int = 1, now_ns: int | None = None) -> bool: ...
    def decide(self, amount: int = 1, now_ns: int | None = None) -> Decision: ...
    def peek(self, amount: int = 1, now_ns: int | None = None) -> Decision: ...
    def charge(self, amount: int, now_ns: int | None = None) -> int: ...
    def refund(self, amount: int, taken_ns: int | None = None, now_ns: int | None = None) -> int: ...

class TokenBucket(Limit):
    SHARED_BYTES: ClassVar[int]
    rate_per_s: float
    def __new__(
        cls, rate_per_s: float, burst: int, shared: SharedMemory | None = None, offset: int = 0
    ) -> TokenBucket: ...
    @property
    def burst(self) -> int: ...

class FixedWindow(Limit):
    SHARED_BYTES: ClassVar[int]
    window_s: float
    def __new__(cls, limit: int, window_s: float, shared: SharedMemory | None = None) -> FixedWindow: ...

class SlidingWindow(Limit):
    SHARED_BYTES: ClassVar[int]
    window_s: float
    def __new__(cls, limit: int, window_s: float, shared: SharedMemory | None = None) -> SlidingWindow: ...

def live_objects() -> int: ...
