"""C interface of fastgate.proxy.exchange."""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport Reason
from fastgate._core.pipeline.pipeline cimport Plugin
from fastgate.proxy.cache_lookup cimport CacheLookup
from fastgate.proxy.stages cimport HookStage
from fastgate.proxy.upstream_request cimport UpstreamRequest

cdef enum:
    # What a body is collected for
    FOR_UPSTREAM = 0          # so that a slow client does not occupy an upstream connection
    FOR_PLUGIN = 1            # a plugin's request() reads it whole
    FOR_KEY = 2               # it is part of the cache key

@cython.final
@cython.no_gc
cdef class Exchange(UpstreamRequest):
    cdef Reason early                     # reason for a refusal before the decisions
    # Decisions
    cdef int suspended_at                 # the step of the pipeline that returned the last verdict
    cdef object task                      # awaits a plugin
    cdef CacheLookup lookup               # None on routes that do not cache
    # Receiving the body
    cdef int64_t body_timeout_ns
    cdef int collects_for                 # FOR_*
    cdef int64_t collects_bytes           # upper bound for it
    cdef bint body_paused
    cdef int64_t body_paused_ns           # start of the current pause
    cdef int64_t body_clock_ns            # start of the wait for the body, shifted by the time in which the gateway did not read
    cdef int64_t body_clock_from          # body_bytes at that time
    # The response
    cdef HookStage chunk_hooks            # None if no plugin edits the pieces of the body
    cdef readonly bint response_started
    cdef int tunnel_ends                  # bits: 1: the client closed its half, 2: the upstream closed its half

    cdef int start(self) except -1
    cdef int refuse(self, Reason reason) except -1
    cdef int reply(self) except -1
    cdef bint upstream_takes_body(self)
    cdef int body_chunk(self, bytes chunk) except -1
    cdef int body_end(self, Headers trailers) except -1
    cdef int body_read_done(self) except -1
    cdef int client_gone(self) except -1
    cdef int client_drained(self, bint writable) except -1
    cdef int tunnel_received(self, bytes data) except -1
    cdef int tunnel_client_eof(self) except -1

    cdef int _decide(self, int start) except -1
    cdef int _plugin_error(self, object plugin, str phase) except -1
    cdef int _after_decide(self, int verdict) except -1
    cdef bint _pass_over(self, Plugin plugin) except -1
    cdef int _suspend(self) except -1
    cdef int _read_whole(self, int64_t most_bytes, int purpose) except -1
    cdef int _begin_collecting(self, int64_t most_bytes, int purpose) except -1
    cdef int _collect(self) except -1
    cdef int _collected(self) except -1
    cdef int _end_collecting(self) except -1
    cdef int _serve(self) except -1
    cdef int _serve_edited(self) except -1
    cdef int _challenge(self, bint has_one) except -1
    cdef int _let_go(self) except -1
    cdef int _tell_service(self) except -1
