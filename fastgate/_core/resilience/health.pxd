"""C interface of fastgate._core.resilience.health."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastgate._core.resilience.breaker_slot cimport breaker_t
from fastgate._core.shm.shm cimport SharedMemory

cdef enum:
    # Bits of health_t.status
    HEALTH_FAILED = 1           # active checks fail
    HEALTH_PASSED = 2           # active checks pass; neither: not checked yet

ctypedef struct health_t:
    uint64_t status             # HEALTH_* bits, written by the process that runs the checks
    uint64_t changes            # of an upstream: raised whenever one of its targets becomes usable or unusable
    uint64_t latency            # peak EWMA in ns: bits of a double, …
    int64_t latency_at_ns       # … and when it was last updated
    int64_t returned_ns         # when it last became usable again: its share grows from then on
    uint64_t retry_budget       # of a route: see retry_budget.pyx
    int64_t checked_at_ns
    uint64_t check_streak       # results of checks in a row that differ from `status`
    uint64_t failing            # moving share of failed requests: bits of a double
    uint64_t spare[7]
    breaker_t ejection          # of a target: passive health
    breaker_t breaker           # of a target or a route
    # Behind it, a lane for each process: uint32_t in_flight[lanes], uint32_t holders[lanes], uint64_t requests[lanes],
    # uint64_t failures[lanes]

cdef class HealthTable:
    cdef SharedMemory shared
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t processes
    cdef Py_ssize_t lanes       # processes, rounded up to whole cache lines
    cdef size_t row_bytes
    cdef int64_t* header
    cdef uint64_t* keys         # two words per row, 0 = free
    cdef char* rows
    cdef health_t* row(self, Py_ssize_t place) noexcept nogil
    cdef Py_ssize_t find(self, const uint64_t* key, Py_ssize_t* free_place) noexcept nogil
    cdef bint is_held(self, health_t* row) noexcept nogil
    cdef bint lock(self) except -1

cdef class Health:
    cdef HealthTable table
    cdef health_t* row
    cdef readonly int slot
    cdef readonly str name
    cdef int check(self) except -1
    cdef void begin(self) noexcept nogil
    cdef void finish(self, bint ok) noexcept nogil
    cdef void observe(self, int64_t latency_ns, int64_t now_ns, double tau_ns) noexcept nogil
    cdef int64_t running(self) noexcept nogil
    cdef double failure_ratio(self) noexcept nogil
    cdef void count(self, bint ok) noexcept nogil
    cdef void observe_failure(self, int64_t elapsed_ns, int64_t now_ns) noexcept nogil
    cdef double latency(self, int64_t running, int64_t now_ns, double tau_ns) noexcept nogil

cdef inline uint32_t* in_flight_lanes(health_t* row) noexcept nogil:
    return <uint32_t*>(row + 1)
