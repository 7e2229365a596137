"""C interface of fastgate.upstream.h1_stream."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.pipeline.context cimport Reason
from fastgate._core.http.headers cimport Headers, HeadWriter, field_t
from fastgate._core.pipeline.wheel cimport TimerWheel
from fastgate.upstream.stream cimport ResponseSink, UpstreamStream

cdef enum:
    U_IDLE = 0           # in the pool, or just opened
    U_WAITING = 1        # request in flight, no final head yet
    U_BODY = 2           # final head received
    U_DONE = 3           # response complete, connection not yet released
    U_TUNNEL = 4         # 101 received: bytes pass unparsed
    U_CLOSED = 5

cdef class ConnectionOwner:
    cdef readonly bytes authority           # for the Host field
    cdef int release(self, H1UpstreamStream connection, int64_t now_ns) except -1
    cdef int connection_closed(self, H1UpstreamStream connection) except -1

@cython.final
cdef class H1UpstreamStream(UpstreamStream):
    cdef object transport
    cdef object parser
    cdef ConnectionOwner owner
    cdef TimerWheel wheel
    cdef HeadWriter out                     # bytes not sent yet; shared by the streams of an upstream
    cdef ResponseSink sink
    cdef readonly int state
    # Per request
    cdef bint chunks                        # its body uses chunked framing
    cdef bint ended                         # its body is complete
    cdef tuple owned                        # of a chunked request: field names that the client must not send in its trailers …
    cdef bytes secret_name                  # … in addition to the name of the credential
    cdef bint head_only                     # the request was HEAD
    cdef bint upgrade_asked
    cdef bint extra_bytes                   # received after the response: the connection is out of sync
    cdef int interims
    cdef Py_ssize_t head_bytes
    # The head of the response
    cdef int version_minor
    cdef bint chunked
    cdef bint until_close
    cdef bint wary                          # its head announced a body that must not follow (HEAD, 204, 304): check before reuse
    cdef bint keep_alive
    cdef bytes partial                      # the beginning of an incomplete head
    cdef Py_ssize_t overhead                # bytes of chunked framing since the last body byte
    cdef bint bulk                          # read through a BulkReader
    cdef bint counted                       # the body is passed on by length, without the parser
    cdef int64_t body_left
    cdef Headers trailers
    cdef bint in_trailers                   # the last size of a chunk was 0, or no byte of that chunk has arrived
    cdef bytes trailer_bytes                # while in_trailers: the earlier reads from that size on
    # Per connection
    cdef int64_t opened_ns
    cdef int64_t released_ns
    cdef readonly int64_t requests
    cdef bint adopted                       # counted by its owner
    cdef Py_ssize_t place                   # index in its target's list of open connections
    cdef int fd
    cdef bint is_tls
    cdef bint buffered                      # the transport holds bytes that the kernel did not accept
    cdef bint reading_paused
    cdef int begin(self, ResponseSink sink, bint head_only, bint upgrade_asked) except -1
    cdef int write(self, const char* data, Py_ssize_t n, bytes whole) except -1
    cdef int close(self) except -1
    cdef bint seems_alive(self)
    cdef bint _is_owned(self, const field_t* field) except -1
    cdef int _digest(self, bytes data, int64_t now_ns) except -1
    cdef bytes _whole_head(self, bytes data)
    cdef int _read_rest(self) except -1
    cdef int _read_in_bulk(self) except -1
    cdef int _end(self) except -1
    cdef int _fail(self, Reason reason) except -1
    cdef bint _read_head(self) except -1
    cdef bint _plain_answer(self, bytes data) except -1
    cdef int _counted_body(self, bytes data, Py_ssize_t start) except -1
    cdef int _parse(self, bytes data) except -1
