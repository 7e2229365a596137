"""Estimators for the lifetime, the refresh and the eviction cost of responses.

Three estimators, pure and without a clock: times are passed in as nanoseconds, decisions are numbers. The
cache calls them only when it stores a response or serves one near its expiry. None of them does I/O or
exceeds its memory bound. All are off unless the config enables them (docs/cache-predict.md).

AdaptiveTtl   Changes of a response are modeled as a Poisson process. A fetch shows only whether there was a
              change since the previous fetch, not when. The time until the first change inside such an
              interval is replaced by its expectation under the current estimate (one step of EM), so that
              long intervals do not lower the estimated rate. The ttl is the time within which the response
              changes with a probability of at most `staleness`. Source: Cho & Garcia-Molina, Estimating
              frequency of change (TOIT 2003).
RefreshAhead  A response that was requested often enough is refreshed before it expires: in the last `window`
              of its lifetime, and earlier the longer it takes to generate (XFetch, Vattani et al., VLDB
              2015), so that no request waits for it.
CostScale     The time to generate a response per byte that it occupies, relative to the running mean: the
              `cost` with which _core's Cache counts evictions (GreedyDual-Size-Frequency uses the same
              quotient).
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["AdaptiveTtl", "CostScale", "RefreshAhead"]

#: The weight of older observations: about ten fetches count, so that a page whose rate of change changes is
#: followed within about as many.
DECAY: Final = 0.9


class AdaptiveTtl:
    """The time to live of each response, from how often it was found changed.

    `staleness` is the accepted probability that a response changes before it expires, 0 < staleness < 1.
    A response without observations gets its given ttl as the initial value. The last `entries` observed keys
    are kept, about 200 bytes each.
    """

    def __init__(self, *, min_ns: int, max_ns: int, staleness: float = 0.1, entries: int = 65_536) -> None:
        self._min_ns = min_ns
        self._max_ns = max_ns
        self._patience = -math.log1p(-staleness)  # ttl = patience / rate of change
        self._entries = entries
        self._seen: OrderedDict[Hashable, list[float]] = OrderedDict()  # changes, nanoseconds watched

    def observe(self, key: Hashable, changed: bool, interval_ns: int, ttl_ns: int) -> int:
        """The new ttl, after a fetch that found the response changed or unchanged since `interval_ns` ago.
        `ttl_ns` is the ttl without learning, the initial value of the estimate.
        """
        state = self._seen.get(key)
        if state is None:
            # One change in the time after which the given ttl would be right: worth one observation.
            state = self._seen[key] = [1.0, max(1.0, ttl_ns / self._patience)]
            if len(self._seen) > self._entries:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(key)
        changes, watched_ns = state
        watched = float(max(1, interval_ns))
        if changed:
            watched = _until_first_change(watched, changes / watched_ns)
        state[0] = changes * DECAY + (1.0 if changed else 0.0)
        state[1] = watched_ns * DECAY + watched
        return self._bounded(state)

    def ttl_ns(self, key: Hashable, ttl_ns: int) -> int:
        """The ttl of this key as known so far, `ttl_ns` when it was never observed."""
        state = self._seen.get(key)
        return ttl_ns if state is None else self._bounded(state)

    def __len__(self) -> int:
        return len(self._seen)

    def _bounded(self, state: list[float]) -> int:
        # Nothing but "unchanged" decays `changes` towards zero: the ttl grows by a tenth per fetch and more.
        ttl = self._patience * state[1] / max(state[0], 1e-9)
        return int(min(max(ttl, self._min_ns), self._max_ns))


def _until_first_change(interval: float, rate: float) -> float:
    """The expected time to the first change, given that there was one within the interval."""
    product = rate * interval
    if product < 1e-6:
        return interval / 2  # the limit; the formula loses precision there
    if product > 700:
        return 1 / rate  # exp() would overflow, and the interval contributes no information
    return max(1.0, 1 / rate - interval / math.expm1(product))


class RefreshAhead:
    """Decides whether a hit triggers a background refresh.

    `window` is the last share of the lifetime, 0 to 1; `hits` the minimum number of requests served until
    then; `beta` scales how much earlier a slow response is refreshed (1 is XFetch's optimum).
    """

    def __init__(
        self,
        *,
        window: float = 0.1,
        hits: int = 2,
        beta: float = 1.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._window = window
        self._hits = hits
        self._beta = beta
        self._draw = draw

    def lead_ns(self, lifetime_ns: int, took_ns: int) -> int:
        """How long before expiry a response is due; a new random value at every call."""
        early = -self._beta * took_ns * math.log(1.0 - self._draw())
        return int(max(self._window * lifetime_ns, min(early, lifetime_ns / 2)))

    def due(self, remaining_ns: int, lifetime_ns: int, took_ns: int, hits: int) -> bool:
        """True if a response that stays fresh for another `remaining_ns` should be refreshed now."""
        return hits >= self._hits and remaining_ns <= self.lead_ns(lifetime_ns, took_ns)


class CostScale:
    """The cost of generating a response per byte, relative to the mean."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0

    def times(self, took_ns: int, size_bytes: int) -> float:
        """The cost of the response. Every response moves the mean, the first hundred more than others."""
        # Small responses count at least the size of their entry.
        each = max(0, took_ns) / max(512, size_bytes)
        self._count = min(self._count + 1, 100)
        self._mean += (each - self._mean) / self._count
        return each / self._mean if self._mean > 0 else 1.0
