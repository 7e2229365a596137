"""The runtime table over the admin API: numbers and switches that are in effect on the next request.

A value is one store in shared memory, which every worker reads. It lasts until it is reset, its name leaves
the config, or the gateway ends; a reload, and the death of a worker or of this process, do not change it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.control.answers import Refused, read_body
from fastgate.control.view import View
from fastgate.features.registry import runtime_names

__all__ = ["RuntimeResource"]


class NewValue(msgspec.Struct, forbid_unknown_fields=True):
    value: int


class RuntimeResource:
    """`/api/runtime`."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._table = view.memory.runtime

    def routes(self) -> list[Route]:
        return [
            Route("/api/runtime", self.show, methods=["GET"]),
            Route("/api/runtime/{name:path}", self.set, methods=["PUT"]),
            Route("/api/runtime/{name:path}", self.reset, methods=["DELETE"]),
        ]

    async def show(self, _request: Request) -> Response:
        """Every name that the config in effect reads, with its value; null is the one of the config."""
        rows: list[dict[str, Any]] = []
        config = self._view.config
        for name in runtime_names(config) if config is not None else ():
            try:
                rows.append({"name": name, "value": self._table.get(name)})
            except LookupError:  # of a config that was replaced a moment ago
                continue
        return JSONResponse({"values": rows, **self._table.statistics()})

    async def set(self, request: Request) -> Response:
        """200: in effect on every worker. 400: not a 64-bit integer. 404: nothing reads this name."""
        name = request.path_params["name"]
        body = await read_body(request, NewValue)
        try:
            self._table.set(name, body.value)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        except (LookupError, TimeoutError) as error:
            raise _refused(error) from None
        return JSONResponse({"name": name, "value": body.value})

    async def reset(self, request: Request) -> Response:
        """200: the value of the config is in effect again."""
        name = request.path_params["name"]
        try:
            self._table.reset(name)
        except (LookupError, TimeoutError) as error:
            raise _refused(error) from None
        return JSONResponse({"name": name, "value": None})


def _refused(error: Exception) -> Refused:
    if isinstance(error, TimeoutError):
        return Refused(503, str(error))
    return Refused(404, str(error.args[0]))
