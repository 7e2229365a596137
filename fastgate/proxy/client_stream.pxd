"""C interface of fastgate.proxy.client_stream."""

from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport Answer, Reason
from fastgate._core.pipeline.wheel cimport Timed

cdef enum:
    # Length of a body as told to the client side, if it is not a number of bytes
    LENGTH_UNKNOWN = -1
    LENGTH_NONE = -2          # no body at all: HEAD, 204, 304

cdef class ClientStream(Timed):
    cdef bint client_writable
    cdef int redirect_port                # port to which the listener redirects plain HTTP for HTTPS; 0: no redirect
    cdef str listener                     # address of the listener, or None
    cdef int respond_head(self, int status, bytes phrase, Headers fields, int64_t length) except -1
    cdef int respond_chunk(self, bytes chunk) except -1
    cdef int respond_end(self, Headers trailers) except -1
    cdef int respond_interim(self, int status, bytes phrase, Headers fields) except -1
    cdef int respond_answer(self, Answer answer) except -1
    cdef int respond_refusal(self, Reason reason, bytes body) except -1
    cdef int respond_ready(self, bytes head, const char* tail, int tail_n, bytes body) except -1
    cdef int flush(self) except -1
    cdef int pause_body(self) except -1
    cdef int resume_body(self) except -1
    cdef int send_continue(self) except -1
    cdef int open_tunnel(self) except -1
    cdef int tunnel_write(self, bytes data) except -1
    cdef int tunnel_eof(self) except -1
    cdef int exchange_finished(self) except -1
    cdef Reason too_slow(self, int64_t now_ns)
    cdef int cut(self) except -1
