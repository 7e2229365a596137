from collections.abc import Iterable
from typing import Final

__all__ = ["REPLACED_FIELDS", "CacheSettings"]

REPLACED_FIELDS: Final[tuple[bytes, ...]]

class CacheSettings:
    ttl_ns: Final[int]
    override: Final[bool]
    caches_post: Final[bool]
    statuses: Final[frozenset[int]]
    swr_ns: Final[int]
    sie_ns: Final[int]
    heuristic_max_ns: Final[int]
    min_size: Final[int]
    max_size: Final[int]
    max_variants: Final[int]
    max_vary: Final[int]
    client_control: Final[bool]
    enforce: Final[bool]
    tags: Final[tuple[bytes, ...]]
    share_private: Final[bool]
    wants_consumer: Final[bool]
    wants_body: Final[bool]
    def __init__(
        self,
        *,
        ttl_ns: int = 0,
        respect: str = "origin",
        methods: Iterable[str] = ...,
        statuses: Iterable[int] = ...,
        query: str | Iterable[str] = "all",
        headers: Iterable[str] = (),
        cookies: Iterable[str] = (),
        consumer: str = "auto",
        body: bool = False,
        tags: Iterable[str] = (),
        min_size: int = 0,
        max_size: int = 16_000_000,
        stale_while_revalidate_ns: int = 0,
        stale_if_error_ns: int = 0,
        heuristic_max_ns: int = ...,
        private: str = "never",
        set_cookie: str = "never",
        share_private: bool = False,
        max_variants: int = 64,
        max_vary: int = 8,
        targeted: Iterable[str] = ...,
        client_control: bool = True,
        enforce: bool = True,
        status_name: str = "fastgate",
        route: bytes = b"",
        shown: Iterable[str] = (),
        secrets: Iterable[str] = (),
        never_vary: Iterable[str] = (),
    ) -> None: ...
