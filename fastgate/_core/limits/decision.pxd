"""Public C interface of fastgate._core.limits.decision."""

from libc.stdint cimport int64_t

cdef extern from *:
    """
    #define FASTGATE_NEVER INT64_MAX
    """
    const int64_t NEVER "FASTGATE_NEVER"            # retry_after_ns of an amount that can never be granted

cdef class Decision:
    cdef readonly bint allowed
    cdef readonly int limit
    cdef readonly int64_t remaining
    cdef readonly int64_t retry_after_ns
    cdef readonly int64_t reset_ns

cdef class Refusal(Decision):
    pass

cdef Decision new_decision(bint allowed, int limit, int64_t remaining, int64_t retry_after_ns, int64_t reset_ns)
cdef Refusal new_refusal(int limit, int64_t remaining, int64_t retry_after_ns, int64_t reset_ns)
