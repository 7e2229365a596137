"""C interface of fastgate._core.shm.table_slots. What others than table.pyx need is in table.pxd."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.debug cimport debug_assert

cdef extern from *:
    """
    #include <stdint.h>
    #define TABLE_RECORD UINT64_C(0xffffff)
    #define TABLE_PENDING (UINT64_C(1) << 32)
    """
    const uint64_t TABLE_RECORD
    const uint64_t TABLE_PENDING

cdef enum:
    BUCKET = 8              # slots: one cache line of index words
    RECORD_WORDS = 3        # before the state
    LARGEST_OWNERS = 1000   # the record names its owner in 10 bits
    LARGEST_CAPACITY = 9_000_000        # 1.75 slots each, counted in 24 bits
    # words of the header
    AT_STATE = 0            # 0 new, TABLE_MAGIC ready, else the owner that is laying it out
    AT_LAYOUT = 1
    AT_SLOTS = 2
    AT_WORDS = 3
    AT_OWNERS = 4
    AT_SECRET = 5           # 2 words
    AT_BOOT = 7             # a clock that began again makes every stored time a lie
    AT_INSERTED = 8         # counters, on their own line
    AT_REUSED = 9
    AT_EVICTED = 10
    AT_REFUSED = 11
    AT_RECOVERED = 12
    AT_DISPLACED = 13       # made room for a rule or a source with few entries
    AT_OVER_SHARE = 14      # of the refused: there was room, kept for others

cdef enum:
    STATE_WORDS = 29        # the widest record is 32 words: 3 of its own and 29 of state
    # results of table_store
    TABLE_STORED = 0
    TABLE_RETRY = 1         # another process was faster: find again, decide again
    TABLE_FULL = 2          # no place for a new key; cursor.idle_at_ns is when there may be one
    # what a new key may take, see table_slots.pyx
    TABLE_KEEP = 0
    TABLE_FAIR = 1
    TABLE_EVICT = 2
    # a mark: the rule of a key (0: no shares), and its source
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
# True if this handle has a place among the owners, a free one or a dead process's; False if all are taken and alive.
cdef bint table_join(table_t* t) noexcept nogil
# Completes what the dead owner of a place had begun.
cdef void table_recover(table_t* t, uint64_t place) noexcept nogil

cdef inline uint64_t record_of(uint64_t head, uint64_t slot) noexcept nogil:
    """The number of the record that a slot with this index word has."""
    cdef uint64_t record = head & TABLE_RECORD
    return record if record != 0 else slot + 1

cdef inline uint64_t tag_of(uint64_t head) noexcept nogil:
    """The tag bits of an index word; 0: the slot is empty."""
    return head & (<uint64_t>0xff << 24)

cdef inline int64_t* record_at(table_t* t, uint64_t record) noexcept nogil:
    debug_assert(0 < record <= t.slots + t.owner_count)
    return t.records + record * t.words
