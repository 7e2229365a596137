"""Compiled primitives: libc, cpython and _core only. Every one is usable from other services."""

from fastgate._core.balance import SmoothWeighted
from fastgate._core.breaker import CircuitBreaker, CircuitOpen
from fastgate._core.cache import Cache
from fastgate._core.cidr import CidrSet
from fastgate._core.clock import monotonic_ns, realtime_ns
from fastgate._core.ewma import Ewma, PeakEwma
from fastgate._core.hashing import siphash64, siphash128
from fastgate._core.histogram import Histogram
from fastgate._core.router import Match, Route, Router
from fastgate._core.shm import SharedMemory
from fastgate._core.sse import SseEvent, SseEventTooLarge, SseParser

__all__ = [
    "Cache",
    "CidrSet",
    "CircuitBreaker",
    "CircuitOpen",
    "Ewma",
    "Histogram",
    "Match",
    "PeakEwma",
    "Route",
    "Router",
    "SharedMemory",
    "SmoothWeighted",
    "SseEvent",
    "SseEventTooLarge",
    "SseParser",
    "monotonic_ns",
    "realtime_ns",
    "siphash64",
    "siphash128",
]
