from typing import Final, final

from fastgate._core.cache.http_stored import StoredResponse

__all__ = ["Decision"]

@final
class Decision:
    storable: Final[bool]
    why: Final[str]
    status: Final[int]
    lifetime_ns: Final[int]
    implied: Final[bool]
    vary: Final[tuple[bytes, ...]]
    tags: Final[tuple[bytes, ...]]
    max_size: Final[int]
    def finish(self, body: bytes) -> StoredResponse: ...
    def fits(self, size: int) -> bool: ...
