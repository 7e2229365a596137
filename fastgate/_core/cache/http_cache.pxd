"""Public C interface of fastgate._core.cache.http_cache, with the types that it takes and returns."""

from libc.stdint cimport int64_t

from fastgate._core.cache.http_decision cimport Decision
from fastgate._core.cache.http_keys cimport Vary
from fastgate._core.cache.http_request cimport RequestRules
from fastgate._core.cache.http_settings cimport CacheSettings
from fastgate._core.cache.http_stored cimport (
    CACHE_BYPASS,
    CACHE_FRESH,
    CACHE_MISS,
    CACHE_ONLY_IF_CACHED,
    CACHE_REVALIDATE,
    CACHE_STALE_WHILE_REVALIDATE,
    TAIL_ROOM,
    StoredResponse,
    stored_from,
)
from fastgate._core.http.headers cimport Headers

cdef class Rules(CacheSettings):
    cdef RequestRules c_read(self, int method_id, bytes method, Headers headers, bint has_body)
    cdef RequestRules bypass(self, RequestRules request, str why)
    cdef bytes c_url(self, bint secure, bytes authority, bytes path, bytes query)
    cdef bytes c_key(self, RequestRules request, bint secure, bytes authority, bytes path, bytes query, bytes consumer, bint shared,
                     bytes shown, bytes body)
    cdef Decision c_store(self, RequestRules request, int status, bytes reason, Headers headers, int64_t request_ns,
                          int64_t response_ns)
