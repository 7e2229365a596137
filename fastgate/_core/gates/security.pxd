"""Public C interface of fastgate._core.gates.security."""

from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.pipeline cimport Plugin

cdef class SecurityHeadersGate(Plugin):
    cdef bytes lines                # for every answer
    cdef bytes secure_lines         # the same and HSTS, where the client came over https
    cdef bytes local_lines          # for answers made here only
    cdef tuple dropped              # lower-case names that are taken from the upstream's answer
    cdef tuple kept                 # (name, lower-case name, value, header id) added where the upstream's answer has none
