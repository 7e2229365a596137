"""C interface of fastgate.proxy.h1_client."""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.plan cimport Plan
from fastgate.proxy.responses cimport AnswerStream
from fastgate.proxy.exchange cimport Exchange

@cython.final
cdef class ClientConnection(AnswerStream):
    # Per connection
    cdef str scheme
    cdef bint takes_proxy_header
    cdef bint admitted
    cdef bint excess                      # bytes arrived after a request that was declared the last
    cdef int64_t advance_ns               # when the response before the queued requests ended
    cdef bytearray proxy_bytes
    cdef bytes peer
    cdef bytes certificate                # the client's certificate, DER, verified by the handshake
    cdef bint is_unix                        # the peer is a process on this host
    cdef bint trusted                     # whether it is one of the trusted proxies …
    cdef Plan trusted_by                  # … of this plan; checked again when the plan changes
    cdef int64_t linger_bytes
    cdef bytes last_received              # the Host of the previous request, and its canonical form
    cdef bytes last_host
    cdef bytes last_authority
    cdef bytes last_forwarding            # the forwarding fields for this authority
    cdef bytes forwarding_for
    # Parsing
    cdef Exchange parsing                 # the request whose bytes are arriving
    cdef bint in_head
    cdef bint in_body
    cdef bint line_is_http11
    cdef bytes head                       # what has arrived of the head, from its first byte; None if that byte's place is unknown
    cdef int64_t head_bytes
    cdef int begun                        # requests whose first byte lies in this read
    cdef int64_t chunk_overhead           # bytes of chunked framing since the last body byte
    cdef bytes target
    cdef bytes held                       # the first bytes of a request whose method is incomplete …
    cdef bint begun_early                 # … and which the parser has not seen
    cdef bytes extension                  # the method of the request in the parser, if llhttp does not know it
    cdef int64_t body_left                # rest of a body that is passed on by length, without the parser
    cdef Headers trailers
    cdef Exchange skipping                # its body is framed by a separate parser (see _upgraded)
    # Exchanges
    cdef list queue                       # parsed requests waiting for the current one: queue_n of them, from queue_at on
    cdef Py_ssize_t queue_at
    cdef Py_ssize_t queue_n
    cdef bint advancing

    cdef bytes _proxy_header(self, bytes data, int64_t now_ns)
    cdef int _feed(self, bytes data, int64_t now_ns) except -1
    cdef bytes _feed_until_upgrade(self, bytes data, int64_t now_ns)
    cdef Py_ssize_t _plain_requests(self, bytes data, int64_t now_ns) except -1
    cdef Py_ssize_t _counted_body(self, bytes data, Py_ssize_t start) except -1
    cdef Exchange _new_exchange(self)
    cdef bytes _known_method(self, bytes data)
    cdef int _parser_error(self, object error) except -1
    cdef bytes _upgraded(self, bytes rest)
    cdef int _advance(self) except -1
    cdef bint _has_unread(self)
    cdef int _refuse_early(self, Reason reason) except -1
    cdef Reason _check_head(self, RequestContext ctx)
    cdef int _judge_peer(self, Plan plan) except -1
    cdef int _set_client(self, RequestContext ctx, Plan plan) except -1
    cdef int _enqueue(self, Exchange exchange) except -1
    cdef int _message_complete(self) except -1
    cdef int _idle(self, int64_t now_ns) except -1
    cdef int _begin_drain(self, bint close_tunnels) except -1
