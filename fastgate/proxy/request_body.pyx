# cython: boundscheck=False, nonecheck=True
"""The bytes of a request's body that are in memory.

WHAT     `RequestBody` holds the pieces as they arrived. Any number of cursors read it, each at its own pace and from the first
         byte: the attempts of a request, a copy of it for another upstream, a reader of the whole. A piece is released once every
         cursor has read it, unless the body is short enough to be kept for a cursor that begins later (`keep`). Without a cursor,
         every piece is held.
STATE    pieces[i] is piece number first + i; a piece that is held alone is in `only`, until a list is needed. The bytes held are
         counted in `Plane.body_bytes` from `charge` to `close`.
WHO      The worker's loop.
COST     No piece is copied except those below SMALL_PIECE_BYTES, which are joined. Requests without a body have no RequestBody.
SOURCES  Envoy's buffer of a request that may be retried; nginx client_body_buffer_size.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate.proxy.plane cimport Plane

__all__ = ["BodyCursor", "RequestBody"]

cdef enum:
    # A smaller piece is appended to the previous one while that is below JOINED_BYTES: an object takes 48 bytes in addition to
    # its content, and a client that sends two bytes at a time would need 28 times the memory that the bounds count.
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
@cython.no_gc                                           # `close` breaks the reference cycle with its cursors
@cython.freelist(64)
cdef class RequestBody:
    """The body of one request, as far as it is in memory."""

    cpdef int charge(self, Plane plane) except -1:
        """Count the bytes held in the worker's total from now on. Not before the request has begun: the bytes of a request that
        waits for another one on its connection are bounded by the size of a read."""
        self.plane = plane
        self.charged_bytes = self.held_bytes
        plane.body_bytes += self.held_bytes
        return 0

    cdef int _hold(self, int64_t more) noexcept:
        self.held_bytes += more
        if self.plane is not None and (more > 0 or not self.is_pinned):
            self.charged_bytes += more
            self.plane.body_bytes += more
        return 0

    cdef Py_ssize_t _count(self) except -1:
        self._list()
        return 0 if self.pieces is None else len(self.pieces)

    cdef int _list(self) except -1:
        """Put a piece that is held alone into the list of pieces."""
        if self.only is not None:
            self.pieces = [self.only]
            self.only = None
        return 0

    cpdef int add(self, bytes piece) except -1:
        """A piece arrived."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(piece)
        cdef BodyCursor cursor = self.cursors
        if self.pieces is None and self.only is None:
            self.only = piece
        else:
            self._list()
            add_piece(self.pieces, piece, self.first + len(self.pieces) > self.sealed)
        self._hold(n)
        while cursor is not None:
            cursor.unread += n
            cursor = cursor.after
        return 0

    cpdef int replace(self, bytes content) except -1:
        """Replace the body that arrived. No cursor may be reading it."""
        self._hold(PyBytes_GET_SIZE(content) - self.held_bytes)
        self.pieces = None
        self.only = content if content else None
        self.first = self.sealed = 0
        return 0

    cpdef bytes whole(self):
        """The whole body, which no cursor has read, as one object that replaces the pieces. It is counted until `close`."""
        cdef bytes content
        self.is_pinned = True
        if self._count() == 1:
            return <bytes>self.pieces[0]
        content = b"" if self.pieces is None else b"".join(self.pieces)
        self.pieces = [content] if content else None
        return content

    cpdef BodyCursor begin(self):
        """A cursor at the first byte; None if it is no longer held."""
        cdef BodyCursor cursor
        if self.first:
            return None
        cursor = BodyCursor.__new__(BodyCursor)
        cursor.body = self
        cursor.unread = self.held_bytes
        cursor.after = self.cursors
        self.cursors = cursor
        return cursor

    cdef bytes take_only(self):
        """Remove and return the piece if a single one is held, for the only reader; else None."""
        cdef bytes piece = self.only
        if piece is not None:
            self.first += 1
            self.sealed = self.first
            self.only = None
            self._hold(-self.held_bytes)
        return piece

    cdef list take_all(self):
        """Remove and return all pieces, for the only reader."""
        cdef list pieces
        self._list()
        pieces = self.pieces
        if pieces is not None:
            self.first = self.sealed = self.first + len(pieces)
            self.pieces = None
            self._hold(-self.held_bytes)
        return pieces

    cpdef int keep(self, int64_t most_bytes) except -1:
        """Keep the body from its first byte on while it has at most this many bytes. 0: release the pieces that every cursor has
        read."""
        self.keep_bytes = most_bytes
        return self._let_go()

    cpdef int64_t unread_bytes(self) noexcept:
        """Bytes that the slowest cursor has not read; without a cursor, all bytes held."""
        cdef BodyCursor cursor = self.cursors
        cdef int64_t most = 0
        if cursor is None:
            return self.held_bytes
        while cursor is not None:
            most = max(most, cursor.unread)
            cursor = cursor.after
        return most

    cdef int _let_go(self) except -1:
        """Release the pieces that no cursor will read."""
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
        if n == self._count():
            self._hold(-self.held_bytes)
            self.pieces = None
        else:
            for piece in self.pieces[:n]:
                freed += PyBytes_GET_SIZE(<bytes>piece)
            self.pieces = self.pieces[n:]               # not in place: a cursor may be handing out this list
            self._hold(-freed)
        self.first = read
        return 0

    cdef int _join(self) except -1:
        """Join small pieces that every cursor has read, and that are kept for one that begins later."""
        cdef BodyCursor cursor = self.cursors
        cdef Py_ssize_t end = self.first + len(self.pieces)
        cdef Py_ssize_t done = max(0, self.joined - self.first - 1)        # the last of those joined may grow
        cdef list pieces
        while cursor is not None:
            if cursor.at != end:
                return 0
            cursor = cursor.after
        pieces = self.pieces[done:]
        del self.pieces[done:]                          # in place: cursors hand out copies of it
        for piece in pieces:
            add_piece(self.pieces, <bytes>piece, len(self.pieces) > done)
        self.sealed = self.joined = self.first + len(self.pieces)
        cursor = self.cursors
        while cursor is not None:
            cursor.at = self.sealed
            cursor = cursor.after
        return 0

    cpdef int close(self) except -1:
        """Release the body."""
        if self.plane is not None:
            self.plane.body_bytes -= self.charged_bytes
            self.plane = None
        self.held_bytes = self.charged_bytes = 0
        self.pieces = None
        self.only = None
        self.cursors = None
        return 0


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class BodyCursor:
    """The position of one reader in a RequestBody."""

    cpdef list take(self):
        """The available pieces that it has not read; None if there are none."""
        cdef RequestBody body = self.body
        cdef list pieces
        cdef Py_ssize_t start = self.at - body.first
        if start == body._count():
            return None
        pieces = body.pieces
        if start:
            pieces = pieces[start:]
        self.at += len(pieces)
        self.unread = 0
        if body.sealed < self.at:
            body.sealed = self.at
        body._let_go()
        if pieces is body.pieces:                       # still held: more will be appended, or joined, to it
            pieces = list(pieces)
        if body.pieces is not None:
            body._join()
        return pieces

    cpdef int close(self) except -1:
        """Stop reading."""
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
