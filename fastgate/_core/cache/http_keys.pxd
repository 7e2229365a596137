"""Public C interface of fastgate._core.cache.http_keys."""

from fastgate._core.cache.http_request cimport RequestRules
from fastgate._core.cache.http_settings cimport CacheSettings
from fastgate._core.http.headers cimport Headers

cdef bytes combined(Headers headers, const char* lower, Py_ssize_t n)
cdef bytes url_key(CacheSettings settings, bint secure, bytes authority, bytes path, bytes query)
cdef bytes primary_key(CacheSettings settings, RequestRules request, bint secure, bytes authority, bytes path, bytes query, bytes consumer,
                       bint shared, bytes shown, bytes body)

cdef class Vary:
    cdef readonly tuple names               # lower case, sorted
    cdef dict recent                        # the keys of the stored variants, oldest first
    cdef int written                        # whether the gateway writes one of them on this route: 1, 0, -1 = not determined yet
    cdef int charged                        # bytes charged to the worker's memory

    cdef bytes c_key(self, bytes primary, Headers headers)
