# The declarations of adaptive.pyx, for cimport.

from libc.stdint cimport int64_t

from fastgate._core.limits.leases cimport ConcurrencyLimit, leases_t

cdef class AdaptiveLimit:
    cdef readonly ConcurrencyLimit leases
    cdef double* estimate       # the limit with its fraction; these words lie in the header of the leases
    cdef int64_t* usual_ns      # the long-term latency
    cdef int64_t* moved_at_ns
    cdef int64_t* recent_ns
    cdef bint is_gradient
    cdef readonly int64_t lowest
    cdef readonly int64_t highest
    cdef readonly double tolerance_ratio
    cdef readonly double backoff_ratio
    cdef readonly double smoothing_ratio
    cdef readonly int64_t headroom
    cdef readonly int64_t slow_ns
    cdef void learn(self, int64_t latency_ns, bint ok, int64_t in_flight, int64_t now_ns) noexcept nogil
