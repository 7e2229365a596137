"""A request as the schemes see it, without a gateway around it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastgate._core.http.headers import Headers
from fastgate._core.pipeline.identity import Identity

__all__ = ["Request", "identify"]


class Request:
    """What `RequestContext` offers to a scheme."""

    def __init__(
        self,
        method: str = "GET",
        url: str = "http://gateway.test/",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        parts = urlsplit(url)
        self.method = method
        self.client_scheme = parts.scheme
        self.host_field = parts.netloc
        self.request_target = (parts.path or "/") + (f"?{parts.query}" if "?" in url else "")
        self.headers = Headers([("Host", parts.netloc), *(headers or {}).items()])
        self.has_body = bool(body)
        self.body = body
        self.identity: Identity | None = None
        self.refused: Any = None

    def refuse(self, reason: Any, detail: Any = None, headers: Any = ()) -> int:
        """See RequestContext."""
        self.refused = reason
        return 1


def identify(consumer: str, *, method: str = "", key_id: str | None = None, **_: Any) -> Identity | None:
    """The consumer, unless it is called `disabled`."""
    return None if consumer == "disabled" else Identity(consumer, method=method, key_id=key_id)
