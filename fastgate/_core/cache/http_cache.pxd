"""Public C interface of fastgate._core.cache.http_cache."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.http.headers cimport Headers, field_t

cdef enum:                                  # what `judge` says
    CACHE_MISS = 0
    CACHE_FRESH = 1
    CACHE_STALE_WHILE_REVALIDATE = 2
    CACHE_REVALIDATE = 3
    CACHE_ONLY_IF_CACHED = 4                # answer 504
    CACHE_BYPASS = 5                        # the cache has no say in this request

cdef enum:
    TAIL_ROOM = 160                         # bytes that `c_tail` may write

cdef class Rules:
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
    cdef readonly bint wants_consumer       # the key may need `consumer=`
    cdef readonly bint wants_body           # the key needs `body=` for a POST
    cdef int consumer                       # CONSUMER_*
    cdef int private                        # PRIVATE_*
    cdef int cookies_set                    # COOKIES_*
    cdef int query                          # QUERY_*
    cdef frozenset query_names              # lower case
    cdef tuple key_headers                  # lower case names
    cdef tuple key_cookies
    cdef tuple targeted                     # lower case names
    cdef bint extra                         # the key has fields or cookies in it
    cdef bytes route                        # the route's part of the key; b"" where nobody told it apart
    cdef frozenset secrets                  # lower case names
    cdef frozenset never_vary               # lower case names
    cdef char[48] status_head               # "Cache-Status: fastgate; hit; ttl="
    cdef int status_n                       # 0: no Cache-Status
    cdef bytes status_name

    cdef RequestRules c_read(self, int method_id, bytes method, Headers headers, bint has_body)
    cdef bytes c_url(self, bint secure, bytes authority, bytes path, bytes query)
    cdef bytes c_key(self, RequestRules request, bint secure, bytes authority, bytes path, bytes query, bytes consumer, bint shared,
                     bytes shown, bytes body)
    cdef Decision c_store(self, RequestRules request, int status, bytes reason, Headers headers, int64_t request_ns,
                          int64_t response_ns)
    cdef bytes query_part(self, bytes query)
    cdef RequestRules bypass(self, RequestRules r, str why)
    cdef bint overrides(self, field_t* f)
    cdef bint is_targeted(self, field_t* f)
    cdef Decision decide(self, RequestRules request, int status, bytes reason, Headers headers, int64_t request_ns, int64_t response_ns,
                         bint merged)

cdef class RequestRules:
    cdef readonly bint cacheable            # False: CACHE_BYPASS
    cdef readonly bint unsafe               # an answer to it may invalidate
    cdef readonly bint head
    cdef readonly bint post
    cdef readonly bint plain                # no directive, no condition, no range: judge is one comparison
    cdef readonly bint simple               # no condition and no range: a hit is head + tail + body
    cdef readonly str why                   # of `cacheable` False
    cdef int flags                          # CC_*
    cdef int64_t max_age_ns                 # -1: not given
    cdef int64_t min_fresh_ns
    cdef int64_t max_stale_ns
    cdef int64_t sie_ns
    cdef bint authorized                    # an Authorization field
    cdef bint cookies
    cdef bint keyed_private                 # the key belongs to one consumer
    cdef int if_none_match                  # places in headers, -1: not there
    cdef int if_modified_since
    cdef int range
    cdef int if_range
    cdef int authorization
    cdef Headers headers
    cdef Headers sent                       # the fields as they go upstream, where the key has some that differ; else None
    cdef readonly bytes key                 # set by c_key
    cdef Py_ssize_t url_n                   # how much of it is the URL

cdef class Decision:
    cdef readonly bint storable
    cdef readonly str why                   # a fixed word, for metrics and Cache-Status
    cdef readonly int status
    cdef readonly int64_t lifetime_ns
    cdef readonly bint implied              # the origin said nothing of it, or nothing that counts: it is ours to choose
    cdef readonly tuple vary                # lower-case names, sorted; () without Vary
    cdef readonly tuple tags                # of the route, of Surrogate-Key and Cache-Tag, and of the URL when the key has more
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
    cdef readonly bytes etag                # None when there is none
    cdef readonly tuple tags
    cdef readonly tuple vary
    # All times: ns of CLOCK_REALTIME, so that they hold in other processes and after a restart.
    cdef readonly int64_t born_ns           # when its age was 0
    cdef readonly int64_t stored_ns         # when it came
    cdef readonly int64_t fresh_until_ns
    cdef readonly int64_t swr_until_ns
    cdef readonly int64_t sie_until_ns
    cdef readonly int64_t date_s
    cdef readonly int64_t modified_s
    cdef bytes short_head                   # the head of a 304, made when first needed
    # Of this process only, for what is predicted from them (caching/predictor.py).
    cdef int64_t took_ns                    # from the question to the whole answer
    cdef int64_t hits

    cdef int c_judge(self, RequestRules request, int64_t now_ns) noexcept
    cdef int c_tail(self, Rules rules, int64_t now_ns, char* out) noexcept
    cdef bint c_may_serve_on_error(self, RequestRules request, int64_t now_ns) noexcept
    cdef bytes reason(self)
    cdef Headers table(self)
    cdef Headers merged(self, Headers fresh)
    cdef bint range_applies(self, RequestRules request)
    cdef bytes not_modified(self)
    cdef bytes without(self, tuple names, bytes status_line)
    cdef object ranged(self, bytes value)

cdef class Vary:
    cdef readonly tuple names               # lower case, sorted
    cdef dict recent                        # the secondary keys it has let in, oldest first
    cdef int written                        # whether the gateway writes one of them on this route: 1, 0, -1 = not looked at yet
    cdef int charged                        # what a worker's memory was told it takes

    cdef bytes c_key(self, bytes primary, Headers headers)

cdef StoredResponse stored_from(const char* p, Py_ssize_t n, bint intact)
