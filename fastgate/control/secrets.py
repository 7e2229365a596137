"""Secrets over the admin API: put, list masked, remove. There is no call that tells one."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.control.answers import Refused, iso, read_body
from fastgate.control.keyring import Keyring
from fastgate.state.sealing import masked

__all__ = ["SecretResource"]

NAME_PATTERN = r"^[A-Za-z0-9_]([A-Za-z0-9_.:/-]{0,126}[A-Za-z0-9_])?$(?!\n)"


class _Name(msgspec.Struct):
    name: Annotated[str, Meta(pattern=NAME_PATTERN)]


class NewSecret(msgspec.Struct, forbid_unknown_fields=True):
    value: Annotated[str, Meta(min_length=1, max_length=65536)]


class SecretResource:
    """`/api/secrets`: what upstream credentials may name."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def routes(self) -> list[Route]:
        return [
            Route("/api/secrets", self.list, methods=["GET"]),
            Route("/api/secrets/{name:path}", self.put, methods=["PUT"]),
            Route("/api/secrets/{name:path}", self.remove, methods=["DELETE"]),
        ]

    async def list(self, _request: Request) -> Response:
        rows = []
        for stored in self._keyring.secrets():
            try:
                value = masked(self._keyring.secret(stored.name) or "")
            except Refused:  # sealed with a key that is not there
                value = None
            rows.append(
                {
                    "name": stored.name,
                    "value": value,
                    "created": iso(stored.created_ns),
                    "updated": iso(stored.updated_ns),
                }
            )
        return JSONResponse({"secrets": rows})

    async def put(self, request: Request) -> Response:
        """200; every worker has the new value when the call returns."""
        name = _checked(request)
        body = await read_body(request, NewSecret)
        self._keyring.put_secret(name, body.value)
        return JSONResponse({"name": name, "value": masked(body.value)})

    async def remove(self, request: Request) -> Response:
        name = _checked(request)
        if not self._keyring.remove_secret(name):
            raise Refused(404, f"There is no secret {name!r}")
        return JSONResponse({"removed": name})


def _checked(request: Request) -> str:
    name: str = request.path_params["name"]
    try:
        return msgspec.convert({"name": name}, _Name).name
    except msgspec.ValidationError:
        raise Refused(400, "A secret's name is letters, digits and _ . : / - (at most 128)") from None
