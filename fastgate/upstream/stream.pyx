# cython: boundscheck=False
"""The upstream side of one request: the methods that send it, and the events of its response.

WHAT     `UpstreamStream` is abstract: an HTTP/1.1 connection implements it (upstream/h1_stream.pyx). Only the implementation
         knows how a head and a body are encoded. `ResponseSink` is the other direction: the events that a stream, and the pool it
         comes from, report to the request. A method that a class does not implement raises NotImplementedError with its name.
STATE    send_head → send_chunk … → send_end, then `flush`; `release` when both messages are complete, `abort` at any time.
WHO      The worker's loop.
COST     One virtual call per method.
SOURCES  RFC 9110 §6 (a message: head, content, trailers), §15.2 (interim responses), §7.8 (upgrade).
"""

from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.abstract cimport missing
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.pipeline.plan cimport Destination
from fastgate._core.pipeline.wheel cimport Timed
from fastgate.upstream.credential cimport Credential

__all__ = ["ResponseSink", "UpstreamStream"]


cdef class ResponseSink:
    """The events that an upstream stream and a pool report to their request. Abstract: an exchange implements it, and a call of
    `fetch`."""

    cdef int shared_with(self, ResponseSink other) noexcept:
        """What this request has in common with another, as SAME_* bits. 0: it does not count against any share of a pool."""
        return 0

    cdef int on_connection(self, UpstreamStream stream) except -1:
        """A connection is available, and belongs to the request."""
        missing(self, "on_connection")

    cdef int on_connect_failed(self, Reason reason, str detail) except -1:
        """No connection could be opened."""
        missing(self, "on_connect_failed")

    cdef int on_interim(self, UpstreamStream stream) except -1:
        """An interim response (1xx) arrived."""
        missing(self, "on_interim")

    cdef int on_head(self, UpstreamStream stream) except -1:
        """The head of the response arrived."""
        missing(self, "on_head")

    cdef int on_chunk(self, bytes chunk) except -1:
        """A piece of its body arrived."""
        missing(self, "on_chunk")

    cdef int on_end(self, Headers trailers) except -1:
        """The response is complete. trailers: None when there are none."""
        missing(self, "on_end")

    cdef int on_read_done(self, int64_t now_ns) except -1:
        """All events of one read have been reported."""
        missing(self, "on_read_done")

    cdef int on_failed(self, UpstreamStream stream, Reason reason) except -1:
        """The response ends prematurely: the stream is lost, or cannot be trusted."""
        missing(self, "on_failed")

    cdef int on_upstream_writable(self, bint writable) except -1:
        """The connection's write buffer is full, or has room again."""
        missing(self, "on_upstream_writable")

    cdef int on_tunnel_data(self, bytes data) except -1:
        """Bytes after a 101 arrived."""
        missing(self, "on_tunnel_data")

    cdef int on_tunnel_eof(self) except -1:
        """The upstream closed its half of a tunnel."""
        missing(self, "on_tunnel_eof")


cdef class UpstreamStream(Timed):
    """The upstream side of one request."""

    cdef int send_head(self, ResponseSink sink, RequestContext ctx, Destination destination, Credential credential, bytes method,
                       bytes path, Headers fields, int64_t length, int64_t left_ns) except -1:
        """Write the head of a request; events from now on are reported to sink.

        length: bytes of its body, BODY_UNKNOWN or BODY_NONE. left_ns > 0: the rest of the total deadline.
        """
        missing(self, "send_head")

    cdef int send_chunk(self, bytes chunk) except -1:
        """Write a piece of the body. It may stay buffered until `flush`."""
        missing(self, "send_chunk")

    cdef int send_end(self, Headers trailers) except -1:
        """End the request. trailers: None when there are none."""
        missing(self, "send_end")

    cdef int flush(self) except -1:
        """Send everything that the methods above have written."""
        missing(self, "flush")

    cdef int pause(self) except -1:
        """Pause reading the response."""
        missing(self, "pause")

    cdef int resume(self) except -1:
        """Resume reading the response."""
        missing(self, "resume")

    cdef int release(self, int64_t now_ns) except -1:
        """The response is complete, or the tunnel over: keep the connection for another request if that is safe. The sink gets no
        more events."""
        missing(self, "release")

    cdef int abort(self) except -1:
        """Abort the request immediately, and discard unsent bytes. The sink gets no more events."""
        missing(self, "abort")

    cdef int tunnel_write(self, bytes data) except -1:
        """Send bytes of a tunnel immediately."""
        missing(self, "tunnel_write")

    cdef int tunnel_eof(self) except -1:
        """Close this half of a tunnel."""
        missing(self, "tunnel_eof")
