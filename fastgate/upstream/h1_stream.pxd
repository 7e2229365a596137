"""C interface of fastgate.upstream.h1_stream."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.pipeline.context cimport Reason
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.wheel cimport Timed, TimerWheel

cdef enum:
    U_IDLE = 0           # in the pool, or just opened
    U_WAITING = 1        # request under way, no final head yet
    U_BODY = 2           # final head seen
    U_DONE = 3           # answer complete, not yet released
    U_TUNNEL = 4         # 101 seen: bytes pass untouched
    U_CLOSED = 5

cdef enum:
    # What two requests may have in common, for the shares of a pool
    SAME_ROUTE = 1
    SAME_LISTENER = 2
    SAME_CLIENT = 4

cdef class ResponseSink:
    # What an upstream connection and a pool tell the request they serve
    cdef bint waiting                       # in a pool's queue
    cdef int shared_with(self, ResponseSink other) noexcept
    cdef int on_connection(self, UpstreamConnection connection) except -1
    cdef int on_connect_failed(self, Reason reason, str detail) except -1
    cdef int on_interim(self, UpstreamConnection connection) except -1
    cdef int on_head(self, UpstreamConnection connection) except -1
    cdef int on_chunk(self, bytes chunk) except -1
    cdef int on_end(self, Headers trailers) except -1
    cdef int on_read_done(self, int64_t now_ns) except -1
    cdef int on_failed(self, UpstreamConnection connection, Reason reason) except -1
    cdef int on_upstream_writable(self, bint writable) except -1
    cdef int on_tunnel_data(self, bytes data) except -1
    cdef int on_tunnel_eof(self) except -1

cdef class ConnectionOwner:
    cdef int connection_closed(self, UpstreamConnection connection) except -1

cdef class UpstreamConnection(Timed):
    cdef object transport
    cdef object parser
    cdef ConnectionOwner owner
    cdef TimerWheel wheel
    cdef ResponseSink sink
    cdef readonly int state
    # Per request
    cdef bint head_only                     # the request was HEAD
    cdef bint upgrade_asked
    cdef bint saw_bytes                     # of the answer: a request that got any is never replayed
    cdef bint extra_bytes                   # after the answer: the connection is out of step
    cdef int interims
    cdef Py_ssize_t head_bytes
    # The answer's head
    cdef Headers fields
    cdef int status
    cdef bytes phrase
    cdef int version_minor
    cdef bint chunked
    cdef int64_t content_length             # -1 when unknown
    cdef bint until_close
    cdef bint wary                          # its head told a body that must not come (HEAD, 204, 304): look before the next use
    cdef bint keep_alive
    cdef bytes partial                      # the beginning of a head that is not whole
    cdef Py_ssize_t overhead                # bytes of chunked framing since the last body byte
    cdef bint bulk                          # read through a BulkReader
    cdef bint counted                       # the body is passed on by count, without the parser
    cdef int64_t body_left
    cdef Headers trailers
    # Per connection
    cdef int64_t opened_ns
    cdef int64_t released_ns
    cdef readonly int64_t requests
    cdef bint adopted                       # counted by its owner
    cdef Py_ssize_t place                   # in its target's list of open connections
    cdef int fd
    cdef bint is_tls
    cdef bint buffered                      # the transport holds bytes the kernel did not take
    cdef int64_t now_ns                     # of the read being digested
    cdef bint reading_paused
    cdef bint writable
    cdef bint reused                        # has carried a request before this one
    cdef int begin(self, ResponseSink sink, bint head_only, bint upgrade_asked) except -1
    cdef int write(self, const char* data, Py_ssize_t n, bytes whole) except -1
    cdef int pause(self) except -1
    cdef int resume(self) except -1
    cdef int close(self) except -1
    cdef int abort(self) except -1
    cdef bint seems_alive(self)
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
