"""C interface of the balancers. Public: other extensions may cimport it.

Every pick returns an index into the sequence given to the constructor, or -1 when no target may be picked. `usable` is NULL (all
may be picked) or one byte per target, 0 = leave it out. What pick() adds to a target's in-flight count, finished() takes away.
"""

from libc.stdint cimport int64_t, uint64_t


cdef class SmoothWeighted:
    cdef readonly Py_ssize_t size
    cdef int64_t* _weights
    cdef int64_t* _current

    cpdef Py_ssize_t pick(self) noexcept
    cdef Py_ssize_t pick_usable(self, const unsigned char* usable) noexcept
