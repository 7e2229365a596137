from libc.stdint cimport int64_t, uint64_t

from fastgate._core.cache.cache_entry cimport entry_t, ghosts_t, queue_t
from fastgate._core.shm.linear_hash cimport table_t
from fastgate._core.shm.purges cimport purges_t

cdef class Cache:
    cdef readonly uint64_t max_bytes
    cdef bint is_lru
    cdef int64_t ttl_ns                         # INT64_MAX = no expiry
    cdef table_t entries
    cdef table_t tags
    cdef queue_t queues[2]
    cdef uint64_t entry_bytes
    cdef uint64_t tag_bytes
    cdef uint64_t timed                         # entries that expire
    # purges
    cdef uint64_t seq                           # of the last purge
    cdef uint64_t floor_seq                     # of the last clear()
    cdef uint64_t clean_seq                     # every entry has been checked against purges up to this one
    cdef uint64_t cleared                       # entries held that clear() has invalidated
    cdef purges_t purges                        # active prefixes and patterns
    # the sweep
    cdef bint sweeping
    cdef entry_t* cursor
    cdef int cursor_queue
    cdef uint64_t pass_seq
    cdef ghosts_t ghosts
    # statistics
    cdef uint64_t hits
    cdef uint64_t misses
    cdef uint64_t stored
    cdef uint64_t evicted
    cdef uint64_t expired
    cdef uint64_t purged
    cdef uint64_t refused
    cdef uint64_t overflowed

    # The value, or None if there is no live entry. now_ns is used only by entries that expire.
    cdef object lookup(self, const char* key, Py_ssize_t n, int64_t now_ns)
    # 1 if stored, 0 if refused. tags: a tuple of str or bytes. size: value_size() for bytes.
    cdef int store(self, const char* key, Py_ssize_t n, object value, uint64_t size, int64_t expires_ns, int lives,
                   tuple tags, int64_t now_ns) except -1

    cdef int put(self, const char* key, Py_ssize_t n, uint64_t hash, object value, uint64_t size, int64_t expires_ns, int lives,
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
    cdef int purge(self, object text, str name, bint is_pattern) except -1
    cdef int64_t now_of(self, object now_ns, bint needed) except -1

# Bytes charged for a bytes value of n bytes.
cdef uint64_t value_size(Py_ssize_t n) noexcept nogil
