# The declarations of penalty.pyx, for cimport.

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.shm.table cimport LimiterTable, cursor_t

cdef class PenaltyBox:
    cdef readonly LimiterTable table
    cdef uint64_t key[2]
    cdef int64_t within_ns
    cdef int64_t forget_ns
    cdef int64_t bans_ns[16]
    cdef int steps
    cdef readonly int64_t strikes
    cdef int how                # TABLE_KEEP, TABLE_FAIR, TABLE_EVICT
    cdef uint64_t mark
    # For C callers: hash the key under self.key, then call. Nanoseconds of ban left, 0 = none.
    cdef int64_t strike_hashed(self, const hash128_t* key, uint64_t source, int64_t now_ns) noexcept nogil
    cdef int64_t banned_hashed(self, const hash128_t* key, int64_t now_ns) noexcept nogil
    cdef int64_t ban_left(self, const cursor_t* c, int64_t now_ns) noexcept nogil
