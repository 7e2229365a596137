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
    def __init__(self, *args: object, **settings: object) -> None: ...
