"""Public C interface of fastgate._core.gates.limit_factor."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.shm.table cimport LimiterTable

cdef class Health:
    cdef LimiterTable table
    cdef hash128_t key
    cdef int64_t lowest                 # factors, in 1/65536
    cdef int64_t highest
    cdef double error_ratio
    cdef int64_t slow_ns
    cdef int64_t interval_ns
    cdef int64_t least
    cdef int64_t pending                # requests, and bad ones, not yet published
    cdef int64_t pending_bad
    cdef int64_t looked_ns
    cdef int64_t now_factor
    cdef void look(self, int64_t now_ns) noexcept nogil
    cdef void learn(self, RequestContext ctx, int64_t now_ns)

cdef class Usual:
    cdef LimiterTable table
    cdef uint64_t key[2]
    cdef int64_t multiple               # in 1/1024
    cdef int64_t lowest                 # share of the limit, in 1/65536
    cdef int64_t note(self, RequestContext ctx, int64_t now_ns) noexcept
