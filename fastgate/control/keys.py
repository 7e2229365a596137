"""API keys over the admin API: make, list, show, change, rotate, revoke."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.auth.consumers import NAME_PATTERN
from fastgate.checks import WORD_PATTERN
from fastgate.control.answers import Refused, expiry_ns, iso, number_argument, read_body
from fastgate.control.keymaking import NewKey
from fastgate.control.keyring import Keyring
from fastgate.control.limits import check_limits, check_tier
from fastgate.control.view import View
from fastgate.state.records import KEY_STATES, StoredKey

__all__ = ["KeyResource"]

PAGE = 100
PAGE_MOST = 1000
OVERLAP = "24h"
METADATA_BYTES = 8192

ConsumerName = Annotated[str, Meta(pattern=NAME_PATTERN)]
Word = Annotated[str, Meta(pattern=rf"^{WORD_PATTERN}$(?!\n)")]
Words = Annotated[list[Word], Meta(max_length=100)]
Label = Annotated[str, Meta(max_length=200)]


class NewKeyBody(msgspec.Struct, forbid_unknown_fields=True):
    consumer: ConsumerName
    name: Label = ""
    tier: Label = ""
    scopes: Words = []
    roles: Words = []
    metadata: dict[str, Any] = {}
    limits: dict[str, Any] | None = None
    expires_at: str | None = None
    expires_in: str | None = None
    starts_at: str | None = None
    starts_in: str | None = None


class KeyChange(msgspec.Struct, forbid_unknown_fields=True):
    """Omitted fields are unchanged."""

    name: Label | UnsetType = UNSET
    tier: Label | UnsetType = UNSET
    scopes: Words | UnsetType = UNSET
    roles: Words | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    limits: dict[str, Any] | UnsetType | None = UNSET
    expires_at: str | None = None
    expires_in: str | None = None


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    overlap: str = OVERLAP
    expires_at: str | None = None
    expires_in: str | None = None


class KeyResource:
    """`/api/keys`, and `POST /api/auth/api-key`."""

    def __init__(self, keyring: Keyring, view: View) -> None:
        self._keyring = keyring
        self._view = view

    def routes(self) -> list[Route]:
        return [
            Route("/api/auth/api-key", self.create, methods=["POST"]),
            Route("/api/keys", self.list, methods=["GET"]),
            Route("/api/keys", self.create, methods=["POST"]),
            Route("/api/keys/{key_id}", self.show, methods=["GET"]),
            Route("/api/keys/{key_id}", self.change, methods=["PATCH"]),
            Route("/api/keys/{key_id}", self.revoke, methods=["DELETE"]),
            Route("/api/keys/{key_id}/rotate", self.rotate, methods=["POST"]),
            Route("/api/keys/{key_id}/revoke", self.revoke, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """201 with the key, which is told this one time and never again."""
        body = await read_body(request, NewKeyBody)
        now_ns = time.time_ns()
        check_tier(body.tier, self._view.config)
        check_limits(body.limits, body.tier, self._view.config, "$.limits")
        check_metadata(body.metadata)
        consumer = self._keyring.consumer(body.consumer)
        if consumer is not None and consumer.disabled:
            raise Refused(409, f"The consumer {body.consumer!r} is disabled")
        expires_ns = expiry_ns(body.expires_at, body.expires_in, "expires", now_ns) or 0
        if expires_ns and expires_ns <= now_ns:
            raise Refused(400, "expires_at: expected a time to come", path="$.expires_at")
        made = self._keyring.create(
            StoredKey(
                key_id="",
                digest=b"",
                hint="",
                created_ns=now_ns,
                name=body.name,
                consumer=body.consumer,
                tier=body.tier,
                scopes=tuple(dict.fromkeys(body.scopes)),
                roles=tuple(dict.fromkeys(body.roles)),
                metadata=body.metadata,
                limits=body.limits or None,
                not_before_ns=expiry_ns(body.starts_at, body.starts_in, "starts", now_ns) or 0,
                expires_ns=expires_ns,
            )
        )
        return _told(made)

    async def list(self, request: Request) -> Response:
        """A page of keys, oldest first; `next` goes into `after` for the page behind it."""
        state = request.query_params.get("state")
        if state is not None and state not in KEY_STATES:
            raise Refused(400, f"state: expected one of {', '.join(KEY_STATES)}, got {state[:40]!r}")
        limit = number_argument(request, "limit", PAGE, 1, PAGE_MOST)
        consumer = request.query_params.get("consumer")
        after_id = request.query_params.get("after")
        after = self._keyring.key(after_id) if after_id else None
        keys = self._keyring.keys(consumer=consumer, state=state, after=after, limit=limit + 1)
        now_ns = time.time_ns()
        return JSONResponse(
            {
                "keys": [self._row(key, now_ns) for key in keys[:limit]],
                "next": keys[limit - 1].key_id if len(keys) > limit else None,
                "total": self._keyring.count_keys(consumer=consumer, state=state),
            }
        )

    async def show(self, request: Request) -> Response:
        return JSONResponse(self._row(self._keyring.key(request.path_params["key_id"]), time.time_ns()))

    async def change(self, request: Request) -> Response:
        """200 with the changed key, which is in effect on every worker when the call returns."""
        body = await read_body(request, KeyChange)
        key = self._keyring.key(request.path_params["key_id"])
        if key.revoked_ns:
            raise Refused(409, "The key is revoked")
        changes: dict[str, Any] = {}
        for field in ("name", "tier", "metadata"):
            if (value := getattr(body, field)) is not UNSET:
                changes[field] = value
        for field in ("scopes", "roles"):
            if (value := getattr(body, field)) is not UNSET:
                changes[field] = tuple(dict.fromkeys(value))
        if body.limits is not UNSET:
            changes["limits"] = body.limits or None
        tier = changes.get("tier", key.tier)
        check_tier(tier, self._view.config)
        check_limits(changes.get("limits"), tier, self._view.config, "$.limits")
        check_metadata(changes.get("metadata", {}))
        expires_ns = expiry_ns(body.expires_at, body.expires_in, "expires", time.time_ns())
        if expires_ns is not None:
            changes["expires_ns"] = expires_ns
        changed = self._keyring.change(msgspec.structs.replace(key, **changes))
        return JSONResponse(key_row(changed, time.time_ns()))

    async def rotate(self, request: Request) -> Response:
        """201 with the new key; the old one goes on for `overlap`."""
        body = await read_body(request, Rotation)
        now_ns = time.time_ns()
        overlap = expiry_ns(None, body.overlap, "overlap", now_ns) or now_ns
        made, old = self._keyring.rotate(
            request.path_params["key_id"],
            overlap - now_ns,
            expiry_ns(body.expires_at, body.expires_in, "expires", now_ns),
        )
        return _told(made, {"old": key_row(old, time.time_ns())})

    async def revoke(self, request: Request) -> Response:
        """Every worker rejects the key when the call returns. 200: the change is stored; 507: the store
        cannot be written, and the change is pending. Revoking a revoked key is not an error.
        """
        key = self._keyring.revoke(request.path_params["key_id"])
        return JSONResponse(self._row(key, time.time_ns()))

    def _row(self, key: StoredKey, now_ns: int) -> dict[str, Any]:
        return {**key_row(key, now_ns), "pending_write": self._keyring.is_pending(key.key_id)}


def _told(made: NewKey, more: dict[str, Any] | None = None) -> Response:
    row = {"api_key": made.secret, **key_row(made.stored, time.time_ns()), **(more or {})}
    return JSONResponse(row, 201, {"Cache-Control": "no-store", "Location": f"/api/keys/{row['key_id']}"})


def key_row(key: StoredKey, now_ns: int) -> dict[str, Any]:
    """The public properties of a key."""
    return {
        "key_id": key.key_id,
        "hint": f"{key.hint}…",
        "name": key.name,
        "consumer": key.consumer,
        "state": key.state(now_ns),
        "tier": key.tier,
        "scopes": key.scopes,
        "roles": key.roles,
        "metadata": key.metadata,
        "limits": key.limits,
        "created": iso(key.created_ns),
        "starts": iso(key.not_before_ns),
        "expires": iso(key.expires_ns),
        "revoked": iso(key.revoked_ns),
        "replaces": key.replaces or None,
        "replaced_by": key.replaced_by or None,
        "used": key.used,
        "last_used": iso(key.last_used_ns),
    }


def check_metadata(metadata: dict[str, Any]) -> None:
    _check_numbers(metadata, "$.metadata")
    size = len(msgspec.json.encode(metadata))
    if size > METADATA_BYTES:
        raise Refused(
            400, f"metadata: expected at most {METADATA_BYTES} bytes of JSON, got {size}", path="$.metadata"
        )


def _check_numbers(value: Any, path: str) -> None:
    """Refused: 400 for a whole number that the store cannot hold."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise Refused(400, f"{path.removeprefix('$.')}: expected a number below 2**63", path=path)
    if isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(item, f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_numbers(item, f"{path}[{index}]")
