# cython: boundscheck=False, nonecheck=True
"""The bytes of a request's body that are in memory.

WHAT     `RequestBody` holds the pieces as they arrived. Any number of cursors read it, each at its own pace and from the first byte: the
         attempts of a request, a copy of it for another upstream, a reader of the whole. A piece is let go once every cursor has
         read it, unless the body is short enough to be kept for a cursor that begins later (`keep`). Without a cursor all is held.
STATE    pieces[i] is piece number first + i. What is held is counted in `Plane.body_bytes` from `charge` to `close`.
WHO      The worker's loop.
COST     No copy of a piece but of those below SMALL_PIECE_BYTES, which are joined. Requests without a body have none of this.
SOURCES  Envoy's buffer of a request that may be retried; nginx client_body_buffer_size.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate.proxy.plane cimport Plane

__all__ = ["BodyCursor", "RequestBody"]

cdef enum:
    # A smaller piece joins the one before it while that is below JOINED_BYTES: an object takes 48 bytes beside its content, and a
    # client that sends two bytes at a time would need 28 times the memory that the bounds count.
    SMALL_PIECE_BYTES = 256
    JOINED_BYTES = 1024


cdef int add_piece(list pieces, bytes piece, bint may_join) except -1:
    """Append a piece of a body that is held in memory."""
    cdef Py_ssize_t n = len(pieces)
    cdef bytes last
    if may_join and n and PyBytes_GET_SIZE(piece) < SMALL_PIECE_BYTES:
        last = <bytes>pieces[n - 1]
        if PyBytes_GET_SIZE(last) < JOINED_BYTES:
            pieces[n - 1] = last + piece
            return 0
    pieces.append(piece)
    return 0


@cython.final
@cython.no_gc                                           # the circle with its cursors is broken by close
@cython.freelist(64)
cdef class RequestBody:
    """The body of one request, as far as it is in memory."""

    cpdef int charge(self, Plane plane) except -1:
        """Count what is held, from now on, in what the worker holds. Not before the request has begun: what waits behind another
        request of its connection is bounded by the size of a read."""
        self.plane = plane
        plane.body_bytes += self.held_bytes
        return 0

    cdef int _hold(self, int64_t more) noexcept:
        self.held_bytes += more
        if self.plane is not None:
            self.plane.body_bytes += more
        return 0

    cdef Py_ssize_t _count(self) noexcept:
        return 0 if self.pieces is None else len(self.pieces)

    cpdef int add(self, bytes piece) except -1:
        """A piece arrived."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(piece)
        cdef BodyCursor cursor = self.cursors
        if self.pieces is None:
            self.pieces = [piece]
        else:
            add_piece(self.pieces, piece, self.first + len(self.pieces) > self.sealed)
        self.held_bytes += n
        if self.plane is not None:
            self.plane.body_bytes += n
        while cursor is not None:
            cursor.unread += n
            cursor = cursor.after
        return 0

    cpdef int replace(self, bytes content) except -1:
        """Another body in place of the one that arrived. No cursor may be reading it."""
        self._hold(PyBytes_GET_SIZE(content) - self.held_bytes)
        self.pieces = [content] if content else None
        self.first = self.sealed = 0
        return 0

    cpdef bytes whole(self):
        """All of a body that no cursor has read, as one object, which replaces the pieces."""
        cdef bytes content
        if self._count() == 1:
            return <bytes>self.pieces[0]
        content = b"" if self.pieces is None else b"".join(self.pieces)
        self.pieces = [content] if content else None
        return content

    cpdef BodyCursor begin(self):
        """A cursor at the first byte; None when it is no longer held."""
        cdef BodyCursor cursor
        if self.first:
            return None
        cursor = BodyCursor.__new__(BodyCursor)
        cursor.body = self
        cursor.unread = self.held_bytes
        cursor.after = self.cursors
        self.cursors = cursor
        return cursor

    cdef list take_all(self):
        """All of a body that nobody else reads, now or later."""
        cdef list pieces = self.pieces
        if pieces is not None:
            self.first = self.sealed = self.first + len(pieces)
            self.pieces = None
            self._hold(-self.held_bytes)
        return pieces

    cpdef int keep(self, int64_t most_bytes) except -1:
        """Keep the body from its first byte on as long as it has no more than so many bytes. 0: let go of what every cursor has
        read."""
        self.keep_bytes = most_bytes
        return self._let_go()

    cpdef int64_t unread_bytes(self) noexcept:
        """What the slowest cursor has not read; without one, all that is held."""
        cdef BodyCursor cursor = self.cursors
        cdef int64_t most = 0
        if cursor is None:
            return self.held_bytes
        while cursor is not None:
            most = max(most, cursor.unread)
            cursor = cursor.after
        return most

    cdef int _let_go(self) except -1:
        """Let go of the pieces that nobody will read."""
        cdef BodyCursor cursor = self.cursors
        cdef Py_ssize_t read, n
        cdef int64_t freed = 0
        if cursor is None or (self.first == 0 and self.held_bytes <= self.keep_bytes):
            return 0
        read = cursor.at
        while cursor.after is not None:
            cursor = cursor.after
            if cursor.at < read:
                read = cursor.at
        n = read - self.first
        if n == 0:
            return 0
        if n == len(self.pieces):
            self._hold(-self.held_bytes)
            self.pieces = None
        else:
            for piece in self.pieces[:n]:
                freed += PyBytes_GET_SIZE(<bytes>piece)
            self.pieces = self.pieces[n:]               # not in place: a cursor may be handing out this list
            self._hold(-freed)
        self.first = read
        return 0

    cpdef int close(self) except -1:
        """Nobody needs it any more."""
        if self.held_bytes:
            self._hold(-self.held_bytes)
        self.pieces = None
        self.cursors = None
        self.plane = None
        return 0


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class BodyCursor:
    """How far one reader has come in a RequestBody."""

    cpdef list take(self):
        """The pieces that are here and that it has not read; None when there are none."""
        cdef RequestBody body = self.body
        cdef list pieces = body.pieces
        cdef Py_ssize_t start = self.at - body.first
        if start == body._count():
            return None
        if start:
            pieces = pieces[start:]
        self.at += len(pieces)
        self.unread = 0
        if body.sealed < self.at:
            body.sealed = self.at
        body._let_go()
        return list(pieces) if pieces is body.pieces else pieces        # more will be appended to what is still held

    cpdef int close(self) except -1:
        """It reads no further."""
        cdef RequestBody body = self.body
        cdef BodyCursor cursor
        if body is None:
            return 0
        self.body = None
        if body.cursors is self:
            body.cursors = self.after
        else:
            cursor = body.cursors
            while cursor is not None and cursor.after is not self:
                cursor = cursor.after
            if cursor is not None:
                cursor.after = self.after
        self.after = None
        return body._let_go()
