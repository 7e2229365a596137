"""C interface of fastgate.proxy.request_target."""

from fastgate._core.pipeline.context cimport RequestContext

cdef enum:
    T_OK = 0
    T_BAD = 1
    T_BAD_HOST = 2
    T_ASTERISK = 3

cdef int parse_target(RequestContext ctx, bytes target, bint merge) except -1
