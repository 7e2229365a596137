"""C interface of fastgate.proxy.background."""

cimport cython

from fastgate._core.pipeline.wheel cimport Timed
from fastgate.proxy.upstream_request cimport UpstreamRequest

@cython.final
cdef class BackgroundTimer(Timed):
    cdef BackgroundRequest request        # None once it is over

@cython.final
@cython.no_gc
cdef class BackgroundRequest(UpstreamRequest):
    cdef int start(self) except -1

cdef BackgroundRequest background_get(UpstreamRequest x)
