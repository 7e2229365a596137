from typing import ClassVar, Literal, final

__all__ = ["Decision", "Refusal"]

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
