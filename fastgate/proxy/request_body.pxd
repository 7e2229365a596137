"""C interface of fastgate.proxy.request_body."""

cimport cython
from libc.stdint cimport int64_t

from fastgate.proxy.plane cimport Plane

cdef enum:
    # Bytes of request bodies in memory in a worker. Above the first bound, a body that can be sent as it arrives is not collected any
    # longer; above the second one, a body that must be complete first is refused. The difference is for the latter alone.
    COLLECTED_MOST_BYTES = 33554432
    HELD_MOST_BYTES = 67108864

@cython.final
cdef class RequestBody:
    cdef Plane plane                      # its body_bytes include the bytes held here; None before `charge`
    cdef bytes only                       # the piece held, if there is one and no list
    cdef list pieces                      # the pieces held, in order; None if there are none
    cdef readonly Py_ssize_t first        # number of released pieces before pieces[0]
    cdef Py_ssize_t sealed                # pieces before this one have been read by a cursor: no bytes are appended to them
    cdef Py_ssize_t joined                # pieces before this one have been joined
    cdef readonly int64_t held_bytes      # of pieces
    cdef readonly int64_t charged_bytes   # counted in the plane: those of pieces, or of `whole` until the request is over
    cdef bint is_pinned                   # the request context holds the whole body until the request is over
    cdef int64_t keep_bytes               # a body up to this length is kept from its first byte, for a cursor that begins later
    cdef BodyCursor cursors               # first of the list of cursors that read it; `after` links to the next
    cpdef int charge(self, Plane plane) except -1
    cpdef int add(self, bytes piece) except -1
    cpdef int replace(self, bytes content) except -1
    cpdef bytes whole(self)
    cpdef BodyCursor begin(self)
    cdef bytes take_only(self)
    cdef list take_all(self)
    cpdef int keep(self, int64_t most_bytes) except -1
    cpdef int64_t unread_bytes(self) noexcept
    cpdef int close(self) except -1
    cdef int _let_go(self) except -1
    cdef int _hold(self, int64_t more) noexcept
    cdef Py_ssize_t _count(self) except -1
    cdef int _list(self) except -1
    cdef int _join(self) except -1

@cython.final
cdef class BodyCursor:
    cdef RequestBody body                 # None once it is closed
    cdef BodyCursor after
    cdef Py_ssize_t at                    # number of the piece that it reads next
    cdef int64_t unread                   # bytes that it has not read
    cpdef list take(self)
    cpdef int close(self) except -1

cdef int add_piece(list pieces, bytes piece, bint may_join) except -1
