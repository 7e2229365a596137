# cython: boundscheck=False, nonecheck=True
"""One attempt to get a response from a target, and the choice of the next attempt after a failure.

WHAT     `Attempt` takes a connection to its target, or waits for one, and forwards the events of the stream to the request that
         owns it: each callback of a stream belongs to one attempt. `Attempts` chooses the one after a failure, if any.
STATE    begin → (waits) → connected → sent → response, or failed; `end` from any of them, once.
WHO      The worker's loop.
COST     A small object per attempt; one virtual call more per callback.
SOURCES  pingora-error (which errors may be retried); RFC 9110 §9.2.2 (idempotent methods); RFC 9112 §9.3.1 (retrying a request
         whose connection was closed before a response); Go net/http `shouldRetryRequest`.

Without a retry policy, two conditions decide whether there is another attempt. `Reason.retryable`: the upstream failed, and another
attempt may succeed. And what the upstream can have seen of the request: if nothing (no connection was made), another target is tried,
whatever the method; if a kept-alive connection was closed while the request was written, and not one byte came back, a request that may
be sent twice and whose body is still in memory is resent once to the same target on a new connection.

A policy names the failures that are retried, and bounds the retries of a request and of the route. It never sends a request twice that
may not be sent twice; the replay on a new connection stays outside of it.
"""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.abstract cimport missing
from fastgate._core.balance.targets cimport OUTCOME_FAILED, OUTCOME_NONE, OUTCOME_OK, TargetSet, ticket_t
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.resilience.retry_policy cimport RetryPolicy
from fastgate.upstream.pool cimport Target, Upstream
from fastgate.upstream.stream cimport ResponseSink, UpstreamStream

__all__ = ["Attempt", "AttemptOwner", "Attempts"]


cdef class AttemptOwner:
    """The events that an attempt reports to the request it is made for. Abstract."""

    cdef int shared_with(self, AttemptOwner other) noexcept:
        """What this request has in common with another, as SAME_* bits. 0: it does not count against any share of a pool."""
        return 0

    cdef int attempt_connected(self, Attempt attempt) except -1:
        """Connected to a stream: send the request."""
        missing(self, "attempt_connected")

    cdef int attempt_interim(self, Attempt attempt) except -1:
        """An interim response (1xx) arrived."""
        missing(self, "attempt_interim")

    cdef int attempt_head(self, Attempt attempt) except -1:
        """The head of the response arrived."""
        missing(self, "attempt_head")

    cdef int attempt_chunk(self, Attempt attempt, bytes chunk) except -1:
        """A piece of its body arrived."""
        missing(self, "attempt_chunk")

    cdef int attempt_end(self, Attempt attempt, Headers trailers) except -1:
        """The response is complete."""
        missing(self, "attempt_end")

    cdef int attempt_read_done(self, Attempt attempt, int64_t now_ns) except -1:
        """All events of one read have been reported."""
        missing(self, "attempt_read_done")

    cdef int attempt_failed(self, Attempt attempt, Reason reason, str detail) except -1:
        """Connecting failed, or the response ends prematurely. The stream is gone. detail: of a failure to connect, else None."""
        missing(self, "attempt_failed")

    cdef int attempt_writable(self, Attempt attempt, bint writable) except -1:
        """The stream's write buffer is full, or has room again."""
        missing(self, "attempt_writable")

    cdef int attempt_tunnel_data(self, Attempt attempt, bytes data) except -1:
        """Bytes after a 101 arrived."""
        missing(self, "attempt_tunnel_data")

    cdef int attempt_tunnel_eof(self, Attempt attempt) except -1:
        """The upstream closed its half of a tunnel."""
        missing(self, "attempt_tunnel_eof")


@cython.final
@cython.no_gc                                           # it drops the reference to its owner when it ends
cdef class Attempt(ResponseSink):
    """One attempt. Created by `first_attempt` or `Attempts`."""

    cdef int begin(self, int64_t now_ns) except -1:
        """Take an idle connection to the target (A_CONNECTED), or wait for one (A_OPENING, A_QUEUED); A_FULL when too many
        requests wait."""
        cdef UpstreamStream stream
        if not self.fresh:
            stream = self.target.take(self, now_ns)
            if stream is not None:
                self.stream = stream
                return A_CONNECTED
        return self.target.acquire(self)

    cdef int end(self, bint whole, int64_t now_ns) except -1:
        """Leave the queue, and release the stream: for reuse if the response (or the tunnel) is complete, else it is closed."""
        cdef UpstreamStream stream = self.stream
        cdef TargetSet balance
        if self.waiting:
            self.target.forget(self)
        if self.cursor is not None:
            self.cursor.close()
            self.cursor = None
        if self.owner is not None:
            balance = self.target.upstream.balance
            if self.outcome == OUTCOME_OK and not whole and not self.settled:
                self.outcome = OUTCOME_NONE             # the client left before the end
            if self.outcome == OUTCOME_FAILED and not self.has_head:
                balance.no_head(self.target.place, now_ns - self.began_ns, now_ns)
            balance.finish(self.target.place, &self.ticket, self.counted, self.outcome, self.latency_ns, now_ns)
        self.owner = None
        if stream is not None:
            self.stream = None
            if whole:
                stream.release(now_ns)
            else:
                stream.abort()
        return 0

    cdef int head(self, int outcome, int64_t now_ns) except -1:
        """The head of the response arrived, and says this about the target. Its latency does not include the time in which the client
        sent the body."""
        cdef int64_t latency_ns = now_ns - self.end_sent_ns if self.end_sent else -1
        self.has_head = True
        self.outcome = outcome
        self.latency_ns = max(0, latency_ns)
        if self.target.upstream.balance.head(self.target.place, &self.ticket, outcome, latency_ns, now_ns):
            self.counted = outcome
        return 0

    # Callbacks of the pool and the stream

    cdef int shared_with(self, ResponseSink other) noexcept:
        if type(other) is not Attempt or self.owner is None or (<Attempt>other).owner is None:
            return 0
        return self.owner.shared_with((<Attempt>other).owner)

    cdef int on_connection(self, UpstreamStream stream) except -1:
        self.stream = stream
        return self.owner.attempt_connected(self)

    cdef int on_connect_failed(self, Reason reason, str detail) except -1:
        return self.owner.attempt_failed(self, reason, detail)

    cdef int on_interim(self, UpstreamStream stream) except -1:
        return self.owner.attempt_interim(self)

    cdef int on_head(self, UpstreamStream stream) except -1:
        return self.owner.attempt_head(self)

    cdef int on_chunk(self, bytes chunk) except -1:
        return self.owner.attempt_chunk(self, chunk)

    cdef int on_end(self, Headers trailers) except -1:
        return self.owner.attempt_end(self, trailers)

    cdef int on_read_done(self, int64_t now_ns) except -1:
        if self.owner is None:
            return 0                                    # it ended during this read
        return self.owner.attempt_read_done(self, now_ns)

    cdef int on_failed(self, UpstreamStream stream, Reason reason) except -1:
        if self.owner is None:
            return 0
        self.reused = stream.reused
        self.answered = stream.saw_bytes
        self.stream = None
        return self.owner.attempt_failed(self, reason, None)

    cdef int on_upstream_writable(self, bint writable) except -1:
        return self.owner.attempt_writable(self, writable)

    cdef int on_tunnel_data(self, bytes data) except -1:
        return self.owner.attempt_tunnel_data(self, data)

    cdef int on_tunnel_eof(self) except -1:
        return self.owner.attempt_tunnel_eof(self)


