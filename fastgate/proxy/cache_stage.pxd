"""C interface of fastgate.proxy.cache_stage."""

from libc.stdint cimport int64_t

from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.http.headers cimport Headers
from fastgate._core.cache.http_cache cimport Decision, RequestRules, StoredResponse, Vary
from fastgate._core.cache.worker_cache cimport Fill, RouteCache
from fastgate.proxy.exchange cimport Exchange

cdef class CachedRequest:
    cdef RouteCache route
    cdef RequestContext ctx
    cdef RequestRules rules
    cdef bytes key                        # primary
    cdef bytes variant                    # where this request's answer is kept: key, or that of its variant
    cdef Vary vary
    cdef StoredResponse found             # what may be revalidated, or serve when the upstream fails
    cdef Fill fill                        # the one we lead, or wait for
    cdef bint leads
    cdef bint waiting
    cdef int64_t waits_until_ns           # CLOCK_MONOTONIC; 0 before the first wait
    cdef object poll
    cdef object stall                     # the timer of a leader whose client does not read
    cdef Headers sent                     # the fields as they go upstream, once they were needed
    cdef Decision decision
    cdef list pieces
    cdef int64_t size
    cdef int64_t looked_ns                # ctx.now_ns when looked_real_ns was read
    cdef int64_t looked_real_ns
    cdef int64_t began                    # the purge log when the fetching began
    cdef int64_t sent_ns                  # CLOCK_REALTIME
    cdef bint revalidating
    cdef bint background
    cdef bint collapsed
    cdef bint failed                      # the upstream did, and a stale answer stands in
    cdef bint served                      # the client has its answer from the store
    cdef bint foreseen                    # what follows this request was looked at
    cdef bytes why                        # fwd= of Cache-Status
    cdef int source
    cdef int look(self, Exchange x) except -1
    cdef bytes key_of(self, Exchange x, RequestRules r)
    cdef bytes shown(self, Exchange x)
    cdef Headers sent_fields(self, Exchange x)
    cdef bytes vary_key(self, Exchange x, Vary vary)
    cdef int same_place(self, CachedRequest c) except -1
    cdef int step_aside(self, Exchange x) except -1
    cdef int judge(self, Exchange x, StoredResponse found) except -1
    cdef int fetch(self, Exchange x) except -1
    cdef int bypass(self, Exchange x, bytes why) except -1
    cdef int serve(self, Exchange x, StoredResponse stored, int result) except -1
    cdef int edited(self, Exchange x, int status, bytes head, bytes body, bytes tail) except -1
    cdef int revalidate_behind(self, Exchange x, StoredResponse found) except -1
    cdef Exchange behind_of(self, Exchange x)
    cdef int start_behind(self, Exchange x, Exchange behind, Fill fill) except -1
    cdef int hit_again(self, Exchange x, StoredResponse found) except -1
    cdef int prefetch(self, Exchange x) except -1
    cdef int fetch_ahead(self, Exchange x, bytes target) except -1
    cdef int keep_for(self, Decision decision, bytes body) except -1
    cdef int release(self, Exchange x, StoredResponse stored, bint alone) except -1
    cdef int wait_over(self, Exchange x) except -1
    cdef int64_t now(self, Exchange x) noexcept
    cdef int count(self, int result) except -1
    # What the exchange tells
    cdef int conditions(self, Headers fields) except -1
    cdef int on_answer(self, Exchange x, int status, bytes phrase, Headers fields) except -1
    cdef int on_chunk(self, bytes chunk, Exchange x) except -1
    cdef int on_whole(self, Exchange x) except -1
    cdef int on_failure(self, Exchange x, Reason reason) except -1
    cdef int on_stalled(self, Exchange x) except -1
    cdef int on_refused(self, Exchange x) except -1
    cdef int on_finish(self, Exchange x) except -1

cdef int cache_begin(Exchange x) except -1
