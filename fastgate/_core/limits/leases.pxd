# The declarations of leases.pyx, for cimport.

from libc.stdint cimport int64_t

from fastgate._core.shm.shm cimport SharedMemory

ctypedef struct leases_t:
    int64_t* header
    int64_t* slots          # one word each: 0 or the owner
    int64_t capacity
    int64_t hint            # where a slot was last freed; only a hint
    int64_t generation      # fork_generation() when last used
    int64_t reaped_at_ns
    bint is_shared

# The slot (>= 0) acquired for this process, or -1: all are taken by living processes.
cdef int64_t lease_acquire(leases_t* leases) noexcept nogil
# True if the slot was held by this process and is free now.
cdef bint lease_release(leases_t* leases, int64_t slot) noexcept nogil
# Frees the slots of dead processes; returns how many.
cdef int64_t lease_reap(leases_t* leases) noexcept nogil
cdef int64_t lease_count(leases_t* leases) noexcept nogil


cdef class ConcurrencyLimit:
    cdef leases_t leases
    cdef object keep            # the shared memory, or the private one
    cdef readonly bint is_shared


cdef class Lease:
    cdef ConcurrencyLimit owner
    cdef int64_t slot           # -1 once released
    cdef int64_t generation
    cdef bint give_back(self) noexcept
