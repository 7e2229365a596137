from collections.abc import Iterable
from typing import Final, Protocol

from typing_extensions import Buffer

from fastgate._core.http.headers import Headers

__all__ = [
    "BYPASS",
    "FRESH",
    "MISS",
    "ONLY_IF_CACHED",
    "REPLACED_FIELDS",
    "REVALIDATE",
    "STALE_WHILE_REVALIDATE",
    "Decision",
    "RequestRules",
    "Rules",
    "StoredResponse",
    "Vary",
    "identity_key",
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
REPLACED_FIELDS: Final[tuple[bytes, ...]]

_Fields = Headers | Iterable[tuple[str | bytes, str | bytes]]

class _Identity(Protocol):
    @property
    def consumer(self) -> str: ...
    @property
    def tier(self) -> str: ...
    @property
    def scopes(self) -> Iterable[str]: ...
    @property
    def roles(self) -> Iterable[str]: ...

def url_pattern(pattern: bytes) -> bytes: ...
def url_tag(url: bytes) -> bytes: ...
def identity_key(identity: _Identity | None) -> bytes | None: ...

class Rules:
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

class RequestRules:
    cacheable: Final[bool]
    unsafe: Final[bool]
    head: Final[bool]
    post: Final[bool]
    plain: Final[bool]
    simple: Final[bool]
    why: Final[str | None]
    key: Final[bytes | None]
    @property
    def url_key(self) -> bytes | None: ...

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
    def tail(self, rules: Rules | None, now_ns: int) -> bytes: ...
    def may_serve_on_error(self, request: RequestRules | None, now_ns: int) -> bool: ...
    def field(self, name: bytes) -> bytes | None: ...
    def fields(self) -> list[tuple[str, str]]: ...
    def conditions(self) -> list[tuple[bytes, bytes]]: ...
    def answer(self, request: RequestRules) -> tuple[int, bytes, bytes]: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: Buffer) -> StoredResponse | None: ...

class Vary:
    names: Final[tuple[bytes, ...]]
    def __init__(self, names: Iterable[bytes] = ()) -> None: ...
    def key(self, primary: bytes, headers: _Fields) -> bytes: ...
    def admit(self, key: bytes, limit: int) -> list[bytes]: ...
    @property
    def size(self) -> int: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: bytes) -> Vary | None: ...

def judge(stored: StoredResponse | None, request: RequestRules, now_ns: int) -> int: ...
def merge_vary(old: Vary | None, names: tuple[bytes, ...]) -> Vary: ...
