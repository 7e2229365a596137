"""What the predictive parts of the cache are worth, each on a made trace beside the cache without it. No
clock.

    pytest benchmarks/quality/bench_predict.py -s        prints the figures

Each test states its figures and fails when the part no longer helps. Seeds are fixed, so figures repeat.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Iterable, Iterator

from fastgate._core import Cache
from fastgate.caching.predict import AdaptiveTtl, CostScale, RefreshAhead
from fastgate.caching.successors import Budget, Successors

S = 1_000_000_000
HOUR_S = 3600


def picks(skew: float, objects: int, seed: int) -> Iterator[int]:
    """Object n with a weight of 1 / (n + 1) ** skew, for ever."""
    rng = random.Random(seed)
    totals = list(itertools.accumulate(1 / (n + 1) ** skew for n in range(objects)))
    while True:
        yield bisect.bisect_left(totals, rng.random() * totals[-1])


# ── adaptive ttl: a site whose pages change at very different rates


def changing_site(adaptive: AdaptiveTtl | None, ttl_s: float) -> tuple[float, float, float]:
    """(share of answers that were stale, that share among the pages that change fastest, share of requests
    that went upstream) over six hours, 20 requests a second to 300 pages, whose mean times between changes
    lie evenly (in logarithm) from 20 s to 12 h. The fastest are those that change within two minutes.
    """
    rng, pages, rate_per_s = random.Random(1), 300, 20
    periods_s = [20 * (12 * HOUR_S / 20) ** rng.random() for _ in range(pages)]
    changes = [_poisson(rng, period, 6 * HOUR_S) for period in periods_s]
    fetched: dict[int, tuple[float, int, float]] = {}  # page → when, version then, ttl
    stale, requests, upstream = [0, 0], [0, 0], 0
    now_s = 0.0
    for page in picks(0.8, pages, 2):
        now_s += rng.expovariate(rate_per_s)
        if now_s >= 6 * HOUR_S:
            return sum(stale) / sum(requests), stale[1] / requests[1], upstream / sum(requests)
        is_fast = periods_s[page] < 120
        requests[is_fast] += 1
        version = bisect.bisect_left(changes[page], now_s)
        stored = fetched.get(page)
        if stored is not None and now_s - stored[0] < stored[2]:
            stale[is_fast] += stored[1] != version
            continue
        upstream += 1
        ttl = ttl_s
        if adaptive is not None and stored is not None:
            found_changed = stored[1] != version
            interval_ns = int((now_s - stored[0]) * S)
            ttl = adaptive.observe(page, found_changed, interval_ns, int(ttl_s * S)) / S
        fetched[page] = (now_s, version, ttl)
    raise AssertionError("picks() never ends")


def _poisson(rng: random.Random, period_s: float, until_s: float) -> list[float]:
    found, now_s = [], rng.expovariate(1 / period_s)
    while now_s < until_s:
        found.append(now_s)
        now_s += rng.expovariate(1 / period_s)
    return found


def test_adaptive_ttl_keeps_its_promise_on_every_page_for_fewer_fetches() -> None:
    learned = AdaptiveTtl(min_ns=1 * S, max_ns=HOUR_S * S, staleness=0.2)
    stale, worst, upstream = changing_site(learned, 60)
    print(f"\nadaptive from 60 s: {stale:6.2%} stale, {worst:6.2%} of fast pages, {upstream:6.2%} upstream")
    found = {ttl_s: changing_site(None, ttl_s) for ttl_s in (10, 20, 30, 40, 45, 60, 120, 300)}
    for ttl_s, figures in found.items():
        print(f"fixed {ttl_s:4} s:       {figures[0]:6.2%} {figures[1]:21.2%} {figures[2]:21.2%}")

    # `staleness` is the chance at the end of an answer's life; over its life it is about half of that.
    assert stale < 0.12 and worst < 0.15
    # A fixed ttl that serves no more stale answers asks the upstream a quarter more often; one that spares
    # the fast pages as well as we do asks twice as often.
    assert upstream * 1.25 < min(other for one, _, other in found.values() if one <= stale)
    assert upstream * 2 < min(other for _, one, other in found.values() if one <= worst)


# ── refresh-ahead: who waits when a popular answer expires


def waiting(ahead: RefreshAhead | None) -> tuple[float, float, int]:
    """(share of requests that waited for the upstream, fetches per request, the largest crowd that waited for
    one answer): Zipf 1.0 over 500 answers, 200 requests a second for half an hour, ttl 60 s, 300 ms to make
    one.
    """
    rng, ttl_s, took_s = random.Random(3), 60.0, 0.3
    ready: dict[int, float] = {}  # when what is stored came in
    coming: dict[int, float] = {}  # when what was asked for will be in
    hits: dict[int, int] = {}
    crowd: dict[int, int] = {}
    waited = fetches = worst = 0
    now_s = 0.0
    for requests, key in enumerate(picks(1.0, 500, 4)):
        now_s += rng.expovariate(200)
        if now_s >= HOUR_S / 2:
            return waited / requests, fetches / requests, worst
        if coming.get(key, math.inf) <= now_s:
            ready[key], hits[key], crowd[key] = coming.pop(key), 0, 0
        left_s = ready.get(key, -math.inf) + ttl_s - now_s
        if left_s <= 0:
            waited += 1
            crowd[key] = crowd.get(key, 0) + 1
            worst = max(worst, crowd[key])
            is_due = True
        else:
            hits[key] += 1
            is_due = ahead is not None and ahead.due(
                int(left_s * S), int(ttl_s * S), int(took_s * S), hits[key]
            )
        if is_due and key not in coming:
            fetches += 1
            coming[key] = now_s + took_s
    raise AssertionError("picks() never ends")


def test_refresh_ahead_spares_most_waits_for_few_more_fetches() -> None:
    rng = random.Random(5)
    without, with_it = waiting(None), waiting(RefreshAhead(window=0.1, hits=2, draw=rng.random))
    print()
    for name, (waited, fetches, worst) in {"without": without, "refresh-ahead": with_it}.items():
        print(
            f"{name:14} {waited:6.2%} waited, {fetches:.4f} fetches a request, at most {worst} for one answer"
        )

    assert with_it[0] < without[0] * 0.6
    assert with_it[1] < without[1] * 1.1


# ── prefetch: sessions over a site


def browsing(prefetch: bool, budget: Budget, seed: int = 6) -> tuple[float, float, float]:
    """(share of requests that hit, fetches per request, share of prefetches that were used). 4 000 sessions
    of a shop: a list, then one of its items, then often its reviews and its stock. Answers live for 60 s.
    """
    rng, model = random.Random(seed), Successors[str](confidence=0.3, support=3)
    expires: dict[str, int] = {}
    guessed: dict[str, bool] = {}
    hit = requests = fetches = 0
    lists = picks(0.9, 40, seed + 1)
    starts = sorted(rng.random() * 4 * HOUR_S for _ in range(4000))
    events = []
    for number, start_s in enumerate(starts):
        for step, path in enumerate(_session(rng, next(lists))):
            events.append((int((start_s + step * 4 + rng.random()) * S), f"client{number}", path))
    for now_ns, client, path in sorted(events):
        requests += 1
        budget.earn()
        if expires.get(path, 0) > now_ns:
            hit += 1
            if guessed.pop(path, False):
                budget.settle(True)
        else:
            fetches += 1
            if guessed.pop(path, False):
                budget.settle(False)
            expires[path] = now_ns + 60 * S
        for follower in model.observe(client, path, now_ns):
            if prefetch and expires.get(follower, 0) <= now_ns and budget.take():
                if guessed.pop(follower, False):
                    budget.settle(False)
                fetches += 1
                guessed[follower] = True
                expires[follower] = now_ns + 60 * S
    used = budget.used / budget.spent if budget.spent else 0.0
    return hit / requests, fetches / requests, used


def _session(rng: random.Random, number: int) -> Iterator[str]:
    yield f"/lists/{number}"
    item = f"/items/{number * 10 + min(int(rng.expovariate(0.8)), 9)}"
    yield item
    if rng.random() < 0.7:
        yield f"{item}/reviews"
    if rng.random() < 0.6:
        yield f"{item}/stock"


def test_prefetch_of_usual_successors_raises_hits_within_its_budget() -> None:
    without = browsing(False, Budget())
    budget = Budget(ratio=0.3)
    with_it = browsing(True, budget)
    print(f"\nwithout:  {without[0]:6.2%} hits, {without[1]:.3f} fetches a request")
    print(f"prefetch: {with_it[0]:6.2%} hits, {with_it[1]:.3f} fetches a request, {with_it[2]:.1%} used")

    assert with_it[0] > without[0] + 0.1
    assert with_it[1] - without[1] <= 0.3
    assert with_it[2] > 0.4


def test_prefetch_without_pattern_costs_next_to_nothing() -> None:
    rng, model, budget = random.Random(8), Successors[int](), Budget(ratio=0.3)
    fetches = 0
    for number in range(50_000):
        budget.earn()
        for _ in model.observe(number % 100, rng.randrange(2000), number * S // 10):
            if budget.take():
                budget.settle(False)
                fetches += 1
    print(f"\nrandom requests: {fetches / 50_000:.4f} prefetches a request")

    assert fetches / 50_000 < 0.01


# ── cost-aware eviction: a few answers are dear


def paid(is_cost_aware: bool) -> float:
    """Upstream seconds per request: one answer in ten takes a second, the others 20 ms; all are 2 kB, a tenth
    of them fit.
    """
    cache, scale = Cache(1_200_000), CostScale()
    total_s, requests = 0.0, 200_000
    for key in itertools.islice(picks(0.8, 5000, 9), requests):
        name = f"answer:{key}"
        if cache.get(name) is None:
            took_s = 1.0 if key * 2654435761 % 10 == 0 else 0.02
            total_s += took_s
            cost = scale.times(int(took_s * S), 2000) if is_cost_aware else 1.0
            cache.set(name, b"x" * 2000, cost=cost)
    return total_s / requests


def test_cost_aware_eviction_saves_upstream_time() -> None:
    without, with_it = paid(False), paid(True)
    print(f"\nupstream time per request: {without * 1000:.1f} ms, cost-aware {with_it * 1000:.1f} ms")

    assert with_it < without * 0.9


# ── warming: the first minutes after a start


def first_hits(warmed: Iterable[int]) -> float:
    """Share of hits among the first 2 000 requests of a cache filled with these."""
    stored = set(warmed)
    hits = 0
    for key in itertools.islice(picks(1.0, 5000, 11), 2000):
        hits += key in stored
        stored.add(key)
    return hits / 2000


def test_warming_from_yesterdays_log_lifts_the_first_hits() -> None:
    log = list(itertools.islice(picks(1.0, 5000, 12), 50_000))
    counts: dict[int, int] = {}
    for key in log:
        counts[key] = counts.get(key, 0) + 1
    often = sorted(counts, key=lambda key: -counts[key])[:500]
    cold, warm = first_hits([]), first_hits(often)
    print(f"\nhits among the first 2 000 requests: cold {cold:.1%}, the 500 most asked for warmed {warm:.1%}")

    assert warm > cold + 0.15
    assert math.isclose(first_hits(often[:0]), cold)
