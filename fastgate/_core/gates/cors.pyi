import re
from collections.abc import Iterable
from typing import ClassVar, Never

from fastgate._core.pipeline.context import Reason
from fastgate._core.pipeline.pipeline import Plugin

__all__ = ["CorsGate"]

class CorsGate(Plugin):
    accepts_preflight: ClassVar[bool]
    def __init__(
        self,
        *args: Never,
        exact: Iterable[str] = (),
        suffixes: Iterable[tuple[str, str, str]] = (),
        patterns: Iterable[re.Pattern[bytes]] = (),
        any_origin: bool = False,
        methods: Iterable[str] | None = None,
        headers: Iterable[str] | None = None,
        expose: Iterable[str] = (),
        credentials: bool = False,
        max_age_s: int = 0,
        private_network: bool = False,
        refuse_others: bool = False,
        preflight_status: int = 204,
        refused: Reason,
    ) -> None: ...
    def allows(self, origin: str) -> bool: ...
