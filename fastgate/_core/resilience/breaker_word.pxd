"""The state word of a circuit breaker, and how long a breaker stays open: back-off over consecutive openings, with jitter. Inlined."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.resilience.backoff cimport backoff_span_ns, splitmix64
from fastgate._core.resilience.breaker_slot cimport breaker_config_t

cdef extern from *:
    """
    #define BREAKER_LATEST_NS INT64_MAX
    #define BREAKER_SKEW_NS INT64_C(1000000000)
    """
    const int64_t LATEST_NS "BREAKER_LATEST_NS"
    const int64_t SKEW_NS "BREAKER_SKEW_NS"     # largest difference of two readers' clocks; beyond it the clock was set back

cdef enum:
    TAG_BITS = 40


cdef inline uint64_t word_of(int state, uint64_t trips, int64_t time_ns) noexcept nogil:
    """The state word; the time is rounded up to 128 ns, so an open time is never cut short."""
    return (<uint64_t>time_ns + 127) >> 7 << 8 | trips << 2 | <uint64_t>state


cdef inline uint64_t tag_of(uint64_t word) noexcept nogil:
    """The tag of a period: the time in its state word."""
    return word >> 8 & ((<uint64_t>1 << TAG_BITS) - 1)


cdef inline int64_t later(int64_t now_ns, int64_t span_ns) noexcept nogil:
    """now + span without overflow."""
    return now_ns + span_ns if now_ns <= LATEST_NS - 127 - span_ns else LATEST_NS - 127


cdef inline int64_t open_time_ns(const breaker_config_t* c, uint64_t trips, int64_t now_ns) noexcept nogil:
    """Open time of the trips-th consecutive opening."""
    cdef double span = <double>backoff_span_ns(c.backoff, c.recovery_ns, c.max_recovery_ns, <int64_t>trips)
    if c.jitter_ratio > 0:
        span *= 1.0 + c.jitter_ratio * (<double>(splitmix64(c.seed ^ trips ^ <uint64_t>now_ns) >> 11) * (1.0 / 9007199254740992.0))
    return <int64_t>span


cdef inline bint is_over(int64_t until_ns, int64_t now_ns, int64_t longest_ns) noexcept nogil:
    """True if until has passed, or is so far ahead that this clock cannot have set it (a reboot, a clock set back)."""
    return now_ns >= until_ns or until_ns - now_ns > 2 * longest_ns + SKEW_NS
