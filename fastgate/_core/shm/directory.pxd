"""Public C interface of fastgate._core.shm.directory."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.shm.directory_arena cimport directory_t, record_t
from fastgate._core.shm.shm cimport SharedMemory


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
    cdef int store_blob(self, record_t* record, bytes blob) except -1
