"""The admin API: one file per resource, combined here. Every response except `/metrics` is JSON."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate import __version__
from fastgate.config import parse_address
from fastgate.control.answers import Refused, refused_answer
from fastgate.control.cache import CacheResource
from fastgate.control.consumers import ConsumerResource
from fastgate.control.explain import Explain, ExplainResource
from fastgate.control.gateway import GatewayResource
from fastgate.control.guard import Guard
from fastgate.control.keyring import Keyring
from fastgate.control.keys import KeyResource
from fastgate.control.limits import LimitResource
from fastgate.control.policies import PolicyResource
from fastgate.control.runtime import RuntimeResource
from fastgate.control.secrets import SecretResource
from fastgate.control.state import State, StateResource
from fastgate.control.upstreams import UpstreamsResource
from fastgate.control.view import ReloadTable, View
from fastgate.state.channel import ReloadRequest

__all__ = ["build_app"]


def build_app(
    view: View,
    reloads: ReloadTable,
    ask_reload: Callable[[ReloadRequest], bool],
    keyring: Keyring,
    state: State,
    explain: Explain | None = None,
) -> Starlette:
    """`ask_reload(request)` sends it to the supervisor; False when that is impossible. `explain` is the
    function behind `/api/gateway/explain`, from a row above.
    """
    routes = [
        *GatewayResource(view, reloads, ask_reload).routes(),
        *KeyResource(keyring, view).routes(),
        *ConsumerResource(keyring, view).routes(),
        *LimitResource(keyring, view).routes(),
        *SecretResource(keyring).routes(),
        *PolicyResource(keyring, view).routes(),
        *RuntimeResource(view).routes(),
        *UpstreamsResource(view).routes(),
        *StateResource(state).routes(),
        *CacheResource(view, view.memory.epochs, view.memory.metrics).routes(),
        *(ExplainResource(view, explain).routes() if explain is not None else ()),
    ]

    async def overview(_request: Request) -> Response:
        return JSONResponse(
            {
                "name": "fastgate",
                "version": __version__,
                "status": view.health()["status"],
                "endpoints": list(dict.fromkeys(route.path for route in routes)),
            }
        )

    return Starlette(
        routes=[Route("/", overview, methods=["GET"]), *routes],
        middleware=[Middleware(Guard, settings=lambda: _guard_settings(view))],
        exception_handlers={404: _not_found, 405: _not_allowed, Refused: refused_answer},
    )


def _guard_settings(view: View) -> tuple[str | None, frozenset[str]]:
    """The current admin token and names of the listener's host."""
    config = view.config
    if config is None:
        return None, frozenset({"localhost"})
    host = parse_address(config.admin.listen).host if config.admin.listen != "off" else ""
    return config.admin.token, frozenset({"localhost", host.lower()} - {""})


async def _not_found(request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "There is nothing here", "path": request.url.path}, 404)


async def _not_allowed(request: Request, error: Exception) -> Response:
    headers = getattr(error, "headers", None)
    return JSONResponse({"error": "Method not allowed", "path": request.url.path}, 405, headers)
