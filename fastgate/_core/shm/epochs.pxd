"""Public C interface of fastgate._core.shm.epochs."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.cache.cache cimport Cache
from fastgate._core.hashing cimport hash128_t
from fastgate._core.shm.fills cimport FILL_ALONE, FILL_BUSY, FILL_NONE, fills_t
from fastgate._core.shm.shm cimport SharedMemory

cdef enum:
    # The kind of a purge record; text is empty for PURGE_ALL.
    PURGE_ALL = 1
    PURGE_KEY = 2
    PURGE_TAG = 3
    PURGE_PREFIX = 4
    PURGE_PATTERN = 5


cdef class Epochs:
    cdef int64_t* header
    cdef fills_t fill_table
    cdef char* ring
    cdef uint64_t secret[2]
    cdef readonly Py_ssize_t purges
    cdef readonly Py_ssize_t fills
    cdef readonly SharedMemory shared
    cdef object keep

    # The number of the last purge; a worker that has seen it has nothing to do. One load.
    cdef int64_t c_sequence(self) noexcept nogil
    # The number up to which the disk store has applied the purges.
    cdef int64_t c_applied(self) noexcept nogil
    # Whether a purge after `since` matches the key or one of its tags. tags: a tuple of bytes or str, or None.
    cdef bint c_concerns(self, const char* key, Py_ssize_t n, tuple tags, int64_t since) except -1
    # Brings a worker's cache up to date; returns the number to remember and compare with c_sequence.
    cdef int64_t c_apply(self, Cache cache, int64_t seen) except -1
    # Fills: see FILL_* above. max_age_ns: when a silent leader is given up.
    cdef void c_hash(self, const void* key, size_t n, hash128_t* out) noexcept nogil
    cdef int64_t c_lead(self, const hash128_t* key, int64_t max_age_ns, int64_t now_ns) noexcept nogil
    cdef int64_t c_state(self, const hash128_t* key, int64_t max_age_ns, int64_t now_ns) noexcept nogil
    # Ends the fill at `place`. alone: others must not wait for this key for a second.
    cdef bint c_done(self, const hash128_t* key, int64_t place, bint alone, int64_t now_ns) noexcept nogil

    cdef int copy_record(self, int64_t count, int* kind, bint* far, char* text, Py_ssize_t* n,
                         int64_t* at_ns) noexcept nogil
    cdef int64_t oldest(self, int64_t head) noexcept nogil
    cdef bint lock(self) noexcept nogil
    cdef void unlock(self) noexcept nogil
    cdef int64_t append(self, int kind, bint far, const char* text, Py_ssize_t n) noexcept nogil
    cdef int64_t purge(self, int kind, object text, str name, bint far) except -1
