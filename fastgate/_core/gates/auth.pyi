from collections.abc import Iterable
from typing import Any

from fastgate._core.gates.credentials import CredentialCache
from fastgate._core.pipeline.context import Reason
from fastgate._core.pipeline.pipeline import Plugin
from fastgate._core.shm.directory import Directory

__all__ = ["AuthGate"]

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
        responded: object,
        unavailable_error: type[Exception],
        reasons: dict[str, Reason],
        unavailable: Reason,
        waits: bool = False,
    ) -> AuthGate: ...
    @property
    def schemes(self) -> tuple[Any, ...]: ...
    @property
    def owned(self) -> tuple[bytes, ...]: ...
