# The declarations of owners.pyx, for cimport.

from libc.stdint cimport int64_t

cdef int64_t owner_self() noexcept nogil
cdef bint owner_alive(int64_t owner) noexcept nogil
cdef int64_t fork_generation() noexcept nogil
