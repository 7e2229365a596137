from collections.abc import Callable
from typing import Any

from fastgate._core.pipeline.context import Reason
from fastgate._core.pipeline.identity import Identity
from fastgate._core.pipeline.pipeline import Plugin

__all__ = ["AuthorizeGate"]

_Refusal = tuple[Reason, dict[str, Any] | None, list[tuple[str, str]]]

class AuthorizeGate(Plugin):
    def __new__(cls, judge: Callable[[Identity | None, str], _Refusal | None]) -> AuthorizeGate: ...
