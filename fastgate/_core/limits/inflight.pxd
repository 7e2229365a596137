# The declarations of inflight.pyx, for cimport.

from libc.stdint cimport int64_t, uint16_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.shm.shm cimport SharedMemory

ctypedef struct place_t:        # the header of one entry; its lanes follow
    uint64_t version            # multiple of 4 at rest, see inflight.pyx
    uint64_t low
    uint64_t high

ctypedef struct bucket_t:       # one cache line for 16 entries
    int64_t lock                # 0, or slot + 1 of the process that adds a key to the bucket
    uint16_t tags[16]           # 0 = never used
    int64_t spare[3]

ctypedef struct inflight_t:     # one handle; everything it points to may be in shared memory
    int64_t* header
    bucket_t* buckets
    char* entries
    uint64_t bucket_count
    uint64_t entry_bytes
    int64_t seats
    int64_t lane_words          # 64-bit words of lanes in an entry
    int64_t seat                # -1: a handle that only reads and clears


cdef class InflightTable:
    cdef inflight_t handle
    cdef uint64_t secret[2]
    cdef readonly SharedMemory shared
    cdef readonly Py_ssize_t capacity
    cdef object keep
    # The entry (>= 0) that counts one more request of key for this slot, or -1: `limit` are in use, or there is no room (in_use
    # tells which: -1 for no room). Give the entry to c_release exactly once. rule: identifies the rule of the key (bits of
    # RULE_MASK); no rule takes all entries of a bucket. 0: exempt from that.
    cdef int lay_out(self) except -1
    cdef int64_t c_acquire(self, const hash128_t* key, uint64_t rule, int64_t limit, int64_t* in_use) noexcept nogil
    # Prefetches the memory that c_acquire of this key reads first.
    cdef void c_prefetch(self, const hash128_t* key) noexcept nogil
    cdef void c_release(self, int64_t entry) noexcept nogil
    # How many of key are in use now, over all slots.
    cdef int64_t c_count(self, const hash128_t* key) noexcept nogil
