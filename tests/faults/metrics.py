"""Counts of refusals by reason, read where an operator reads them: /metrics of the admin listener."""

from __future__ import annotations

import re

from tests.client import Client, request
from tests.gateway import Gateway

__all__ = ["refusals"]

SERIES = re.compile(r'^fastgate_refusals_total\{.*?reason="([a-z0-9_]+)".*\} ([0-9.e+]+)$', re.M)


def refusals(gateway: Gateway) -> dict[str, int]:
    """How often each reason was given, over all routes; reasons never given are left out."""
    host, _, port = gateway.admin.rpartition(":")
    with Client(int(port)) as admin:
        admin.send(request("/metrics", host=host))
        text = admin.read_response().body.decode()
    counts: dict[str, int] = {}
    for reason, value in SERIES.findall(text):
        counts[reason] = counts.get(reason, 0) + int(float(value))
    return {reason: count for reason, count in counts.items() if count}
