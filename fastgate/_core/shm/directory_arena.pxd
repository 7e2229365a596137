"""C interface of fastgate._core.shm.directory_arena."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    HEADER_WORDS = 16
    WATCHES = 256                   # a power of two; documents are some ten
    UNIT = 16                       # bytes; blobs are some 150 long, so half a unit is lost on each
    UNITS_BITS = 16
    PLACE_BITS = 26
    MAX_UNITS = (1 << UNITS_BITS) - 1
    # words of the header
    AT_STATE = 0                    # 0 new, DIRECTORY_MAGIC ready, else the owner that is laying it out
    AT_LAYOUT = 1
    AT_CAPACITY = 2
    AT_UNITS = 3
    AT_SCRATCH = 4
    AT_WRITER = 5
    AT_NAME = 6                     # random: which directory this is
    AT_ENTRIES = 7
    AT_COMPACTIONS = 9
    AT_TAKEOVERS = 10
    AT_LIVE = 11
    AT_LOADED = 12
    AT_HIGH = 13                    # records that were ever in use: those behind are untouched memory
    AT_GENERATION = 8               # on the second line

ctypedef struct record_t:           # one cache line
    uint64_t head                   # changes 22 | place 26 | units 16; units 0 = dead
    uint64_t digest[4]
    uint64_t next                   # record + 1, 0 = the end of the chain
    int64_t used
    int64_t last_used_ns            # CLOCK_REALTIME

ctypedef struct directory_t:        # one handle; header, watches, buckets, records and arena lie in the shared memory
    uint64_t* header
    uint64_t* watches               # first word of the digest, changes
    uint64_t* buckets
    record_t* records
    char* arena
    uint64_t mask
    uint64_t capacity
    uint64_t units                  # of the arena, without the scratch at its end
    uint64_t scratch                # units of the scratch, and the largest blob
    # The writer's own, rebuilt from what is reachable whenever another process wrote (private memory):
    int64_t writer                  # owner_self() when it was rebuilt
    uint64_t generation             # the generation it corresponds to
    uint64_t top                    # first unit of the arena never used since the last compaction
    uint64_t live                   # units of the blobs in use
    uint64_t free_count
    uint32_t* free

cdef inline uint64_t units_of(uint64_t head) noexcept nogil:
    """The length of the blob in units; 0: the record is dead."""
    return head & MAX_UNITS

cdef inline uint64_t place_of(uint64_t head) noexcept nogil:
    """The first unit of the blob in the arena."""
    return (head >> UNITS_BITS) & ((<uint64_t>1 << PLACE_BITS) - 1)

cdef inline uint64_t next_head(uint64_t head, uint64_t place, uint64_t units) noexcept nogil:
    """What follows this head: one change more, and the blob there."""
    return (((head >> (UNITS_BITS + PLACE_BITS)) + 1) << (UNITS_BITS + PLACE_BITS)) | (place << UNITS_BITS) | units

# For the writer only. MemoryError, and nothing changed.
cdef int arena_rebuild(directory_t* d) except -1
cdef int arena_compact(directory_t* d) except -1
