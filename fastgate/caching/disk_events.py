"""Counters and log lines of the disk tier."""

from __future__ import annotations

import logging
from typing import Final

from fastgate._core.shm.metric import MetricTable

__all__ = ["DiskEvents"]

log = logging.getLogger(__name__)

_EVENTS: Final = (
    *("hit", "miss", "stored", "dropped", "refused", "evicted", "expired", "purged"),
    *("damaged", "error", "rebuilt", "full"),
)


class DiskEvents:
    """Counts events of all workers of this machine, and logs each kind of trouble once until it is over."""

    def __init__(self, metrics: MetricTable) -> None:
        self.counts = {
            event: metrics.counter("fastgate_cache_tier_total", tier="disk", event=event) for event in _EVENTS
        }
        self.used = metrics.gauge("fastgate_cache_tier_bytes", tier="disk")
        self.entries = metrics.gauge("fastgate_cache_tier_entries", tier="disk")
        self._logged: set[str] = set()

    def count(self, event: str, number: int = 1) -> None:
        self.counts[event].add(number)

    def trouble(self, kind: str, what: str, detail: str) -> None:
        """Counts the event, and logs it once until `over(kind)`."""
        self.count("error")
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("%s: %s", what, detail)

    def over(self, kind: str) -> None:
        """The trouble of this kind is over: the next one is logged again."""
        self._logged.discard(kind)
