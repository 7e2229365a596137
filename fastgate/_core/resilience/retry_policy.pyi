from collections.abc import Iterable

from fastgate._core.pipeline.context import Reason
from fastgate._core.resilience.backoff import Backoff
from fastgate._core.resilience.health import Health
from fastgate._core.shm.metric import Metric

__all__ = ["RetryPolicy"]

class RetryPolicy:
    attempts: int
    per_try_ns: int
    retry_after_ns: int
    body_bytes: int
    attempt_header: bytes | None
    def __init__(
        self,
        row: Health,
        reasons: Iterable[Reason],
        statuses: Iterable[int],
        *,
        attempts: int,
        backoff: Backoff,
        budget: tuple[float, float, int],
        retried: Metric,
        over_budget: Metric,
        per_try_ns: int = 0,
        retry_after_ns: int = 0,
        body_bytes: int = 65536,
        attempt_header: bytes | None = None,
    ) -> None: ...
    def balance(self, now_ns: int) -> float: ...
