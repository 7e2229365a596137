from fastgate._core.limits.leases import ConcurrencyLimit, Lease
from fastgate._core.shm.shm import SharedMemory

__all__ = ["AdaptiveLimit"]

class AdaptiveLimit:
    leases: ConcurrencyLimit
    lowest: int
    highest: int
    tolerance_ratio: float
    backoff_ratio: float
    smoothing_ratio: float
    headroom: int
    slow_ns: int
    def __new__(
        cls,
        initial: int = 20,
        lowest: int = 1,
        highest: int = 1000,
        *,
        algorithm: str = "gradient",
        tolerance_ratio: float = 1.5,
        headroom: int = 4,
        smoothing_ratio: float = 0.2,
        backoff_ratio: float = 0.9,
        slow_s: float | None = None,
        shared: SharedMemory | None = None,
    ) -> AdaptiveLimit: ...
    @property
    def limit(self) -> int: ...
    @property
    def in_use(self) -> int: ...
    @property
    def usual_latency_ns(self) -> int: ...
    def acquire(self) -> Lease | None: ...
    def release(self, lease: Lease, latency_ns: int, ok: bool = True, now_ns: int | None = None) -> bool: ...
    @staticmethod
    def size(highest: int) -> int: ...
