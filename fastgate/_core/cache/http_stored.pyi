from typing import Final, final

from typing_extensions import Buffer

from fastgate._core.cache.http_request import RequestRules
from fastgate._core.cache.http_settings import CacheSettings

__all__ = ["StoredResponse"]

@final
class StoredResponse:
    status: Final[int]
    flags: Final[int]
    head: Final[bytes]
    body: Final[bytes]
    etag: Final[bytes | None]
    tags: Final[tuple[bytes, ...]]
    vary: Final[tuple[bytes, ...]]
    born_ns: Final[int]
    stored_ns: Final[int]
    fresh_until_ns: Final[int]
    swr_until_ns: Final[int]
    sie_until_ns: Final[int]
    date_s: Final[int]
    modified_s: Final[int]
    @property
    def keep_until_ns(self) -> int: ...
    @property
    def size(self) -> int: ...
    def age_s(self, now_ns: int) -> int: ...
    def tail(self, rules: CacheSettings | None, now_ns: int) -> bytes: ...
    def may_serve_on_error(self, request: RequestRules | None, now_ns: int) -> bool: ...
    def field(self, name: bytes) -> bytes | None: ...
    def fields(self) -> list[tuple[str, str]]: ...
    def conditions(self) -> list[tuple[bytes, bytes]]: ...
    def answer(self, request: RequestRules) -> tuple[int, bytes, bytes]: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: Buffer) -> StoredResponse | None: ...
