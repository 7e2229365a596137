"""Public C interface of fastgate._core.shm.counters."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.stats.histogram cimport histogram_t
from fastgate._core.shm.shm cimport SharedMemory

cdef enum:
    MAX_REASONS = 128

# One route in one worker slot. All counts only grow.
ctypedef struct route_counts_t:
    uint64_t responses[6]              # by status class; [0] = ended without a response
    uint64_t bytes_received
    uint64_t bytes_sent
    uint64_t attempts
    uint64_t replays
    uint64_t reasons[MAX_REASONS]      # by REASONS index
    uint64_t shadow                    # refusals a plugin in shadow mode would have made
    histogram_t duration               # ns, whole request
    histogram_t upstream               # ns, from sending the head to the first byte of the response

# Gauges and counters of one worker slot.
ctypedef struct worker_counts_t:
    uint64_t connections_open
    uint64_t connections_total
    uint64_t connections_refused
    uint64_t requests_active
    uint64_t tunnels_open
    uint64_t upstream_open
    uint64_t upstream_opened_total
    uint64_t upstream_waiting
    uint64_t log_lines_dropped
    uint64_t plugin_errors
    uint64_t loop_ticks
    uint64_t loop_stalls
    uint64_t upstream_limited_total    # requests that waited for a connection because a pool was at its limit
    uint64_t bodies_collecting         # requests whose body is being buffered before they go upstream
    uint64_t spare[2]

cdef class Counters:
    cdef readonly object memory
    cdef readonly int slots
    cdef readonly int capacity
    cdef char* base
    cdef route_counts_t* route(self, int slot, int series) noexcept nogil
    cdef worker_counts_t* worker(self, int slot) noexcept nogil
    cpdef int series(self, bytes name, bint add=*) except -1
