# The declarations of recordring.pyx, for cimport.

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.shm.shm cimport SharedMemory

@cython.final
cdef class RecordRing:
    cdef readonly SharedMemory shared
    cdef readonly int64_t capacity
    cdef readonly int64_t record_bytes
    cdef int64_t* head
    cdef char* places
    cdef int64_t stride
    cdef uint64_t key[2]
    cdef uint64_t checksum(self, const char* data, Py_ssize_t n, int64_t number) noexcept nogil
