from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastgate._core.linear_hash cimport node_t, table_t

ctypedef struct tag_t:
    node_t node
    uint64_t purged_seq                         # entries checked before this purge are dead
    uint32_t refs                               # entries that carry the tag
    uint32_t n                                  # followed by n bytes of text

ctypedef struct entry_t:
    node_t node
    entry_t* next                               # towards the tail: older
    entry_t* prev                               # towards the head: newer
    PyObject* value
    int64_t expires_ns
    uint64_t checked_seq                        # no purge up to this one hits the entry
    uint64_t size                               # bytes charged: this block and the value
    uint32_t key_n
    uint8_t tag_n
    uint8_t queue
    uint8_t hits                                # 2 bits: hits since it was last considered
    uint8_t lives                               # rounds that its cost has bought
    # followed by tag_n tag_t*, then key_n bytes

ctypedef struct queue_t:
    entry_t* head
    entry_t* tail
    uint64_t bytes
    uint64_t count

ctypedef struct purge_t:
    uint64_t seq
    uint32_t n
    bint is_pattern
    unsigned char* text

cdef class Cache:
    cdef readonly uint64_t max_bytes
    cdef bint is_lru
    cdef int64_t ttl_ns                         # INT64_MAX = for ever
    cdef uint64_t key[2]
    cdef table_t entries
    cdef table_t tags
    cdef queue_t queues[2]
    cdef uint64_t entry_bytes
    cdef uint64_t tag_bytes
    cdef uint64_t timed                         # entries that expire
    # purges
    cdef uint64_t seq                           # of the last purge
    cdef uint64_t floor_seq                     # of the last clear()
    cdef uint64_t clean_seq                     # every entry has been checked against purges up to here
    cdef uint64_t cleared                       # entries held that clear() has killed
    cdef purge_t* purges                        # active prefixes and patterns, by seq
    cdef uint32_t purge_n
    cdef uint32_t purge_room
    cdef uint64_t purge_bytes
    # the sweep
    cdef bint sweeping
    cdef entry_t* cursor
    cdef int cursor_queue
    cdef uint64_t pass_seq
    # ghosts
    cdef uint32_t ghost_epoch
    cdef uint32_t ghost_epoch_left
    # statistics
    cdef uint64_t hits
    cdef uint64_t misses
    cdef uint64_t stored
    cdef uint64_t evicted
    cdef uint64_t expired
    cdef uint64_t purged
    cdef uint64_t refused
    cdef uint64_t overflowed

    # The value, or None when there is no live entry. now_ns is used only by entries that expire.
    cdef object lookup(self, const char* key, Py_ssize_t n, int64_t now_ns)
    # 1 when stored, 0 when refused. tags: a tuple of str or bytes. size: value_size() for bytes.
    cdef int store(self, const char* key, Py_ssize_t n, object value, uint64_t size, int64_t expires_ns, int lives,
                   tuple tags, int64_t now_ns) except -1

    cdef entry_t* find(self, const char* key, Py_ssize_t n, uint64_t hash) noexcept
    cdef object hit(self, entry_t* e, int64_t now_ns)
    cdef int state_of(self, entry_t* e, int64_t now_ns) noexcept
    cdef uint64_t used(self) noexcept
    cdef void drop(self, entry_t* e, entry_t** grave) noexcept
    cdef bint drop_dead(self, entry_t* e, int64_t now_ns, entry_t** grave) noexcept
    cdef bint make_room(self, uint64_t need, int64_t now_ns, entry_t** grave) noexcept
    cdef bint evict_one(self, int64_t now_ns, int* rotations_total, entry_t** grave) noexcept
    cdef uint64_t sweep_some(self, uint64_t entries, int64_t now_ns, entry_t** grave) noexcept
    cdef void ghost_add(self, uint64_t hash) noexcept
    cdef bint ghost_take(self, uint64_t hash) noexcept
    cdef tag_t* tag_find(self, const char* text, Py_ssize_t n, uint64_t hash) noexcept
    cdef tag_t* tag_acquire(self, const char* text, Py_ssize_t n) noexcept
    cdef void tag_release(self, tag_t* tag) noexcept
    cdef void retire_purges(self) noexcept
    cdef int purge(self, object text, str name, bint is_pattern) except -1
    cdef int64_t now_of(self, object now_ns, bint needed) except -1

# Bytes charged for a bytes value of n bytes.
cdef uint64_t value_size(Py_ssize_t n) noexcept nogil
