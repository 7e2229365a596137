"""C interface of fastgate.proxy.upstream_request."""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.pipeline.plan cimport Destination, Plan, RoutePlan
from fastgate._core.pipeline.wheel cimport Timed
from fastgate._core.shm.counters cimport route_counts_t
from fastgate.proxy.attempt cimport Attempt, AttemptOwner, Attempts
from fastgate.proxy.client_stream cimport ClientStream
from fastgate.proxy.plane cimport Plane
from fastgate.proxy.request_body cimport RequestBody
from fastgate.proxy.stages cimport HoldStage
from fastgate.upstream.pool cimport Upstream

cdef enum:
    X_NEW = 0                 # not forwarded yet
    X_SUSPENDED = 1           # waits for a plugin
    X_COLLECTING = 2          # waits for the body
    X_LOOKING = 3             # waits for the cache
    X_WAITING = 4             # waits for an upstream connection
    X_BACKOFF = 5             # waits before the next attempt
    X_SENDING = 6             # the head is sent, no response yet
    X_HOLDING = 7             # the head of the response has arrived, and is held until its body has
    X_RELAYING = 8            # the response is being passed on
    X_TUNNEL = 9
    X_FINISHED = 10

@cython.no_gc
cdef class UpstreamRequest(AttemptOwner):
    cdef Plane plane
    cdef Plan plan
    cdef ClientStream client              # None if no client waits for the response
    cdef readonly RequestContext ctx
    cdef RoutePlan route
    cdef Destination destination          # the route's own, or that of an override
    cdef route_counts_t* counts           # NULL before the request begins
    cdef readonly int state
    # The request's body
    cdef RequestBody body                 # None until its first byte arrives
    cdef int64_t body_bytes               # received so far
    cdef readonly bint body_complete
    cdef bint body_is_replaced            # by a plugin: the client's own body is read and dropped
    cdef Headers request_trailers
    cdef bint length_open                 # the length of the body is not announced to the upstream
    cdef bint repeatable                  # it may be sent twice: its method allows it, and no hook has seen its pieces
    # Attempts
    cdef Upstream upstream
    cdef Attempts attempts                # None until one has failed
    cdef Attempt attempt                  # the current one, or None
    cdef Reason failure                   # of the last attempt, while the next one is waited for
    cdef int64_t try_deadline_ns          # for the head of the response to the current attempt; 0 = none
    # The response
    cdef HoldStage hold                   # None if the response is not held
    cdef list stages                      # stages before the edits of the route, or None
    cdef bint replaced                    # the client gets another response: this one is only read to its end
    cdef bint response_complete
    cdef int64_t told_length              # Content-Length of a response without body (HEAD, 304); -1: omit it
    # Deadlines
    cdef Timed timer                      # calls `deadline_passed`; None before the request has started, and once it is over
    cdef Reason deadline_reason
    cdef int64_t total_deadline_ns

    cdef int begin(self) except -1
    cdef int release(self) except -1
    cdef bint stands_in(self) except -1
    cdef bint go_to(self, str upstream) except -1
    cdef int forward(self) except -1
    cdef int start_attempts(self) except -1
    cdef int send_pending(self) except -1
    cdef int replace_body(self, bytes content) except -1
    cdef int give_up_attempt(self) except -1
    cdef int deadline_passed(self, int64_t now_ns) except -1
    cdef int arm(self, int64_t after_ns, Reason reason) except -1
    cdef int rearm(self) except -1
    cdef int _try(self, Attempt attempt) except -1
    cdef int _try_again(self, Attempt attempt, Reason reason) except -1
    cdef int _try_after(self, int64_t wait_ns) except -1
    cdef int _try_next(self) except -1
    cdef bint _retries_status(self, Attempt attempt, int status) except -1
    cdef bint _may_repeat(self) except -1
    cdef int _send_head(self, Attempt attempt) except -1
    cdef int _log_connect_failed(self, Attempt attempt, Reason reason, str detail) except -1
    cdef int _upstream_head(self, int status, bytes phrase, Headers fields, int64_t length, bytes body) except -1
    cdef int _end_holding(self, Attempt attempt, bytes body, bint complete) except -1
    cdef bytes _through_stages(self, bytes chunk, Py_ssize_t start)
    # Implemented by each kind of request
    cdef int fail(self, Reason reason) except -1
    cdef int finish(self) except -1
    cdef int prepare(self) except -1
    cdef int await_body(self) except -1
    cdef int pause_body(self) except -1
    cdef int resume_body(self) except -1
    cdef int switch_protocols(self, Attempt attempt) except -1
    cdef int respond(self, int status, bytes phrase, Headers fields, int64_t length, bytes body) except -1
    cdef int respond_replaced(self) except -1
    cdef int respond_chunk(self, bytes chunk) except -1
    cdef int respond_end(self, Headers trailers) except -1
    cdef int looked(self, int verdict) except -1
    cdef bint is_blocked(self)
