# The declarations of runtime.pyx, for cimport.

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.shm.atomic cimport atomic_load
from fastgate._core.shm.shm cimport SharedMemory

cdef extern from *:
    const int64_t RUNTIME_UNSET "INT64_MIN"     # the plan's own value applies

ctypedef struct runtime_row_t:
    uint64_t key[2]                 # the first 16 bytes of the SHA-256 of the name; key[0] 0: the row is free
    int64_t value
    int64_t since                   # version of the plan that the row was assigned for
    int64_t until                   # newest version that uses it


cdef class RuntimeTable:
    cdef int64_t* header
    cdef uint64_t* index
    cdef runtime_row_t* rows
    cdef uint64_t mask
    cdef uint64_t hint              # rows before it are taken; the assigner's own
    cdef readonly SharedMemory shared
    cdef readonly Py_ssize_t capacity
    cdef int64_t find(self, const uint64_t* key, uint64_t* place) noexcept nogil
    cdef bint try_lock(self) except -1
    cdef void unlock(self) noexcept nogil
    cdef int store(self, str name, int64_t value) except -1
    cdef int64_t* value_of(self, str name) except NULL
    cdef void claim(self, const uint64_t* key, int64_t version) noexcept nogil
    cdef void clear(self, uint64_t row) noexcept nogil


cdef class RuntimeValue:
    cdef const int64_t* at
    cdef SharedMemory shared        # which `at` points into
    cdef readonly str name
    cdef readonly int64_t default

    # The value in effect: one load.
    cdef inline int64_t c_get(self) noexcept nogil:
        cdef int64_t value = atomic_load(self.at)
        return self.default if value == RUNTIME_UNSET else value
