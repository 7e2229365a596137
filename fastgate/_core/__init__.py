"""Compiled primitives: libc, cpython and _core only. Every one is usable from other services."""

from fastgate._core.balance.balance import P2C, LeastRequests, SmoothWeighted
from fastgate._core.balance.consistent import HashRing, Maglev
from fastgate._core.balance.ewma import Ewma, PeakEwma
from fastgate._core.cache.cache import Cache
from fastgate._core.clock import monotonic_ns, realtime_ns
from fastgate._core.hashing import siphash64, siphash128
from fastgate._core.http.cidr import CidrSet
from fastgate._core.http.route import Route
from fastgate._core.http.router import Match, Router
from fastgate._core.http.sse import SseEvent, SseEventTooLarge, SseParser
from fastgate._core.limits.decision import Decision, Refusal
from fastgate._core.limits.inflight import InflightTable
from fastgate._core.limits.keyed import KeyedLimiter, Reservation
from fastgate._core.limits.leases import ConcurrencyLimit, Lease
from fastgate._core.limits.limits import FixedWindow, Limit, SlidingWindow, TokenBucket
from fastgate._core.limits.penalty import PenaltyBox
from fastgate._core.resilience.adaptive import AdaptiveLimit
from fastgate._core.resilience.backoff import Backoff
from fastgate._core.resilience.breaker import CircuitBreaker, CircuitOpen
from fastgate._core.resilience.bulkhead import Bulkhead, BulkheadFull, BulkheadTimeout
from fastgate._core.resilience.retry_budget import RetryBudget
from fastgate._core.shm.directory import Directory, DirectoryFull
from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.shm import SharedMemory
from fastgate._core.shm.table import LimiterTable
from fastgate._core.stats.histogram import Histogram

__all__ = [
    "P2C",
    "AdaptiveLimit",
    "Backoff",
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
    "Refusal",
    "Reservation",
    "RetryBudget",
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
]
