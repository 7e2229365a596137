"""Public C interface of fastgate._core.shm.fills."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.hashing cimport hash128_t

cdef enum:
    FILL_SLOTS = 1024       # processes; slot 0 belongs to none
    FILL_BUCKET = 8         # fills of one cache line
    # results of fills_lead and fills_state; 0 and above: a fill that this process now leads; pass it to fills_done
    FILL_NONE = -1          # state only: no process makes this key
    FILL_BUSY = -2          # a process makes it: wait, look into the cache, ask again
    FILL_ALONE = -3         # do not wait: the response turned out not to be shareable, or there was no place
    # counters
    FILLS_LED = 0
    FILLS_TAKEN_OVER = 1
    FILLS_CROWDED = 2

ctypedef struct fills_t:    # one handle; what it points to is in the shared memory
    uint64_t* words
    int64_t count           # of words, a multiple of FILL_BUCKET
    int64_t* slots          # FILL_SLOTS words: the process that has each (owners.owner_self), 0 = free
    int64_t* counters       # FILLS_* words
    int64_t generation      # fork_generation() when the slot was taken
    int64_t slot

cdef int64_t fills_lead(fills_t* fills, const hash128_t* key, int64_t max_age_ns, int64_t now_ns) noexcept nogil
cdef int64_t fills_state(fills_t* fills, const hash128_t* key, int64_t max_age_ns, int64_t now_ns) noexcept nogil
cdef bint fills_done(fills_t* fills, const hash128_t* key, int64_t place, bint alone, int64_t now_ns) noexcept nogil
cdef int64_t fills_under_way(fills_t* fills) noexcept nogil
