from collections.abc import Iterable

from fastgate._core.pipeline.pipeline import Plugin

__all__ = ["SecurityHeadersGate"]

class SecurityHeadersGate(Plugin):
    def __init__(
        self,
        replaced: Iterable[tuple[str, str]] = (),
        kept: Iterable[tuple[str, str]] = (),
        hsts: str | None = None,
        removed: Iterable[str] = (),
    ) -> None: ...
