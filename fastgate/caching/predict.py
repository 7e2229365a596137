"""How long to keep an answer, when to fetch it again, how dearly to hold on to it: learned from what is seen.

Three estimators, pure and clockless: times come in as nanoseconds, decisions go out as numbers. The cache
asks them only when it stores an answer or serves one near its end; none of them does I/O or remembers more
than its bound. All are off unless the config turns them on (docs/cache-predict.md).

AdaptiveTtl   Changes of an answer are taken as a Poisson process. A fetch tells only whether there was a
              change since the fetch before, not when; the time until the first change inside such an interval
              is filled in by its expectation under the present estimate (one step of EM), so that long
              intervals do not make an answer look calmer than it is. The ttl is the time within which it
              changes with a probability of at most `staleness`. Source: Cho & Garcia-Molina, Estimating
              frequency of change (TOIT 2003).
RefreshAhead  An answer that was asked for often enough is fetched again before it expires: in the last
              `window` of its life, and earlier the longer it takes to make (XFetch, Vattani et al., VLDB
              2015), so that nobody waits for it and no crowd finds it expired.
CostScale     What an answer took to make, per byte that it occupies, beside the running mean of all: the
              `cost` that _core's Cache counts evictions with (GreedyDual-Size-Frequency weighs the same
              quotient).
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["AdaptiveTtl", "CostScale", "RefreshAhead"]

#: What the last observation weighs beside all before it: ten fetches reach back, so that a page which
#: falls asleep or wakes up is followed within about as many.
DECAY: Final = 0.9


class AdaptiveTtl:
    """The time to live of every answer from how often it was found changed.

    `staleness` is the accepted probability that an answer changes before its time is over, 0 < staleness < 1.
    What was never observed gets its given ttl; the first observations move it from there. Remembers the
    `entries` keys observed last, about 200 bytes each.
    """

    def __init__(self, *, min_ns: int, max_ns: int, staleness: float = 0.1, entries: int = 65_536) -> None:
        self._min_ns = min_ns
        self._max_ns = max_ns
        self._patience = -math.log1p(-staleness)  # ttl = patience / rate of change
        self._entries = entries
        self._seen: OrderedDict[Hashable, list[float]] = OrderedDict()  # changes, nanoseconds watched

    def observe(self, key: Hashable, changed: bool, interval_ns: int, ttl_ns: int) -> int:
        """The ttl from now on, after a fetch that found the answer changed or not since `interval_ns` ago.
        `ttl_ns` is what it would get without us: where the first estimate starts from.
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
        return interval / 2  # the limit; the formula loses all its digits there
    if product > 700:
        return 1 / rate  # exp() would overflow, and the interval says nothing any more
    return max(1.0, 1 / rate - interval / math.expm1(product))


class RefreshAhead:
    """Whether a request that hits should have the answer fetched again behind its back.

    `window` is the share of the answer's life before its end, 0 to 1; `hits` how many requests it must have
    served by then to be worth it; `beta` scales how much earlier a slow answer is fetched (1 is XFetch's
    optimum).
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
        """How long before its end an answer is due; drawn anew at every call."""
        early = -self._beta * took_ns * math.log(1.0 - self._draw())
        return int(max(self._window * lifetime_ns, min(early, lifetime_ns / 2)))

    def due(self, remaining_ns: int, lifetime_ns: int, took_ns: int, hits: int) -> bool:
        """True if an answer that stays fresh for `remaining_ns` more is to be fetched now."""
        return hits >= self._hits and remaining_ns <= self.lead_ns(lifetime_ns, took_ns)


class CostScale:
    """How many times dearer than usual an answer is to make again, for each byte that it takes."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0

    def times(self, took_ns: int, size_bytes: int) -> float:
        """The cost to store it with. Every answer moves the mean, the first hundred more than later ones."""
        # Small answers weigh at least what their entry occupies.
        each = max(0, took_ns) / max(512, size_bytes)
        self._count = min(self._count + 1, 100)
        self._mean += (each - self._mean) / self._count
        return each / self._mean if self._mean > 0 else 1.0
