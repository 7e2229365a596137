"""C interface of fastgate.proxy.responses."""

from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport HeadWriter
from fastgate.proxy.client_stream cimport ClientStream
from fastgate.proxy.exchange cimport Exchange
from fastgate.proxy.plane cimport Plane

cdef enum:
    # Reasons not to read the client
    PAUSED_BODY = 1           # the upstream is slower than the client
    PAUSED_QUEUE = 2          # pipelined requests wait for the current one
    PAUSED_UPGRADE = 4        # the response to an upgrade is pending

cdef enum:
    # Framing of the response's body
    F_NONE = 0
    F_LENGTH = 1
    F_CHUNKED = 2
    F_CLOSE = 3

cdef class AnswerStream(ClientStream):
    cdef Plane plane
    cdef object transport
    cdef object parser                    # created for the first read that needs one; None inside a tunnel
    cdef int fd                           # -1 under TLS
    cdef bint buffered                    # the transport holds bytes that the kernel did not accept
    cdef bint closed
    cdef bint half_closed
    cdef bint close_after                 # no further request is accepted
    cdef bint lingering                   # the response is complete; further bytes are discarded until the client closes
    cdef bint eof_sent                    # the gateway's half of a tunnel is closed
    # Progress of the client while the transport holds bytes for it (slow_since_ns != 0)
    cdef int64_t written                  # bytes given to the kernel and the transport since the connection was opened
    cdef int64_t slow_since_ns
    cdef int64_t slow_from                # bytes the client had taken then
    cdef int64_t slow_taken               # bytes it had taken at the last check
    cdef int64_t slow_progress_ns         # the last check that found progress
    cdef int paused
    cdef int64_t requests
    cdef Exchange exchange                # the current one
    cdef int framing
    cdef bint keep                        # the connection may carry another request
    cdef bint tunnel
    cdef bytes upgrade_rest               # bytes that follow an upgrade request
    cdef bint websocket
    cdef int64_t frame_left               # rest of the WebSocket frame being passed to the client
    cdef bytes frame_head

    cdef HeadWriter _out(self)
    cdef int _write(self, const char* data, Py_ssize_t n, bytes whole) except -1
    cdef int _pause(self, int why) except -1
    cdef int _resume(self, int why) except -1
    cdef int _close(self) except -1
    cdef int64_t _taken(self) except -1
    cdef int _watch(self, int64_t now_ns) except -1
    cdef int _reset(self) except -1
    cdef int _see_off(self, bint late) except -1
    cdef int _linger(self) except -1
    cdef bint _keeps(self)
    cdef int _write_common(self) except -1
    cdef int _track_frames(self, bytes data) except -1
    cdef int _close_websocket(self) except -1
