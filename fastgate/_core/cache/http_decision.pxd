"""Public C interface of fastgate._core.cache.http_decision."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.cache.http_request cimport RequestRules
from fastgate._core.cache.http_settings cimport CacheSettings
from fastgate._core.cache.http_stored cimport StoredResponse
from fastgate._core.http.headers cimport Headers

cdef class Decision:
    cdef readonly bint storable
    cdef readonly str why                   # a fixed word, for metrics and Cache-Status
    cdef readonly int status
    cdef readonly int64_t lifetime_ns
    cdef readonly bint implied              # not stated by the origin, or overridden: the gateway may choose the lifetime
    cdef readonly tuple vary                # lower-case names, sorted; () without Vary
    cdef readonly tuple tags                # of the route, Surrogate-Key and Cache-Tag, and of the URL if the key has further parts
    cdef bytes head                         # without Content-Length
    cdef int64_t born_ns
    cdef int64_t stored_ns
    cdef int64_t fresh_until_ns
    cdef int64_t swr_until_ns
    cdef int64_t sie_until_ns
    cdef int flags
    cdef bytes etag
    cdef int64_t date_s
    cdef int64_t modified_s
    cdef uint64_t min_size
    cdef readonly uint64_t max_size

    cdef StoredResponse c_finish(self, bytes body)
    cdef int c_live(self, int64_t lifetime_ns) noexcept

cdef Decision decide(CacheSettings settings, RequestRules request, int status, bytes reason, Headers headers, int64_t request_ns,
                     int64_t response_ns, bint merged)
