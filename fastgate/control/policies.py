"""Policies over the admin API: policies in effect, run-time policies, and violations.

Run-time policies are stored, published in the directory, and in effect on every worker when the call
returns: a gate sees the directory's new generation at its next request. A policy with the name of a policy of
the config replaces it until it is removed.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.config.shape import INVALID, Shapes
from fastgate.control.answers import Refused, iso, number_argument, read_body
from fastgate.control.keyring import Keyring
from fastgate.control.view import View
from fastgate.features.policy.check import check_policy
from fastgate.features.policy.gate import switch_name
from fastgate.features.policy.language import language
from fastgate.features.policy.settings import PolicyConfig
from fastgate.features.policy.violations import ViolationLog
from fastgate.settings import duration_text, wildcard_matches

__all__ = ["PolicyResource"]

DOCUMENT = "policies"
MOST_POLICIES = 1000


class NewPolicies(msgspec.Struct, forbid_unknown_fields=True):
    policies: list[Any]


class PolicyResource:
    """`/api/policies`."""

    def __init__(self, keyring: Keyring, view: View) -> None:
        self._keyring = keyring
        self._view = view
        self._log = ViolationLog(view.memory.violations)

    def routes(self) -> list[Route]:
        return [
            Route("/api/policies", self.show, methods=["GET"]),
            Route("/api/policies", self.put, methods=["PUT"]),
            Route("/api/policies", self.remove, methods=["DELETE"]),
            Route("/api/policies/violations", self.violations, methods=["GET"]),
        ]

    async def show(self, _request: Request) -> Response:
        policies, version = self._at_run_time()
        replaced = {policy.name for policy in policies}
        config = self._view.config
        own = {policy.name for policy in config.policies} if config is not None else set()

        def row(policy: PolicyConfig, **more: Any) -> dict[str, Any]:
            off = policy.name in own and self._is_off(policy.name)
            return {**_told(policy), **more, "in_force": more["in_force"] and not off, "switched_off": off}

        rows = [row(policy, set_by="api", in_force=True) for policy in policies]
        for policy in config.policies if config is not None else ():
            rows.append(row(policy, set_by="config", in_force=policy.name not in replaced))
        for route in config.each_route() if config is not None else ():
            for item in route.policies:
                if isinstance(item, PolicyConfig):
                    more = {"set_by": "route", "route": route.name, "in_force": True, "switched_off": False}
                    rows.append({**_told(item), **more})
        return JSONResponse({"version": version, "policies": rows})

    async def put(self, request: Request) -> Response:
        """200 with the version; 400 with every error and its path, and nothing changed."""
        body = await read_body(request, NewPolicies)
        policies = self._checked(body.policies)
        version = self._keyring.put_document(DOCUMENT, msgspec.msgpack.encode(policies))
        return JSONResponse({"version": version, "policies": [_told(policy) for policy in policies]})

    async def remove(self, _request: Request) -> Response:
        """Removes the run-time policies; the config's policies are in effect again."""
        return JSONResponse({"removed": self._keyring.remove_document(DOCUMENT)})

    async def violations(self, request: Request) -> Response:
        most = number_argument(request, "limit", 100, 1, ViolationLog.CAPACITY)
        rows = []
        for number, violation in self._log.recent(most):
            row = msgspec.structs.asdict(violation)
            rows.append({"number": number, "time": iso(row.pop("realtime_ns")), **row})
        return JSONResponse({"total": self._log.total, "violations": rows})

    def _is_off(self, policy: str) -> bool:
        """True while the switch of a root policy in the runtime table is 0."""
        try:
            return self._view.memory.runtime.get(switch_name(policy)) == 0
        except LookupError:  # no plan with this policy is in use yet
            return False

    def _at_run_time(self) -> tuple[tuple[PolicyConfig, ...], int]:
        stored = self._keyring.document(DOCUMENT)
        if stored is None:
            return (), 0
        try:
            return msgspec.msgpack.decode(stored[0], type=tuple[PolicyConfig, ...]), stored[1]
        except msgspec.DecodeError as error:
            raise Refused(
                500, f"The stored policies cannot be read: {error}; put others in their place"
            ) from None

    def _checked(self, values: list[Any]) -> tuple[PolicyConfig, ...]:
        problems: list[dict[str, str]] = []

        def report(path: tuple[Any, ...], found: str, expected: str = "", hint: str = "") -> None:
            place = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
            problems.append({"path": place, "found": found, "expected": expected, "hint": hint})

        config = self._view.config
        upstreams = config.upstreams if config is not None else {}
        names = self._view.route_names
        reader = Shapes().struct(PolicyConfig)
        taken: set[str] = set()
        policies = []
        if len(values) > MOST_POLICIES:
            raise Refused(400, f"Expected at most {MOST_POLICIES} policies, got {len(values)}")
        for index, value in enumerate(values):
            path = ("policies", index)
            policy = reader(value, path, report)
            if policy is INVALID:
                continue

            def below(key: str, found: str, expected: str, hint: str, path: tuple[Any, ...] = path) -> None:
                report((*path, key), found, expected, hint)

            check_policy(policy, below, upstreams, language())
            if policy.name in taken:
                below("name", f'"{policy.name}"', "a name of its own", "")
            taken.add(policy.name)
            for at, pattern in enumerate(policy.routes):
                if not any(wildcard_matches(pattern, name) for name in names):
                    report((*path, "routes", at), f'"{pattern}"', "the name of a route", "")
            policies.append(policy)
        if problems:
            raise Refused(400, "The policies were rejected; those in effect are unchanged", errors=problems)
        return tuple(policies)


def _told(policy: PolicyConfig) -> dict[str, Any]:
    """As it stands in a config file."""
    row: dict[str, Any] = msgspec.to_builtins(policy)
    if policy.limit is not None:
        row["limit"] = {**row["limit"], "per": duration_text(policy.limit.per_ns)}
    return row
