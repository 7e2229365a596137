"""Limits of a client over the admin API: how it stands, its quota, reset, bans.

A client is `?consumer=`, `?key=` (a key id, which brings its consumer along) or `?ip=`, or several of them.
"""

from __future__ import annotations

import ipaddress
import time
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.auth.consumers import tier_and_limits
from fastgate.config import Config
from fastgate.control.answers import Refused, check_name, expiry_ns, read_body, unknown_field_hint
from fastgate.control.keyring import Keyring
from fastgate.control.view import View
from fastgate.features.ratelimit.client import ClientLimits
from fastgate.features.ratelimit.settings import Amounts, TierConfig, amounts_of, amounts_problems, tiers_of
from fastgate.state.records import StoredConsumer

__all__ = ["LimitResource", "check_limits", "check_tier"]

BAN = "1h"


class Ban(msgspec.Struct, forbid_unknown_fields=True):
    for_: str = msgspec.field(name="for", default=BAN)


class _Client(NamedTuple):
    consumer: str | None
    tier: str
    limits: dict[str, Any] | None
    key: str | None
    ip: str | None

    def told(self) -> dict[str, Any]:
        return {
            field: value for field in ("consumer", "key", "ip") if (value := getattr(self, field)) is not None
        }


class LimitResource:
    """`/api/limits`."""

    def __init__(self, keyring: Keyring, view: View) -> None:
        self._keyring = keyring
        self._view = view
        self._limits: ClientLimits | None = None
        self._limits_version = 0

    def routes(self) -> list[Route]:
        return [
            Route("/api/limits", self.show, methods=["GET"]),
            Route("/api/limits", self.change, methods=["PUT"]),
            Route("/api/limits", self.remove, methods=["DELETE"]),
            Route("/api/limits/reset", self.reset, methods=["POST"]),
            Route("/api/limits/ban", self.ban, methods=["POST"]),
            Route("/api/limits/pardon", self.pardon, methods=["POST"]),
            Route("/api/limits/statistics", self.statistics, methods=["GET"]),
        ]

    async def show(self, request: Request) -> Response:
        """Limits and remaining amounts per rule, requests and cost so far, and current bans."""
        return JSONResponse(self._row(self._client(request)))

    async def change(self, request: Request) -> Response:
        """Sets the consumer's own limits, which override single limits of its tier; null removes a limit. In
        effect on every worker when the call returns.
        """
        client = self._client(request)
        if client.consumer is None or client.key is not None or client.ip is not None:
            raise Refused(400, "?consumer= alone: a key's limits are changed with PATCH /api/keys/{key_id}")
        limits = await read_body(request, dict[str, Any])
        check_limits(limits, client.tier, self._config())
        self._say(client.consumer, limits)
        return JSONResponse(self._row(self._client(request)))

    async def remove(self, request: Request) -> Response:
        """Takes back what was said at run time: the config file and the tier count again."""
        client = self._client(request)
        if client.consumer is None or client.key is not None or client.ip is not None:
            raise Refused(400, "?consumer= alone: a key's limits are changed with PATCH /api/keys/{key_id}")
        self._say(client.consumer, None)
        return JSONResponse(self._row(self._client(request)))

    async def reset(self, request: Request) -> Response:
        """Resets the counters. Requests in flight still count against `concurrent`."""
        client = self._client(request)
        return JSONResponse({**client.told(), "reset": self._client_limits().reset(**client._asdict())})

    async def ban(self, request: Request) -> Response:
        """Bans the client for `for` on every route with a `penalty` by the same."""
        body = await read_body(request, Ban)
        now_ns = time.time_ns()
        ends_ns = expiry_ns(None, body.for_, "for", now_ns)
        if not ends_ns:
            raise Refused(400, "for: expected a duration above 0", path="$.for")
        by, name = self._one(request)
        try:
            self._client_limits().ban(name, (ends_ns - now_ns) / 1e9, by)
        except RuntimeError as error:
            raise Refused(507, str(error)) from error
        return JSONResponse({by: name, "banned_s": round(self._client_limits().banned_s(name, by), 3)})

    async def pardon(self, request: Request) -> Response:
        """Ends a ban and forgets what led to it."""
        by, name = self._one(request)
        return JSONResponse({by: name, "pardoned": self._client_limits().pardon(name, by)})

    async def statistics(self, _request: Request) -> Response:
        return JSONResponse(self._client_limits().statistics())

    def _row(self, client: _Client) -> dict[str, Any]:
        limits = self._client_limits()
        bans = {by: limits.banned_s(name, by) for by, name in client.told().items()}
        return {
            **client.told(),
            "tier": client.tier,
            "own_limits": client.limits,
            "rules": limits.read(**client._asdict()),
            "banned_s": {by: round(left_s, 3) for by, left_s in bans.items() if left_s > 0},
        }

    def _say(self, name: str, limits: dict[str, Any] | None) -> None:
        now_ns = time.time_ns()
        said = self._keyring.said_of(name)
        if said is None and limits is None:
            return
        said = said or StoredConsumer(name=name, created_ns=now_ns)
        self._keyring.put_consumer(msgspec.structs.replace(said, limits=limits, updated_ns=now_ns))

    def _client(self, request: Request) -> _Client:
        asked = _asked(request)
        consumer, key = asked.get("consumer"), asked.get("key")
        tier, limits = request.query_params.get("tier", ""), None
        if key is not None:
            stored = self._keyring.key(key)
            if consumer not in (None, stored.consumer):
                raise Refused(400, f"The key {key!r} is of consumer {stored.consumer!r}")
            consumer = stored.consumer
            own_tier, limits = tier_and_limits(stored, self._keyring.consumer(consumer))
            tier = tier or own_tier
        elif consumer is not None and (record := self._keyring.consumer(consumer)) is not None:
            tier, limits = tier or record.tier, record.limits
        check_tier(tier, self._config())
        return _Client(consumer, tier, limits, key, asked.get("ip"))

    def _one(self, request: Request) -> tuple[str, str]:
        asked = _asked(request)
        if len(asked) != 1:
            raise Refused(400, "Expected one of ?consumer=, ?key= and ?ip=")
        return next(iter(asked.items()))

    def _config(self) -> Config:
        assert self._view.config is not None
        return self._view.config

    def _client_limits(self) -> ClientLimits:
        if self._limits is None or self._limits_version != self._view.version:
            self._limits = ClientLimits(self._config(), self._view.memory)
            self._limits_version = self._view.version
        return self._limits