@cython.final
@cython.no_gc
cdef class Attempts:
    """The choice of the attempt after one that failed. A request whose first attempt succeeds has none."""

    cdef int64_t wait_ns(self, RequestContext ctx, Attempt failed, Reason reason, bint repeatable, int64_t deadline_ns) except -2:
        """Time until the attempt after one that has failed and ended; -1 if the request fails with it.

        repeatable: the request may be sent twice, and its body is still in memory from its first byte on.
        deadline_ns: of the whole request, 0 if there is none.
        """
        self.again = None
        if repeatable and reason.retryable and failed.sent and failed.reused and not failed.answered and failed.end_sent \
                and not self.replayed:
            # A kept-alive connection that the upstream closed while it was reused is no evidence against the request.
            self.replayed = True
            self.again = failed.target
            return 0
        if self.policy is not None:
            if not self.policy.names_reason(reason) or (failed.sent and not repeatable):
                return -1
            return self.retry_ns(ctx, 0, deadline_ns)
        return 0 if reason.retryable and not failed.sent and len(self.tried) < len(self.upstream.targets) else -1

    cdef int64_t retry_ns(self, RequestContext ctx, int64_t retry_after_ns, int64_t deadline_ns) noexcept:
        """Time until a retry by the policy; -1: it is not permitted."""
        cdef int64_t wait_ns = self.policy.wait_ns(self.retries + 1, retry_after_ns, ctx.now_ns, deadline_ns)
        if wait_ns >= 0:
            self.retries += 1
        return wait_ns

    cdef Attempt following(self, AttemptOwner owner, RequestContext ctx, Py_ssize_t* why):
        """The next attempt: a replay, or one at another target while there is one. None: no target may be used; why[0] is PICK_*."""
        cdef Attempt attempt
        if self.again is not None:
            attempt = attempt_at(owner, self.again, ctx.now_ns)
            self.upstream.balance.again(self.again.place, ctx.now_ns, &attempt.ticket)
            attempt.fresh = True
            attempt.replay = True
            return attempt
        # Without a policy, each target is tried once.
        attempt = attempt_of(owner, self.upstream, ctx, self.tried, self.policy is None, why)
        if attempt is None:
            return None
        if attempt.target.place not in self.tried:
            self.tried.append(attempt.target.place)
        attempt.fresh = self.replayed
        return attempt


cdef Attempts attempts_at(Upstream upstream, RetryPolicy policy, Attempt failed):
    """For a request whose first attempt failed."""
    cdef Attempts attempts = Attempts.__new__(Attempts)
    attempts.upstream = upstream
    attempts.policy = policy
    attempts.tried = [failed.target.place]
    return attempts


cdef Attempt first_attempt(AttemptOwner owner, Upstream upstream, RequestContext ctx, Py_ssize_t* why):
    return attempt_of(owner, upstream, ctx, None, False, why)


cdef inline Attempt attempt_of(AttemptOwner owner, Upstream upstream, RequestContext ctx, list tried, bint is_new, Py_ssize_t* why):
    cdef ticket_t ticket
    cdef Py_ssize_t place = upstream.pick(ctx, tried, is_new, &ticket)
    cdef Attempt attempt
    if place < 0:
        if why != NULL:
            why[0] = place
        return None
    attempt = attempt_at(owner, <Target>upstream.targets[place], ctx.now_ns)
    attempt.ticket = ticket
    return attempt


cdef inline Attempt attempt_at(AttemptOwner owner, Target target, int64_t now_ns):
    cdef Attempt attempt = Attempt.__new__(Attempt)
    attempt.owner = owner
    attempt.target = target
    attempt.outcome = attempt.counted = OUTCOME_NONE
    attempt.began_ns = now_ns
    return attempt
