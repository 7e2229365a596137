# The declarations of keyed.pyx, for cimport.

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.limits.limits cimport Decision, limit_t
from fastgate._core.shm.table cimport LimiterTable, cursor_t

cdef enum:
    MOST_LIMITS = 16

# Result of a take; limit is NO_PLACE if the table had no room for a new key.
cdef enum:
    NO_PLACE = -1

ctypedef struct verdict_t:
    bint allowed
    int limit               # the tightest, by position
    int64_t remaining
    int64_t retry_after_ns
    int64_t reset_ns


cdef class KeyedLimiter:
    cdef limit_t specs[16]
    cdef int count
    cdef uint64_t key[2]        # hashes this limiter's keys; different for each limiter of a table
    cdef int how                # TABLE_KEEP, TABLE_FAIR, TABLE_EVICT
    cdef uint64_t mark          # of its entries, without a source
    cdef readonly LimiterTable table
    cdef readonly tuple limits
    cdef readonly str scope
    # For C callers: hash once with hash_key, then any number of calls. amounts: one per limit, 0 = not counted by that limit.
    cdef void hash_key(self, const void* data, size_t n, hash128_t* out) noexcept nogil
    cdef bint take_hashed(self, const hash128_t* key, const int64_t* amounts, int64_t now_ns, bint commit,
                          verdict_t* verdict) noexcept nogil
    cdef bint take_marked(self, const hash128_t* key, uint64_t mark, const int64_t* amounts, int64_t now_ns, bint commit,
                          verdict_t* verdict) noexcept nogil
    cdef bint adjust_hashed(self, const hash128_t* key, const int64_t* amounts, int64_t taken_ns, int64_t now_ns) noexcept nogil
    cdef void store_healed(self, cursor_t* c, int64_t now_ns) noexcept nogil
    cdef Decision decision(self, key, amount, now_ns, bint commit, source)
    cdef int read_amounts(self, object amount, int64_t* amounts) except -1


cdef class Reservation:
    cdef KeyedLimiter limiter
    cdef hash128_t key
    cdef int64_t reserved[16]
    cdef readonly int64_t taken_ns
    cdef readonly bint is_open