def _asked(request: Request) -> dict[str, str]:
    """The client of the call. Refused: 400 without one, or for an invalid one."""
    asked = {by: request.query_params[by] for by in ("consumer", "key", "ip") if by in request.query_params}
    if not asked:
        raise Refused(400, "Expected ?consumer=, ?key= or ?ip=")
    if "consumer" in asked:
        check_name(asked["consumer"])
    if "ip" in asked:
        try:
            asked["ip"] = str(ipaddress.ip_address(asked["ip"]))
        except ValueError:
            raise Refused(400, f"ip: expected an IP address, got {asked['ip'][:60]!r}") from None
    return asked


def check_tier(tier: str, config: Config | None) -> None:
    """Refused: 400 for an undefined tier."""
    if tier and config is not None and tier not in (known := tiers_of(config)):
        raise Refused(400, f"tier: expected one of {', '.join(known)}, got {tier[:60]!r}", path="$.tier")


def check_limits(limits: dict[str, Any] | None, tier: str, config: Config | None, path: str = "$") -> None:
    """Refused: 400 for limits that no tier could have."""
    if not limits:
        return
    base = tiers_of(config).get(tier, TierConfig()) if config is not None else TierConfig()
    try:
        amounts_of(limits)
        whole = amounts_of({name: getattr(base, name) for name in Amounts.__struct_fields__} | limits)
    except msgspec.ValidationError as error:
        text, _, inner = str(error).partition(" - at ")
        inner = inner.strip("`").removeprefix("$")
        hint = unknown_field_hint(text, Amounts)
        raise Refused(400, f"limits: {text}{hint}", path=f"{path}{inner}") from error
    for inside, found, expected, hint in amounts_problems(whole, base.algorithm):
        if inside[0] in limits:
            text = f"limits.{inside[0]}: expected {expected}, got {found}" + (f" ({hint})" if hint else "")
            raise Refused(400, text, path=f"{path}.{inside[0]}")
