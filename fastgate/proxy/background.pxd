"""C interface of fastgate.proxy.background."""

cimport cython

from fastgate.proxy.upstream_request cimport UpstreamRequest

@cython.final
cdef class BackgroundRequest(UpstreamRequest):
    cdef int start(self) except -1

cdef BackgroundRequest background_get(UpstreamRequest x)
