"""Checks of retries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastgate.checks import Report, RouteSite, check_field_name
from fastgate.features.retry.build import RetryConfig
from fastgate.settings import duration_text

__all__ = ["check_route", "check_together"]


def check_route(route: Any, site: RouteSite) -> None:
    config: RetryConfig | None = route.retry
    if config is None:
        return
    path = (*site.path, "retry")
    if not config.on:
        site.report((*path, "on"), "an empty list", "at least one failure", "leave retry out")
    if config.attempts == 1:
        site.report((*path, "attempts"), "1", "at least 2", "leave retry out")
    if config.per_try_timeout_ns is not None and "timeout" not in config.on:
        site.report((*path, "on"), "no timeout", "timeout, because of per_try_timeout", "")
    if config.backoff.max_ns < config.backoff.base_ns:
        site.report(
            (*path, "backoff", "max"),
            duration_text(config.backoff.max_ns),
            f"at least base ({duration_text(config.backoff.base_ns)})",
            "",
        )
    if config.budget.share_ppm == 0 and config.budget.min_per_second == 0:
        site.report((*path, "budget"), "no retries", "a share or min_per_second above 0", "leave retry out")
    if config.attempt_header is not None:
        check_field_name(config.attempt_header, (*path, "attempt_header"), site.report)


def check_together(config: Any, routes: Sequence[Any], report: Report) -> None:
    """The limit of an attempt against that of the request."""
    for index, route in enumerate(routes):
        retry: RetryConfig | None = route.retry
        if retry is None or retry.per_try_timeout_ns is None:
            continue
        upstream = config.upstreams.get(route.upstream)
        total_ns = 0 if upstream is None else upstream.timeouts.total_ns
        if route.timeouts is not None and route.timeouts.total_ns is not None:
            total_ns = route.timeouts.total_ns
        if total_ns and retry.per_try_timeout_ns > total_ns:
            report(
                ("routes", index, "retry", "per_try_timeout"),
                duration_text(retry.per_try_timeout_ns),
                f"at most timeouts.total ({duration_text(total_ns)})",
                "",
            )
