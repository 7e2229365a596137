"""Consumers over the admin API: those of the config file, and those made or changed at run time."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.auth.consumers import effective
from fastgate.control.answers import Refused, check_name, iso, number_argument, read_body
from fastgate.control.keyring import Keyring
from fastgate.control.keys import (
    PAGE,
    PAGE_MOST,
    ConsumerName,
    Label,
    Words,
    check_metadata,
)
from fastgate.control.limits import check_limits, check_tier
from fastgate.control.view import View
from fastgate.state.records import StoredConsumer

__all__ = ["ConsumerResource"]


class ConsumerChange(msgspec.Struct, forbid_unknown_fields=True):
    """Omitted fields are unchanged; null removes a run-time value, so that the config file applies."""

    tier: Label | UnsetType | None = UNSET
    scopes: Words | UnsetType | None = UNSET
    roles: Words | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    limits: dict[str, Any] | UnsetType | None = UNSET
    disabled: bool | UnsetType | None = UNSET


class NewConsumer(ConsumerChange, forbid_unknown_fields=True, kw_only=True):
    name: ConsumerName


class ConsumerResource:
    """`/api/consumers`."""

    def __init__(self, keyring: Keyring, view: View) -> None:
        self._keyring = keyring
        self._view = view

    def routes(self) -> list[Route]:
        # A name may hold slashes: a certificate's subject does.
        return [
            Route("/api/consumers", self.list, methods=["GET"]),
            Route("/api/consumers", self.create, methods=["POST"]),
            Route("/api/consumers/{name:path}", self.show, methods=["GET"]),
            Route("/api/consumers/{name:path}", self.change, methods=["PATCH"]),
            Route("/api/consumers/{name:path}", self.remove, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """A page of consumers by name; `next` goes into `after`."""
        limit = number_argument(request, "limit", PAGE, 1, PAGE_MOST)
        after = request.query_params.get("after", "")
        names = [name for name in self._keyring.consumer_names() if name > after]
        return JSONResponse(
            {
                "consumers": [self._row(name) for name in names[:limit]],
                "next": names[limit - 1] if len(names) > limit else None,
            }
        )

    async def create(self, request: Request) -> Response:
        body = await read_body(request, NewConsumer)
        if self._keyring.consumer(body.name) is not None:
            raise Refused(409, f"There is a consumer {body.name!r} already")
        now_ns = time.time_ns()
        self._put(StoredConsumer(name=body.name, created_ns=now_ns), body)
        return JSONResponse(self._row(body.name), 201)

    async def show(self, request: Request) -> Response:
        return JSONResponse(self._row(self._existing(request)))

    async def change(self, request: Request) -> Response:
        """200 with the changed consumer, which is in effect on every worker, also for its keys."""
        name = self._existing(request)
        body = await read_body(request, ConsumerChange)
        self._put(self._keyring.said_of(name) or StoredConsumer(name=name, created_ns=time.time_ns()), body)
        return JSONResponse(self._row(name))

    async def remove(self, request: Request) -> Response:
        """Forgets what was said at run time. 409 while it has keys, unless `?keys=revoke`."""
        name = self._existing(request)
        if self._keyring.said_of(name) is None and name in self._keyring.consumers_in_file:
            raise Refused(409, f"The consumer {name!r} stands in the config file; take it out there")
        stays = name in self._keyring.consumers_in_file
        if not stays:
            good = [
                key
                for state in ("active", "rotating", "pending")
                for key in self._keyring.keys(consumer=name, state=state, limit=PAGE_MOST)
            ]
            if good and request.query_params.get("keys") != "revoke":
                text = f"The consumer {name!r} has keys ({len(good)}); ?keys=revoke (--revoke-keys) ends them"
                raise Refused(409, text)
            for key in good:
                self._keyring.revoke(key.key_id)
        self._keyring.remove_consumer(name)
        return JSONResponse({"removed": name, **({"source": "config"} if stays else {})})

    def _existing(self, request: Request) -> str:
        name = check_name(request.path_params["name"])
        if self._keyring.consumer(name) is None and not self._keyring.count_keys(consumer=name):
            raise Refused(404, f"There is no consumer {name!r}")
        return name

    def _put(self, before: StoredConsumer, body: ConsumerChange) -> None:
        changes: dict[str, Any] = {}
        for field in ("tier", "metadata", "disabled"):
            if (value := getattr(body, field)) is not UNSET:
                changes[field] = value
        for field in ("scopes", "roles"):
            if (value := getattr(body, field)) is not UNSET:
                changes[field] = None if value is None else tuple(dict.fromkeys(value))
        if body.limits is not UNSET:
            changes["limits"] = body.limits or None
        tier = changes.get("tier") or ""
        check_tier(tier, self._view.config)
        check_limits(changes.get("limits"), tier or before.tier or "", self._view.config, "$.limits")
        check_metadata(changes.get("metadata") or {})
        self._keyring.put_consumer(msgspec.structs.replace(before, **changes, updated_ns=time.time_ns()))

    def _row(self, name: str) -> dict[str, Any]:
        said = self._keyring.said_of(name)
        record = self._keyring.consumer(name) or effective(None, None)
        in_file = name in self._keyring.consumers_in_file
        return {
            "name": name,
            "tier": record.tier,
            "scopes": record.scopes,
            "roles": record.roles,
            "metadata": record.metadata,
            "limits": record.limits,
            "disabled": record.disabled,
            "source": "both" if in_file and said else "config" if in_file else "store" if said else "keys",
            "keys": self._keyring.count_keys(consumer=name),
            "created": iso(said.created_ns) if said else None,
            "updated": iso(said.updated_ns) if said else None,
        }
