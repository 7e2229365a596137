"""Public C interface of fastgate._core.gates.cors."""

from fastgate._core.pipeline.context cimport Answer, Reason, RequestContext
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.pipeline cimport Plugin

cdef class CorsGate(Plugin):
    cdef dict exact                 # origin → its lines, made at freeze
    cdef dict seen                  # origin → its lines or False, of those that patterns decided on
    cdef tuple suffixes             # (scheme and "://", ".example.com", ":port" or "") of wildcard origins
    cdef tuple patterns             # compiled regular expressions, on bytes
    cdef bint any_origin
    cdef bint credentials
    cdef bytes line_tail            # what follows Access-Control-Allow-Origin in an answer
    cdef bytes lines_any            # the whole of it for "*" without credentials; None else
    cdef bytes lines_other          # for a request without an origin, or with one that is not allowed
    cdef bytes preflight_tail       # what follows it in the answer to a preflight
    cdef bint reflect_methods
    cdef bint reflect_headers
    cdef bint private_network
    cdef bint refuse_others
    cdef dict preflights            # what a preflight's answer depends on → the Answer
    cdef int preflight_status
    cdef Reason refused
    cdef bytes origin_lines(self, bytes origin)
    cdef bint matches(self, bytes origin) except -1
    cdef int preflight(self, RequestContext ctx, bytes origin, bytes method) except -1
    cdef Answer preflight_answer(self, bytes origin, bytes method, bytes asked, bint private)
