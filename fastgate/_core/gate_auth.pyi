from collections.abc import Iterable
from typing import Any

from fastgate._core.context import Reason
from fastgate._core.directory import Directory
from fastgate._core.pipeline import Plugin

__all__ = ["AuthGate", "CredentialCache"]

class CredentialCache:
    def __new__(cls) -> CredentialCache: ...
    @property
    def capacity(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    def grow(self) -> None: ...
    def __len__(self) -> int: ...

class AuthGate(Plugin):
    def __new__(
        cls,
        schemes: Iterable[Any],
        *,
        cache: CredentialCache,
        directory: Directory | None,
        family: int,
        forward: bool,
        rejected: object,
        later: object,
        answered: object,
        unavailable_error: type[Exception],
        unauthorized: Reason,
        unavailable: Reason,
        waits: bool = False,
    ) -> AuthGate: ...
    @property
    def schemes(self) -> tuple[Any, ...]: ...
