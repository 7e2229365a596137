# The sliding window and the learned baseline of a circuit breaker.
#
# WHAT      inline functions on breaker_t, for breaker.pyx: count a call, sum the window, learn, and derive the limits.
# STATE     breaker_t.window: one word per tenth of the window, round << 48 | calls << 32 | failures << 16 | slow; the baseline
#           words are two counts and two doubles as bits.
# WHO WRITES  any process, one CAS per word: no word is half written. Two processes that learn at the same moment may weigh
#           two calls in either order.
# COST      one CAS to count, ten loads to sum, four CAS to learn.
# SOURCES   resilience4j's sliding time window; West (1979) for the running mean.

from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.string cimport memcpy

from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64, atomic_cas_u64, atomic_load_u64
from fastgate._core.resilience.breaker_slot cimport BREAKER_BUCKETS, breaker_config_t, breaker_t

cdef enum:
    WINDOW_COUNT_MAX = 65535    # a fuller bucket is halved


cdef inline void count_in_window(breaker_t* b, const breaker_config_t* c, bint ok, bint slow, int64_t now_ns) noexcept nogil:
    cdef uint64_t epoch = <uint64_t>(now_ns / c.bucket_ns)
    cdef uint64_t* bucket = &b.window[epoch % BREAKER_BUCKETS]
    cdef uint16_t round_ = <uint16_t>(epoch / BREAKER_BUCKETS)
    cdef uint64_t seen = atomic_load_u64(bucket), calls, failures, slows
    cdef uint16_t kept
    while True:
        kept = <uint16_t>(seen >> 48)
        failures = slows = 0
        # One round ahead means another process whose clock was read a moment later; anything else is an old round.
        calls = seen >> 32 & WINDOW_COUNT_MAX
        if calls != 0 and (kept == round_ or kept == <uint16_t>(round_ + 1)):
            failures = seen >> 16 & WINDOW_COUNT_MAX
            slows = seen & WINDOW_COUNT_MAX
        else:
            kept = round_
            calls = 0
        if calls == WINDOW_COUNT_MAX:
            calls >>= 1
            failures >>= 1
            slows >>= 1
        calls += 1
        failures += not ok
        slows += slow
        if atomic_cas_u64(bucket, &seen, <uint64_t>kept << 48 | calls << 32 | failures << 16 | slows):
            return


cdef inline void sum_window(const breaker_t* b, const breaker_config_t* c, int64_t now_ns, uint64_t* calls, uint64_t* failures,
                            uint64_t* slow) noexcept nogil:
    cdef uint64_t epoch = <uint64_t>(now_ns / c.bucket_ns), seen
    cdef int at = <int>(epoch % BREAKER_BUCKETS), index
    cdef uint16_t round_ = <uint16_t>(epoch / BREAKER_BUCKETS), expected
    calls[0] = failures[0] = slow[0] = 0
    for index in range(BREAKER_BUCKETS):
        seen = atomic_load_u64(&b.window[index])
        expected = round_ if index <= at else <uint16_t>(round_ - 1)
        if <uint16_t>(<uint16_t>(seen >> 48) - expected) <= 1:
            calls[0] += seen >> 32 & WINDOW_COUNT_MAX
            failures[0] += seen >> 16 & WINDOW_COUNT_MAX
            slow[0] += seen & WINDOW_COUNT_MAX


cdef inline double double_of(uint64_t bits) noexcept nogil:
    cdef double value
    memcpy(&value, &bits, 8)
    return value


cdef inline uint64_t bits_of(double value) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    return bits


cdef inline void limits(const breaker_t* b, const breaker_config_t* c, double* failure_ratio, int64_t* slow_ns) noexcept nogil:
    """The limits in effect: the configured ones, or those derived from the baseline."""
    cdef double learned
    failure_ratio[0] = c.failure_ratio
    slow_ns[0] = c.slow_ns if c.slow_ns > 0 else <int64_t>0x7FFFFFFFFFFFFFFF
    if c.adaptive_calls == 0 or atomic_load_u64(&b.baseline_calls) < <uint64_t>c.adaptive_calls:
        return
    learned = double_of(atomic_load_u64(&b.baseline_failure_ratio)) * c.adaptive_factor
    if learned < c.adaptive_floor_ratio:
        learned = c.adaptive_floor_ratio
    if learned < failure_ratio[0]:
        failure_ratio[0] = learned
    learned = double_of(atomic_load_u64(&b.baseline_latency_ns)) * c.adaptive_factor
    if 0 < learned < <double>slow_ns[0]:
        slow_ns[0] = <int64_t>learned


cdef inline void learn_one(uint64_t* count, uint64_t* mean, double value, int64_t memory) noexcept nogil:
    """Running mean over the first `memory` values, then an exponentially weighted one with that memory."""
    cdef uint64_t seen = atomic_add_relaxed_u64(count, 1) + 1
    cdef double weight = <double>memory if seen > <uint64_t>memory else <double>seen
    cdef uint64_t old = atomic_load_u64(mean)
    while not atomic_cas_u64(mean, &old, bits_of(double_of(old) + (value - double_of(old)) / weight)):
        pass


cdef inline void learn(breaker_t* b, const breaker_config_t* c, bint ok, int64_t latency_ns) noexcept nogil:
    learn_one(&b.baseline_calls, &b.baseline_failure_ratio, 0.0 if ok else 1.0, c.adaptive_calls)
    if ok:
        learn_one(&b.baseline_ok, &b.baseline_latency_ns, <double>latency_ns, c.adaptive_calls)
