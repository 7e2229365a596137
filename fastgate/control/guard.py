"""Access control of the admin API: programs of the operator, but no web page in the operator's browser.

A page cannot read or change anything here even if the browser can reach the address:

* Its requests have an `Origin` that is not this server's, or `Sec-Fetch-Site: cross-site`: refused.
* A name that its owner points at this address (DNS rebinding) appears in `Host`: only IP addresses,
  `localhost` and the host of `admin.listen` are accepted, which no other party can resolve to this address.

With `admin.token` set, everything except the probes needs it as `Authorization: Bearer …`. No page of another
origin knows the token and no browser adds it automatically, so any Host is accepted: the name of a service in
Kubernetes, or of a container in Compose.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Guard", "refusal_of"]

PROBES = frozenset({"/live", "/ready", "/health"})
"""Orchestrators call these with whatever Host they like and have no token; they tell good or bad, not how
things are set up.
"""


def refusal_of(
    path: str, headers: Headers, token: str | None, own_hosts: frozenset[str]
) -> tuple[int, str] | None:
    """Status and text of the refusal of a request, or None for one that may pass."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "Requests from other web pages are refused"
    if origin is not None and _authority_of(origin) != host:
        return 403, "Requests from other web pages are refused"
    if not path.isprintable():
        # The router of the admin API would leave out a final line feed, and find another name.
        return 400, "The path holds a control character"
    if path in PROBES:
        return None
    if token is None:
        name = _without_port(host)
        if name not in own_hosts and not _is_address(name):
            return (
                403,
                "This Host is not an address of the admin listener; set admin.token to use other names",
            )
    else:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Compared as bytes: hmac.compare_digest takes only ASCII text.
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            return 401, "The admin token is missing or wrong"
    return None


class Guard:
    """ASGI middleware that rejects requests refused by `refusal_of`."""

    def __init__(self, app: ASGIApp, settings: Callable[[], tuple[str | None, frozenset[str]]]) -> None:
        """`settings` returns the current token and names of the listener's host."""
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            token, own_hosts = self._settings()
            refusal = refusal_of(scope["path"], Headers(scope=scope), token, own_hosts)
            if refusal is not None:
                status, text = refusal
                challenge = {"WWW-Authenticate": 'Bearer realm="fastgate admin"'} if status == 401 else None
                await JSONResponse({"error": text}, status, challenge)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _authority_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # brackets that hold no address: of no page
        return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
