from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Identity"]

class Identity:
    consumer: str
    consumer_bytes: bytes
    tier: str
    method: str
    by_address: bool
    shared: bool
    serial: int
    key_id: str | None
    key_bytes: bytes
    scopes: frozenset[str]
    roles: frozenset[str]
    metadata: dict[str, Any]
    claims: Mapping[str, Any] | None
    limits: Any
    expires_ns: int
    record: int
    version: int
    upstream_lines: bytes
    def __init__(
        self,
        consumer: str,
        *,
        tier: str = "",
        method: str = "",
        key_id: str | None = None,
        scopes: Iterable[str] = (),
        roles: Iterable[str] = (),
        metadata: dict[str, Any] | None = None,
        claims: Mapping[str, Any] | None = None,
        limits: Any = None,
        expires_ns: int = 0,
        record: int = -1,
        version: int = 0,
        shared: bool = False,
    ) -> None: ...
