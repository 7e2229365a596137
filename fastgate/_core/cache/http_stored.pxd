"""Public C interface of fastgate._core.cache.http_stored."""

from libc.stdint cimport int64_t

from fastgate._core.cache.http_request cimport RequestRules
from fastgate._core.cache.http_settings cimport CacheSettings
from fastgate._core.http.headers cimport Headers

cdef enum:                                  # result of c_judge
    CACHE_MISS = 0
    CACHE_FRESH = 1
    CACHE_STALE_WHILE_REVALIDATE = 2
    CACHE_REVALIDATE = 3
    CACHE_ONLY_IF_CACHED = 4                # respond with 504
    CACHE_BYPASS = 5                        # the request does not use the cache

cdef enum:
    TAIL_ROOM = 160                         # bytes that `c_tail` may write

cdef enum:
    MAX_TAGS = 128                          # of the origin
    MOST_TAGS = 255                         # including the route's and the URL's: every tier holds as many
    MAX_TAG = 1024                          # bytes of one

cdef enum:                                  # bits of StoredResponse.flags
    STORED_NO_STALE = 1                     # never served stale: must-revalidate, proxy-revalidate, s-maxage or no-cache
    STORED_NO_CACHE = 2
    STORED_IMMUTABLE = 4
    STORED_HEURISTIC = 8
    STORED_STRONG_DATE = 16                 # Last-Modified may serve as a strong validator (RFC 9110 §8.8.2.2)

cdef class StoredResponse:
    cdef readonly int status
    cdef readonly int flags
    cdef readonly bytes head                # "HTTP/1.1 200 OK\r\n…\r\n", with Date and Content-Length, without Age and the empty line
    cdef readonly bytes body
    cdef readonly bytes etag                # None if there is none
    cdef readonly tuple tags
    cdef readonly tuple vary
    # All times: ns of CLOCK_REALTIME, so that they are valid in other processes and after a restart.
    cdef readonly int64_t born_ns           # time at which its age was 0
    cdef readonly int64_t stored_ns         # time of arrival
    cdef readonly int64_t fresh_until_ns
    cdef readonly int64_t swr_until_ns
    cdef readonly int64_t sie_until_ns
    cdef readonly int64_t date_s
    cdef readonly int64_t modified_s
    cdef bytes short_head                   # the head of a 304, created on first use
    # Of this process only, for predictions (caching/predictor.py).
    cdef int64_t took_ns                    # from the request to the complete response
    cdef int64_t hits

    cdef int c_judge(self, RequestRules request, int64_t now_ns) noexcept
    cdef int c_tail(self, CacheSettings rules, int64_t now_ns, char* out) noexcept
    cdef bint c_may_serve_on_error(self, RequestRules request, int64_t now_ns) noexcept
    cdef bytes reason(self)
    cdef Headers table(self)
    cdef Headers merged(self, Headers fresh)
    cdef bint range_applies(self, RequestRules request)
    cdef bytes not_modified(self)
    cdef bytes without(self, tuple names, bytes status_line)
    cdef object ranged(self, bytes value)

cdef StoredResponse stored_from(const char* p, Py_ssize_t n, bint intact)
