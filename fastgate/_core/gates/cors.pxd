"""Public C interface of fastgate._core.gates.cors."""

from fastgate._core.pipeline.context cimport Answer, Reason, RequestContext
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.pipeline cimport Plugin

cdef class CorsGate(Plugin):
    cdef dict exact                 # origin → its lines, built at freeze
    cdef dict seen                  # origin → its lines or False, for origins decided by patterns
    cdef tuple suffixes             # (scheme and "://", ".example.com", ":port" or "") of wildcard origins
    cdef tuple patterns             # compiled regular expressions, on bytes
    cdef bint any_origin
    cdef bint credentials
    cdef bytes line_tail            # follows Access-Control-Allow-Origin in a response
    cdef bytes lines_any            # the complete line for "*" without credentials, else None
    cdef bytes lines_other          # for a request without an origin, or with one that is not allowed
    cdef bytes preflight_tail       # follows it in the response to a preflight
    cdef bint reflect_methods
    cdef bint reflect_headers
    cdef bint private_network
    cdef bint refuse_others
    cdef dict preflights            # the inputs of a preflight's response → the `Answer`
    cdef int preflight_status
    cdef Reason refused
    cdef bytes origin_lines(self, bytes origin)
    cdef bint matches(self, bytes origin) except -1
    cdef int preflight(self, RequestContext ctx, bytes origin, bytes method) except -1
    cdef Answer preflight_response(self, bytes origin, bytes method, bytes asked, bint private)
