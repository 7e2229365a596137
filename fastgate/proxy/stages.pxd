"""C interface of fastgate.proxy.stages."""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.pipeline.plan cimport RoutePlan
from fastgate.proxy.plane cimport Plane

cdef enum:
    # Result of `head`
    S_PASS = 0
    S_HOLD = 1                # the stage holds the head and the body after it; only of a HoldStage, which comes before all others
    S_REPLACED = 2            # another response is sent instead

cdef class ResponseStage:
    cdef bint resizes                     # the body that it passes on may have a different length
    cdef int ask(self, Headers fields) except -1
    cdef int head(self, int status, bytes phrase, Headers fields, int64_t length) except -1
    cdef bytes chunk(self, bytes chunk)
    cdef bytes end(self)
    cdef int whole(self) except -1
    cdef int failed(self) except -1
    cdef int over(self) except -1

@cython.final
cdef class HoldStage(ResponseStage):
    cdef int64_t most_bytes
    cdef bint holds
    cdef list pieces
    cdef int64_t held_bytes
    cdef int status
    cdef bytes phrase
    cdef Headers fields
    cdef int64_t length

@cython.final
cdef class HookStage(ResponseStage):
    cdef Plane plane
    cdef RoutePlan route
    cdef RequestContext ctx
