"""The upstreams and their targets over the admin API and in the metrics: load, health, circuit breakers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.control.view import View
from fastgate.settings import SECOND
from fastgate.upstream.balancing import tiers_of

__all__ = ["TARGET_STATES", "UpstreamsResource", "target_rows"]

TARGET_STATES = ("usable", "ejected", "breaker_open", "breaker_half_open", "checks_failed")


def target_rows(view: View) -> Iterator[dict[str, Any]]:
    """One row for each target of the config in effect, except those of weight 0."""
    if view.config is None:
        return
    for name, upstream in view.config.upstreams.items():
        targets = [target for target in upstream.targets if target.weight > 0]
        tiers = tiers_of(upstream, targets, view.config.locality)
        half_life_s = upstream.balance.latency_half_life_ns / SECOND
        for target, tier in zip(targets, tiers, strict=True):
            found = view.memory.health.read(f"target/{name}/{target.url}", half_life_s=half_life_s)
            if found is not None:
                yield {"upstream": name, "target": target.url, "state": _state(found), "tier": tier, **found}


def _state(found: dict[str, Any]) -> str:
    if found["breaker"] == "open" and found["breaker_left_ns"]:
        return "breaker_open"
    if found["checks"] == "failed":
        return "checks_failed"
    if found["ejection"] == "open" and found["ejection_left_ns"]:
        return "ejected"
    return "usable" if found["breaker"] == "closed" else "breaker_half_open"


class UpstreamsResource:
    """`/api/gateway/upstreams`."""

    def __init__(self, view: View) -> None:
        self._view = view

    def routes(self) -> list[Route]:
        return [Route("/api/gateway/upstreams", self.upstreams, methods=["GET"])]

    async def upstreams(self, _request: Request) -> Response:
        """Every upstream of the config in effect, with its targets."""
        view = self._view
        found: dict[str, dict[str, Any]] = {}
        for name, upstream in view.config.upstreams.items() if view.config is not None else ():
            found[name] = {"upstream": name, "strategy": upstream.balance.strategy, "targets": []}
        for row in target_rows(view):
            found[row.pop("upstream")]["targets"].append(_answer(row))
        return JSONResponse({"upstreams": list(found.values())})


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "url": row["target"],
        "state": row["state"],
        "tier": row["tier"],
        "in_flight": row["in_flight"],
        "requests": row["requests"],
        "failures": row["failures"],
        "latency_ms": round(row["latency_ns"] / 1e6, 3),
        "checks": row["checks"],
        "breaker": row["breaker"],
        "breaker_opened": row["breaker_opened"],
        "breaker_refused": row["breaker_refused"],
        "ejections": row["ejections"],
        "usable_in_s": round(max(row["breaker_left_ns"], row["ejection_left_ns"]) / 1e9, 1),
    }
