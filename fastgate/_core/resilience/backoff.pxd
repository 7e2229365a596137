# The wait before an attempt: back-off by the number of the attempt, with jitter. Inline functions over a plain struct.
#
# WHAT      backoff_span_ns: the wait before attempt n, in one of four shapes. backoff_ns: the same with the jitter of retries. The
#           circuit breaker takes its open times from backoff_span_ns and adds its own jitter. The Python class is in backoff.pyx.
#
#           constant      1 1 1 1 1 …    × base_ns, at most max_ns      none     the whole span
#           linear        1 2 3 4 5 …                                   full     uniform in 0..span
#           exponential   1 2 4 8 16 …                                  equal    uniform in span/2..span
#           fibonacci     1 1 2 3 5 …
#
#           Full jitter causes the least load when many clients retry at the same time. Equal jitter never retries at once.
# STATE     none but the 64 bits of the random source, which belong to the caller. Every value is a valid state.
# WHO WRITES  the one thread that uses that state. A fork copies it: a child that does not set another one repeats the waits of its
#           parent, in step with it.
# COST      2 to 4 ns; "fibonacci" one addition per attempt more, at most 91. benchmarks/core/bench_retry_budget.py.
# SOURCES   Brooker, Exponential Backoff and Jitter, AWS Architecture Blog (2015), for "full" and "equal"; Steele, Lea, Flood: Fast
#           splittable pseudorandom number generators (2014), for splitmix64; Lemire: Fast random integer generation in an interval
#           (2019), for the multiplication instead of a remainder.

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #ifndef FASTGATE_BACKOFF
    #define FASTGATE_BACKOFF
    /* random / 2**64 of 0..most: no value is more than 2**-64 likelier than another. most >= 0. */
    static inline int64_t fastgate_backoff_share(uint64_t random, int64_t most) {
        return (int64_t)(((unsigned __int128)random * ((uint64_t)most + 1)) >> 64);
    }
    #endif
    """
    int64_t backoff_share "fastgate_backoff_share"(uint64_t random, int64_t most) noexcept nogil

cdef enum:
    BACKOFF_CONSTANT = 0
    BACKOFF_LINEAR = 1
    BACKOFF_EXPONENTIAL = 2
    BACKOFF_FIBONACCI = 3

cdef enum:
    BACKOFF_JITTER_NONE = 0
    BACKOFF_JITTER_FULL = 1
    BACKOFF_JITTER_EQUAL = 2

ctypedef struct backoff_config_t:
    int64_t base_ns     # the span of attempt 1
    int64_t max_ns      # the longest span
    int64_t shape       # BACKOFF_CONSTANT …
    int64_t jitter      # BACKOFF_JITTER_NONE …


cdef inline uint64_t splitmix64(uint64_t x) noexcept nogil:
    """The output of splitmix64 in state x. The next state is x + 0x9E3779B97F4A7C15."""
    x += <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ x >> 30) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ x >> 27) * <uint64_t>0x94D049BB133111EB
    return x ^ x >> 31


cdef inline int64_t backoff_span_ns(int64_t shape, int64_t base_ns, int64_t max_ns, int64_t attempt) noexcept nogil:
    """The span of an attempt without jitter, 0..max_ns. An attempt below 1 counts as 1, an unknown shape is constant.

    Exact in 64 bits: each step is compared with the distance to max_ns before it is taken.
    """
    cdef int64_t span = base_ns, before = 0, step
    if base_ns <= 0 or max_ns <= 0:
        return 0
    if base_ns >= max_ns:
        return max_ns
    if attempt <= 1 or shape == BACKOFF_CONSTANT:
        return base_ns
    if shape == BACKOFF_EXPONENTIAL:
        return base_ns << attempt - 1 if attempt <= 63 and base_ns <= max_ns >> attempt - 1 else max_ns
    if shape == BACKOFF_LINEAR:
        return base_ns * attempt if attempt <= max_ns // base_ns else max_ns
    if shape == BACKOFF_FIBONACCI:
        for step in range(1, attempt):
            if span >= max_ns - before:
                return max_ns
            span, before = span + before, span
    return span


cdef inline int64_t backoff_ns(const backoff_config_t* c, int attempt, uint64_t* random) noexcept nogil:
    """The wait before attempt n >= 1, 0..max_ns. random: state of the source, advanced by one; NULL only without jitter."""
    cdef int64_t span = backoff_span_ns(c.shape, c.base_ns, c.max_ns, attempt)
    cdef int64_t least
    cdef uint64_t drawn
    if c.jitter == BACKOFF_JITTER_NONE:
        return span
    least = span // 2 if c.jitter == BACKOFF_JITTER_EQUAL else 0
    drawn = splitmix64(random[0])
    random[0] += <uint64_t>0x9E3779B97F4A7C15
    return least + backoff_share(drawn, span - least)


cdef class Backoff:
    cdef backoff_config_t config
    cdef uint64_t random            # state of the source
    cdef int64_t generation         # fork_generation() of the process that drew the seed; 0: the seed was given
