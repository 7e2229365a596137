"""C interface of fastgate.proxy.cache_request."""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.cache.http_cache cimport RequestRules, StoredResponse, Vary
from fastgate._core.cache.worker_cache cimport RouteCache
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport RequestContext
from fastgate.proxy.upstream_request cimport UpstreamRequest

@cython.no_gc
cdef class CacheRequest:
    cdef UpstreamRequest request          # None once it is over
    cdef RouteCache route
    cdef RequestContext ctx
    cdef RequestRules rules
    cdef bytes key                        # primary key; None: its response is not stored
    cdef bytes variant                    # key under which the response is stored: `key`, or that of its variant
    cdef Vary vary
    cdef StoredResponse found             # may be revalidated, or served when the upstream fails
    cdef bint revalidating                # the upstream is asked whether `found` is still valid
    cdef bint collapsed                   # it waited for another request's response
    cdef bint failed                      # the upstream failed, and a stale response is served
    cdef bint background                  # there is no client
    cdef bytes why                        # fwd= of Cache-Status
    cdef Headers sent                     # the fields as sent upstream, created on first use
    cdef int64_t looked_ns                # value of ctx.now_ns when looked_real_ns was read
    cdef int64_t looked_real_ns
    cdef int64_t began                    # position in the purge log when the fetch began
    cdef int64_t sent_ns                  # CLOCK_REALTIME when the head was sent upstream
    cdef bytes key_of(self, RequestRules r)
    cdef bytes shown(self)
    cdef Headers sent_fields(self)
    cdef bytes vary_key(self, Vary vary)
    cdef int64_t now(self) noexcept
    cdef int count(self, int result) except -1
    cdef int keep(self, StoredResponse stored) except -1
    # How requests that wait for the same response are informed
    cdef int ready(self, StoredResponse stored, int result) except -1
    cdef int release(self, StoredResponse stored, bint alone) except -1
    cdef int finish(self) except -1
