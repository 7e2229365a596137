from collections.abc import Iterable
from typing import Any, NamedTuple, final

from fastgate._core.http.headers import Headers
from fastgate.upstream.settings import Endpoint, UpstreamTlsConfig

__all__ = ["OWN_FIELDS", "FetchError", "Fetched", "Fetcher", "check_url"]

OWN_FIELDS: frozenset[bytes]

class Fetched(NamedTuple):
    status: int
    headers: Headers
    body: bytes

class FetchError(Exception):
    kind: str
    detail: str
    def __init__(self, kind: str, detail: str = "") -> None: ...

def check_url(url: str) -> tuple[Endpoint, str]: ...

@final
class Fetcher:
    def __init__(
        self, around: Any, tls: UpstreamTlsConfig | None = None, max_connections: int = 64
    ) -> None: ...
    async def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str | bytes, str | bytes]] = (),
        body: bytes = b"",
        timeout_ns: int = 5_000_000_000,
        max_bytes: int = 1_048_576,
        redirects: int = 0,
        repeatable: bool | None = None,
    ) -> Fetched: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...
