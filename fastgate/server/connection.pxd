"""C interface of fastgate.server.connection."""

from libc.stdint cimport int64_t

from fastgate._core.context cimport Reason, RequestContext
from fastgate._core.headers cimport Headers, HeadWriter
from fastgate.server.exchange cimport ClientStream, Exchange, Plane

cdef enum:
    # Why the client is not read
    PAUSED_BODY = 1           # the upstream does not keep up
    PAUSED_QUEUE = 2          # pipelined requests wait for the current one
    PAUSED_UPGRADE = 4        # the answer to an upgrade is not there yet

cdef enum:
    # How the end of an answer's body is told
    F_NONE = 0
    F_LENGTH = 1
    F_CHUNKED = 2
    F_CLOSE = 3

cdef class DataPlane(Plane):
    cdef readonly set connections
    cdef object ticker
    cdef HeadWriter out                   # the answer bytes of out_owner that are not sent yet
    cdef ClientConnection out_owner
    cdef int ticks
    cdef readonly bint closing_tunnels
    # From the config's `server`
    cdef int64_t max_header_bytes
    cdef int max_headers
    cdef int64_t max_target_bytes
    cdef int64_t header_timeout_ns
    cdef int64_t body_timeout_ns
    cdef int64_t idle_timeout_ns
    cdef int64_t max_connections
    cdef int64_t max_requests
    cdef bint half_close_allowed

cdef class ClientConnection(ClientStream):
    # Per connection
    cdef DataPlane plane
    cdef object transport
    cdef object parser
    cdef str scheme
    cdef int fd                           # -1 under TLS
    cdef bint buffered                    # the transport holds bytes the kernel did not take
    cdef bint takes_proxy_header
    cdef bytearray proxy_bytes
    cdef bytes peer
    cdef bint trusted
    cdef bint closed
    cdef bint half_closed
    cdef bint close_after                 # no further request is taken
    cdef bint lingering                   # answered; what still comes is thrown away until the client closes
    cdef int64_t linger_bytes
    cdef int paused
    cdef int64_t requests
    cdef bytes last_authority
    cdef bytes last_host
    cdef bytes last_forwarding
    # Parsing
    cdef Exchange parsing                 # the request whose bytes are arriving
    cdef bint in_head
    cdef bint in_body
    cdef bint line_is_http11
    cdef int64_t head_bytes
    cdef int64_t chunk_overhead           # bytes of chunked framing since the last body byte
    cdef bytes target
    cdef int64_t body_left                # of a body passed on by count, without the parser
    cdef Headers trailers
    cdef Exchange skipping                # its body is framed by a parser of its own (see _upgraded)
    cdef bytes upgrade_rest               # bytes behind an upgrade request
    # Exchanges
    cdef Exchange exchange                # the one being answered
    cdef list queue                       # parsed and waiting for it
    cdef bint advancing
    cdef bint tunnel
    # The answer
    cdef int framing
    cdef bint keep
    cdef int64_t to_send                  # bytes left of an answer framed by length
    cdef bint websocket
    cdef int64_t frame_left               # of the WebSocket frame that passes to the client
    cdef bytes frame_head

    cdef bytes _proxy_header(self, bytes data, int64_t now_ns)
    cdef int _feed(self, bytes data, int64_t now_ns) except -1
    cdef Py_ssize_t _plain_requests(self, bytes data, int64_t now_ns) except -1
    cdef Py_ssize_t _counted_body(self, bytes data, Py_ssize_t start) except -1
    cdef Exchange _new_exchange(self)
    cdef int _parser_error(self, object error) except -1
    cdef int _upgraded(self, bytes rest) except -1
    cdef int _advance(self) except -1
    cdef int _refuse_early(self, Reason reason) except -1
    cdef Reason _check_head(self, RequestContext ctx)
    cdef int _set_client(self, RequestContext ctx) except -1
    cdef HeadWriter _out(self)
    cdef int _write(self, const char* data, Py_ssize_t n, bytes whole) except -1
    cdef int _enqueue(self, Exchange exchange) except -1
    cdef int _message_complete(self) except -1
    cdef int _pause(self, int why) except -1
    cdef int _resume(self, int why) except -1
    cdef int _close(self) except -1
    cdef int _linger(self) except -1
    cdef int _idle(self, int64_t now_ns) except -1
    cdef bint _keeps(self, Exchange exchange)
    cdef int _write_common(self, Exchange exchange) except -1
    cdef int _begin_drain(self, bint close_tunnels) except -1
    cdef int _track_frames(self, bytes data) except -1
    cdef int _close_websocket(self) except -1
