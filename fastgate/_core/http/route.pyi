from typing import Any, Literal, Never, final

__all__ = ["Route"]

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
