from collections.abc import Iterable
from typing import Final, Self, final

from fastgate._core.cache.http_decision import Decision
from fastgate._core.cache.http_keys import merge_vary as merge_vary
from fastgate._core.cache.http_keys import url_pattern as url_pattern
from fastgate._core.cache.http_keys import url_tag as url_tag
from fastgate._core.cache.http_request import RequestRules
from fastgate._core.cache.http_settings import REPLACED_FIELDS as REPLACED_FIELDS
from fastgate._core.cache.http_settings import CacheSettings
from fastgate._core.cache.http_stored import StoredResponse
from fastgate._core.http.headers import Headers

__all__ = [
    "BYPASS",
    "FRESH",
    "MISS",
    "ONLY_IF_CACHED",
    "REPLACED_FIELDS",
    "REVALIDATE",
    "STALE_WHILE_REVALIDATE",
    "Rules",
    "judge",
    "merge_vary",
    "url_pattern",
    "url_tag",
]

MISS: Final[int]
FRESH: Final[int]
STALE_WHILE_REVALIDATE: Final[int]
REVALIDATE: Final[int]
ONLY_IF_CACHED: Final[int]
BYPASS: Final[int]

_Fields = Headers | Iterable[tuple[str | bytes, str | bytes]]

@final
class Rules(CacheSettings):
    def __new__(
        cls,
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
    ) -> Self: ...
    @property
    def query_form(self) -> tuple[int, frozenset[bytes]]: ...
    def read_request(self, method: str, headers: _Fields = (), has_body: bool = False) -> RequestRules: ...
    def url_key(
        self, secure: bool, authority: bytes, path: bytes, query: bytes | None = None
    ) -> bytes | None: ...
    def key(
        self,
        request: RequestRules,
        secure: bool,
        authority: bytes,
        path: bytes,
        query: bytes | None = None,
        consumer: bytes | None = None,
        body: bytes | None = None,
        *,
        shared: bool = False,
        shown: bytes | None = None,
    ) -> bytes | None: ...
    def store(
        self,
        request: RequestRules,
        status: int,
        headers: _Fields,
        request_ns: int,
        response_ns: int,
        reason: bytes = b"OK",
    ) -> Decision: ...
    def update(
        self,
        request: RequestRules,
        stored: StoredResponse,
        headers: _Fields,
        request_ns: int,
        response_ns: int,
    ) -> Decision | None: ...
    def update_from_head(
        self,
        request: RequestRules,
        stored: StoredResponse,
        headers: _Fields,
        request_ns: int,
        response_ns: int,
    ) -> Decision | None: ...
    def invalidated(
        self,
        request: RequestRules,
        status: int,
        headers: _Fields,
        secure: bool,
        authority: bytes,
        path: bytes,
        query: bytes | None = None,
        *,
        merge: bool = True,
    ) -> list[bytes]: ...
    def forwarded(
        self,
        why: bytes,
        status: int = 0,
        stored: bool = False,
        collapsed: bool = False,
        detail: bytes | None = None,
    ) -> bytes: ...

def judge(stored: StoredResponse | None, request: RequestRules, now_ns: int) -> int: ...
