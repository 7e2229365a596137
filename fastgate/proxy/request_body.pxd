"""C interface of fastgate.proxy.request_body."""

cimport cython
from libc.stdint cimport int64_t

from fastgate.proxy.plane cimport Plane

cdef enum:
    # Of all request bodies in memory in a worker. Beyond it a body that may be sent as it arrives is not collected, and one that must
    # be read whole is refused.
    HELD_MOST_BYTES = 67108864

@cython.final
cdef class RequestBody:
    cdef Plane plane                      # whose body_bytes has the bytes held here; None before `charge`
    cdef list pieces                      # what is held, in order; None when nothing is
    cdef readonly Py_ssize_t first        # how many pieces stood before pieces[0] and were let go
    cdef Py_ssize_t sealed                # pieces before this one have been read by a cursor: nothing is joined to them
    cdef readonly int64_t held_bytes
    cdef int64_t keep_bytes               # a body up to this length is kept from its first byte, for a cursor that begins later
    cdef BodyCursor cursors               # the first of those that read it; `after` leads to the next
    cpdef int charge(self, Plane plane) except -1
    cpdef int add(self, bytes piece) except -1
    cpdef int replace(self, bytes content) except -1
    cpdef bytes whole(self)
    cpdef BodyCursor begin(self)
    cdef list take_all(self)
    cpdef int keep(self, int64_t most_bytes) except -1
    cpdef int64_t unread_bytes(self) noexcept
    cpdef int close(self) except -1
    cdef int _let_go(self) except -1
    cdef int _hold(self, int64_t more) noexcept
    cdef Py_ssize_t _count(self) noexcept

@cython.final
cdef class BodyCursor:
    cdef RequestBody body                 # None once it is closed
    cdef BodyCursor after
    cdef Py_ssize_t at                    # the number of the piece that it reads next
    cdef int64_t unread                   # bytes from there on
    cpdef list take(self)
    cpdef int close(self) except -1

cdef int add_piece(list pieces, bytes piece, bint may_join) except -1
