"""C interface of the circuit breaker. Public: other extensions may cimport it.

A breaker_t is a slot: zero-filled memory is a closed breaker, anywhere: heap, or shared memory that several processes map. The
configuration is the caller's; processes that share a slot should agree on it.
"""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef enum:
    BREAKER_BUCKETS = 10        # of the sliding window: it slides in steps of a tenth

cdef enum:
    BREAKER_CLOSED = 0
    BREAKER_OPEN = 1
    BREAKER_HALF_OPEN = 2

cdef enum:
    BREAKER_CONSTANT = 0
    BREAKER_LINEAR = 1
    BREAKER_EXPONENTIAL = 2
    BREAKER_FIBONACCI = 3

ctypedef struct breaker_t:
    uint64_t state              # time in 128 ns << 8 | trips << 2 | BREAKER_*: the one word that decides
    uint64_t probes             # tag << 24 | outstanding << 12 | successes, of the half-open period that the tag names
    int64_t probes_expire_ns    # when the outstanding permits are void
    uint64_t consecutive        # tag << 24 | failures in a row, of the closed period that the tag names
    uint64_t opened_total
    uint64_t refused_total
    uint64_t baseline_calls     # adaptive: how many calls were learned from, …
    uint64_t baseline_ok        # … how many of them were good
    uint64_t baseline_failure_ratio     # bits of a double
    uint64_t baseline_latency_ns        # bits of a double
    uint64_t window[BREAKER_BUCKETS]    # round << 48 | calls << 32 | failures << 16 | slow
    uint64_t reserved[4]        # to 192 bytes: three cache lines

ctypedef struct breaker_config_t:
    int64_t failure_threshold   # failures in a row; 0 = not counted
    int64_t success_threshold   # good probes that close it
    int64_t permits             # probes at a time when half-open
    int64_t permit_timeout_ns
    int64_t recovery_ns         # first open time
    int64_t max_recovery_ns
    int64_t backoff             # BREAKER_CONSTANT …
    double jitter_ratio
    double failure_ratio        # of the window; 0 = not counted
    double slow_ratio           # of the window; 0 = not counted
    int64_t slow_ns             # slower is slow; 0 = never
    int64_t bucket_ns           # window / BREAKER_BUCKETS; 0 = no window
    int64_t min_calls
    int64_t adaptive_calls      # how many calls the baseline remembers; 0 = not adaptive
    double adaptive_factor
    double adaptive_floor_ratio
    uint64_t seed

# A ticket is what acquire gives and record wants back: 0 = refused. It names the period in which the call began, so that a call
# that outlives its period does not count in the next one. *moved gets old << 2 | new when the state changed, else -1.
cdef uint64_t breaker_acquire(breaker_t* b, const breaker_config_t* c, int64_t now_ns, int32_t* moved) noexcept nogil
cdef void breaker_record(breaker_t* b, const breaker_config_t* c, uint64_t ticket, bint ok, int64_t latency_ns,
                         int64_t now_ns, int32_t* moved) noexcept nogil
cdef void breaker_forget(breaker_t* b, uint64_t ticket) noexcept nogil
cdef void breaker_trip(breaker_t* b, const breaker_config_t* c, int64_t now_ns, int32_t* moved) noexcept nogil
cdef void breaker_reset(breaker_t* b, int64_t now_ns, int32_t* moved) noexcept nogil
cdef int64_t breaker_retry_after_ns(const breaker_t* b, const breaker_config_t* c, int64_t now_ns) noexcept nogil


cdef class CircuitBreaker:
    cdef breaker_t* slot
    cdef breaker_config_t config
    cdef readonly object name
    cdef readonly object on_transition
    cdef readonly bint times_calls          # whether the latency given to record() matters
    cdef readonly tuple failures
    cdef readonly tuple ignore
    cdef Py_buffer _view
    cdef bint _has_view

    cdef void tell(self, int32_t moved) noexcept
