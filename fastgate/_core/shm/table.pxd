"""Public C interface of fastgate._core.shm.table, with that of table_slots."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.shm.shm cimport SharedMemory
from fastgate._core.shm.table_slots cimport (
    RULE_MASK,
    SOURCE_MASK,
    STATE_WORDS,
    TABLE_EVICT,
    TABLE_FAIR,
    TABLE_FULL,
    TABLE_KEEP,
    TABLE_RETRY,
    TABLE_STORED,
    cursor_t,
    owner_t,
    rule_mark,
    source_mark,
    table_find,
    table_forget,
    table_ready,
    table_store,
    table_t,
)

# The hash of a Python key, str or bytes, under a secret of two words.
cdef int key_argument(object key, const uint64_t* secret, hash128_t* out) except -1
# TABLE_KEEP, TABLE_FAIR or TABLE_EVICT, for "refuse", "share" or "evict".
cdef int how_argument(object when_full) except -1


cdef class LimiterTable:
    cdef table_t handle
    cdef uint64_t secret[2]
    cdef readonly Py_ssize_t capacity
    cdef readonly int state_words
    cdef readonly SharedMemory shared
    cdef void* _private
    cdef size_t _private_bytes
    cdef int lay_out(self) except -1
    cdef int ready(self) except -1
