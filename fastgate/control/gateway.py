"""The gateway itself over the admin API: probes, metrics, status, counts, reload."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate import __version__
from fastgate.control.metrics import CONTENT_TYPE, UNMATCHED, exposition
from fastgate.control.processes import figures_of
from fastgate.control.upstreams import target_rows
from fastgate.control.view import ReloadTable, View, iso_time
from fastgate.errors import REASONS
from fastgate.state.channel import ReloadRequest, ReloadResult

__all__ = ["RELOAD_LIMIT_S", "GatewayResource", "problems_of"]

METRICS_AGE_S = 0.5
"""Scrapes within this time share one response: several scrapers cost as much as one."""

RELOAD_LIMIT_S = 180.0
"""Above the supervisor's own limits for loading, preparing and committing together."""

MOST_TARGETS = 50
"""Targets in `fastgate status`; `/api/gateway/upstreams` has all."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class GatewayResource:
    """Probes, `/metrics` and `/api/gateway`. `ask_reload(request)` sends the request to the supervisor; False
    when that is impossible.
    """

    def __init__(self, view: View, reloads: ReloadTable, ask_reload: Callable[[ReloadRequest], bool]) -> None:
        self._view = view
        self._reloads = reloads
        self._ask_reload = ask_reload
        self._metrics = b""
        self._metrics_at = 0.0

    def routes(self) -> list[Route]:
        return [
            Route("/live", self.live, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/api/gateway/status", self.status, methods=["GET"]),
            Route("/api/gateway/stats", self.stats, methods=["GET"]),
            Route("/api/gateway/reload", self.reload, methods=["POST"]),
        ]

    async def live(self, _request: Request) -> Response:
        """200 while the supervisor restarts what dies; it kills this process when it is gone itself."""
        return JSONResponse({"live": True})

    async def ready(self, _request: Request) -> Response:
        """200 while new requests are welcome, 503 from the first moment of a drain."""
        is_ready = self._view.is_ready()
        return JSONResponse({"ready": is_ready, "phase": self._view.phase()}, 200 if is_ready else 503)

    async def health(self, _request: Request) -> Response:
        health = self._view.health()
        return JSONResponse(health, 503 if health["status"] == "unhealthy" else 200)

    async def metrics(self, _request: Request) -> Response:
        now = time.monotonic()
        if not self._metrics or now - self._metrics_at > METRICS_AGE_S:
            self._metrics, self._metrics_at = exposition(self._view), now
        return Response(self._metrics, media_type=CONTENT_TYPE)

    async def status(self, _request: Request) -> Response:
        view, table = self._view, self._view.table
        config = view.config
        total = view.total()
        requests = sum(total.responses)
        workers = view.workers()
        for worker in workers:
            figures = figures_of(worker["pid"])
            worker["resident_bytes"] = figures.resident_bytes if figures else 0
            worker["private_bytes"] = figures.private_bytes if figures else 0
            worker["cpu_s"] = figures.cpu_s if figures else 0.0
        return JSONResponse(
            {
                "version": __version__,
                "phase": view.phase(),
                "ready": view.is_ready(),
                "pid": table.supervisor_pid,
                "controller_pid": table.controller_pid,
                "started": iso_time(table.started_realtime_ns),
                "uptime_s": round((time.time_ns() - table.started_realtime_ns) / 1e9, 3),
                "generation": table.generation,
                "config_version": view.version,
                "config_digest": view.digest,
                "config_since": iso_time(view.config_realtime_ns),
                "routes": len(view.route_names),
                "upstreams": len(config.upstreams) if config is not None else 0,
                "listen": [listener.address for listener in config.listen] if config is not None else [],
                "connections": view.worker_total("connections_open", is_gauge=True),
                "upstream_connections": view.worker_total("upstream_open", is_gauge=True),
                "upstream_waiting": view.worker_total("upstream_waiting", is_gauge=True),
                "upstream_limited": view.worker_total("upstream_limited_total", is_gauge=False),
                "requests_active": view.worker_total("requests_active", is_gauge=True),
                "requests": requests,
                "requests_per_s": round(view.requests_per_s(requests), 2),
                "by_status": _by_status(total.responses),
                **{
                    f"{name}_ms": round(total.quantile_ns("duration", q) / 1e6, 3)
                    for name, q in QUANTILES.items()
                },
                "reloads_applied": table.reloads_applied,
                "reloads_refused": table.reloads_refused,
                "worker_restarts": table.worker_restarts,
                "worker_hangs": table.worker_hangs,
                "controller_hangs": table.controller_hangs,
                "controller_restarts": table.controller_restarts,
                "last_reload": _reload_answer(view.last_reload) if view.last_reload else None,
                "pending_changes": view.pending_changes(),
                "workers": workers,
                "targets": _worst_first(view),
            }
        )

    async def stats(self, _request: Request) -> Response:
        """Totals since the start, for the gateway and for each route that was asked for."""
        view = self._view
        labels = {reason.index: reason.label for reason in REASONS.values()}
        routes: list[dict[str, Any]] = []
        for counts in [*view.route_counts(), view.unmatched()]:
            total, sum_ns, _below = counts.cumulative("duration")
            requests = sum(counts.responses)
            if not requests:
                continue
            routes.append(
                {
                    "route": counts.name or UNMATCHED,
                    "requests": requests,
                    "errors": counts.responses[5],
                    "by_status": _by_status(counts.responses),
                    "refusals": {labels[i]: n for i, n in enumerate(counts.reasons) if n and i in labels},
                    "bytes_received": counts.bytes_received,
                    "bytes_sent": counts.bytes_sent,
                    "mean_ms": round(sum_ns / total / 1e6, 3) if total else 0.0,
                    **{
                        f"{name}_ms": round(counts.quantile_ns("duration", q) / 1e6, 3)
                        for name, q in QUANTILES.items()
                    },
                }
            )
        routes.sort(key=lambda row: row["requests"], reverse=True)
        return JSONResponse(
            {
                "requests": sum(row["requests"] for row in routes),
                "errors": sum(row["errors"] for row in routes),
                "connections": view.worker_total("connections_open", is_gauge=True),
                "requests_active": view.worker_total("requests_active", is_gauge=True),
                "routes": routes,
            }
        )

    async def reload(self, _request: Request) -> Response:
        """200 with the version in use, 422 with every error of the config, 503 when it is stopping."""
        if self._view.phase() != "serving":
            return JSONResponse({"error": "The gateway is stopping"}, 503)
        request_id, answer = self._reloads.open()
        if not self._ask_reload(ReloadRequest(request_id)):
            answer.cancel()
            return JSONResponse({"error": "The supervisor does not respond"}, 503)
        try:
            result = await asyncio.wait_for(answer, RELOAD_LIMIT_S)
        except TimeoutError:
            return JSONResponse({"error": "The reload takes too long; see /api/gateway/status"}, 504)
        return JSONResponse(_reload_answer(result), 200 if result.applied else 422)


def _worst_first(view: View) -> list[dict[str, Any]]:
    """The targets, at most MOST_TARGETS: first those that are not usable, then those with most requests in
    flight."""
    rows = sorted(
        target_rows(view),
        key=lambda row: (row["state"] == "usable", -row["in_flight"], -row["failures"]),
    )
    return [
        {
            "upstream": row["upstream"],
            "target": row["target"],
            "state": row["state"],
            "in_flight": row["in_flight"],
            "requests": row["requests"],
            "failures": row["failures"],
            "latency_ms": round(row["latency_ns"] / 1e6, 1),
        }
        for row in rows[:MOST_TARGETS]
    ]


def _by_status(responses: tuple[int, ...]) -> dict[str, int]:
    """Responses by class; `none` ended without one."""
    return {f"{i}xx" if i else "none": n for i, n in enumerate(responses) if n}


def _reload_answer(result: ReloadResult) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "result": "applied" if result.applied else "refused",
        "version": result.version,
        "kind": result.kind,
        "took_ms": result.duration_ns // 1_000_000,
    }
    if not result.applied:
        answer["error"] = "The config was refused; the one in use is unchanged"
        answer["errors_total"] = result.problems_total
        answer["errors"] = problems_of(result)
    return answer


def problems_of(result: ReloadResult) -> list[dict[str, str]]:
    """The errors of a reload that was refused."""
    return [
        {
            "text": problem.text,
            "where": problem.where,
            "path": problem.path,
            "found": problem.found,
            "expected": problem.expected,
            "hint": problem.hint,
        }
        for problem in result.problems
    ]
