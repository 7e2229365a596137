"""C interface of fastgate._core.cache.envelope."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.shm.epochs cimport Epochs
from fastgate._core.shm.metric cimport Metric

@cython.final
cdef class DiskReader:
    cdef Epochs epochs
    cdef Metric hits
    cdef Metric misses
    cdef Py_ssize_t skip
    cdef Py_ssize_t piece
    cdef object env                         # None: no file is open
    cdef object answers
    cdef uint64_t[2] secret
    cdef readonly int reading               # calls of `get` that are using the file
    cpdef object get(self, bytes key)
    cdef object _look(self, object env, bytes key)
    cdef bytes _join(self, object txn, const hash128_t* hashed, const char* first, Py_ssize_t first_n, uint32_t length)
