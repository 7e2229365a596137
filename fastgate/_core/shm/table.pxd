# The declarations of table.pyx, for cimport.

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.shm.shm cimport SharedMemory

cdef enum:
    STATE_WORDS = 29        # the widest record is 32 words: 3 of its own and 29 of state
    # results of table_store
    TABLE_STORED = 0
    TABLE_RETRY = 1         # another process was faster: find again, decide again
    TABLE_FULL = 2          # no place for a new key; cursor.idle_at_ns is when there may be one
    # what a new key may take, see table.pyx
    TABLE_KEEP = 0
    TABLE_FAIR = 1
    TABLE_EVICT = 2
    # a mark: the rule of the key (0: no shares), and its source
    RULE_MASK = 0xffc000
    SOURCE_MASK = 0xfffff0

ctypedef struct owner_t:    # one cache line per process handle, in the shared memory
    int64_t ident           # owners.owner_self of the holder, 0 = free
    uint64_t spare          # the record this owner may write
    uint64_t flight         # slot + 1 while a swing is in flight, else 0
    uint64_t old            # the head that swing expects
    uint64_t new            # the head it puts there
    uint64_t unused[3]

ctypedef struct table_t:    # one handle; everything it points to is in the shared memory
    uint64_t* header
    owner_t* owners
    uint64_t* index
    int64_t* records
    uint64_t slots
    uint64_t buckets
    uint64_t words          # of one record
    uint64_t owner_count
    uint64_t owner          # the place of this handle among the owners
    int64_t generation      # fork_generation() when the place was taken; 0 = none yet
    bint is_shared

ctypedef struct cursor_t:   # one key: fill low, high and mark (rule_mark, with a source_mark where one is known), find, change state, store
    uint64_t low
    uint64_t high
    uint64_t slot
    uint64_t head           # 0 = the key was absent
    uint64_t mark           # of the entry where there is one, else for the one to come
    int64_t idle_at_ns
    int64_t state[STATE_WORDS]

cdef inline uint64_t rule_mark(uint64_t hash) noexcept nogil:
    """The rule's part of a mark; never 0. Two rules of the same one share a share."""
    return ((hash & 0x3ff) or 1) << 14

cdef inline uint64_t source_mark(uint64_t hash) noexcept nogil:
    return (hash & 0x3ff) << 4

# All need table_ready first. None blocks, allocates or raises.
cdef bint table_ready(table_t* t) noexcept nogil
cdef bint table_find(table_t* t, cursor_t* c) noexcept nogil
cdef int table_store(table_t* t, cursor_t* c, int64_t idle_at_ns, int64_t now_ns, int how) noexcept nogil
cdef bint table_forget(table_t* t, cursor_t* c) noexcept nogil
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
