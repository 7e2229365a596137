# cython: boundscheck=False
"""The client side of one request: the methods with which an exchange writes its response.

WHAT     `ClientStream` is abstract: an HTTP/1.1 connection implements it (proxy/responses.pyx), and so does the client of a
         background revalidation, which discards everything (`NoClient`). An implementation knows the exchange that it serves; a
         method that it does not implement raises NotImplementedError with its name.
STATE    client_writable: whether the client takes more bytes now.
WHO      The worker's loop.
COST     One virtual call per method.
SOURCES  RFC 9110 §6 (a message: head, content, trailers), §15.2 (interim responses), §7.8 (upgrade).
"""

from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.abstract cimport missing
from fastgate._core.pipeline.context cimport Answer, Reason
from fastgate._core.pipeline.wheel cimport Timed

__all__ = ["ClientStream"]


cdef class ClientStream(Timed):
    """The client side of one request."""

    cdef int respond_head(self, int status, bytes phrase, Headers fields, int64_t length) except -1:
        """Write the head of a response from an upstream or a hook.

        length: bytes of its body, LENGTH_UNKNOWN or LENGTH_NONE. phrase: None for the standard one.
        """
        missing(self, "respond_head")

    cdef int respond_chunk(self, bytes chunk) except -1:
        """Write a piece of the body."""
        missing(self, "respond_chunk")

    cdef int respond_end(self, Headers trailers) except -1:
        """End the response. trailers: None when there are none."""
        missing(self, "respond_end")

    cdef int respond_interim(self, int status, bytes phrase, Headers fields) except -1:
        """Write an interim response (1xx)."""
        missing(self, "respond_interim")

    cdef int respond_answer(self, Answer answer) except -1:
        """Write a whole local response."""
        missing(self, "respond_answer")

    cdef int respond_refusal(self, Reason reason, bytes body) except -1:
        """Write a whole refusal; body is JSON."""
        missing(self, "respond_refusal")

    cdef int respond_ready(self, bytes head, const char* tail, int tail_n, bytes body) except -1:
        """Write a whole response whose head is prebuilt, except for the tail_n bytes at tail and the fields of this request."""
        missing(self, "respond_ready")

    cdef int flush(self) except -1:
        """Send everything that the methods above have written."""
        missing(self, "flush")

    cdef int pause_body(self) except -1:
        """Pause reading the request body."""
        missing(self, "pause_body")

    cdef int resume_body(self) except -1:
        """Resume reading the request body."""
        missing(self, "resume_body")

    cdef int send_continue(self) except -1:
        """Send 100 (Continue) immediately."""
        missing(self, "send_continue")

    cdef int open_tunnel(self) except -1:
        """Pass bytes unparsed from now on: a 101 has been written."""
        missing(self, "open_tunnel")

    cdef int tunnel_write(self, bytes data) except -1:
        """Send bytes of a tunnel immediately."""
        missing(self, "tunnel_write")

    cdef int tunnel_eof(self) except -1:
        """Close this half of a tunnel."""
        missing(self, "tunnel_eof")

    cdef int exchange_finished(self) except -1:
        """The request is over: nothing more is written for it."""
        missing(self, "exchange_finished")

    cdef Reason too_slow(self, int64_t now_ns):
        """The reason to give up a client that has bytes to take; None while it takes them fast enough."""
        missing(self, "too_slow")

    cdef int cut(self) except -1:
        """Terminate the response in a way that no client can mistake for a complete one."""
        missing(self, "cut")
