"""The Prometheus text exposition (format 0.0.4) of all metrics of the gateway, aggregated over all workers.

A route that was never asked for has no lines, so a scrape costs what is used and not what is configured.
Label values come from the config (routes) and from tables of the program (reasons, states), never from a
request: cardinality is bounded.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable

from fastgate import __version__
from fastgate._core.shm.counters import OCTAVES_NS, RouteCounts
from fastgate.control.processes import figures_of
from fastgate.control.upstreams import TARGET_STATES, target_rows
from fastgate.control.view import View
from fastgate.errors import REASONS
from fastgate.state.host import WORKER_STATES

__all__ = ["CONTENT_TYPE", "UNMATCHED", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

UNMATCHED = "(none)"
"""The `route` of requests that no route matched."""

STATUS_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
"""`none`: the request ended without a response, because the client had disconnected."""

_REASON_LABELS = {reason.index: reason.label for reason in REASONS.values()}
_BOUNDS = tuple(f"{bound / 1e9:.9f}".rstrip("0") for bound in OCTAVES_NS)

_GAUGES = {
    "connections_open": ("fastgate_connections", "Open client connections."),
    "requests_active": ("fastgate_requests_active", "Requests in progress."),
    "tunnels_open": ("fastgate_tunnels", "Open upgraded connections (WebSocket)."),
    "upstream_open": ("fastgate_upstream_connections", "Open upstream connections."),
    "upstream_waiting": ("fastgate_upstream_queue", "Requests waiting for an upstream connection."),
    "bodies_collecting": (
        "fastgate_request_bodies_collecting",
        "Requests whose body is being buffered before they go upstream.",
    ),
}
_COUNTS = {
    "connections_total": ("fastgate_connections_total", "Client connections accepted."),
    "connections_refused": (
        "fastgate_connections_refused_total",
        "Client connections refused at the connection limit.",
    ),
    "upstream_opened_total": ("fastgate_upstream_connections_total", "Connections opened to upstreams."),
    "upstream_limited_total": (
        "fastgate_upstream_limited_total",
        "Requests that waited or were refused because a connection pool was at its limit.",
    ),
    "log_lines_dropped": (
        "fastgate_access_log_dropped_total",
        "Access log lines lost because the disk is full or the reader is too slow.",
    ),
    "plugin_errors": ("fastgate_plugin_errors_total", "Exceptions raised by plugins."),
    "loop_stalls": (
        "fastgate_worker_stalls_total",
        "Pauses of a worker of 200 ms or more: a plugin blocked it, or it got no CPU.",
    ),
}


DESCRIPTIONS: dict[str, str] = {
    "fastgate_cache_requests_total": "Requests of routes with a cache, by result.",
    "fastgate_cache_fills_purged_total": "Responses not stored because of a purge during their fetch.",
    "fastgate_cache_tier_total": "Events of the disk and Redis tiers: hit, miss, stored, dropped, purged …",
    "fastgate_cache_tier_bytes": "Bytes in use in a tier, index included.",
    "fastgate_cache_tier_entries": "Responses in a tier.",
    "fastgate_purge_bus_total": "Purges sent to and received from other machines; resync: some were missed.",
    "fastgate_redis_up": "1 while Redis responds in time.",
    "fastgate_cache_predicted_total": (
        "Responses fetched ahead: refresh (popular, near expiry), prefetch (usual successors)."
    ),
    "fastgate_retries_total": "Retries by the policy of a route.",
    "fastgate_retries_over_budget_total": "Retries that the budget refused.",
    "fastgate_access_denied_total": "Requests rejected by access lists.",
    "fastgate_limits_bans_total": "Bans of clients that repeatedly exceeded limits.",
    "fastgate_limits_full_total": "Requests that could not be counted because a table was full.",
    "fastgate_limits_refused_total": "Requests over a limit, by limit; shadow mode included.",
    "fastgate_limits_unknown_tier_total": "Identities with an undefined tier; they are in `free`.",
    "fastgate_limits_warned_total": "Responses with a warning about a limit.",
    "fastgate_authorization_refused_total": (
        "Requests without a scope, role or permission that the route requires."
    ),
    "fastgate_credential_refreshes_total": "Refreshes of upstream credentials, by outcome.",
    "fastgate_policy_total": (
        "Policies that matched (or would have, in shadow mode), and conditions that failed."
    ),
    "fastgate_auth_key_fetches_total": "Fetches of token verification keys.",
    "fastgate_auth_nonces_full_total": "Signed requests rejected because the table of nonces was full.",
    "fastgate_auth_replays_total": "Signed requests rejected because their nonce was used before.",
    "fastgate_validation_refused_total": "Request bodies that fail validation; shadow mode included.",
    "fastgate_auth_total": "Verified credentials by method and outcome; a cached one is counted once.",
    "fastgate_keys_changed_total": "API keys created, changed, rotated, revoked and expired.",
    "fastgate_store_failures_total": "Failures to open, read or write the store.",
    "fastgate_store_pending_writes": "Changes that are in effect but not stored yet.",
    "fastgate_admin_connections_closed_total": (
        "Connections to the admin listener closed to make room for a new one."
    ),
    "fastgate_directory_entries": "API keys, consumers, secrets and documents known to the workers.",
    "fastgate_document_reads_total": "Reads of a run-time document by the workers.",
    "fastgate_runtime_table_full_total": "Reloads rejected because the runtime table was full.",
    "fastgate_metrics_overflow_total": "Counts lost because the table of series was full.",
}
"""Help texts of feature metrics. A metric without an entry is exported without one."""


def exposition(view: View) -> bytes:
    """The response to `GET /metrics`."""
    out: list[str] = []
    _routes(out, [*view.route_counts(), view.unmatched()])
    _workers(out, view)
    _supervision(out, view)
    _processes(out, view)
    _targets(out, view)
    _tables(out, view)
    _features(out, view)
    out.append("")
    return "\n".join(out).encode()


def _family(out: list[str], name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
    """One metric with its samples: (labels as they are written, value)."""
    lines = [f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in samples]
    if lines:
        out.append(f"# HELP {name} {text}")
        out.append(f"# TYPE {name} {kind}")
        out += lines


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _routes(out: list[str], routes: list[RouteCounts]) -> None:
    named = [(f'route="{_escape(counts.name or UNMATCHED)}"', counts) for counts in routes]
    _family(
        out, "fastgate_requests_total", "counter", "Requests by route and status class.",
        (
            (f'{route},status="{STATUS_CLASSES[i]}"', count)
            for route, counts in named
            for i, count in enumerate(counts.responses)
            if count
        ),
    )  # fmt: skip
    _family(
        out, "fastgate_refusals_total", "counter", "Requests ended by the gateway, by reason.",
        (
            (f'{route},reason="{_REASON_LABELS.get(i, "unknown")}"', count)
            for route, counts in named
            for i, count in enumerate(counts.reasons)
            if count
        ),
    )  # fmt: skip
    for name, text, field in (
        ("fastgate_bytes_received_total", "Bytes of request bodies received from clients.", "bytes_received"),
        ("fastgate_bytes_sent_total", "Bytes of responses sent to clients.", "bytes_sent"),
        ("fastgate_upstream_attempts_total", "Upstream attempts.", "attempts"),
        (
            "fastgate_upstream_replays_total",
            "Attempts replayed because a reused connection was closed.",
            "replays",
        ),
        ("fastgate_shadow_refusals_total", "Refusals that plugins in shadow mode would have made.", "shadow"),
    ):
        _family(
            out, name, "counter", text,
            ((route, getattr(counts, field)) for route, counts in named if getattr(counts, field)),
        )  # fmt: skip
    _histogram(
        out,
        "fastgate_request_duration_seconds",
        "Time from the first byte received to the last byte sent.",
        named,
        "duration",
    )
    _histogram(
        out,
        "fastgate_upstream_duration_seconds",
        "Time from the request head sent upstream to the first byte received.",
        named,
        "upstream",
    )


def _histogram(
    out: list[str], name: str, text: str, named: list[tuple[str, RouteCounts]], which: str
) -> None:
    lines: list[str] = []
    for route, counts in named:
        total, sum_ns, below = counts.cumulative("duration" if which == "duration" else "upstream")
        if not total:
            continue
        lines += [
            f'{name}_bucket{{{route},le="{bound}"}} {count}'
            for bound, count in zip(_BOUNDS, below, strict=True)
        ]
        lines.append(f'{name}_bucket{{{route},le="+Inf"}} {total}')
        lines.append(f"{name}_sum{{{route}}} {sum_ns / 1e9}")
        lines.append(f"{name}_count{{{route}}} {total}")
    if lines:
        out.append(f"# HELP {name} {text}")
        out.append(f"# TYPE {name} histogram")
        out += lines


def _workers(out: list[str], view: View) -> None:
    for field, (name, text) in _GAUGES.items():
        _family(out, name, "gauge", text, [("", view.worker_total(field, is_gauge=True))])
    for field, (name, text) in _COUNTS.items():
        _family(out, name, "counter", text, [("", view.worker_total(field, is_gauge=False))])


def _supervision(out: list[str], view: View) -> None:
    table = view.table
    _family(
        out, "fastgate_workers", "gauge", "Worker processes, by state.",
        [(f'state="{state}"', table.count(i)) for i, state in enumerate(WORKER_STATES) if i],
    )  # fmt: skip
    _family(
        out,
        "fastgate_workers_wanted",
        "gauge",
        "Worker processes that should accept.",
        [("", table.workers_wanted)],
    )
    _family(out, "fastgate_ready", "gauge", "1 while new requests are welcome.", [("", int(view.is_ready()))])
    _family(
        out, "fastgate_reloads_total", "counter", "Reloads of the config, by result.",
        [('result="applied"', table.reloads_applied), ('result="refused"', table.reloads_refused)],
    )  # fmt: skip
    _family(
        out, "fastgate_last_reload_success", "gauge", "1 if the last reload was applied, or there was none.",
        [("", int(view.last_reload is None or view.last_reload.applied))],
    )  # fmt: skip
    _family(
        out, "fastgate_last_reload_timestamp_seconds", "gauge", "Time of the last reload.",
        [("", table.last_reload_realtime_ns / 1e9)],
    )  # fmt: skip
    _family(out, "fastgate_config_version", "gauge", "Version of the config in effect.", [("", view.version)])
    _family(
        out,
        "fastgate_config_info",
        "gauge",
        "Digest of the config in effect.",
        [(f'digest="{view.digest}"', 1)],
    )
    _family(out, "fastgate_routes", "gauge", "Routes in the config in effect.", [("", len(view.route_names))])
    _family(
        out, "fastgate_restarts_total", "counter", "Restarts of processes.",
        [('process="worker"', table.worker_restarts), ('process="controller"', table.controller_restarts)],
    )  # fmt: skip
    _family(
        out, "fastgate_worker_hangs_total", "counter", "Workers killed because their event loop was blocked.",
        [("", table.worker_hangs)],
    )  # fmt: skip
    _family(
        out, "fastgate_controller_hangs_total", "counter", "Controllers killed because they hung.",
        [("", table.controller_hangs)],
    )  # fmt: skip
    _family(
        out, "fastgate_start_time_seconds", "gauge", "Start time of the gateway.",
        [("", table.started_realtime_ns / 1e9)],
    )  # fmt: skip
    python = platform.python_version()
    _family(
        out, "fastgate_build_info", "gauge", "What runs.",
        [(f'version="{__version__}",python="{python}",platform="{sys.platform}"', 1)],
    )  # fmt: skip


def _processes(out: list[str], view: View) -> None:
    found = [
        (f'process="worker",slot="{seat.slot}",pid="{seat.pid}"', seat.pid) for seat in view.table.occupied()
    ]
    found.append(('process="supervisor"', view.table.supervisor_pid))
    found.append(('process="controller"', os.getpid()))
    figures = [(labels, figures) for labels, pid in found if (figures := figures_of(pid)) is not None]
    for name, kind, text, field in (
        ("fastgate_process_resident_bytes", "gauge", "Resident memory.", "resident_bytes"),
        ("fastgate_process_private_bytes", "gauge", "Memory shared with no other process.", "private_bytes"),
        ("fastgate_process_cpu_seconds_total", "counter", "User and system CPU time.", "cpu_s"),
        ("fastgate_process_open_fds", "gauge", "Open descriptors.", "descriptors"),
    ):
        _family(out, name, kind, text, ((labels, getattr(figure, field)) for labels, figure in figures))
    lag = [(f'slot="{seat.slot}",pid="{seat.pid}"', seat.loop_lag_ns / 1e9) for seat in view.table.occupied()]
    _family(out, "fastgate_loop_lag_seconds", "gauge", "Delay of a worker's last heartbeat.", lag)


def _targets(out: list[str], view: View) -> None:
    rows = [
        (f'upstream="{_escape(row["upstream"])}",target="{_escape(row["target"])}"', row)
        for row in target_rows(view)
        if row["requests"] or row["in_flight"] or row["state"] != "usable"
    ]
    for name, kind, text, field in (
        ("fastgate_target_requests_total", "counter", "Attempts at a target that are over.", "requests"),
        ("fastgate_target_failures_total", "counter", "Those of them that failed.", "failures"),
        ("fastgate_target_in_flight", "gauge", "Attempts in progress at a target.", "in_flight"),
        ("fastgate_target_ejections_total", "counter", "Ejections of a target.", "ejections"),
        (
            "fastgate_target_breaker_opened_total",
            "counter",
            "Openings of a target's circuit breaker.",
            "breaker_opened",
        ),
        (
            "fastgate_target_breaker_refused_total",
            "counter",
            "Attempts that a target's circuit breaker refused.",
            "breaker_refused",
        ),
    ):
        samples = [(labels, row[field]) for labels, row in rows if row[field] or kind == "gauge"]
        _family(out, name, kind, text, samples)
    _family(
        out,
        "fastgate_target_latency_seconds",
        "gauge",
        "Latency of a target: it jumps to each peak and falls slowly.",
        [(labels, round(row["latency_ns"] / 1e9, 6)) for labels, row in rows],
    )
    _family(
        out,
        "fastgate_target_state",
        "gauge",
        "1 for the state that a target is in.",
        [
            (f'{labels},state="{state}"', int(row["state"] == state))
            for labels, row in rows
            for state in TARGET_STATES
        ],
    )


def _tables(out: list[str], view: View) -> None:
    """Events of new keys in the shared tables."""
    found = [
        (f'table="{name}",event="{event}"', count)
        for name, table in (("limits", view.memory.limits), ("nonces", view.memory.nonces))
        for event, count in table.counts().items()
        if event != "recovered"
    ]
    in_flight = view.memory.inflight.statistics()
    found += [(f'table="in_flight",event="{event}"', in_flight[event]) for event in ("full", "over_share")]
    _family(
        out, "fastgate_table_keys_total", "counter", "New keys in shared tables, by event.", found
    )  # fmt: skip


def _features(out: list[str], view: View) -> None:
    """The named metrics of features."""
    families: dict[str, tuple[str, list[tuple[str, float]]]] = {}
    for name, labels, kind, value in view.memory.metrics.read():
        families.setdefault(name, (kind, []))[1].append((labels, value))
    for name, (kind, samples) in families.items():
        _family(out, name, kind, DESCRIPTIONS.get(name, name), samples)
