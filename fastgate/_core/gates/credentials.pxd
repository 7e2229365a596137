"""Public C interface of fastgate._core.gates.credentials."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.pipeline.identity cimport Identity

ctypedef struct credential_t:
    uint64_t low
    uint64_t high
    int64_t until_ns                # CLOCK_MONOTONIC
    int64_t size                    # of the identity, in bytes

cdef class CredentialCache:
    cdef credential_t* rows
    cdef list identities
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t used
    cdef readonly int64_t bytes
    cdef readonly int64_t max_bytes
    cdef int64_t evictions          # not yet in the metrics
    cdef Py_ssize_t hand            # where room is made next
    cdef Py_ssize_t swept           # up to where this round of the sweep has come
    cdef tuple told
    cdef object sweeper
    cdef uint64_t[2] secret
    cdef readonly int64_t hits
    cdef readonly int64_t misses
    cdef void key_of(self, uint64_t family, const char* data, Py_ssize_t n, hash128_t* out) noexcept
    cdef Identity find(self, const hash128_t* key, int64_t now_ns)
    cdef int keep(self, const hash128_t* key, Identity identity, int64_t until_ns) except -1
    cdef int resize(self, Py_ssize_t capacity) except -1
    cdef void drop(self, Py_ssize_t place)
