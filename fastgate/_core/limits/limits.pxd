# The declarations of limits.pyx, for cimport: the numbers of a limit, and the pure functions that evaluate it.

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.limits.decision cimport NEVER, Decision, Refusal, new_decision, new_refusal
from fastgate._core.shm.shm cimport SharedMemory
from fastgate._core.shm.table cimport LimiterTable, cursor_t

cdef enum:
    BUCKET = 1              # 1 word of state
    FIXED = 2               # 2 words
    SLIDING = 3             # 2 words

cdef extern from *:
    """
    #define FASTGATE_LATEST_NS ((INT64_C(1) << 62) - 1)
    #define FASTGATE_LARGEST ((INT64_C(1) << 39) - 1)
    """
    const int64_t LATEST_NS "FASTGATE_LATEST_NS"    # the largest now_ns: the year 2116 of Unix time
    const int64_t LARGEST "FASTGATE_LARGEST"        # the largest limit, burst and amount

# A limit as numbers, filled once. The pure functions below read nothing else.
ctypedef struct limit_t:
    int64_t kind
    int64_t limit           # burst, or the amount that a window admits
    int64_t window_ns       # windows only
    uint64_t ticks_per_ns   # bucket only: tokens << shift per nanosecond, as 62-bit fraction, in (0.5, 1]
    int64_t shift           # bucket only: one token is 1 << shift ticks
    int64_t slack           # bucket: ticks, window: ns; a state further ahead than this was written before a clock was set back

ctypedef struct outcome_t:
    int64_t remaining       # the amount that the same caller could still take now
    int64_t retry_after_ns  # 0 if allowed
    bint changed            # refused, but the state was updated and must be stored

# True if `amount` (>= 0) is granted at now_ns: `state` is debited. False: `state` unchanged unless outcome.changed.
cdef bint limit_take(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns,
                     outcome_t* outcome) noexcept nogil
# Debits unconditionally, down to one whole limit below zero; returns the amount debited.
cdef int64_t limit_charge(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns) noexcept nogil
# Refunds an amount taken at taken_ns; returns the amount refunded (0 if the window has passed).
cdef int64_t limit_refund(const limit_t* limit, int64_t* state, int64_t amount, int64_t taken_ns,
                          int64_t now_ns) noexcept nogil
# Nanoseconds until the state is unused again; 0 if it is.
cdef int64_t limit_reset_ns(const limit_t* limit, const int64_t* state, int64_t now_ns) noexcept nogil
# The same, rounded up cheaply (for the idle time of a table entry).
cdef int64_t limit_idle_at_ns(const limit_t* limit, const int64_t* state, int64_t now_ns) noexcept nogil
cdef int limit_state_words(const limit_t* limit) noexcept nogil

cdef int64_t now_argument(object now_ns) except -1


cdef class Limit:
    cdef limit_t spec
    cdef int64_t own[2]             # the private state
    cdef int64_t* word              # a bucket's word: own, or in shared memory; NULL for a window in a table
    cdef SharedMemory shared        # keeps the word mapped
    cdef LimiterTable table         # holds a shared window, as the only key
    cdef bint decide_at(self, int64_t amount, int64_t now_ns, bint commit, outcome_t* outcome, int64_t* reset_ns) noexcept nogil
    cdef int64_t adjust_at(self, int64_t amount, int64_t taken_ns, int64_t now_ns) noexcept nogil
    cdef int64_t adjust_state(self, int64_t* state, int64_t amount, int64_t taken_ns, int64_t now_ns) noexcept nogil
    cdef Decision decision(self, amount, now_ns, bint commit)
    cdef int attach_window(self, SharedMemory shared) except -1


cdef class TokenBucket(Limit):
    cdef readonly double rate_per_s

cdef class FixedWindow(Limit):
    cdef readonly double window_s

cdef class SlidingWindow(Limit):
    cdef readonly double window_s
