# cython: boundscheck=False, nonecheck=True
"""The upstream half of a request: attempts, sending, and receiving the response.

WHAT     `UpstreamRequest` is the half of a request that faces the upstream: it makes attempts, sends head and body, and passes
         the response through the gates, the upstream_response hooks and the stages before the edits of the route. Its two kinds
         decide how the response continues: an `Exchange` (exchange.pyx) sends it to a client, a `BackgroundRequest`
         (background.pyx) has no client, only stages.

             forward ─► try ─ idle connection ─► send ─► head ─► chunks ─► end
                         ▲ └─ none ─► wait ─► connected ─► send
                         └── try again ◄── failed: the next target, or the same on a new connection (attempt.pyx)

STATE    WAITING → SENDING → HOLDING → RELAYING, or WAITING → SENDING → TUNNEL.
WHO      The worker's loop.
COST     See DESIGN: most of it is the kernel's. No task, dict, closure or exception unless a plugin must await.
SOURCES  Varnish cache_fetch.c; RFC 9110 §9.2.2 (which requests may be sent twice), §15 (which responses have no body).
"""

import logging

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.balance.targets cimport OUTCOME_FAILED, OUTCOME_NONE, OUTCOME_OK, PICK_NONE, PICK_OPEN
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.http.headers cimport H_CONTENT_TYPE, H_OTHER, Headers
from fastgate._core.log_throttle cimport log_throttle_pass
from fastgate._core.pipeline.abstract cimport missing
from fastgate._core.pipeline.context cimport M_HEAD, Reason, RequestContext, method_idempotent, method_number
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.pipeline.pipeline cimport Pipeline, Plugin, RequestHead, ResponseHead
from fastgate._core.pipeline.plan cimport Destination, RoutePlan
from fastgate._core.resilience.retry_policy cimport RetryPolicy, asked_wait_ns
from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate._core.stats.histogram cimport histogram_record
from fastgate.proxy.attempt cimport A_CONNECTED, Attempt, AttemptOwner, attempts_at, first_attempt
from fastgate.proxy.client_stream cimport LENGTH_NONE, LENGTH_UNKNOWN
from fastgate.proxy.hooks cimport request_chunk_hooks, upstream_request_hooks, upstream_response_hooks
from fastgate.proxy.request_body cimport COLLECTED_MOST_BYTES, RequestBody
from fastgate.proxy.stages cimport S_REPLACED, HoldStage, ResponseStage
from fastgate.upstream.h1_request cimport upstream_target
from fastgate.upstream.pool cimport A_FULL, A_OPENING, Target, Upstream
from fastgate.upstream.stream cimport BODY_NONE, BODY_UNKNOWN, SAME_CLIENT, SAME_LISTENER, SAME_ROUTE, UpstreamStream

from fastgate.errors import REASONS

__all__ = ["UpstreamRequest"]

log = logging.getLogger("fastgate")

cdef enum:
    # Bytes of a request's body that are kept for resending on a new connection. A larger upload is not held in memory for the
    # rare dead connection.
    REPLAY_BYTES = 65536

cdef int64_t LOG_PERIOD_NS = 10_000_000_000     # between two log lines about the same target

cdef Reason PLUGIN_ERROR = REASONS["plugin_error"]
cdef Reason PLUGIN_RESPONSE_ERROR = REASONS["plugin_response_error"]
cdef Reason CREDENTIAL_UNAVAILABLE = REASONS["credential_unavailable"]
cdef Reason QUEUE_FULL = REASONS["upstream_queue_full"]
cdef Reason QUEUE_TIMEOUT = REASONS["upstream_queue_timeout"]
cdef Reason CONNECT_TIMEOUT = REASONS["upstream_connect_timeout"]
cdef Reason FIRST_BYTE_TIMEOUT = REASONS["upstream_first_byte_timeout"]
cdef Reason BETWEEN_BYTES_TIMEOUT = REASONS["upstream_between_bytes_timeout"]
cdef Reason TOTAL_TIMEOUT = REASONS["total_timeout"]
cdef Reason BREAKER_OPEN = REASONS["breaker_open"]
cdef Reason PER_TRY_TIMEOUT = REASONS["per_try_timeout"]
cdef Reason NO_TARGET = REASONS["no_target"]


