"""Compiled primitives: libc, cpython and _core only. Every one is usable from other services."""

from fastgate._core.clock import monotonic_ns, realtime_ns
from fastgate._core.shm import SharedMemory

__all__ = [
    "SharedMemory",
    "monotonic_ns",
    "realtime_ns",
]
