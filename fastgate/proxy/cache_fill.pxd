"""C interface of fastgate.proxy.cache_fill."""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.cache.http_cache cimport Decision
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport RequestContext
from fastgate.proxy.cache_request cimport CacheRequest
from fastgate.proxy.stages cimport ResponseStage

@cython.final
cdef class CacheFill(ResponseStage):
    cdef CacheRequest place               # where the response is stored
    cdef RequestContext ctx
    cdef Decision decision                # None: it is not stored
    cdef list pieces
    cdef int64_t size
    cdef int _uncached(self, int status, Headers fields) except -1
    cdef int _revalidated(self, Headers fields, int64_t now) except -1
    cdef int _head_only(self, int status, Headers fields, int64_t now) except -1
    cdef int _judge(self, int status, bytes phrase, Headers fields, int64_t now) except -1
    cdef int _give_up(self) except -1
    cdef int _live_adapted(self, Decision decision, bytes body) except -1