@cython.no_gc                                           # `finish` breaks its reference cycles
cdef class UpstreamRequest(AttemptOwner):
    """The upstream half of one request. Abstract."""

    cdef int begin(self) except -1:
        """Count the request, in the worker and in its plan, until it finishes."""
        self.told_length = -1
        self.plan.requests += 1
        atomic_add_relaxed_u64(&self.plane.counts.requests_active, 1)
        return 0

    cdef int release(self) except -1:
        """The request is over: release the plan and everything the request holds."""
        self.plan.requests -= 1
        if self.plan.requests == 0 and self.plan.unused is not None:
            self.plan.tell_unused()
        if self.body is not None:
            self.body.close()
            self.body = None
        self.hold = None
        if self.stages is not None:
            stages = self.stages
            self.stages = None
            for stage in stages:
                (<ResponseStage>stage).over()
        return 0

    cdef bint stands_in(self) except -1:
        """The upstream failed before any of the response was passed on: True if a stage has another response."""
        if self.stages is not None:
            for stage in self.stages:
                if (<ResponseStage>stage).failed() == S_REPLACED:
                    return True
        return False

    cdef int shared_with(self, AttemptOwner owner) noexcept:
        cdef UpstreamRequest other
        cdef Identity mine, theirs
        cdef int common = 0
        if not isinstance(owner, UpstreamRequest):
            return 0
        other = <UpstreamRequest>owner
        if self.counts == other.counts:
            common |= SAME_ROUTE
        if self.client is not None and other.client is not None and self.client.listener == other.client.listener:
            common |= SAME_LISTENER
        mine = self.ctx.identity
        theirs = other.ctx.identity
        if mine is not None and not mine.by_address and mine.consumer_bytes is not None:
            if theirs is not None and mine.consumer_bytes == theirs.consumer_bytes:
                common |= SAME_CLIENT
        elif self.ctx.client == other.ctx.client:
            common |= SAME_CLIENT
        return common

    # attempts

    cdef bint go_to(self, str upstream) except -1:
        """Send this request to another upstream, chosen by a policy or a plugin, with that one's settings. False if there is no
        such upstream."""
        cdef Destination destination = self.plan.destination(self.route, upstream)
        if destination is None:
            log.warning("request %s of route %s is sent to the upstream %r, which the config does not have", self.ctx.request_id,
                        self.route.name, upstream[:100], extra={"throttle": ("unknown_upstream", self.route.name)})
            return False
        self.destination = destination
        self.total_deadline_ns = self.ctx.started_ns + destination.total_ns if destination.total_ns else 0
        return True

    cdef int forward(self) except -1:
        """All decisions are made: send the request upstream."""
        self.upstream = <Upstream>self.destination.upstream
        if self.upstream.credential is not None and not self.upstream.credential.usable(self.ctx.now_ns):
            return self.fail(CREDENTIAL_UNAVAILABLE)
        return self.prepare()

    cdef int start_attempts(self) except -1:
        """Begin the first attempt."""
        cdef Py_ssize_t why
        cdef Attempt attempt = first_attempt(self, self.upstream, self.ctx, &why)
        if attempt is None:
            return self.fail(BREAKER_OPEN if why == PICK_OPEN else NO_TARGET)
        if self.destination.retry is not None:
            self.destination.retry.deposit(self.ctx.now_ns)
        return self._try(attempt)

    cdef int _try(self, Attempt attempt) except -1:
        """Begin an attempt."""
        cdef RequestContext ctx = self.ctx
        cdef int outcome
        self.attempt = attempt
        if self.destination.retry is not None and self.destination.retry.per_try_ns:
            self.try_deadline_ns = ctx.now_ns + self.destination.retry.per_try_ns
        ctx.attempts += 1
        ctx.upstream_address = attempt.target.address
        atomic_add_relaxed_u64(&self.counts.replays if attempt.replay else &self.counts.attempts, 1)
        outcome = attempt.begin(ctx.now_ns)
        if outcome == A_CONNECTED:
            return self._send_head(attempt)
        if outcome == A_FULL:
            return self._try_again(attempt, QUEUE_FULL)
        self.state = X_WAITING
        if outcome == A_OPENING:
            return self.arm(self.destination.connect_ns, CONNECT_TIMEOUT)
        return self.arm(self.upstream.queue_timeout_ns, QUEUE_TIMEOUT)

    cdef int _try_again(self, Attempt attempt, Reason reason) except -1:
        """An attempt failed: begin the next one, after a wait if the policy demands one, or fail."""
        cdef int64_t wait_ns
        self.attempt = None
        if self.attempts is None:
            self.attempts = attempts_at(self.upstream, self.destination.retry, attempt)
        wait_ns = self.attempts.wait_ns(self.ctx, attempt, reason, self._may_repeat(), self.total_deadline_ns)
        if wait_ns >= 0 and self.attempts.again is not None:
            attempt.outcome = OUTCOME_NONE              # a connection that was closed while idle is no evidence against the target
        attempt.end(False, self.ctx.now_ns)
        if wait_ns < 0:
            return self.fail(reason)
        self.failure = reason
        return self._try_after(wait_ns)

    cdef bint _may_repeat(self) except -1:
        """True if the request may be sent once more: also by what is left of its body."""
        return self.repeatable and (self.body is None or self.body.first == 0)

    cdef bint _retries_status(self, Attempt attempt, int status) except -1:
        """True if the response is dropped, because the policy retries its status and permits a retry now."""
        cdef RetryPolicy policy = self.destination.retry
        cdef int64_t wait_ns
        if policy is None or not policy.names_status(status) or not self._may_repeat():
            return False
        if self.attempts is None:
            self.attempts = attempts_at(self.upstream, policy, attempt)
        wait_ns = self.attempts.retry_ns(self.ctx, asked_wait_ns(attempt.stream.fields), self.total_deadline_ns)
        if wait_ns < 0:
            return False
        self.attempts.again = None
        self.failure = None
        self.attempt = None
        attempt.settled = True
        attempt.end(False, self.ctx.now_ns)
        self._try_after(wait_ns)
        return True

    cdef int _try_after(self, int64_t wait_ns) except -1:
        self.try_deadline_ns = 0
        if wait_ns == 0:
            return self._try_next()
        self.state = X_BACKOFF
        return self.arm(wait_ns, None)

    cdef int _try_next(self) except -1:
        cdef Py_ssize_t why = PICK_NONE
        cdef Attempt attempt = self.attempts.following(self, self.ctx, &why)
        if attempt is None:
            return self.fail(self.failure if self.failure is not None else BREAKER_OPEN if why == PICK_OPEN else NO_TARGET)
        return self._try(attempt)

    cdef int give_up_attempt(self) except -1:
        """Release the current attempt, if there is one."""
        cdef Attempt attempt = self.attempt
        if attempt is None:
            return 0
        self.attempt = None
        return attempt.end(self.response_complete or self.state == X_TUNNEL, self.ctx.now_ns)

    cdef int attempt_connected(self, Attempt attempt) except -1:
        self.ctx.now_ns = monotonic_ns()
        return self._send_head(attempt)

    cdef int attempt_interim(self, Attempt attempt) except -1:
        """Nothing is done before the final response, unless a client waits for it."""
        return 0

    cdef int attempt_failed(self, Attempt attempt, Reason reason, str detail) except -1:
        self.ctx.now_ns = monotonic_ns()
        if self.state == X_TUNNEL or self.state == X_FINISHED:
            return self.finish()
        if detail is not None:
            self._log_connect_failed(attempt, reason, detail)
        attempt.outcome = OUTCOME_FAILED
        return self._try_again(attempt, reason)

    cdef int _log_connect_failed(self, Attempt attempt, Reason reason, str detail) except -1:
        """One line per period: an upstream that is down must not fill the disk with its name."""
        cdef Target target = attempt.target
        cdef int64_t failures = log_throttle_pass(&target.failed_log, self.ctx.now_ns, LOG_PERIOD_NS)
        if failures:
            log.warning("upstream %s at %s: %s (%s), %d since the last such line", self.upstream.name, target.url, reason.label, detail,
                        failures)
        return 0

    # sending

    cdef int _send_head(self, Attempt attempt) except -1:
        """Write the head, and the available part of the body, in one piece."""
        cdef RequestContext ctx = self.ctx
        cdef RoutePlan route = self.route
        cdef Headers fields = ctx.headers
        cdef bytes method = ctx.method_bytes
        cdef bytes path = upstream_target(ctx, route)
        cdef int64_t length = ctx.content_length
        cdef RequestHead head
        cdef int method_id = ctx.method_id
        if self.length_open:
            length = BODY_UNKNOWN
        elif length < 0:
            length = BODY_NONE
        cdef RetryPolicy policy = self.destination.retry
        cdef bint tells_attempt = policy is not None and policy.attempt_header is not None
        if route.request_edits is not None or route.pipeline.upstream_request or self.stages is not None or tells_attempt:
            fields = ctx.headers.copy()
            if tells_attempt:
                fields.drop_folded(PyBytes_AS_STRING(policy.attempt_header), PyBytes_GET_SIZE(policy.attempt_header), False)
                fields.append(policy.attempt_header, str(ctx.attempts).encode(), H_OTHER)
            if self.stages is not None:
                for stage in self.stages:
                    (<ResponseStage>stage).ask(fields)
            if route.request_edits is not None:
                route.request_edits.apply(ctx, fields)
            if route.pipeline.upstream_request:
                head = RequestHead(method.decode("latin-1"), path.decode("latin-1"), fields, ctx.body)
                if not upstream_request_hooks(self.plane, route, ctx, head):
                    return self.fail(PLUGIN_ERROR)
                method = head.method.encode("latin-1")
                path = head.target.encode("latin-1")
                method_id = method_number(PyBytes_AS_STRING(method), PyBytes_GET_SIZE(method))
                if head.body is not None and head.body is not ctx.body:
                    self.replace_body(head.body)
                    if not self.length_open:
                        length = len(head.body)
        attempt.stream.send_head(attempt, ctx, self.destination, self.upstream.credential, method, path, fields, length,
                                 self.total_deadline_ns - ctx.now_ns if self.total_deadline_ns else 0)
        attempt.sent = True
        self.state = X_SENDING
        ctx.upstream_started_ns = ctx.now_ns
        self.repeatable = not ctx.upgrade and not route.pipeline.request_chunk and (
            method_idempotent(method_id) or (policy is not None and fields.find(b"idempotency-key", 15)))
        return self.send_pending()

    cdef int replace_body(self, bytes content) except -1:
        """Send this body instead of the received one. The rest of that one is dropped: nothing may follow the replacement."""
        if self.body is None:
            self.body = RequestBody.__new__(RequestBody)
            self.body.charge(self.plane)
        self.body_is_replaced = True
        return self.body.replace(content)

    cdef int send_pending(self) except -1:
        """Send the pending bytes of the head, and the available pieces of the body."""
        cdef Attempt attempt = self.attempt
        cdef UpstreamStream stream = attempt.stream
        cdef bint is_whole = self.body_complete or self.body_is_replaced
        cdef bint ends = is_whole and not attempt.end_sent
        cdef bytes only = None
        cdef list pieces = None
        if self.body is not None:
            if attempt.cursor is None and is_whole and not self.repeatable:
                only = self.body.take_only()            # the usual body: complete when the head is sent, and sent once
                if only is None:
                    pieces = self.body.take_all()
            else:
                if attempt.cursor is None:
                    self.body.keep_bytes = 0
                    if self.repeatable:
                        self.body.keep_bytes = REPLAY_BYTES if self.destination.retry is None else self.destination.retry.body_bytes
                    attempt.cursor = self.body.begin()
                elif self.body.keep_bytes > REPLAY_BYTES and self.plane.body_bytes > COLLECTED_MOST_BYTES:
                    self.body.keep(REPLAY_BYTES)        # many large bodies: this request is not retried
                pieces = attempt.cursor.take()
        if only is not None or pieces is not None or ends:
            if self.route.pipeline.request_chunk and self.ctx.has_body:
                pieces = request_chunk_hooks(self.plane, self.route, self.ctx, pieces if only is None else [only], ends)
                only = None
                if pieces is None:
                    return self.fail(PLUGIN_ERROR)
            if only is not None:
                stream.send_chunk(only)
            elif pieces is not None:
                for piece in pieces:
                    stream.send_chunk(<bytes>piece)
            if ends:
                attempt.end_sent = True
                attempt.end_sent_ns = self.ctx.now_ns
                if self.try_deadline_ns and attempt.waited_for_body:
                    self.try_deadline_ns = self.ctx.now_ns + self.destination.retry.per_try_ns
                stream.send_end(None if self.body_is_replaced else self.request_trailers)
            else:
                attempt.waited_for_body = True
        elif not attempt.end_sent:
            attempt.waited_for_body = True
        stream.flush()
        if self.attempt is not attempt or attempt.stream is not stream:
            return 0
        if stream.writable:
            self.resume_body()
        else:
            self.pause_body()
        return self.rearm()

    cdef int attempt_writable(self, Attempt attempt, bint writable) except -1:
        if self.state == X_FINISHED:
            return 0
        self.ctx.now_ns = monotonic_ns()
        if writable:
            self.resume_body()
        else:
            self.pause_body()
        return self.rearm()

    # the response

    cdef int attempt_head(self, Attempt attempt) except -1:
        cdef RequestContext ctx = self.ctx
        cdef UpstreamStream stream = attempt.stream
        cdef Pipeline pipeline = self.route.pipeline
        cdef int status = stream.status
        cdef int64_t length = stream.content_length     # -1 = LENGTH_UNKNOWN
        if stream.now_ns > ctx.now_ns:                  # waits are counted from the response, not from the request
            ctx.now_ns = stream.now_ns
        attempt.head(OUTCOME_FAILED if self.upstream.is_failure(status) else OUTCOME_OK, stream.now_ns)
        if self._retries_status(attempt, status):
            return 0
        self.try_deadline_ns = 0
        ctx.first_byte_ns = stream.now_ns
        ctx.upstream_status = status
        self.repeatable = False
        if self.body is not None and self.body.keep_bytes:
            self.body.keep(0)
        histogram_record(&self.counts.upstream, ctx.first_byte_ns - ctx.upstream_started_ns)
        if status == 101:
            return self.switch_protocols(attempt)
        if ctx.method_id == M_HEAD or status == 204 or status == 304:
            # The length for GET: omitted where hooks may change it
            self.told_length = -1 if status == 204 or pipeline.response_chunk else length
            length = LENGTH_NONE
        elif pipeline.response_body_bytes > 0 and length <= pipeline.response_body_bytes and not is_event_stream(stream.fields):
            self.hold = HoldStage(pipeline.response_body_bytes)
            self.hold.head(status, stream.phrase, stream.fields, length)
            self.state = X_HOLDING
            return 0
        return self._upstream_head(status, stream.phrase, stream.fields, length, None)

    cdef int _upstream_head(self, int status, bytes phrase, Headers fields, int64_t length, bytes body) except -1:
        """Pass the head through gates, hooks and stages. body: that of a held response, else None."""
        cdef RequestContext ctx = self.ctx
        cdef Pipeline pipeline = self.route.pipeline
        cdef ResponseHead head
        for gate in pipeline.answer:
            (<Plugin>gate).c_answer(ctx, fields)
        if pipeline.upstream_response:
            head = ResponseHead(status, fields, body)
            if not upstream_response_hooks(self.plane, self.route, ctx, head):
                return self.fail(PLUGIN_RESPONSE_ERROR)
            if head.status != status:
                status = head.status
                phrase = None
            if body is not None and head.body is not body:
                body = head.body
                length = PyBytes_GET_SIZE(body)
        if self.stages is not None:
            for stage in self.stages:
                if (<ResponseStage>stage).head(status, phrase, fields, length) == S_REPLACED:
                    if length == LENGTH_NONE:
                        self.replaced = True            # a 304 has no body: its end also ends the request
                    else:
                        self.attempt.settled = True
                        self.give_up_attempt()          # its body is not needed
                    return self.respond_replaced()
                if (<ResponseStage>stage).resizes and length >= 0:
                    length = LENGTH_UNKNOWN
            if body is not None:                        # the stored response has not passed the response hooks: every hit does
                body = self._through_stages(body, 0)
                if body is None:
                    return self.fail(PLUGIN_RESPONSE_ERROR)
                length = PyBytes_GET_SIZE(body)
        return self.respond(status, phrase, fields, length, body)

    cdef bytes _through_stages(self, bytes chunk, Py_ssize_t start):
        """A piece after the stages from number start on; None if one failed."""
        cdef Py_ssize_t i
        for i in range(start, len(self.stages)):
            chunk = (<ResponseStage>self.stages[i]).chunk(chunk)
            if chunk is None or PyBytes_GET_SIZE(chunk) == 0:
                return chunk
        return chunk

    cdef int attempt_chunk(self, Attempt attempt, bytes chunk) except -1:
        if self.replaced:
            return 0
        if self.state == X_HOLDING:
            chunk = self.hold.chunk(chunk)
            if self.hold.holds:
                return 0
            log.warning("request %s: response larger than response_body_bytes (%d) passes unread", self.ctx.request_id,
                        self.route.pipeline.response_body_bytes)
            return self._end_holding(attempt, chunk, False)
        if self.stages is not None:
            chunk = self._through_stages(chunk, 0)
            if chunk is None:
                return self.fail(PLUGIN_RESPONSE_ERROR)
            if PyBytes_GET_SIZE(chunk) == 0:
                return 0
        return self.respond_chunk(chunk)

    cdef int _end_holding(self, Attempt attempt, bytes body, bint complete) except -1:
        """Pass on the held response: complete, or as the beginning of a stream."""
        cdef HoldStage hold = self.hold
        self.hold = None
        if complete:
            return self._upstream_head(hold.status, hold.phrase, hold.fields, PyBytes_GET_SIZE(body), body)
        self._upstream_head(hold.status, hold.phrase, hold.fields, hold.length, None)
        if self.state == X_FINISHED:
            return 0
        return self.attempt_chunk(attempt, body)

    cdef int attempt_end(self, Attempt attempt, Headers trailers) except -1:
        cdef bytes rest
        cdef Py_ssize_t i
        if self.state == X_FINISHED:
            return 0
        if self.state == X_HOLDING:
            self._end_holding(attempt, self.hold.end(), True)
            if self.state == X_FINISHED:
                return 0
        if self.replaced:
            self.response_complete = True
            return 0
        if self.stages is not None:
            for i in range(len(self.stages)):
                rest = (<ResponseStage>self.stages[i]).end()
                if rest:
                    rest = self._through_stages(rest, i + 1)
                if rest is None:
                    return self.fail(PLUGIN_RESPONSE_ERROR)
                if rest:
                    self.respond_chunk(rest)
                    if self.state == X_FINISHED:
                        return 0
        return self.respond_end(trailers)

    cdef int attempt_read_done(self, Attempt attempt, int64_t now_ns) except -1:
        if self.state == X_FINISHED:
            return 0
        if now_ns > self.ctx.now_ns:                    # a hook may have advanced the clock
            self.ctx.now_ns = now_ns
        if not self.response_complete:
            return self.rearm()
        if self.stages is not None:
            for stage in self.stages:
                (<ResponseStage>stage).whole()
        return self.finish()

    # deadlines

    cdef int arm(self, int64_t after_ns, Reason reason) except -1:
        """Fail with `reason` unless something happens within after_ns (0: no limit other than the total)."""
        cdef int64_t deadline = self.ctx.now_ns + after_ns if after_ns else 0
        self.deadline_reason = reason
        if self.total_deadline_ns and (deadline == 0 or self.total_deadline_ns < deadline):
            deadline = self.total_deadline_ns
        if self.try_deadline_ns and (deadline == 0 or self.try_deadline_ns < deadline) \
                and (reason is FIRST_BYTE_TIMEOUT or reason is CONNECT_TIMEOUT or reason is QUEUE_TIMEOUT
                     or (reason is BETWEEN_BYTES_TIMEOUT and self.state == X_SENDING)):
            deadline = self.try_deadline_ns
            if reason is not CONNECT_TIMEOUT:
                self.deadline_reason = PER_TRY_TIMEOUT
        if self.timer is None:
            return 0
        if deadline:
            return self.plane.wheel.arm(self.timer, deadline)
        self.timer.deadline_ns = 0
        return 0

    cdef int rearm(self) except -1:
        """Set the deadline for the current wait."""
        cdef Destination destination = self.destination
        if self.state == X_SENDING:
            if self.attempt.end_sent:
                return self.arm(destination.first_byte_ns, FIRST_BYTE_TIMEOUT)
            return self.await_body()
        if self.state >= X_HOLDING and self.state != X_FINISHED:
            return self.arm(destination.between_bytes_ns, BETWEEN_BYTES_TIMEOUT)
        return 0

    cdef int deadline_passed(self, int64_t now_ns) except -1:
        """The deadline set by `arm` has passed."""
        cdef Reason reason = self.deadline_reason
        if self.state == X_FINISHED:
            return 0
        self.ctx.now_ns = now_ns
        # A time-out is the target's failure unless the client, or the queue for a connection, was waited for.
        if self.attempt is not None and (
                reason is CONNECT_TIMEOUT or reason is FIRST_BYTE_TIMEOUT or reason is BETWEEN_BYTES_TIMEOUT
                or (reason is PER_TRY_TIMEOUT and self.attempt.sent)):
            self.attempt.outcome = OUTCOME_FAILED
        if self.total_deadline_ns and now_ns >= self.total_deadline_ns:
            return self.fail(TOTAL_TIMEOUT)
        if self.state == X_BACKOFF:
            return self._try_next()
        if reason is None:
            return 0
        if self.state == X_SENDING and self.destination.retry is not None and self.destination.retry.names_reason(reason):
            return self._try_again(self.attempt, reason)
        if self.state == X_WAITING:
            if reason is CONNECT_TIMEOUT:
                self._log_connect_failed(self.attempt, reason, "connecting took too long")
            return self._try_again(self.attempt, reason)
        return self.fail(reason)

    # Implemented by each kind of request

    cdef int fail(self, Reason reason) except -1:
        """The request fails."""
        missing(self, "fail")

    cdef int finish(self) except -1:
        """End of every request; called exactly once."""
        missing(self, "finish")

    cdef int prepare(self) except -1:
        """The upstream is known: start the attempts, once everything they need is available."""
        return self.start_attempts()

    cdef int await_body(self) except -1:
        """Arm the deadline for more of the request's body."""
        missing(self, "await_body")

    cdef int pause_body(self) except -1:
        """Pause reading the request's body. Nothing by default."""
        return 0

    cdef int resume_body(self) except -1:
        """Resume reading the request's body. Nothing by default."""
        return 0

    cdef int switch_protocols(self, Attempt attempt) except -1:
        """A 101 to a request that asked for it."""
        missing(self, "switch_protocols")

    cdef int respond(self, int status, bytes phrase, Headers fields, int64_t length, bytes body) except -1:
        """The head of the response, after gates, hooks and stages. body: the whole body, if available; else it arrives in
        pieces."""
        missing(self, "respond")

    cdef int respond_replaced(self) except -1:
        """A stage has another response."""
        missing(self, "respond_replaced")

    cdef int respond_chunk(self, bytes chunk) except -1:
        """A piece of the body."""
        missing(self, "respond_chunk")

    cdef int respond_end(self, Headers trailers) except -1:
        """The response is complete."""
        missing(self, "respond_end")

    cdef int looked(self, int verdict) except -1:
        """The cache has returned its verdict (L_*, cache_lookup.pxd), after a wait."""
        missing(self, "looked")

    cdef bint is_blocked(self):
        """True if a client waits for the response but does not take the bytes that are available."""
        return False


cdef bint is_event_stream(Headers fields):
    """True for a response without an end: its parts are passed to the client as they arrive (WHATWG HTML §9.2, server-sent
    events)."""
    cdef bytes value = fields.find_known(H_CONTENT_TYPE)
    return value is not None and value.partition(b";")[0].strip().lower() == b"text/event-stream"
