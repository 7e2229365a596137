# The declarations of clock.pyx, for cimport.

from libc.stdint cimport int64_t

cpdef int64_t monotonic_ns() noexcept nogil
cpdef int64_t realtime_ns() noexcept nogil
