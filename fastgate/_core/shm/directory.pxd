# The declarations of directory.pyx, for cimport.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastgate._core.shm.shm cimport SharedMemory

ctypedef struct record_t:           # one cache line
    uint64_t head                   # changes 22 | place 26 | units 16; units 0 = dead
    uint64_t digest[4]
    uint64_t next                   # record + 1, 0 = end of the chain
    int64_t used
    int64_t last_used_ns            # CLOCK_REALTIME

ctypedef struct directory_t:        # one handle; header, watches, buckets, records and arena are in the shared memory
    uint64_t* header
    uint64_t* watches               # first word of the digest, changes
    uint64_t* buckets
    record_t* records
    char* arena
    uint64_t mask
    uint64_t capacity
    uint64_t units                  # of the arena, without the scratch area at its end
    uint64_t scratch                # units of the scratch area, and of the largest blob
    # Writer's private data, rebuilt from the reachable records whenever another process has written (private memory):
    int64_t writer                  # owner_self() when it was rebuilt
    uint64_t generation             # the generation it corresponds to
    uint64_t top                    # first unit of the arena never used since the last compaction
    uint64_t live                   # units of the blobs in use
    uint64_t free_count
    uint32_t* free


cdef class Directory:
    cdef directory_t d
    cdef readonly SharedMemory shared
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t arena_bytes
    # The record of this digest and its version, or -1. Never blocks; a digest is 32 bytes.
    cdef int64_t c_find(self, const unsigned char* digest, uint64_t* version) noexcept nogil
    # Whether the record still has the version that c_find returned: one load. False from the moment it is removed or replaced.
    cdef bint c_current(self, int64_t index, uint64_t version) noexcept nogil
    # The watch on a digest, the same number in every process. DirectoryFull.
    cdef int c_watch(self, const unsigned char* digest) except -1
    # A number that changes with every change of the watched digest: one load.
    cdef uint64_t c_changes(self, int watch) noexcept nogil
    # 0: not loaded yet; 1: loaded now or before; 2: cannot be loaded.
    cdef int c_loaded(self) noexcept nogil
    # Counts one use.
    cdef void c_used(self, int64_t index, int64_t realtime_ns) noexcept nogil
    # The blob of that version as bytes, or None if it is no longer current.
    cdef object c_read(self, int64_t index, uint64_t version)
    cdef void count_change(self, const unsigned char* digest) noexcept nogil
    cdef int become_writer(self) except -1
    cdef int rebuild(self) except -1
    cdef int compact(self) except -1
    cdef int store_blob(self, record_t* record, bytes blob) except -1
