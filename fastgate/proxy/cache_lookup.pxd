"""C interface of fastgate.proxy.cache_lookup."""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.cache.http_cache cimport TAIL_ROOM, StoredResponse
from fastgate._core.cache.worker_cache cimport Fill
from fastgate.proxy.cache_request cimport CacheRequest
from fastgate.proxy.stages cimport ResponseStage
from fastgate.proxy.upstream_request cimport UpstreamRequest

cdef enum:
    # The next step of the request
    L_FORWARD = 0             # ask the upstream, and pass the response through `stage`
    L_STORED = 1              # send the stored response that is ready in status, head, tail and body
    L_NOT_STORED = 2          # only-if-cached, and there is no stored response
    L_WAIT = 3                # for the cache: it calls `looked` with its verdict
    L_BODY = 4                # read the whole body, of at most KEY_BODY_BYTES, then look up

cdef enum:
    KEY_BODY_BYTES = 1048576  # of a request whose body is part of the key

@cython.final
@cython.no_gc
cdef class CacheLookup(CacheRequest):
    cdef Fill fill                        # the fill that it leads or waits for
    cdef bint leads
    cdef bint waiting
    cdef bint foreseen                    # the prediction of the next requests was consulted
    cdef int source
    cdef int64_t waits_until_ns           # CLOCK_MONOTONIC; 0 before the first wait
    cdef object poll
    cdef object stall                     # the timer of a leader whose client does not read
    cdef object task                      # awaits the asynchronous tier
    # The stored response that is ready
    cdef int status
    cdef bytes head
    cdef bytes body
    cdef char[TAIL_ROOM] tail             # the part of its head that changes between requests
    cdef int tail_n
    cdef int begin(self) except -1
    cdef int look(self) except -1
    cdef int wait_over(self) except -1
    cdef int64_t wait_ns(self) noexcept
    cdef ResponseStage stage(self)
    cdef int stalled(self) except -1
    cdef int refused(self) except -1
    cdef bint _stands_in(self) except -1
    cdef int _judge(self, StoredResponse found) except -1
    cdef int _fetch(self) except -1
    cdef int bypass(self, bytes why) except -1
    cdef int _count_fetch(self) except -1
    cdef int _go_on(self, int verdict) except -1
    cdef int _step_aside(self) except -1
    cdef int _hit_again(self, StoredResponse found) except -1
    cdef int _prefetch(self) except -1
    cdef int _fetch_ahead(self, bytes target) except -1
    cdef int _revalidate_behind(self, StoredResponse found) except -1
    cdef CacheLookup _behind(self)
    cdef int _same_place(self, CacheLookup other) except -1
    cdef int _start_behind(self, CacheLookup behind, Fill fill) except -1

cdef CacheLookup cache_lookup(UpstreamRequest x)
