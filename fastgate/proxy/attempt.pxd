"""C interface of fastgate.proxy.attempt."""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.balance.targets cimport ticket_t
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.resilience.retry_policy cimport RetryPolicy
from fastgate.proxy.request_body cimport BodyCursor
from fastgate.upstream.pool cimport Target, Upstream
from fastgate.upstream.stream cimport ResponseSink, UpstreamStream

cdef enum:
    # Result of `Attempt.begin`. The other values are those of `Target.acquire`: A_OPENING, A_QUEUED, A_FULL
    A_CONNECTED = 3

cdef class AttemptOwner:
    cdef int shared_with(self, AttemptOwner other) noexcept
    cdef int attempt_connected(self, Attempt attempt) except -1
    cdef int attempt_interim(self, Attempt attempt) except -1
    cdef int attempt_head(self, Attempt attempt) except -1
    cdef int attempt_chunk(self, Attempt attempt, bytes chunk) except -1
    cdef int attempt_end(self, Attempt attempt, Headers trailers) except -1
    cdef int attempt_read_done(self, Attempt attempt, int64_t now_ns) except -1
    cdef int attempt_failed(self, Attempt attempt, Reason reason, str detail) except -1
    cdef int attempt_writable(self, Attempt attempt, bint writable) except -1
    cdef int attempt_tunnel_data(self, Attempt attempt, bytes data) except -1
    cdef int attempt_tunnel_eof(self, Attempt attempt) except -1

@cython.final
cdef class Attempt(ResponseSink):
    cdef AttemptOwner owner
    cdef readonly Target target
    cdef UpstreamStream stream            # None until connected
    cdef BodyCursor cursor                # None for a request without a body
    cdef bint replay                      # the request is resent because its connection was closed
    cdef bint fresh                       # accept only a connection that has not been used yet
    cdef bint sent                        # the head was sent: the upstream may have acted on it
    cdef bint end_sent                    # the request was sent completely
    cdef bint reused                      # its connection had carried a request before
    cdef bint answered                    # at least one byte of a response arrived
    cdef ticket_t ticket                  # of the target's circuit breakers
    cdef int outcome                      # OUTCOME_*: what it says about the target
    cdef int counted                      # the outcome that was counted when the head arrived, else OUTCOME_NONE
    cdef bint waited_for_body             # the client was still sending the request's body after the head was sent
    cdef bint has_head                    # the head of a response arrived
    cdef bint settled                     # the outcome stands, although the response is not read to its end
    cdef int64_t began_ns
    cdef int64_t end_sent_ns              # when the request was sent completely; 0 before
    cdef int64_t latency_ns               # from then to the head of the response; 0 without either
    cdef int head(self, int outcome, int64_t now_ns) except -1
    cdef int begin(self, int64_t now_ns) except -1
    cdef int end(self, bint whole, int64_t now_ns) except -1

@cython.final
cdef class Attempts:
    cdef Upstream upstream
    cdef RetryPolicy policy               # None: without one
    cdef list tried                       # places of the targets tried
    cdef int retries                      # by the policy
    cdef bint replayed
    cdef Target again                     # the target that the next attempt replays the request at, or None
    cdef int64_t wait_ns(self, RequestContext ctx, Attempt failed, Reason reason, bint repeatable, int64_t deadline_ns) except -2
    cdef int64_t retry_ns(self, RequestContext ctx, int64_t retry_after_ns, int64_t deadline_ns) noexcept
    cdef Attempt following(self, AttemptOwner owner, RequestContext ctx, Py_ssize_t* why)

# The first attempt, at the target that the balancer picks. It has not begun. None: there is no target; why[0] is PICK_*.
cdef Attempt first_attempt(AttemptOwner owner, Upstream upstream, RequestContext ctx, Py_ssize_t* why)
cdef Attempts attempts_at(Upstream upstream, RetryPolicy policy, Attempt failed)
