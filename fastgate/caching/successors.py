"""Successors of a request, for prefetching, and a budget for the extra fetches.

STATE     Successors: per client the last requested key (bounded, least recently seen evicted first); per key
          a few slots (successor, count); if all are taken, a new successor lowers the smallest count and gets
          its slot at zero. Counts are halved when a key has been left often, so that old patterns fade.
          Budget: tokens, earned by requests and spent by fetches; useless fetches lower the earnings.
COST      observe(): a few dict lookups and at most SLOTS comparisons, about 1 µs; about 600 bytes per key.
SOURCES   Padmanabhan & Mogul, Using predictive prefetching to improve World Wide Web latency (CCR 1996):
          first order, threshold on the share; Misra & Gries, Finding repeated elements (1982).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

__all__ = ["Budget", "Successors"]

SLOTS: Final = 8  # followers remembered per key; with a threshold of 0.2 no more than 5 could pass it
HALVE_AT: Final = 64  # departures after which all counts of a key are halved

Key = TypeVar("Key", bound=Hashable)


class _Page(Generic[Key]):
    __slots__ = ("followers", "left")

    def __init__(self) -> None:
        self.left = 0.0
        self.followers: dict[Key, float] = {}


class Successors(Generic[Key]):
    """A first-order model of request sequences.

    `confidence` is the minimum share of departures to a successor, `support` the minimum number. Requests of
    one client that are more than `gap_ns` apart do not form a sequence.
    """

    def __init__(
        self,
        *,
        confidence: float = 0.3,
        support: int = 3,
        gap_ns: int = 30_000_000_000,
        keys: int = 16_384,
        clients: int = 16_384,
        most: int = 3,
    ) -> None:
        self._confidence = confidence
        self._support = support
        self._gap_ns = gap_ns
        self._max_keys = keys
        self._max_clients = clients
        self._most = most
        self._pages: OrderedDict[Key, _Page[Key]] = OrderedDict()
        self._last: OrderedDict[Hashable, tuple[Key, int]] = OrderedDict()

    def observe(self, client: Hashable, key: Key, now_ns: int) -> list[Key]:
        """Records that this client requests this key now. Returns the keys that it will probably request
        next, the most likely first."""
        before = self._last.get(client)
        if before is None and len(self._last) >= self._max_clients:
            self._last.popitem(last=False)
        self._last[client] = (key, now_ns)
        self._last.move_to_end(client)
        if before is not None and before[0] != key and now_ns - before[1] <= self._gap_ns:
            self._follow(before[0], key)
        return self.after(key)

    def after(self, key: Key) -> list[Key]:
        """The usual successors of this key, the most likely first."""
        page = self._pages.get(key)
        if page is None or page.left < self._support:
            return []
        least = max(self._support, self._confidence * page.left)
        likely = [(count, other) for other, count in page.followers.items() if count >= least]
        if not likely:
            return []
        likely.sort(key=lambda pair: -pair[0])
        return [other for _, other in likely[: self._most]]

    def __len__(self) -> int:
        return len(self._pages)

    def _follow(self, key: Key, follower: Key) -> None:
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = _Page()
            if len(self._pages) > self._max_keys:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end(key)
        page.left += 1
        followers = page.followers
        if follower in followers or len(followers) < SLOTS:
            followers[follower] = followers.get(follower, 0.0) + 1
        else:
            # Space-saving would let the newcomer inherit the smallest count: three unknown keys in a row
            # would pass `support`. Here it starts at one.
            smallest = min(followers, key=followers.__getitem__)
            followers[smallest] -= 1
            if followers[smallest] <= 0:
                del followers[smallest]
                followers[follower] = 1.0
        if page.left >= HALVE_AT:
            page.left /= 2
            for other in list(followers):
                followers[other] /= 2
                if followers[other] < 0.5:
                    del followers[other]


class Budget:
    """A bound on extra fetches: at most `ratio` per client request, and fewer if they turn out to be useless.

    Every request earns `ratio` of a token, a fetch costs one. If the share of used fetches falls below
    `usefulness`, earnings shrink with it, so that bad predictions cost little but never stop completely.
    """

    def __init__(self, *, ratio: float = 0.1, burst: float = 10.0, usefulness: float = 0.25) -> None:
        self._ratio = ratio
        self._burst = burst
        self._usefulness = usefulness
        self._tokens = burst
        self._useful = 1.0  # initial trust; a hundred useless fetches reduce it to almost nothing
        self.spent = 0
        self.used = 0
        self.wasted = 0

    def earn(self) -> None:
        """One request of a client was served."""
        share = min(1.0, self._useful / self._usefulness) if self._usefulness else 1.0
        # A fiftieth always remains, so that an improvement is detected.
        self._tokens = min(self._burst, self._tokens + self._ratio * max(share, 0.02))

    def take(self) -> bool:
        """True if one more fetch is allowed; its token is then taken."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        self.spent += 1
        return True

    def settle(self, was_used: bool) -> None:
        """Records the outcome of a fetch: requested before it expired, or not."""
        if was_used:
            self.used += 1
        else:
            self.wasted += 1
        self._useful += (float(was_used) - self._useful) / 32

    @property
    def usefulness(self) -> float:
        """The share of recent fetches that were used; 0 to 1."""
        return self._useful
