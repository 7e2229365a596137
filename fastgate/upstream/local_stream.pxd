"""C interface of fastgate.upstream.local_stream."""

from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport Reason
from fastgate.upstream.pool cimport Target
from fastgate.upstream.stream cimport ResponseSink, UpstreamStream

cdef class LocalTarget(Target):
    cdef readonly object handler
    cdef readonly int active                # requests in flight

cdef class LocalBody:
    cdef LocalStream stream                 # None after the request is over
    cdef object pieces                      # deque of bytes
    cdef readonly Py_ssize_t size           # of all pieces: bytes received that the handler has not taken
    cdef bint complete
    cdef readonly Headers trailers
    cdef object waiter                      # future of the handler, while it waits for a piece

cdef class LocalRequest:
    cdef readonly str method
    cdef readonly str target
    cdef readonly Headers headers
    cdef readonly LocalBody body

cdef class LocalStream(UpstreamStream):
    cdef LocalTarget owner                  # None after the request is over
    cdef ResponseSink sink
    cdef LocalRequest request
    cdef object task
    cdef bint paused
    cdef Headers trailers
    cdef object room                        # future, done when the sink takes more
    cdef bint head_only
    cdef bint answered                      # the final head has been passed on
    cdef int64_t body_left                  # of a response with a declared length; -1: none
    cdef int _let_go(self) except -1
    cdef int _tell_failed(self, Reason reason) except -1
    cdef int _tell_done(self) except -1
    cdef int _taken(self) except -1
    cdef int _head(self, int status, Headers headers) except -1
    cdef int _chunk(self, bytes chunk) except -1
