# WHAT           The parts of a cache: entries, their queues, their tags, and the ghosts of evicted ones.
# STATE          entry: 72 bytes | tag_n pointers to tags | key_n bytes of key. One malloc block.
#                queue: doubly linked, head = newest. A tag exists as long as an entry has it.
#                ghost: one of the two marks of the bucket that an evicted key belongs to: 16 bits of hash | 16 bits of epoch.
# WHO WRITES     The cache, under the GIL.
# COST           All O(1).
# SOURCES        Yang et al., FIFO queues are all you need for cache eviction (SOSP 2023), for the ghosts.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from fastgate._core.shm.linear_hash cimport bucket_t, node_t, table_bucket, table_grow, table_link, table_t, table_unlink

cdef enum:
    GHOST_EPOCHS = 32                           # an epoch is a number of evictions: a 32nd of the entries

ctypedef struct tag_t:
    node_t node
    uint64_t purged_seq                         # entries checked before this purge are dead
    uint32_t refs                               # entries that have the tag
    uint32_t n                                  # followed by n bytes of text

ctypedef struct entry_t:
    node_t node
    entry_t* next                               # towards the tail: older
    entry_t* prev                               # towards the head: newer
    PyObject* value
    int64_t expires_ns
    uint64_t checked_seq                        # no purge up to this one affects the entry
    uint64_t size                               # bytes charged: this block and the value
    uint32_t key_n
    uint8_t tag_n
    uint8_t queue
    uint8_t hits                                # since it was last considered for eviction, 3 at most
    uint8_t lives                               # evictions that its cost spares it

ctypedef struct queue_t:
    entry_t* head
    entry_t* tail
    uint64_t bytes
    uint64_t count

ctypedef struct ghosts_t:
    uint32_t epoch                              # 1 to 0xffff; 0 marks an empty one
    uint32_t epoch_left                         # evictions until the next one


cdef inline uint64_t block_size(uint64_t n) noexcept nogil:
    """Bytes that malloc takes for n bytes: an 8-byte header, 16-byte steps, 32 at least (glibc)."""
    cdef uint64_t size = (n + 8 + 15) & ~<uint64_t>15
    return size if size > 32 else 32


cdef inline tag_t** entry_tags(entry_t* e) noexcept nogil:
    return <tag_t**>(<char*>e + sizeof(entry_t))


cdef inline char* entry_key(entry_t* e) noexcept nogil:
    return <char*>e + sizeof(entry_t) + e.tag_n * sizeof(void*)


cdef inline uint64_t entry_block(entry_t* e) noexcept nogil:
    return block_size(sizeof(entry_t) + e.tag_n * sizeof(void*) + e.key_n)


cdef inline void queue_push(queue_t* q, entry_t* e) noexcept nogil:
    e.prev = NULL
    e.next = q.head
    if q.head != NULL:
        q.head.prev = e
    else:
        q.tail = e
    q.head = e
    q.bytes += e.size
    q.count += 1


cdef inline void queue_remove(queue_t* q, entry_t* e) noexcept nogil:
    if e.prev != NULL:
        e.prev.next = e.next
    else:
        q.head = e.next
    if e.next != NULL:
        e.next.prev = e.prev
    else:
        q.tail = e.prev
    q.bytes -= e.size
    q.count -= 1


cdef inline void ghost_add(ghosts_t* ghosts, table_t* entries, uint64_t hash) noexcept nogil:
    """Records an evicted key, in place of the older of the two ghosts of its bucket."""
    cdef bucket_t* bucket = table_bucket(entries, hash)
    cdef uint32_t age0 = (ghosts.epoch - bucket.marks[0]) & 0xffff if bucket.marks[0] else 0x10000
    cdef uint32_t age1 = (ghosts.epoch - bucket.marks[1]) & 0xffff if bucket.marks[1] else 0x10000
    bucket.marks[0 if age0 >= age1 else 1] = (<uint32_t>(hash >> 48) << 16) | ghosts.epoch
    ghosts.epoch_left -= 1
    if ghosts.epoch_left == 0:
        ghosts.epoch = ghosts.epoch + 1 if ghosts.epoch < 0xffff else 1
        ghosts.epoch_left = <uint32_t>(entries.count // GHOST_EPOCHS) + 1


cdef inline bint ghost_take(ghosts_t* ghosts, table_t* entries, uint64_t hash) noexcept nogil:
    """True if the key was evicted at most one cache-full of evictions ago; the ghost is then removed."""
    cdef bucket_t* bucket = table_bucket(entries, hash)
    cdef int i
    for i in range(2):
        if bucket.marks[i] and (bucket.marks[i] >> 16) == (hash >> 48):
            if ((ghosts.epoch - bucket.marks[i]) & 0xffff) <= GHOST_EPOCHS:
                bucket.marks[i] = 0
                return True
    return False


cdef inline tag_t* tag_find(table_t* tags, const char* text, Py_ssize_t n, uint64_t hash) noexcept nogil:
    cdef node_t* node = table_bucket(tags, hash).head
    cdef tag_t* tag
    while node != NULL:
        tag = <tag_t*>node
        if node.hash == hash and tag.n == <uint32_t>n and memcmp(<char*>tag + sizeof(tag_t), text, n) == 0:
            return tag
        node = node.chain
    return NULL


cdef inline tag_t* tag_acquire(table_t* tags, uint64_t* charged, const char* text, Py_ssize_t n, uint64_t hash) noexcept nogil:
    """The tag, new or with one more reference; NULL if there is no memory."""
    cdef tag_t* tag = tag_find(tags, text, n, hash)
    if tag == NULL:
        tag = <tag_t*>malloc(sizeof(tag_t) + n)
        if tag == NULL:
            return NULL
        tag.node.hash = hash
        tag.purged_seq = 0
        tag.refs = 0
        tag.n = <uint32_t>n
        memcpy(<char*>tag + sizeof(tag_t), text, n)
        table_grow(tags)
        table_link(tags, &tag.node)
        charged[0] += block_size(sizeof(tag_t) + n)
    tag.refs += 1
    return tag


cdef inline void tag_release(table_t* tags, uint64_t* charged, tag_t* tag) noexcept nogil:
    """Drops one reference; the last one frees the tag, because no entry is left that its purges could affect."""
    tag.refs -= 1
    if tag.refs == 0:
        charged[0] -= block_size(sizeof(tag_t) + tag.n)
        table_unlink(tags, &tag.node)
        free(tag)


cdef inline void bury(entry_t* grave) noexcept:
    """Releases entries that are unlinked from all structures. Destructors run here, and may use the cache."""
    cdef entry_t* next
    while grave != NULL:
        next = grave.next
        value = <object>grave.value
        Py_DECREF(value)
        free(grave)
        value = None
        grave = next
