# One log line per period about a condition that many requests can meet.
#
# WHAT        log_throttle_t, a field of the object that the line is about; log_throttle_pass says whether to log now.
# STATE       when the last line was logged, and how many occurrences came since. Zero-filled: the first occurrence is logged.
# WHO WRITES  its owner, under the GIL.
# COST        one comparison; the caller has read the clock.

from libc.stdint cimport int64_t

ctypedef struct log_throttle_t:
    int64_t logged_ns       # monotonic; 0 = never
    int64_t held            # occurrences since that were not logged


cdef inline int64_t log_throttle_pass(log_throttle_t* throttle, int64_t now_ns, int64_t period_ns) noexcept:
    """Counts one occurrence. 0: do not log. Else the number of occurrences since the last line, this one included."""
    cdef int64_t occurrences = throttle.held + 1
    if throttle.logged_ns != 0 and now_ns - throttle.logged_ns < period_ns:
        throttle.held = occurrences
        return 0
    throttle.logged_ns = now_ns
    throttle.held = 0
    return occurrences
