"""Compiled primitives: libc, cpython and _core only. Every one is usable from other services."""

from fastgate._core.adaptive import AdaptiveLimit
from fastgate._core.balance import P2C, LeastRequests, SmoothWeighted
from fastgate._core.breaker import CircuitBreaker, CircuitOpen
from fastgate._core.bulkhead import Bulkhead, BulkheadFull, BulkheadTimeout
from fastgate._core.cache import Cache
from fastgate._core.cidr import CidrSet
from fastgate._core.clock import monotonic_ns, realtime_ns
from fastgate._core.consistent import HashRing, Maglev
from fastgate._core.directory import Directory, DirectoryFull
from fastgate._core.epochs import Epochs
from fastgate._core.ewma import Ewma, PeakEwma
from fastgate._core.hashing import siphash64, siphash128
from fastgate._core.histogram import Histogram
from fastgate._core.inflight import InflightTable
from fastgate._core.keyed import KeyedLimiter, Reservation
from fastgate._core.leases import ConcurrencyLimit, Lease
from fastgate._core.limits import Decision, FixedWindow, Limit, Refusal, SlidingWindow, TokenBucket
from fastgate._core.penalty import PenaltyBox
from fastgate._core.router import Match, Route, Router
from fastgate._core.shm import SharedMemory
from fastgate._core.sse import SseEvent, SseEventTooLarge, SseParser
from fastgate._core.table import LimiterTable

__all__ = [
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
    "Refusal",
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
]
