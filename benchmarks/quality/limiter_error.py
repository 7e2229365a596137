"""How far each limiter strays from the exact answer, against the bound it states. Time is passed in.

    python -m benchmarks.quality.limiter_error

The exact answer is the sliding log: at most `limit` grants in every span of one window. The columns:
  worst span   the most grants in any span of one window, as a multiple of the limit
  bound        what the docstring promises for it
  admitted     all grants, as a multiple of what a sliding log would have admitted of the same traffic
Exits with 1 if a bound is broken.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator

from fastgate._core import FixedWindow, Limit, SlidingWindow, TokenBucket

LIMIT = 100
WINDOW_NS = 10_000_000_000
WINDOWS = 400
SEED = 20


def even(load: float) -> Iterator[int]:
    step_ns = int(WINDOW_NS / (LIMIT * load))
    yield from range(0, WINDOWS * WINDOW_NS, step_ns)


def poisson(load: float) -> Iterator[int]:
    randomly = random.Random(SEED)
    now_ns = 0.0
    while now_ns < WINDOWS * WINDOW_NS:
        now_ns += randomly.expovariate(LIMIT * load / WINDOW_NS)
        yield int(now_ns)


def bursts(load: float) -> Iterator[int]:
    """All of a window's traffic within a tenth of it, at a random place."""
    randomly = random.Random(SEED)
    for window in range(WINDOWS):
        start_ns = int((window + randomly.random() * 0.9) * WINDOW_NS)
        yield from sorted(start_ns + randomly.randrange(WINDOW_NS // 10) for _ in range(int(LIMIT * load)))


def adversary(_: float) -> Iterator[int]:
    """Knows the borders: everything at the last moment of one window, then all it gets through the next."""
    for window in range(0, WINDOWS, 4):
        end_ns = (window + 1) * WINDOW_NS
        yield from [end_ns - 1] * 2 * LIMIT
        yield from range(end_ns, end_ns + WINDOW_NS - 1, WINDOW_NS // (4 * LIMIT))


TRAFFIC: dict[str, tuple[Callable[[float], Iterator[int]], float]] = {
    "even, half the limit": (even, 0.5),
    "even, twice the limit": (even, 2.0),
    "poisson, at the limit": (poisson, 1.0),
    "poisson, twice the limit": (poisson, 2.0),
    "bursts, twice the limit": (bursts, 2.0),
    "adversary": (adversary, 1.0),
}

LIMITERS: dict[str, tuple[Callable[[], Limit], float]] = {
    "TokenBucket, burst 100 %": (lambda: TokenBucket(LIMIT * 1e9 / WINDOW_NS, LIMIT), 2.0),
    "TokenBucket, burst 10 %": (lambda: TokenBucket(LIMIT * 1e9 / WINDOW_NS, LIMIT // 10), 1.1),
    "FixedWindow": (lambda: FixedWindow(LIMIT, WINDOW_NS / 1e9), 2.0),
    "SlidingWindow": (lambda: SlidingWindow(LIMIT, WINDOW_NS / 1e9), 2.0),
}


def worst_span(grants: list[int]) -> int:
    inside: deque[int] = deque()
    worst = 0
    for at_ns in grants:
        inside.append(at_ns)
        while inside[0] <= at_ns - WINDOW_NS:
            inside.popleft()
        worst = max(worst, len(inside))
    return worst


def sliding_log(arrivals: list[int]) -> int:
    inside: deque[int] = deque()
    admitted = 0
    for at_ns in arrivals:
        while inside and inside[0] <= at_ns - WINDOW_NS:
            inside.popleft()
        if len(inside) < LIMIT:
            inside.append(at_ns)
            admitted += 1
    return admitted


def main() -> int:
    broken = 0
    print(f"limit {LIMIT} per {WINDOW_NS / 1e9:g} s, {WINDOWS} windows, seed {SEED}\n")
    print(f"{'traffic':26}{'limiter':28}{'worst span':>12}{'bound':>8}{'admitted':>10}")
    for traffic, (arrive, load) in TRAFFIC.items():
        # Well away from 0, and aligned to the windows so that the adversary knows the borders.
        arrivals = [at_ns + 1000 * WINDOW_NS for at_ns in arrive(load)]
        exact = sliding_log(arrivals)
        for name, (make, bound) in LIMITERS.items():
            limit = make()
            grants = [at_ns for at_ns in arrivals if limit.take(1, at_ns)]
            worst = worst_span(grants) / LIMIT
            broken += worst > bound
            print(f"{traffic:26}{name:28}{worst:>12.2f}{bound:>8.2f}{len(grants) / exact:>10.3f}")
    print(f"\n{'every bound held' if not broken else f'{broken} bounds broken'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
