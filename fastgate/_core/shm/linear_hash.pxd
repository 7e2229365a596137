# WHAT           A hash table of the caller's nodes that grows and shrinks one bucket at a time: no call ever rehashes everything.
# STATE          directory ─► segment 0: 256 buckets of 16 bytes ─► node ─► node     bucket = hash & mask_high, or & mask_low when
#                             segment 1 …                                            that bucket does not exist yet
#                Bucket n, the next to come, takes its nodes from bucket n - 2**level. `marks` are two words per bucket that the
#                owner may use (the cache keeps its ghosts there); a split copies them.
# WHO WRITES     One thread at a time (the GIL). Nodes belong to the caller; the table links them and never frees them.
# COST           find, insert, remove O(1); one split, four merges per call at most. 16 bytes per bucket, 0.25 to 0.75 nodes per bucket.
# SOURCES        Litwin: Linear hashing (1980).

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc

cdef enum:
    SEGMENT_BITS = 8                            # 4 KiB, the page: memory comes and goes in the kernel's own unit
    SEGMENT_BUCKETS = 256
    SEGMENT_BYTES = 4096 + 16                   # with what malloc adds
    BUCKETS_MIN = 16

ctypedef struct node_t:
    node_t* chain
    uint64_t hash

ctypedef struct bucket_t:
    node_t* head
    uint32_t marks[2]

ctypedef struct table_t:
    bucket_t** directory
    uint64_t directory_room
    uint64_t segments
    uint64_t buckets
    uint64_t mask_low
    uint64_t mask_high
    uint64_t count


cdef inline bint table_init(table_t* t) noexcept nogil:
    """False if there is no memory."""
    t.directory = <bucket_t**>malloc(8 * sizeof(void*))
    if t.directory == NULL:
        return False
    t.directory[0] = <bucket_t*>calloc(SEGMENT_BUCKETS, sizeof(bucket_t))
    t.directory_room = 8
    t.segments = 1 if t.directory[0] != NULL else 0
    t.buckets = BUCKETS_MIN
    t.mask_low = BUCKETS_MIN - 1
    t.mask_high = 2 * BUCKETS_MIN - 1
    t.count = 0
    return t.segments == 1


cdef inline void table_free(table_t* t) noexcept nogil:
    cdef uint64_t i
    for i in range(t.segments):
        free(t.directory[i])
    free(t.directory)
    t.directory = NULL
    t.segments = 0


cdef inline uint64_t table_bytes(const table_t* t) noexcept nogil:
    return t.segments * SEGMENT_BYTES + t.directory_room * sizeof(void*)


cdef inline bucket_t* table_at(table_t* t, uint64_t index) noexcept nogil:
    return &t.directory[index >> SEGMENT_BITS][index & (SEGMENT_BUCKETS - 1)]


cdef inline bucket_t* table_bucket(table_t* t, uint64_t hash) noexcept nogil:
    cdef uint64_t index = hash & t.mask_high
    if index >= t.buckets:
        index &= t.mask_low
    return table_at(t, index)


cdef inline void table_grow(table_t* t) noexcept nogil:
    """Makes room for one more node: splits one bucket if the table is three quarters full.

    Without memory the chains get longer instead.
    """
    cdef bucket_t** directory
    cdef bucket_t* old
    cdef bucket_t* new
    cdef node_t** link
    cdef node_t* node
    if (t.count + 1) * 4 <= t.buckets * 3:
        return
    if (t.buckets >> SEGMENT_BITS) >= t.segments:
        if t.segments == t.directory_room:
            directory = <bucket_t**>realloc(t.directory, 2 * t.directory_room * sizeof(void*))
            if directory == NULL:
                return
            t.directory = directory
            t.directory_room *= 2
        t.directory[t.segments] = <bucket_t*>calloc(SEGMENT_BUCKETS, sizeof(bucket_t))
        if t.directory[t.segments] == NULL:
            return
        t.segments += 1
    old = table_at(t, t.buckets & t.mask_low)
    new = table_at(t, t.buckets)
    new.head = NULL
    new.marks[0] = old.marks[0]
    new.marks[1] = old.marks[1]
    link = &old.head
    while link[0] != NULL:
        node = link[0]
        if (node.hash & t.mask_high) == t.buckets:
            link[0] = node.chain
            node.chain = new.head
            new.head = node
        else:
            link = &node.chain
    t.buckets += 1
    if t.buckets > t.mask_high:
        t.mask_low = t.mask_high
        t.mask_high = 2 * t.mask_high + 1


cdef inline void table_shrink(table_t* t) noexcept nogil:
    """Merges the last bucket into its parent while the table is less than a quarter full.

    At most four merges per call: with one node removed per call, that is enough to keep the quarter.
    """
    cdef bucket_t* last
    cdef node_t** link
    cdef int merges = 4
    while merges and t.count * 4 < t.buckets and t.buckets > BUCKETS_MIN:
        merges -= 1
        t.buckets -= 1
        if t.buckets == t.mask_low:             # that was the only bucket of its level
            t.mask_high = t.mask_low
            t.mask_low >>= 1
        last = table_at(t, t.buckets)
        link = &table_at(t, t.buckets & t.mask_low).head
        while link[0] != NULL:
            link = &link[0].chain
        link[0] = last.head
        last.head = NULL
        # One spare segment stays, so that a table at the border does not allocate and free repeatedly.
        if t.segments > (t.buckets >> SEGMENT_BITS) + 2:
            t.segments -= 1
            free(t.directory[t.segments])


cdef inline void table_link(table_t* t, node_t* node) noexcept nogil:
    """Inserts a node; call table_grow first."""
    cdef bucket_t* bucket = table_bucket(t, node.hash)
    node.chain = bucket.head
    bucket.head = node
    t.count += 1


cdef inline void table_unlink(table_t* t, node_t* node) noexcept nogil:
    cdef node_t** link = &table_bucket(t, node.hash).head
    while link[0] != node:
        link = &link[0].chain
    link[0] = node.chain
    t.count -= 1
    table_shrink(t)
