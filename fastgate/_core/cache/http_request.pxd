"""Public C interface of fastgate._core.cache.http_request."""

from libc.stdint cimport int64_t

from fastgate._core.cache.http_settings cimport CacheSettings
from fastgate._core.http.headers cimport Headers

cdef class RequestRules:
    cdef readonly bint cacheable            # False: CACHE_BYPASS
    cdef readonly bint unsafe               # a response to it may invalidate others
    cdef readonly bint head
    cdef readonly bint post
    cdef readonly bint plain                # no directive, no condition, no range: judge is one comparison
    cdef readonly bint simple               # no condition and no range: a hit is head + tail + body
    cdef readonly str why                   # reason if not `cacheable`
    cdef int flags                          # CC_*
    cdef int64_t max_age_ns                 # -1: not given
    cdef int64_t min_fresh_ns
    cdef int64_t max_stale_ns
    cdef int64_t sie_ns
    cdef bint authorized                    # it has an Authorization field
    cdef bint cookies
    cdef bint keyed_private                 # the key belongs to one consumer
    cdef int if_none_match                  # indexes in headers, -1: absent
    cdef int if_modified_since
    cdef int range
    cdef int if_range
    cdef int authorization
    cdef Headers headers
    cdef Headers sent                       # the fields as sent upstream, if some of those in the key differ; else None
    cdef readonly bytes key                 # set by primary_key
    cdef Py_ssize_t url_n                   # length of its URL part

    cdef RequestRules bypass(self, str why)

cdef RequestRules read_request(CacheSettings settings, int method_id, bytes method, Headers headers, bint has_body)
