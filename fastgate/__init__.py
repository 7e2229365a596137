"""fastgate: an API and AI gateway with a compiled hot path and plugins in plain Python.

The primitives of `fastgate._core` are here by name: `from fastgate import TokenBucket`. They are loaded with
the first one that is asked for, so `import fastgate` alone costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgate._core import (
        P2C as P2C,
    )
    from fastgate._core import (
        AdaptiveLimit as AdaptiveLimit,
    )
    from fastgate._core import (
        Bulkhead as Bulkhead,
    )
    from fastgate._core import (
        BulkheadFull as BulkheadFull,
    )
    from fastgate._core import (
        BulkheadTimeout as BulkheadTimeout,
    )
    from fastgate._core import (
        Cache as Cache,
    )
    from fastgate._core import (
        CidrSet as CidrSet,
    )
    from fastgate._core import (
        CircuitBreaker as CircuitBreaker,
    )
    from fastgate._core import (
        CircuitOpen as CircuitOpen,
    )
    from fastgate._core import (
        ConcurrencyLimit as ConcurrencyLimit,
    )
    from fastgate._core import (
        Decision as Decision,
    )
    from fastgate._core import (
        Directory as Directory,
    )
    from fastgate._core import (
        DirectoryFull as DirectoryFull,
    )
    from fastgate._core import (
        Epochs as Epochs,
    )
    from fastgate._core import (
        Ewma as Ewma,
    )
    from fastgate._core import (
        FixedWindow as FixedWindow,
    )
    from fastgate._core import (
        HashRing as HashRing,
    )
    from fastgate._core import (
        Histogram as Histogram,
    )
    from fastgate._core import (
        InflightTable as InflightTable,
    )
    from fastgate._core import (
        KeyedLimiter as KeyedLimiter,
    )
    from fastgate._core import (
        Lease as Lease,
    )
    from fastgate._core import (
        LeastRequests as LeastRequests,
    )
    from fastgate._core import (
        Limit as Limit,
    )
    from fastgate._core import (
        LimiterTable as LimiterTable,
    )
    from fastgate._core import (
        Maglev as Maglev,
    )
    from fastgate._core import (
        Match as Match,
    )
    from fastgate._core import (
        PeakEwma as PeakEwma,
    )
    from fastgate._core import (
        PenaltyBox as PenaltyBox,
    )
    from fastgate._core import (
        Reservation as Reservation,
    )
    from fastgate._core import (
        Route as Route,
    )
    from fastgate._core import (
        Router as Router,
    )
    from fastgate._core import (
        SharedMemory as SharedMemory,
    )
    from fastgate._core import (
        SlidingWindow as SlidingWindow,
    )
    from fastgate._core import (
        SmoothWeighted as SmoothWeighted,
    )
    from fastgate._core import (
        SseEvent as SseEvent,
    )
    from fastgate._core import (
        SseEventTooLarge as SseEventTooLarge,
    )
    from fastgate._core import (
        SseParser as SseParser,
    )
    from fastgate._core import (
        TokenBucket as TokenBucket,
    )
    from fastgate._core import (
        monotonic_ns as monotonic_ns,
    )
    from fastgate._core import (
        realtime_ns as realtime_ns,
    )
    from fastgate._core import (
        siphash64 as siphash64,
    )
    from fastgate._core import (
        siphash128 as siphash128,
    )

__version__ = "0.1.0"


_PRIMITIVES = frozenset(
    {
        "P2C",
        "AdaptiveLimit",
        "Bulkhead",
        "BulkheadFull",
        "BulkheadTimeout",
        "Cache",
        "CidrSet",
        "CircuitBreaker",
        "CircuitOpen",
        "ConcurrencyLimit",
        "Decision",
        "Directory",
        "DirectoryFull",
        "Epochs",
        "Ewma",
        "FixedWindow",
        "HashRing",
        "Histogram",
        "InflightTable",
        "KeyedLimiter",
        "Lease",
        "LeastRequests",
        "Limit",
        "LimiterTable",
        "Maglev",
        "Match",
        "PeakEwma",
        "PenaltyBox",
        "Reservation",
        "Route",
        "Router",
        "SharedMemory",
        "SlidingWindow",
        "SmoothWeighted",
        "SseEvent",
        "SseEventTooLarge",
        "SseParser",
        "TokenBucket",
        "monotonic_ns",
        "realtime_ns",
        "siphash64",
        "siphash128",
    }
)


def __getattr__(name: str) -> Any:
    if name in _PRIMITIVES:
        from fastgate import _core

        return getattr(_core, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PRIMITIVES})
