"""The arena of the directory as its writer sees it: what is free, and compaction.

WHAT        What is free is known to the writer alone, and found again from the records when another process wrote since. Blobs are
            written behind the last one; a full arena is compacted by moving each blob down.
WHO WRITES  The directory's one writer. It may be killed at any instruction: a blob is moved by a copy and then one store of its
            record's head, so each record refers to its old or its new place. directory.pyx draws the layout.
COST        Compaction: about 1 ms per 3 MB of live blobs. Rebuilding: one pass over the records that were ever in use.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy

from fastgate._core.shm.atomic cimport atomic_add_u64, atomic_load_u64, atomic_store_u64

__all__ = []


ctypedef struct blob_t:
    uint64_t place
    uint64_t record


cdef int by_place(const void* a, const void* b) noexcept nogil:
    cdef uint64_t left = (<const blob_t*>a).place
    cdef uint64_t right = (<const blob_t*>b).place
    return -1 if left < right else left > right


cdef int arena_rebuild(directory_t* d) except -1:
    """Finds the free records and the live blobs, and finishes what a killed writer left half done."""
    cdef unsigned char* is_linked = <unsigned char*>calloc(d.capacity, 1)
    cdef uint64_t i, at, head
    cdef uint64_t count = 0
    cdef uint64_t* link
    cdef bint strayed = False
    cdef int watch
    if d.free == NULL:
        d.free = <uint32_t*>malloc(d.capacity * sizeof(uint32_t))
    if is_linked == NULL or d.free == NULL:
        free(is_linked)
        raise MemoryError(f"capacity: {d.capacity} entries")
    d.live = 0
    d.top = 0
    d.free_count = 0
    # Chain by chain, as the records tell: the buckets that none of them names are untouched memory.
    for i in range(d.header[AT_HIGH]):
        link = &d.buckets[d.records[i].digest[0] & d.mask]
        while link[0] != 0:
            at = link[0] - 1
            head = d.records[at].head
            if units_of(head) == 0:
                atomic_store_u64(link, d.records[at].next)      # removed, but not yet taken out of its chain
                continue
            if not is_linked[at]:
                is_linked[at] = 1
                count += 1
                d.live += units_of(head)
                if place_of(head) >= d.units:
                    strayed = True
                else:
                    d.top = max(d.top, place_of(head) + units_of(head))
            link = &d.records[at].next
    # From the back, so that the first records are used first.
    for i in range(d.header[AT_HIGH]):
        at = d.header[AT_HIGH] - 1 - i
        if not is_linked[at]:
            if units_of(d.records[at].head) != 0:               # filled, but never put into its chain
                atomic_store_u64(&d.records[at].head, next_head(d.records[at].head, 0, 0))
            d.free[d.free_count] = <uint32_t>at
            d.free_count += 1
    free(is_linked)
    d.header[AT_LIVE] = d.live
    atomic_store_u64(&d.header[AT_ENTRIES], count)
    if strayed:
        arena_compact(d)
    # The last change of the previous writer may be in effect without having been counted.
    atomic_add_u64(&d.header[AT_GENERATION], 1)
    for watch in range(WATCHES):
        atomic_add_u64(&d.watches[2 * watch + 1], 1)
    return 0


cdef int arena_compact(directory_t* d) except -1:
    """Moves the blobs to the beginning of the arena, each with one change of its head; safe to be killed at any instruction.

    Lets readers read on: a place is written over only after the head that named it was changed.
    """
    cdef uint64_t count = 0
    cdef uint64_t i, head, units, place
    cdef uint64_t top = 0
    cdef blob_t* blobs = <blob_t*>malloc((d.capacity + 1) * sizeof(blob_t))
    if blobs == NULL:
        raise MemoryError(f"capacity: {d.capacity} entries")
    for i in range(d.header[AT_HIGH]):
        head = d.records[i].head
        if units_of(head) != 0:
            blobs[count].place = place_of(head)
            blobs[count].record = i
            count += 1
    qsort(blobs, count, sizeof(blob_t), by_place)
    if count != 0 and blobs[count - 1].place >= d.units:
        # A compaction before this one was killed with a blob in the scratch. The gap it left still exists.
        units = units_of(d.records[blobs[count - 1].record].head)
        top = 0
        for i in range(count - 1):
            if blobs[i].place - top >= units:
                break
            top = blobs[i].place + units_of(d.records[blobs[i].record].head)
        move(d, blobs[count - 1].record, top)
        blobs[count - 1].place = top
        qsort(blobs, count, sizeof(blob_t), by_place)
        top = 0
    for i in range(count):
        place = blobs[i].place
        units = units_of(d.records[blobs[i].record].head)
        if place != top:
            if place - top < units:
                move(d, blobs[i].record, d.units)               # it would be written over while it is read
            move(d, blobs[i].record, top)
        top += units
    free(blobs)
    d.top = top
    d.header[AT_COMPACTIONS] += 1
    atomic_add_u64(&d.header[AT_GENERATION], 1)
    d.generation = atomic_load_u64(&d.header[AT_GENERATION])
    return 0


cdef void move(directory_t* d, uint64_t index, uint64_t place) noexcept nogil:
    """Copies the blob of a record to another place, that no blob uses, and changes the head."""
    cdef record_t* record = &d.records[index]
    cdef uint64_t head = record.head
    memcpy(d.arena + place * UNIT, d.arena + place_of(head) * UNIT, units_of(head) * UNIT)
    atomic_store_u64(&record.head, next_head(head, place, units_of(head)))
