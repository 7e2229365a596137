"""C interface of fastgate.upstream.stream."""

from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.pipeline.plan cimport Destination
from fastgate._core.pipeline.wheel cimport Timed
from fastgate.upstream.credential cimport Credential

cdef enum:
    # Length of a body for `send_head`, if it is not a number of bytes
    BODY_UNKNOWN = -1         # `send_end` marks its end
    BODY_NONE = -2            # no body

cdef enum:
    # What two requests may have in common, for the shares of a pool
    SAME_ROUTE = 1
    SAME_LISTENER = 2
    SAME_CLIENT = 4

cdef class ResponseSink:
    cdef bint waiting                       # it is in a pool's queue
    cdef int shared_with(self, ResponseSink other) noexcept
    cdef int on_connection(self, UpstreamStream stream) except -1
    cdef int on_connect_failed(self, Reason reason, str detail) except -1
    cdef int on_interim(self, UpstreamStream stream) except -1
    cdef int on_head(self, UpstreamStream stream) except -1
    cdef int on_chunk(self, bytes chunk) except -1
    cdef int on_end(self, Headers trailers) except -1
    cdef int on_read_done(self, int64_t now_ns) except -1
    cdef int on_failed(self, UpstreamStream stream, Reason reason) except -1
    cdef int on_upstream_writable(self, bint writable) except -1
    cdef int on_tunnel_data(self, bytes data) except -1
    cdef int on_tunnel_eof(self) except -1

cdef class UpstreamStream(Timed):
    # The head of the response, valid from on_interim or on_head on
    cdef int status
    cdef bytes phrase
    cdef Headers fields
    cdef int64_t content_length             # -1: unknown
    cdef int64_t now_ns                     # time of the current read
    cdef bint saw_bytes                     # a byte of the response arrived: the request is never resent
    cdef bint reused                        # the connection carried an earlier request
    cdef bint writable                      # it accepts more bytes now
    cdef int send_head(self, ResponseSink sink, RequestContext ctx, Destination destination, Credential credential, bytes method,
                       bytes path, Headers fields, int64_t length, int64_t left_ns) except -1
    cdef int send_chunk(self, bytes chunk) except -1
    cdef int send_end(self, Headers trailers) except -1
    cdef int flush(self) except -1
    cdef int pause(self) except -1
    cdef int resume(self) except -1
    cdef int release(self, int64_t now_ns) except -1
    cdef int abort(self) except -1
    cdef int tunnel_write(self, bytes data) except -1
    cdef int tunnel_eof(self) except -1
