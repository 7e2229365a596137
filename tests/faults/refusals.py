"""Counts of refusals by reason, from the admin API (/metrics keeps its answer for half a second)."""

from __future__ import annotations

import json
from collections import Counter

from tests.client import Client, request
from tests.gateway import Gateway

__all__ = ["refusals"]


def refusals(gateway: Gateway) -> dict[str, int]:
    """How often each reason was given, over all routes; reasons never given are left out."""
    host, _, port = gateway.admin.rpartition(":")
    with Client(int(port)) as admin:
        admin.send(request("/api/gateway/stats", host=host))
        statistics = json.loads(admin.read_response().body)
    counts: Counter[str] = Counter()
    for route in statistics["routes"]:
        counts.update(route["refusals"])
    return dict(counts)
