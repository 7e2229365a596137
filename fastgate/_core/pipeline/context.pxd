"""Public C interface of fastgate._core.pipeline.context."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.identity cimport Identity

cdef enum:
    MAX_PARAMS = 16

# Bit numbers of the methods, for one test against a route's mask. M_OTHER covers the registered but rare ones.
cdef enum:
    M_GET = 0
    M_HEAD = 1
    M_POST = 2
    M_PUT = 3
    M_DELETE = 4
    M_PATCH = 5
    M_OPTIONS = 6
    M_TRACE = 7
    M_CONNECT = 8
    M_OTHER = 9
    M_UNKNOWN = 10

cdef int method_number(const char* method, Py_ssize_t n) noexcept nogil
cdef bint method_idempotent(int number) noexcept nogil

cdef class Reason:
    cdef readonly int index
    cdef readonly str label
    cdef readonly int status
    cdef readonly str text
    cdef readonly int source
    cdef readonly bint retryable
    cdef bytes label_bytes
    cdef readonly str code    # shown to the client: the label, or a generic one if the label reveals too much
    cdef bytes body_start     # of an error body: {"error": …, "code": …, without its end

cdef class Answer:
    cdef readonly int status
    cdef bytes lines          # ready header lines, without framing, Date and request id
    cdef readonly bytes body
    cdef bint has_type

cdef class RequestContext:
    # From the wire
    cdef bytes method_bytes
    cdef int method_id
    cdef bytes target
    cdef bytes path_bytes             # in normal form (urlpath.pyx), without query
    cdef int second                   # SECOND_*: why an upstream may read another path than this
    cdef bint ambiguous               # … and that path would bypass the route
    cdef bytes query_bytes            # without the question mark; None when there was none
    cdef bytes host_received          # the Host, or the authority of an absolute-form target, as received and checked
    cdef bytes authority              # the same in normal form: lower case, no final dot, no default port of `scheme`
    cdef bytes host_bytes             # lower case, without port
    cdef int version_minor            # HTTP/1.x
    cdef readonly Headers headers
    cdef bint keep_alive
    cdef bint expects_continue
    cdef readonly bint has_body
    cdef bint upgrade
    cdef readonly int64_t content_length   # bytes; -1 when chunked or absent
    # From the connection and the trusted proxies before it, decided once for each request (proxy/forwarding.pyx)
    cdef readonly str scheme          # the client's: http or https
    cdef bytes peer
    cdef bytes client
    cdef readonly bytes client_certificate   # DER, as the listener's handshake verified it; None without one
    cdef bint trusted                 # the peer is one of trusted_proxies, by the plan of this request
    cdef bint claims                  # the head has fields that only a trusted proxy may send
    cdef bytes request_id_bytes
    cdef bytes forwarding             # ready forwarding fields for the upstream
    # From the plan
    cdef readonly object route
    cdef tuple param_names
    cdef int params_n
    cdef int param_start[MAX_PARAMS]
    cdef int param_size[MAX_PARAMS]
    # Decisions
    cdef readonly Reason reason
    cdef readonly dict detail
    cdef Answer answer
    cdef readonly Identity identity   # the authenticated client; None before a scheme has identified it
    cdef public list tags             # set by policies; None without any
    cdef bytes cache_word             # the result of the cache, for the log
    cdef bytes upstream_lines         # ready header lines that gates add to the request upstream
    cdef readonly str upstream_override   # name of the upstream selected by a policy, instead of the route's
    cdef bytes gate_lines             # ready header lines that gates add to every response
    cdef bytes local_lines            # the same for local responses: upstream responses have them among their fields
    cdef bytes lines_before           # gate_lines before a gate refused: restored in shadow mode
    cdef bytes ready_body             # of a refusal: its body, if the gate has built it
    cdef void* limits_hold            # taken by the limits gate (gates/limits.pyx) and returned at the end
    cdef list extra_response          # (name, value) pairs that hooks add to every response
    cdef int extra_before             # number of them before `refuse` added its own
    cdef list locals                  # one place per plugin that has requested one
    cdef bint body_replaced
    cdef readonly bytes body          # whole body, only on routes whose plugins request it
    # Times (ns, CLOCK_MONOTONIC) and sizes, for metrics and logs
    cdef readonly int64_t now_ns
    cdef readonly int64_t started_ns
    cdef readonly int64_t upstream_started_ns
    cdef readonly int64_t first_byte_ns
    cdef readonly int64_t finished_ns
    cdef readonly uint64_t bytes_received
    cdef readonly uint64_t bytes_sent
    cdef readonly int status
    cdef readonly int upstream_status
    cdef readonly int attempts
    cdef readonly bytes upstream_address
    cdef bint c_secure(self) noexcept
