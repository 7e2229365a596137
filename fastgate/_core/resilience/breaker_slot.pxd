# The memory of a circuit breaker, and its configuration: plain structs, for breaker.pyx and breaker_window.pxd.
#
# WHAT      breaker_t, a slot of 192 bytes: zero-filled memory is a closed breaker, anywhere: heap, or shared memory that several
#           processes map. breaker_config_t belongs to the caller; processes that share a slot should use the same.
# STATE     the fields of breaker_t below.
# WHO WRITES  any process, with the functions of breaker.pyx and breaker_window.pxd; every word is a separate atomic.
# COST      none of its own.

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.resilience.backoff cimport BACKOFF_CONSTANT, BACKOFF_EXPONENTIAL, BACKOFF_FIBONACCI, BACKOFF_LINEAR

cdef enum:
    BREAKER_BUCKETS = 10        # of the sliding window: it slides in steps of a tenth

cdef enum:
    BREAKER_CLOSED = 0
    BREAKER_OPEN = 1
    BREAKER_HALF_OPEN = 2

cdef enum:
    BREAKER_CONSTANT = BACKOFF_CONSTANT
    BREAKER_LINEAR = BACKOFF_LINEAR
    BREAKER_EXPONENTIAL = BACKOFF_EXPONENTIAL
    BREAKER_FIBONACCI = BACKOFF_FIBONACCI

ctypedef struct breaker_t:
    uint64_t state              # time in 128 ns << 8 | trips << 2 | BREAKER_*: the authoritative word
    uint64_t probes             # tag << 24 | outstanding << 12 | successes, of the half-open period that the tag names
    int64_t probes_expire_ns    # expiry of the outstanding permits
    uint64_t consecutive        # tag << 24 | failures in a row, of the closed period that the tag names
    uint64_t opened_total
    uint64_t refused_total
    uint64_t baseline_calls     # adaptive: number of calls learned from, …
    uint64_t baseline_ok        # … of which good
    uint64_t baseline_failure_ratio     # bits of a double
    uint64_t baseline_latency_ns        # bits of a double
    uint64_t window[BREAKER_BUCKETS]    # round << 48 | calls << 32 | failures << 16 | slow
    uint64_t reserved[4]        # padding to 192 bytes: three cache lines

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
    int64_t slow_ns             # a longer call is slow; 0 = never
    int64_t bucket_ns           # window / BREAKER_BUCKETS; 0 = no window
    int64_t min_calls
    int64_t adaptive_calls      # memory of the baseline in calls; 0 = not adaptive
    double adaptive_factor
    double adaptive_floor_ratio
    uint64_t seed
