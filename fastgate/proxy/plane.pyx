# cython: boundscheck=False, nonecheck=True
"""The state that all requests of one worker share.

WHAT     `Plane` holds the loop, the shared memory, the timer wheel, the plan in effect, the limits of the config's `server`
         section and the worker's totals. `DataPlane` (dataplane.pyx) adds the operations.
STATE    connections and of_listener: open client connections. body_bytes: of all request bodies in memory (request_body.pyx).
WHO      The worker's loop.
COST     A request id: 20 ns. The Date field is formatted twice a second.
SOURCES  Steele, Lea, Flood: Fast splittable pseudorandom number generators (splitmix64); RFC 9110 §6.6.1 (Date).
"""

import os
from email.utils import formatdate

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.time cimport time

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.http.headers cimport HeadWriter
from fastgate._core.http.writing cimport hex_digits
from fastgate._core.pipeline.wheel cimport TimerWheel
from fastgate.proxy.accesslog cimport AccessLog

__all__ = ["Plane"]


cdef class Plane:
    """The state that all exchanges of one worker share."""

    def __init__(self, loop, memory, int slot, AccessLog access_log not None):
        self.loop = loop
        self.memory = memory
        self.counters = memory.counters
        self.slot = slot
        self.counts = self.counters.worker(slot)
        self.wheel = TimerWheel(WHEEL_TICK_NS, monotonic_ns())
        self.log = access_log
        self.out = HeadWriter()
        self.connections = set()
        self.of_listener = {}
        self.id_high = int.from_bytes(os.urandom(8), "little")
        self.id_low = int.from_bytes(os.urandom(8), "little")

    cdef bytes new_request_id(self):
        """32 hex digits: 64 random bits of this worker, then a mixed counter with a random start (splitmix64)."""
        cdef uint64_t z
        cdef char[32] digits
        self.id_low += <uint64_t>0x9E3779B97F4A7C15
        z = self.id_low
        z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
        z ^= z >> 31
        hex_digits(<uint32_t>(self.id_high >> 32), digits)
        hex_digits(<uint32_t>self.id_high, digits + 8)
        hex_digits(<uint32_t>(z >> 32), digits + 16)
        hex_digits(<uint32_t>z, digits + 24)
        return PyBytes_FromStringAndSize(digits, 32)

    cdef bytes date_value(self, int64_t now_ns):
        """The value of Date, formatted twice a second."""
        if now_ns >= self.date_until_ns:
            self.date = formatdate(time(NULL), usegmt=True).encode()
            self.date_until_ns = now_ns + 500_000_000
        return self.date
