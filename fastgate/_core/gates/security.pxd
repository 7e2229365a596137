"""Public C interface of fastgate._core.gates.security."""

from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.pipeline cimport Plugin

cdef class SecurityHeadersGate(Plugin):
    cdef bytes lines                # for every response
    cdef bytes secure_lines         # the same and HSTS, if the client used https
    cdef bytes local_lines          # for local responses only
    cdef tuple dropped              # lower-case names that are removed from the upstream's response
    cdef tuple kept                 # (name, lower-case name, value, header id) added if the upstream's response has none
