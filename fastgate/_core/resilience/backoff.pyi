from typing import Literal, final

__all__ = ["Backoff"]

@final
class Backoff:
    def __new__(
        cls,
        base_s: float,
        max_s: float,
        *,
        shape: Literal["constant", "linear", "exponential", "fibonacci"] = "exponential",
        jitter: Literal["none", "full", "equal"] = "full",
        seed: int | None = None,
    ) -> Backoff: ...
    def delay_ns(self, attempt: int) -> int: ...
