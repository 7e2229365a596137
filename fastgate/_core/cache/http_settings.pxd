"""Public C interface of fastgate._core.cache.http_settings."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    CONSUMER_AUTO = 0
    CONSUMER_PRIVATE = 1
    CONSUMER_SHARED = 2
    PRIVATE_NEVER = 0
    PRIVATE_CONSUMER = 1
    PRIVATE_SHARE = 2
    COOKIES_NEVER = 0
    COOKIES_STRIP = 1
    COOKIES_STORE = 2
    QUERY_ALL = 0
    QUERY_NONE = 1
    QUERY_LISTED = 2

cdef class CacheSettings:
    cdef readonly int64_t ttl_ns
    cdef readonly bint override
    cdef readonly bint caches_post
    cdef readonly frozenset statuses
    cdef readonly int64_t swr_ns
    cdef readonly int64_t sie_ns
    cdef readonly int64_t heuristic_max_ns
    cdef readonly uint64_t min_size
    cdef readonly uint64_t max_size
    cdef readonly int max_variants
    cdef readonly int max_vary
    cdef readonly bint client_control
    cdef readonly bint enforce
    cdef readonly tuple tags
    cdef readonly bint share_private
    cdef readonly bint wants_consumer       # the key may require `consumer=`
    cdef readonly bint wants_body           # the key requires `body=` for a POST
    cdef int consumer                       # CONSUMER_*
    cdef int private                        # PRIVATE_*
    cdef int cookies_set                    # COOKIES_*
    cdef int query                          # QUERY_*
    cdef frozenset query_names              # lower case
    cdef tuple key_headers                  # lower case names
    cdef tuple key_cookies
    cdef tuple targeted                     # lower case names
    cdef bint extra                         # the key includes fields or cookies
    cdef bytes route                        # the route's part of the key, or b""
    cdef frozenset secrets                  # lower case names
    cdef frozenset never_vary               # lower case names
    cdef char[48] status_head               # "Cache-Status: fastgate; hit; ttl="
    cdef int status_n                       # 0: no Cache-Status
    cdef bytes status_name
