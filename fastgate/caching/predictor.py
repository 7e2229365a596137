"""The prediction settings of a route's cache, and the object that implements them.

`Predictor` combines the estimators of predict.py and successors.py for one route in one worker. It is called
at three points: a response is stored (`ttl_ns`, `lives`: lifetime and eviction cost), a hit is near its
expiry (`due`), a request was served (`follows`: targets to fetch next). A route without `cache.predict`
has none.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Annotated, Any

from msgspec import Meta

from fastgate.caching.predict import AdaptiveTtl, CostScale, RefreshAhead
from fastgate.caching.successors import Budget, Successors
from fastgate.settings import HOUR, SECOND, Duration, Settings

__all__ = [
    "AdaptiveTtlConfig",
    "PredictConfig",
    "Predictor",
    "PrefetchConfig",
    "RefreshAheadConfig",
    "build_predictor",
]

SEEN_ENTRIES = 65_536
WAITING_PREFETCHES = 4096
MOST_LIVES = 3  # maximum granted by _core's Cache


class AdaptiveTtlConfig(Settings, frozen=True, kw_only=True):
    """Learned lifetimes for responses without freshness information, from how often they were found
    changed.
    """

    min_ns: Annotated[Duration, Meta(ge=SECOND, description="Minimum lifetime.")] = 10 * SECOND
    max_ns: Annotated[Duration, Meta(ge=SECOND, description="Maximum lifetime.")] = HOUR
    staleness: Annotated[
        float,
        Meta(
            ge=0.001,
            le=0.9,
            description=(
                "Accepted probability that a response has changed when its lifetime ends. About half of "
                "this share of the served responses is stale."
            ),
        ),
    ] = 0.1


class RefreshAheadConfig(Settings, frozen=True, kw_only=True):
    """Refresh of popular responses before they expire, so that no request waits for them."""

    window: Annotated[
        float,
        Meta(
            gt=0,
            le=0.5,
            description="Last part of a response's lifetime, in which a request triggers the refresh.",
        ),
    ] = 0.1
    hits: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Minimum number of requests served by the response until then."),
    ] = 2


class PrefetchConfig(Settings, frozen=True, kw_only=True):
    """Fetch of responses that usually follow a request."""

    confidence: Annotated[
        float,
        Meta(
            ge=0.05,
            le=1,
            description="Minimum share of the clients that continued with the target, from 0 to 1.",
        ),
    ] = 0.3
    support: Annotated[int, Meta(ge=2, le=60, description="Minimum number of observations.")] = 3
    gap_ns: Annotated[
        Duration,
        Meta(
            ge=SECOND, description="Maximum time between two requests of a client that count as a sequence."
        ),
    ] = 30 * SECOND
    most: Annotated[
        int, Meta(ge=1, le=5, description="Maximum number of responses fetched after one request.")
    ] = 3
    budget: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description=(
                "Maximum number of extra upstream requests per client request. It is reduced if few of "
                "them turn out to be useful."
            ),
        ),
    ] = 0.1


class PredictConfig(Settings, frozen=True, kw_only=True):
    """Cache prediction. Every part is off unless enabled; see cache-predict.md."""

    adaptive_ttl: Annotated[
        AdaptiveTtlConfig | None,
        Meta(description="Lifetimes learned from observed changes. `{}` enables the defaults."),
    ] = None
    refresh_ahead: Annotated[
        RefreshAheadConfig | None,
        Meta(description="Refresh of popular responses before they expire. `{}` enables the defaults."),
    ] = None
    prefetch: Annotated[
        PrefetchConfig | None, Meta(description="Prefetch of usual successors. `{}` enables the defaults.")
    ] = None
    cost_aware: Annotated[
        bool,
        Meta(description="Evict responses later if they took long to generate for their size."),
    ] = False


class Predictor:
    """Learned data of a route's cache in this worker. Times are nanoseconds; keys are those of the cache."""

    def __init__(self, config: PredictConfig) -> None:
        adaptive, ahead, prefetch = config.adaptive_ttl, config.refresh_ahead, config.prefetch
        self.is_adaptive = adaptive is not None
        self.refreshes = ahead is not None
        self.prefetches = prefetch is not None
        self._adaptive: AdaptiveTtl | None = None
        if adaptive is not None:
            self._adaptive = AdaptiveTtl(
                min_ns=adaptive.min_ns, max_ns=adaptive.max_ns, staleness=adaptive.staleness
            )
        self._ahead = RefreshAhead(window=ahead.window, hits=ahead.hits) if ahead is not None else None
        self._scale = CostScale() if config.cost_aware else None
        self._successors: Successors[bytes] | None = None
        if prefetch is not None:
            self._successors = Successors(
                confidence=prefetch.confidence,
                support=prefetch.support,
                gap_ns=prefetch.gap_ns,
                most=prefetch.most,
            )
        self.budget = Budget(ratio=prefetch.budget) if prefetch is not None else None
        self._seen: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()  # key → digest, time
        self._fetched: OrderedDict[bytes, int] = OrderedDict()  # not requested yet → expiry of the record

    # a response is stored

    def ttl_ns(self, key: bytes, etag: bytes | None, body: bytes | None, now_ns: int, ttl_ns: int) -> int:
        """The lifetime of a response without freshness information; records whether it has changed. A body of
        None: the origin confirmed that it has not.
        """
        if self._adaptive is None:
            return ttl_ns
        before = self._seen.get(key)
        if body is None:
            digest = before[0] if before else b""
        else:
            # An entity tag is sufficient; pages that differ only in a clock have the same one.
            digest = etag or hashlib.blake2b(body, digest_size=16).digest()
        self._seen[key] = (digest, now_ns)
        self._seen.move_to_end(key)
        if len(self._seen) > SEEN_ENTRIES:
            self._seen.popitem(last=False)
        if before is None:
            return self._adaptive.ttl_ns(key, ttl_ns)
        return self._adaptive.observe(key, digest != before[0], now_ns - before[1], ttl_ns)

    def lives(self, took_ns: int, size_bytes: int) -> int:
        """The number of evictions that the response survives, by its cost: 0 to 3."""
        if self._scale is None:
            return 0
        times, lives = self._scale.times(took_ns, size_bytes), 0
        while lives < MOST_LIVES and times >= 2.0:
            lives += 1
            times /= 2.0
        return lives

    # a request was served

    def due(self, remaining_ns: int, lifetime_ns: int, took_ns: int, hits: int) -> bool:
        """True if a fresh response should be refreshed now."""
        return self._ahead is not None and self._ahead.due(remaining_ns, lifetime_ns, took_ns, hits)

    def follows(self, client: bytes, target: bytes, now_ns: int) -> list[bytes]:
        """The targets that this client will probably request next. Call `fetching` for a fetch."""
        if self._successors is None or self.budget is None:
            return []
        self.budget.earn()
        if self._fetched:
            until_ns = self._fetched.pop(target, None)
            if until_ns is not None:
                self.budget.settle(now_ns < until_ns)
            self._forget(now_ns)
        return self._successors.observe(client, target, now_ns)

    def may_fetch(self, target: bytes) -> bool:
        """True if the budget allows one more, and this one is neither in flight nor waiting to be used."""
        return self.budget is not None and target not in self._fetched and self.budget.take()

    def fetching(self, target: bytes, now_ns: int) -> None:
        """Records a prefetch. It counts as useless if the target is not requested within a minute."""
        self._fetched[target] = now_ns + 60 * SECOND
        if len(self._fetched) > WAITING_PREFETCHES:
            self._fetched.popitem(last=False)

    def _forget(self, now_ns: int) -> None:
        assert self.budget is not None
        while self._fetched:
            target, until_ns = next(iter(self._fetched.items()))
            if until_ns > now_ns:
                return
            del self._fetched[target]
            self.budget.settle(False)


def build_predictor(config: PredictConfig | None) -> Predictor | None:
    """The predictor of a route, None where nothing is predicted."""
    if config is None:
        return None
    if config.adaptive_ttl or config.refresh_ahead or config.prefetch or config.cost_aware:
        return Predictor(config)
    return None


def problems(config: PredictConfig) -> list[tuple[tuple[str, ...], str, str, str]]:
    """Faults between the values: path below `predict`, found, expected, hint."""
    found: list[tuple[tuple[str, ...], Any, str, str]] = []
    adaptive = config.adaptive_ttl
    if adaptive is not None and adaptive.min_ns > adaptive.max_ns:
        found.append((("adaptive_ttl", "min"), "more than max", "a duration below it", ""))
    return found
