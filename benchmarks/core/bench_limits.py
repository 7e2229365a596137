"""The limits from Python, beside limits, throttled-py and pyrate-limiter.

Every take is granted (the limits are far away), which is each library's cheapest path. The rivals keep one
limit per call; for "three limits" they are asked three times, which is how they are used, and is not one
decision: a refusal by the third has already taken from the first two.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

BUCKET = {
    "fastgate": Candidate(
        "fastgate", "from fastgate._core import TokenBucket; take = TokenBucket(1e6, 10**9).take", "take()"
    ),
    "fastgate, shared memory": Candidate(
        "fastgate",
        "from fastgate._core import TokenBucket, SharedMemory\n"
        "take = TokenBucket(1e6, 10**9, SharedMemory(16)).take",
        "take()",
    ),
    "throttled-py gcra": Candidate(
        "throttled-py",
        "from throttled import Throttled, RateLimiterType, rate_limiter, store\n"
        "limit = Throttled(key='k', using=RateLimiterType.GCRA.value, store=store.MemoryStore(),\n"
        "    quota=rate_limiter.per_sec(10**6, burst=10**9)).limit",
        "limit()",
    ),
    "throttled-py token bucket": Candidate(
        "throttled-py",
        "from throttled import Throttled, RateLimiterType, rate_limiter, store\n"
        "limit = Throttled(key='k', using=RateLimiterType.TOKEN_BUCKET.value, store=store.MemoryStore(),\n"
        "    quota=rate_limiter.per_sec(10**6, burst=10**9)).limit",
        "limit()",
    ),
    "pyrate-limiter": Candidate(
        "pyrate-limiter",
        "from pyrate_limiter import Limiter, Rate, Duration\n"
        "take = Limiter(Rate(10**9, Duration.SECOND)).try_acquire",
        "take('k', blocking=False)",
    ),
}

FIXED = {
    "fastgate": Candidate(
        "fastgate", "from fastgate._core import FixedWindow; take = FixedWindow(10**11, 60).take", "take()"
    ),
    "fastgate, shared memory": Candidate(
        "fastgate",
        "from fastgate._core import FixedWindow, SharedMemory\n"
        "take = FixedWindow(10**11, 60, SharedMemory(FixedWindow.SHARED_BYTES)).take",
        "take()",
    ),
    "limits": Candidate(
        "limits",
        "from limits import RateLimitItemPerMinute, storage, strategies\n"
        "hit = strategies.FixedWindowRateLimiter(storage.MemoryStorage()).hit\n"
        "rule = RateLimitItemPerMinute(10**11)",
        "hit(rule, 'k')",
    ),
}

SLIDING = {
    "fastgate": Candidate(
        "fastgate",
        "from fastgate._core import SlidingWindow; take = SlidingWindow(10**11, 60).take",
        "take()",
    ),
    "fastgate, shared memory": Candidate(
        "fastgate",
        "from fastgate._core import SlidingWindow, SharedMemory\n"
        "take = SlidingWindow(10**11, 60, SharedMemory(SlidingWindow.SHARED_BYTES)).take",
        "take()",
    ),
    "limits": Candidate(
        "limits",
        "from limits import RateLimitItemPerMinute, storage, strategies\n"
        "hit = strategies.SlidingWindowCounterRateLimiter(storage.MemoryStorage()).hit\n"
        "rule = RateLimitItemPerMinute(10**11)",
        "hit(rule, 'k')",
    ),
    "throttled-py": Candidate(
        "throttled-py",
        "from throttled import Throttled, RateLimiterType, rate_limiter, store\n"
        "limit = Throttled(key='k', using=RateLimiterType.SLIDING_WINDOW.value, store=store.MemoryStore(),\n"
        "    quota=rate_limiter.per_min(10**11)).limit",
        "limit()",
    ),
}

_KEYED = (
    "import random\n"
    "from fastgate._core import *\n"
    "rules = {rules}\n"
    "limiter = KeyedLimiter(rules, capacity={keys}, shared={shared})\n"
    "take = limiter.take\n"
    "for number in range({keys}): take(f'user-{{number:07d}}')\n"
    # New strings in the order of use: the cost of finding the caller's own strings in memory is not ours.
    "chosen = [f'user-{{random.randrange({keys}):07d}}' for _ in range(50_000)]\n"
)
_MIXED = "[TokenBucket(1e6, 10**9), SlidingWindow(10**11, 60), FixedWindow(10**11, 3600)]"
_WINDOWS = "[SlidingWindow(10**11, 60), SlidingWindow(10**11, 3600), SlidingWindow(10**11, 86_400)]"
_LOOP = "for key in chosen: take(key)"


def _keyed(rules: str, keys: int, shared: bool) -> Candidate:
    memory = f"SharedMemory(KeyedLimiter.size(rules, {keys}))" if shared else "None"
    return Candidate("fastgate", _KEYED.format(rules=rules, keys=keys, shared=memory), _LOOP, 50_000)


KEYED = {
    "fastgate, 1 000 keys": _keyed(_MIXED, 1_000, True),
    "fastgate, 1 000 000 keys": _keyed(_MIXED, 1_000_000, True),
    "fastgate, 1 000 000 keys, private": _keyed(_MIXED, 1_000_000, False),
    "fastgate, 1 000 000 keys, three windows": _keyed(_WINDOWS, 1_000_000, True),
    "limits, 10 000 keys": Candidate(
        "limits",
        "import random\n"
        "from limits import RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute\n"
        "from limits import storage, strategies\n"
        "hit = strategies.FixedWindowRateLimiter(storage.MemoryStorage()).hit\n"
        "per = RateLimitItemPerMinute, RateLimitItemPerHour, RateLimitItemPerDay\n"
        "a, b, c = (each(10**11) for each in per)\n"
        "chosen = [f'user-{random.randrange(10_000):07d}' for _ in range(2000)]",
        "for key in chosen: hit(a, key) and hit(b, key) and hit(c, key)",
        2_000,
    ),
    "throttled-py, 10 000 keys": Candidate(
        "throttled-py",
        "import random\n"
        "from throttled import Throttled, RateLimiterType, rate_limiter, store\n"
        "memory = store.MemoryStore(options={'MAX_SIZE': 100_000})\n"
        "quotas = rate_limiter.per_min(10**11), rate_limiter.per_hour(10**11), rate_limiter.per_day(10**11)\n"
        "a, b, c = (Throttled(using=RateLimiterType.FIXED_WINDOW.value, store=memory, quota=quota).limit "
        "for quota in quotas)\n"
        "chosen = [f'user-{random.randrange(10_000):07d}' for _ in range(2000)]",
        "for key in chosen: a(key); b(key); c(key)",
        2_000,
    ),
}

CONCURRENCY = {
    "fastgate": Candidate(
        "fastgate",
        "from fastgate._core import ConcurrencyLimit; acquire = ConcurrencyLimit(100).acquire",
        "acquire().release()",
    ),
    "fastgate, shared memory": Candidate(
        "fastgate",
        "from fastgate._core import ConcurrencyLimit, SharedMemory\n"
        "acquire = ConcurrencyLimit(100, SharedMemory(4096)).acquire",
        "acquire().release()",
    ),
    "threading.BoundedSemaphore": Candidate(
        "python",
        "import threading\ngate = threading.BoundedSemaphore(100)\n"
        "acquire, release = gate.acquire, gate.release",
        "acquire(False); release()",
    ),
}

PENALTY = {
    "banned": Candidate(
        "fastgate",
        "from fastgate._core import PenaltyBox; ask = PenaltyBox(capacity=10_000).banned",
        "ask('k')",
    ),
    "strike": Candidate(
        "fastgate",
        "from fastgate._core import PenaltyBox; strike = PenaltyBox(10**6, capacity=10_000).strike",
        "strike('k')",
    ),
}


@pytest.mark.parametrize("name", BUCKET)
@pytest.mark.benchmark(group="token bucket: take", timer=virtual_s)
def test_bucket_take(benchmark: Any, name: str) -> None:
    race(benchmark, BUCKET[name], promise_ns=80)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.benchmark(group="fixed window: take", timer=virtual_s)
def test_fixed_take(benchmark: Any, name: str) -> None:
    race(benchmark, FIXED[name], promise_ns=80)


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.benchmark(group="sliding window: take", timer=virtual_s)
def test_sliding_take(benchmark: Any, name: str) -> None:
    race(benchmark, SLIDING[name], promise_ns=80)


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.benchmark(group="keyed: three limits of one key", timer=virtual_s)
def test_keyed_take(benchmark: Any, name: str) -> None:
    race(benchmark, KEYED[name], promise_ns=300)


@pytest.mark.parametrize("name", CONCURRENCY)
@pytest.mark.benchmark(group="concurrency: acquire and release", timer=virtual_s)
def test_lease(benchmark: Any, name: str) -> None:
    race(benchmark, CONCURRENCY[name])


@pytest.mark.parametrize("name", PENALTY)
@pytest.mark.benchmark(group="penalty box", timer=virtual_s)
def test_penalty(benchmark: Any, name: str) -> None:
    race(benchmark, PENALTY[name])
