# cython: boundscheck=False, nonecheck=True
"""The life of a request. Read this file first.

WHAT     An `Exchange` takes one request from its parsed head to its log line: decide, suspend, forward, relay, reply, fail,
         finish. Its upstream half is an `UpstreamRequest` (upstream_request.pyx); this is the half that faces the client. It is
         independent of wire versions: a `ClientStream` writes the response, an `UpstreamStream` sends the request and reports the
         response.

             start ─ no route ───────────────────────────────► reply
               │ decide ─ RESPOND ───────────────────────────► reply ─────────────┐
               │    └──── SUSPEND ─► task: request() … ─► decide (next step)      │
               ▼ CONTINUE                                                         │
             look up (cache_lookup.pyx) ─ stored ────────────► serve ─────────────┤
               ▼                                                                  │
             forward ─► attempts (upstream_request.pyx) ─► respond ─ end ─────────┤
                          └─ failed ─► fail ─ nothing sent ────► serve or reply   ▼
                                          └── bytes sent ─────► cut ──────────► finish

STATE    NEW → SUSPENDED | COLLECTING | LOOKING → NEW → WAITING → SENDING → HOLDING → RELAYING | TUNNEL → FINISHED. Every path
         ends in `finish`, exactly once.
WHO      The worker's loop.
COST     See DESIGN: most of it is the kernel's. No task, dict, closure or exception unless a plugin must await.
SOURCES  Varnish cache_req_fsm.c (steps and verdicts); pingora-error (source, retryable).
"""

import asyncio
import logging

import msgspec

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.http.headers cimport H_CONTENT_LENGTH, H_UPGRADE, Headers
from fastgate._core.pipeline.context cimport M_HEAD, Answer, Reason, RequestContext
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, V_RESPOND, V_SUSPEND, Pipeline, Plugin, ResponseHead, verdict_of
from fastgate._core.pipeline.plan cimport RoutePlan
from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate._core.shm.counters cimport route_counts_t
from fastgate._core.stats.histogram cimport histogram_record
from fastgate.proxy.attempt cimport Attempt
from fastgate.proxy.cache_lookup cimport (
    KEY_BODY_BYTES, L_BODY, L_FORWARD, L_NOT_STORED, L_STORED, CacheLookup, cache_lookup,
)
from fastgate.proxy.client_stream cimport LENGTH_NONE, LENGTH_UNKNOWN, ClientStream
from fastgate.proxy.hooks cimport log_hooks, plugin_failed, response_hooks, upstream_response_hooks
from fastgate.proxy.plane cimport Plane
from fastgate.proxy.request_body cimport COLLECTED_MOST_BYTES, HELD_MOST_BYTES, RequestBody
from fastgate.proxy.stages cimport HookStage
from fastgate.proxy.upstream_request cimport (
    X_COLLECTING, X_FINISHED, X_LOOKING, X_NEW, X_RELAYING, X_SENDING, X_SUSPENDED, X_TUNNEL, UpstreamRequest,
)

from fastgate.errors import REASONS

log = logging.getLogger("fastgate")

cdef enum:
    # Bytes of the body held until an upstream connection is available; beyond it the client is not read.
    PENDING_BYTES = 65536

cdef int64_t PLUGIN_WAIT_NS = 60_000_000_000    # time limit of a plugin's request(), unless the route's total is less

cdef Reason AMBIGUOUS_PATH = REASONS["ambiguous_path"]
cdef Reason NO_ROUTE = REASONS["no_route"]
cdef Reason METHOD_NOT_ALLOWED = REASONS["method_not_allowed"]
cdef Reason BODY_TOO_LARGE = REASONS["body_too_large"]
cdef Reason BODY_TIMEOUT = REASONS["body_timeout"]
cdef Reason BODY_TOO_SLOW = REASONS["body_too_slow"]
cdef Reason BODIES_FULL = REASONS["request_bodies_full"]
cdef Reason CLIENT_CLOSED = REASONS["client_closed"]
cdef Reason CLIENT_STALLED = REASONS["client_stalled"]
cdef Reason PLUGIN_ERROR = REASONS["plugin_error"]
cdef Reason PLUGIN_RESPONSE_ERROR = REASONS["plugin_response_error"]
cdef Reason PLUGIN_TIMEOUT = REASONS["plugin_timeout"]
cdef Reason INTERNAL_ERROR = REASONS["internal_error"]
cdef Reason UNKNOWN_UPSTREAM = REASONS["unknown_upstream"]
cdef Reason FIRST_BYTE_TIMEOUT = REASONS["upstream_first_byte_timeout"]
cdef Reason BETWEEN_BYTES_TIMEOUT = REASONS["upstream_between_bytes_timeout"]
cdef Reason TOTAL_TIMEOUT = REASONS["total_timeout"]
cdef Reason BREAKER_OPEN = REASONS["breaker_open"]
cdef Reason ONLY_IF_CACHED = REASONS["only_if_cached"]


@cython.final
@cython.no_gc
cdef class Exchange(UpstreamRequest):
    """One request of a client."""

    # start, decide, suspend

    cdef int start(self) except -1:
        """The head is parsed and checked: decide. The part of the body that has arrived is in `body`."""
        cdef RequestContext ctx = self.ctx
        cdef RoutePlan route
        cdef bytes allow
        self.begin()
        self.timer = self.client
        self.counts = self.plan.unmatched               # also for failures before a route is found
        if self.body is not None:
            self.body.charge(self.plane)
        route = self.plan.match(ctx) if self.client.redirect_port == 0 else self.plan.match_redirect(ctx, self.client.redirect_port)
        self.route = route
        if route is None:
            if ctx.ambiguous:
                return self.refuse(AMBIGUOUS_PATH)
            allow = self.plan.allowed(ctx)
            if allow is None:
                return self.refuse(NO_ROUTE)
            ctx.add_response_header("Allow", allow)
            return self.refuse(METHOD_NOT_ALLOWED)
        self.counts = route.counts
        for gate in route.pipeline.begin:
            (<Plugin>gate).c_begin(ctx)
        self.destination = route.destination
        if self.destination is not None and self.destination.total_ns:
            self.total_deadline_ns = ctx.started_ns + self.destination.total_ns
        if route.max_body_bytes and (ctx.content_length > route.max_body_bytes or self.body_bytes > route.max_body_bytes):
            return self.refuse(BODY_TOO_LARGE)
        if route.pipeline.steps_n == 0:
            return self._after_decide(V_CONTINUE)
        return self._after_decide(self._decide(0))

    cdef int _decide(self, int start) except -1:
        """Run the steps from start. A refusal by a plugin in shadow mode is counted and skipped."""
        cdef Pipeline pipeline = self.route.pipeline
        cdef Plugin plugin
        cdef int at = start
        cdef int verdict
        while True:
            try:
                verdict = pipeline.decide(self.ctx, start, &at)
            except BaseException:
                return self._plugin_error(pipeline.steps[at], "decide")
            self.suspended_at = at
            if verdict == V_RESPOND:
                plugin = <Plugin>pipeline.steps[at]
                if not plugin.enforce and self._pass_over(plugin):
                    start = at + 1
                    continue
            return verdict

    cdef int _plugin_error(self, object plugin, str phase) except -1:
        """A plugin failed during the decisions: the verdict, with the reason set."""
        plugin_failed(self.plane, self.route, self.ctx, plugin, phase)
        self.ctx.reason = PLUGIN_ERROR
        self.ctx.answer = None
        return V_RESPOND

    cdef bint _pass_over(self, Plugin plugin) except -1:
        """Shadow mode: undo a refusal; True if there was one."""
        cdef RequestContext ctx = self.ctx
        if ctx.reason is None:
            return False
        atomic_add_relaxed_u64(&self.counts.shadow, 1)
        log.info("shadow: plugin %s of route %s would have refused request %s with %s", plugin.name, self.route.name, ctx.request_id,
                 ctx.reason.label)
        ctx.reason = None
        ctx.answer = None
        ctx.detail = None
        ctx.gate_lines = ctx.lines_before
        ctx.ready_body = None
        if ctx.extra_response is not None:
            del ctx.extra_response[ctx.extra_before:]   # those of the refusal; those added by others stay
        return True

    cdef int _after_decide(self, int verdict) except -1:
        if verdict == V_CONTINUE:
            if self.ctx.upstream_override is not None and not self.go_to(self.ctx.upstream_override):
                return self.refuse(UNKNOWN_UPSTREAM)
            if self.destination is None:
                return self.refuse(INTERNAL_ERROR)
            if self.destination.cache is None or self.ctx.upgrade:      # a tunnel cannot be shared
                return self.forward()
            self.lookup = cache_lookup(self)
            return self.looked(self.lookup.begin())
        if verdict == V_SUSPEND:
            return self._suspend()
        if verdict == V_RESPOND and (self.ctx.reason is not None or self.ctx.answer is not None):
            return self.reply()
        self._plugin_error(self.route.pipeline.steps[self.suspended_at], "decide or request: RESPOND without a response:" if verdict == V_RESPOND
                           else f"decide returned {verdict}, which is no verdict:")
        return self.refuse(PLUGIN_ERROR)

    cdef int _suspend(self) except -1:
        """The step at suspended_at must be awaited, with the whole body if it needs that."""
        cdef Pipeline pipeline = self.route.pipeline
        if (<Plugin>pipeline.steps[self.suspended_at]).request_body_bytes > 0 and self.ctx.body is None:
            return self._read_whole(pipeline.request_body_bytes, FOR_PLUGIN)
        self.state = X_SUSPENDED
        self.arm(PLUGIN_WAIT_NS, PLUGIN_TIMEOUT)
        self.task = self.plane.loop.create_task(self._suspended())
        return 0

    async def _suspended(self):
        """Await the request hooks, in listed order, then continue with the step where the decisions stopped. A step that needs
        the body ends the task."""
        cdef Plugin plugin = None
        cdef int verdict = V_SUSPEND
        try:
            while verdict == V_SUSPEND:
                plugin = <Plugin>self.route.pipeline.steps[self.suspended_at]
                if plugin.request_body_bytes > 0 and self.ctx.body is None:
                    break
                returned = await plugin.request(self.ctx)
                if self.state != X_SUSPENDED:
                    return
                verdict = verdict_of(returned, self.ctx, "request")
                if verdict == V_SUSPEND:
                    raise TypeError("request() returned SUSPEND; only decide() may")
                if verdict == V_RESPOND and not plugin.enforce and self._pass_over(plugin):
                    verdict = V_CONTINUE
                if verdict == V_CONTINUE:
                    self.state = X_NEW
                    self.ctx.now_ns = monotonic_ns()
                    verdict = self._decide(self.suspended_at + 1)
                    self.state = X_SUSPENDED
        except asyncio.CancelledError:
            if self.state != X_SUSPENDED:
                return                                  # cancelled by the exchange: the request is over
            verdict = self._plugin_error(plugin, "request (cancelled itself)")
        except BaseException:
            if self.state != X_SUSPENDED:
                return
            verdict = self._plugin_error(plugin, "request")
        self.task = None
        self.state = X_NEW
        self.ctx.now_ns = monotonic_ns()
        try:
            self._after_decide(verdict)
        except Exception:
            log.exception("while handling request %s", self.ctx.request_id)
            if self.state != X_FINISHED:
                self.client.cut()
                self.finish()

    cdef int looked(self, int verdict) except -1:
        """The cache has returned its verdict."""
        if self.state == X_LOOKING:
            self.state = X_NEW
        if verdict == L_FORWARD:
            self.stages = [self.lookup.stage()]
            return self.forward()
        if verdict == L_STORED:
            return self._serve()
        if verdict == L_NOT_STORED:
            return self.refuse(ONLY_IF_CACHED)
        if verdict == L_BODY:
            return self._read_whole(KEY_BODY_BYTES, FOR_KEY)
        self.state = X_LOOKING
        return self.arm(self.lookup.wait_ns(), None)

    # the request's body

    cdef bint upstream_takes_body(self):
        """True while an upstream connection accepts the request body."""
        return self.attempt is not None and self.attempt.stream is not None

    cdef int body_chunk(self, bytes chunk) except -1:
        """A piece of the request body arrived."""
        self.body_bytes += PyBytes_GET_SIZE(chunk)
        if self.state == X_FINISHED or self.response_complete:
            return 0
        if self.route is not None and self.route.max_body_bytes and self.body_bytes > self.route.max_body_bytes:
            return self.fail(BODY_TOO_LARGE)
        if self.body_is_replaced:
            return 0
        if self.body is None:
            self.body = RequestBody.__new__(RequestBody)
            if self.counts != NULL:
                self.body.charge(self.plane)
        return self.body.add(chunk)

    cdef int body_end(self, Headers trailers) except -1:
        """The request body is complete."""
        self.body_complete = True
        self.request_trailers = trailers
        return 0

    cdef int body_read_done(self) except -1:
        """One read from the client has been processed: send its data, or enforce the bounds on it."""
        if self.state == X_FINISHED or self.response_complete:
            return 0
        if self.state == X_COLLECTING:
            return self._collect()
        if self.attempt is not None and self.attempt.sent:
            return 0 if self.attempt.end_sent else self.send_pending()
        if self.body is not None and self.body.held_bytes > PENDING_BYTES:
            self.pause_body()
        return 0

    cdef int pause_body(self) except -1:
        if not self.body_paused and not self.body_complete:
            self.body_paused = True
            self.body_paused_ns = self.ctx.now_ns
            self.client.pause_body()
        return 0

    cdef int resume_body(self) except -1:
        if self.body_paused:
            self.body_paused = False
            if self.body_clock_ns:
                self.body_clock_ns += self.ctx.now_ns - self.body_paused_ns
            self.client.resume_body()
        return 0

    cdef int await_body(self) except -1:
        """Wait for the client to send more of the body: no longer than body_timeout, and no slower than the minimum rate."""
        cdef Plane plane = self.plane
        cdef int64_t now_ns = self.ctx.now_ns
        cdef int64_t left_ns
        if self.body_clock_ns == 0:
            self.body_clock_ns = now_ns
            self.body_clock_from = self.body_bytes
        if plane.min_upload_rate:
            left_ns = self.body_clock_ns + plane.rate_grace_ns - now_ns \
                + <int64_t>min(1e9 * <double>(self.body_bytes - self.body_clock_from) / <double>plane.min_upload_rate, 1e17)
            if left_ns <= 0:
                return self.fail(BODY_TOO_SLOW)
            if left_ns < self.body_timeout_ns:
                return self.arm(left_ns, BODY_TOO_SLOW)
        return self.arm(self.body_timeout_ns, BODY_TIMEOUT)

    cdef int _read_whole(self, int64_t most_bytes, int purpose) except -1:
        """Read the whole body, then continue according to purpose; one larger than most_bytes is refused."""
        cdef RequestContext ctx = self.ctx
        if ctx.content_length > most_bytes:
            return self.fail(BODY_TOO_LARGE)
        if not self.body_complete and ctx.expects_continue and self.body_bytes == 0:
            self.client.send_continue()
            ctx.expects_continue = False
            ctx.headers.drop(b"expect", 6)
        return self._begin_collecting(most_bytes, purpose)

    cdef int _begin_collecting(self, int64_t most_bytes, int purpose) except -1:
        self.collects_for = purpose
        self.collects_bytes = most_bytes
        self.state = X_COLLECTING
        atomic_add_relaxed_u64(&self.plane.counts.bodies_collecting, 1)
        self.resume_body()
        return self._collect()

    cdef int _collect(self) except -1:
        """Wait until the body is complete, or, if completeness is not required, until it has reached its bound."""
        cdef int64_t held = 0 if self.body is None else self.body.held_bytes
        cdef int64_t others = self.plane.body_bytes - (0 if self.body is None else self.body.charged_bytes)
        if self.collects_for == FOR_UPSTREAM:
            if self.body_complete or held >= self.collects_bytes or others + held > COLLECTED_MOST_BYTES:
                return self._collected()
        elif held > self.collects_bytes:
            return self.fail(BODY_TOO_LARGE)
        elif self.body_complete:
            return self._collected()
        elif others > HELD_MOST_BYTES:
            if self.collects_for == FOR_PLUGIN:
                return self.fail(BODIES_FULL)
            self._end_collecting()
            return self.looked(self.lookup.bypass(b"request"))      # too much to be held for the sake of a key
        return self.await_body()

    cdef int _collected(self) except -1:
        self._end_collecting()
        if self.collects_for == FOR_UPSTREAM:
            return self.start_attempts()
        self.ctx.body = b"" if self.body is None else self.body.whole()
        if self.collects_for == FOR_PLUGIN:
            return self._suspend()
        return self.looked(self.lookup.look())

    cdef int _end_collecting(self) except -1:
        self.state = X_NEW
        atomic_add_relaxed_u64(&self.plane.counts.bodies_collecting, <uint64_t>-1)
        return 0

    cdef int prepare(self) except -1:
        """The upstream is known: set how its request bodies are sent, and decide whether this one is collected first."""
        cdef RequestContext ctx = self.ctx
        if ctx.body_replaced:
            self.replace_body(ctx.body)
            ctx.content_length = len(ctx.body)
            ctx.has_body = True
        self.length_open = ctx.has_body and (ctx.content_length < 0 or len(self.route.pipeline.request_chunk) > 0)
        if ctx.has_body and not self.body_complete and not ctx.expects_continue and not ctx.upgrade \
                and (0 if self.body is None else self.body.held_bytes) < self.route.request_buffering_bytes:
            return self._begin_collecting(self.route.request_buffering_bytes, FOR_UPSTREAM)
        return self.start_attempts()

    # relay

    cdef int attempt_interim(self, Attempt attempt) except -1:
        self.ctx.expects_continue = False
        return self.client.respond_interim(attempt.stream.status, attempt.stream.phrase, attempt.stream.fields)

    cdef int respond(self, int status, bytes phrase, Headers fields, int64_t length, bytes body) except -1:
        """Run the edits and the response hooks, and write the head to the client."""
        cdef ResponseHead head
        if self.route.response_edits is not None:
            self.route.response_edits.apply(self.ctx, fields)
        if self.route.pipeline.response:
            head = ResponseHead(status, fields, body)
            response_hooks(self.plane, self.route, self.ctx, head)
            fields = head.headers
            if head.status != status:
                status = head.status
                phrase = None
            if body is not None and head.body is not body:
                body = head.body
                length = PyBytes_GET_SIZE(body)
        if self.route.pipeline.response_chunk:
            self.chunk_hooks = HookStage(self.plane, self.route, self.ctx)
            if self.chunk_hooks.resizes and length >= 0:
                length = LENGTH_UNKNOWN
        self.state = X_RELAYING
        self.response_started = True
        self.ctx.status = status
        self.client.respond_head(status, phrase, fields, length)
        return self.respond_chunk(body) if body else 0

    cdef int respond_chunk(self, bytes chunk) except -1:
        if self.chunk_hooks is not None:
            chunk = self.chunk_hooks.chunk(chunk)
            if chunk is None:
                return self.fail(PLUGIN_ERROR)
        if PyBytes_GET_SIZE(chunk) == 0:
            return 0
        return self.client.respond_chunk(chunk)

    cdef int respond_end(self, Headers trailers) except -1:
        cdef bytes last
        if self.chunk_hooks is not None:
            last = self.chunk_hooks.end()
            if last is None:
                return self.fail(PLUGIN_ERROR)
            if last:
                self.client.respond_chunk(last)
        self.response_complete = True
        return self.client.respond_end(trailers)

    cdef int attempt_read_done(self, Attempt attempt, int64_t now_ns) except -1:
        if self.state == X_FINISHED:
            return 0
        if now_ns > self.ctx.now_ns:                    # a hook may have advanced the clock
            self.ctx.now_ns = now_ns
        self.client.flush()
        if not self.client.client_writable and not self.response_complete and self.attempt is not None:
            self.attempt.stream.pause()
            if self.lookup is not None:
                self.lookup.stalled()
        return UpstreamRequest.attempt_read_done(self, attempt, now_ns)

    cdef int client_drained(self, bint writable) except -1:
        """The client's write buffer filled up, or has room again."""
        if not self.upstream_takes_body() or self.state == X_FINISHED:
            return 0
        if writable:
            self.attempt.stream.resume()
        else:
            self.attempt.stream.pause()
            if self.lookup is not None:
                self.lookup.stalled()
        return self.rearm()

    cdef bint is_blocked(self):
        return not self.client.client_writable

    # stored responses

    cdef int respond_replaced(self) except -1:
        return self._serve()

    cdef int _serve(self) except -1:
        """Send the stored response that the lookup has ready; the request ends here unless its upstream must still be read to the
        end."""
        cdef CacheLookup lookup = self.lookup
        self.response_started = True
        self.state = X_RELAYING
        self.ctx.status = lookup.status
        if self.route.pipeline.response or self.route.response_edits is not None or self.route.pipeline.response_chunk:
            self._serve_edited()
            if self.state == X_FINISHED:
                return 0                                # a hook failed, and the connection was cut
        else:
            self.client.respond_ready(lookup.head, lookup.tail, lookup.tail_n, lookup.body)
        if self.attempt is not None:
            return 0                                    # a 304 of the upstream: its end also ends the request
        self.response_complete = True
        self.client.flush()
        return self.finish()

    cdef int _serve_edited(self) except -1:
        """As `_serve`, through the route's edits and response hooks."""
        cdef RequestContext ctx = self.ctx
        cdef CacheLookup lookup = self.lookup
        cdef Headers fields = Headers()
        cdef ResponseHead made
        cdef HookStage chunk_hooks
        cdef bytes body, last
        cdef bint bodyless
        lines = (lookup.head + lookup.tail[:lookup.tail_n]).split(b"\r\n")
        for line in lines[1:]:
            if line:
                name, _, value = line.partition(b": ")
                fields.add(name, value)
        if self.route.response_edits is not None:
            self.route.response_edits.apply(ctx, fields)
        made = ResponseHead(lookup.status, fields, lookup.body)
        response_hooks(self.plane, self.route, ctx, made)
        fields = made.headers
        body = made.body
        ctx.status = made.status
        bodyless = ctx.method_id == M_HEAD or ctx.status == 204 or ctx.status == 304
        if self.route.pipeline.response_chunk and not bodyless:
            chunk_hooks = HookStage(self.plane, self.route, ctx)
            if body:
                body = chunk_hooks.chunk(body)
                if body is None:
                    return self.fail(PLUGIN_ERROR)
            last = chunk_hooks.end()
            if last is None:
                return self.fail(PLUGIN_ERROR)
            body = body + last
        if bodyless:
            given = fields.find_known(H_CONTENT_LENGTH)
            self.told_length = int(given) if given is not None and ctx.status != 204 else -1
            self.client.respond_head(ctx.status, None, fields, LENGTH_NONE)
        else:
            self.client.respond_head(ctx.status, None, fields, len(body))
            if body:
                self.client.respond_chunk(body)
        return self.client.respond_end(None)

    # tunnel

    cdef int switch_protocols(self, Attempt attempt) except -1:
        """Write a 101 to the client, edited by gates and hooks, and open the tunnel. The upstream chooses the protocol: neither
        status nor Upgrade can be changed."""
        cdef RequestContext ctx = self.ctx
        cdef Headers fields = attempt.stream.fields
        cdef bytes protocol = fields.find_known(H_UPGRADE)
        cdef ResponseHead head
        for gate in self.route.pipeline.answer:
            (<Plugin>gate).c_answer(ctx, fields)
        if self.route.pipeline.upstream_response or self.route.pipeline.response:
            head = ResponseHead(101, fields, None)
            if not upstream_response_hooks(self.plane, self.route, ctx, head):
                return self.fail(PLUGIN_RESPONSE_ERROR)
            if self.route.response_edits is not None:
                self.route.response_edits.apply(ctx, fields)
            response_hooks(self.plane, self.route, ctx, head)
            fields = head.headers
        elif self.route.response_edits is not None:
            self.route.response_edits.apply(ctx, fields)
        fields.drop(b"upgrade", 7)
        if protocol is not None:
            fields.add(b"Upgrade", protocol)
        ctx.status = 101
        self.response_started = True
        self.client.respond_head(101, attempt.stream.phrase, fields, LENGTH_NONE)
        self.client.flush()
        self.state = X_TUNNEL
        atomic_add_relaxed_u64(&self.plane.counts.tunnels_open, 1)
        return self.client.open_tunnel()

    cdef int attempt_tunnel_data(self, Attempt attempt, bytes data) except -1:
        self.client.tunnel_write(data)
        if not self.client.client_writable and self.upstream_takes_body():
            attempt.stream.pause()
        self.ctx.now_ns = monotonic_ns()
        return self.rearm()

    cdef int attempt_tunnel_eof(self, Attempt attempt) except -1:
        self.tunnel_ends |= 2
        if self.tunnel_ends == 3:
            return self.finish()
        return self.client.tunnel_eof()

    cdef int tunnel_received(self, bytes data) except -1:
        """Bytes from the client inside a tunnel."""
        self.body_bytes += PyBytes_GET_SIZE(data)
        if self.upstream_takes_body():
            self.attempt.stream.tunnel_write(data)
            self.ctx.now_ns = monotonic_ns()
            return self.rearm()
        return 0

    cdef int tunnel_client_eof(self) except -1:
        """The client closed its half of a tunnel."""
        self.tunnel_ends |= 1
        if self.tunnel_ends == 3:
            return self.finish()
        if self.upstream_takes_body():
            self.attempt.stream.tunnel_eof()
        return 0

    # reply, fail, finish

    cdef int refuse(self, Reason reason) except -1:
        """Respond with a row of REASONS."""
        self.ctx.reason = reason
        self.ctx.answer = None
        self.ctx.ready_body = None
        return self.reply()

    cdef int reply(self) except -1:
        """Write a local response: the refusal or the response set in ctx."""
        cdef RequestContext ctx = self.ctx
        cdef Reason reason = ctx.reason
        cdef Answer answer = ctx.answer
        cdef ResponseHead head
        cdef Headers fields
        cdef bytes body
        self._let_go()
        self.response_started = True
        self.state = X_RELAYING
        if self.lookup is not None and reason is not None:
            self.lookup.refused()
        if ctx.local_lines is not None:
            ctx.gate_lines = ctx.local_lines if ctx.gate_lines is None else ctx.gate_lines + ctx.local_lines
            ctx.local_lines = None
        if reason is not None:
            ctx.status = reason.status
            body = ctx.ready_body if ctx.ready_body is not None else refusal_body(reason, ctx)
        else:
            ctx.status = answer.status
            body = answer.body
        if self.route is not None and (self.route.pipeline.response or self.route.response_edits is not None):
            fields = Headers([("Content-Type", "application/json")]) if reason is not None else answer_fields(answer)
            if self.route.response_edits is not None:
                self.route.response_edits.apply(ctx, fields)
            head = ResponseHead(ctx.status, fields, body)
            response_hooks(self.plane, self.route, ctx, head)
            fields = head.headers
            body = head.body
            ctx.status = head.status
            if ctx.status == 401:
                self._challenge(fields.find_field(b"www-authenticate", 16) != NULL)
            if ctx.method_id == M_HEAD or ctx.status == 204 or ctx.status == 304:
                self.told_length = -1 if ctx.status == 204 else len(body)
                self.client.respond_head(ctx.status, None, fields, LENGTH_NONE)
            else:
                self.client.respond_head(ctx.status, None, fields, len(body))
                if body:
                    self.client.respond_chunk(body)
            self.client.respond_end(None)
        elif reason is not None:
            if ctx.status == 401:
                self._challenge(False)
            self.client.respond_refusal(reason, body)
        else:
            if ctx.status == 401:
                self._challenge(b"\nwww-authenticate:" in b"\n" + answer.lines.lower())
            self.client.respond_answer(answer)
        self.response_complete = True
        self.client.flush()
        return self.finish()

    cdef int _challenge(self, bint has_one) except -1:
        """Add the route's challenges to a 401 that has none (RFC 9110 §11.6.1), whether it comes from a policy, a plugin, a fixed
        response or the service that forward-auth asked."""
        cdef RequestContext ctx = self.ctx
        cdef bytes lines = None
        if has_one or (ctx.gate_lines is not None and b"WWW-Authenticate: " in ctx.gate_lines):
            return 0
        if ctx.extra_response is not None and any([name.lower() == b"www-authenticate" for name, _ in ctx.extra_response]):
            return 0
        if self.route is not None:
            lines = self.route.pipeline.challenge_lines
        if not lines:
            lines = b'WWW-Authenticate: Bearer realm="fastgate"\r\n'
        ctx.gate_lines = lines if ctx.gate_lines is None else ctx.gate_lines + lines
        return 0

    cdef int client_gone(self) except -1:
        """The client closed the connection: cancel the upstream request immediately, send no response."""
        if self.state == X_FINISHED:
            return 0
        if self.state != X_TUNNEL:
            self.ctx.reason = CLIENT_CLOSED
        return self.finish()

    cdef int fail(self, Reason reason) except -1:
        """The request fails: send an error if nothing was sent yet, else truncate the response so that no client takes it for
        complete."""
        if self.state == X_FINISHED:
            return 0
        self._let_go()
        self.hold = None
        if not self.response_started:
            if self.stands_in():
                return self._serve()
            if reason is BREAKER_OPEN:
                self._tell_service()
            return self.refuse(reason)
        self.ctx.reason = reason
        self.client.cut()
        return self.finish()

    cdef int _tell_service(self) except -1:
        """Name the service whose circuit breakers are open, and when to try again."""
        cdef int64_t wait_ns = self.upstream.balance.closes_after_ns(self.ctx.now_ns)
        wait_s = max(1, (wait_ns + 999_999_999) // 1_000_000_000)
        self.ctx.detail = {"service": self.upstream.name, "retry_after": wait_s}
        self.ctx.add_response_header("Retry-After", str(wait_s))
        return 0

    cdef int _let_go(self) except -1:
        """Cancel what the request waits for: the body, a plugin, the upstream."""
        if self.state == X_COLLECTING:
            self._end_collecting()
        if self.task is not None:
            task = self.task
            self.task = None
            if self.state == X_SUSPENDED:
                self.state = X_NEW
                task.cancel()
        return self.give_up_attempt()

    cdef int finish(self) except -1:
        """End of every request; called exactly once."""
        cdef RequestContext ctx = self.ctx
        cdef route_counts_t* counts = self.counts
        cdef ClientStream client = self.client
        cdef int status_class
        if self.state == X_FINISHED:
            return 0
        self._let_go()
        if self.lookup is not None:
            self.lookup.finish()
        if self.state == X_TUNNEL:
            atomic_add_relaxed_u64(&self.plane.counts.tunnels_open, <uint64_t>-1)
        self.state = X_FINISHED
        ctx.finished_ns = monotonic_ns() if ctx.attempts == 0 or ctx.reason is not None or ctx.status == 101 else ctx.now_ns
        ctx.bytes_received = ctx.bytes_received + self.body_bytes
        self.deadline_reason = None
        self.total_deadline_ns = 0
        client.deadline_ns = 0
        self.timer = None
        status_class = ctx.status // 100
        atomic_add_relaxed_u64(&counts.responses[status_class if status_class < 6 else 5], 1)
        atomic_add_relaxed_u64(&counts.bytes_received, ctx.bytes_received)
        atomic_add_relaxed_u64(&counts.bytes_sent, ctx.bytes_sent)
        if ctx.reason is not None:
            atomic_add_relaxed_u64(&counts.reasons[ctx.reason.index], 1)
        if ctx.status != 101:
            histogram_record(&counts.duration, ctx.finished_ns - ctx.started_ns)
        if self.route is not None:
            for gate in self.route.pipeline.finish:
                (<Plugin>gate).c_finish(ctx)
            if self.route.pipeline.log:
                log_hooks(self.plane, self.route, ctx)
        self.plane.log.record(ctx)
        atomic_add_relaxed_u64(&self.plane.counts.requests_active, <uint64_t>-1)    # last: at zero active requests, all are counted
        self.release()
        self.client = None
        return client.exchange_finished()

    # deadlines

    cdef int rearm(self) except -1:
        if self.state == X_SENDING and not self.attempt.end_sent:
            if self.body_paused:
                return self.arm(self.destination.between_bytes_ns, BETWEEN_BYTES_TIMEOUT)
            if self.ctx.expects_continue and self.body_bytes == 0:
                return self.arm(self.destination.first_byte_ns, FIRST_BYTE_TIMEOUT)       # the upstream has to send the 100
        elif (self.state == X_RELAYING or self.state == X_TUNNEL) and not self.client.client_writable:
            return self.arm(self.plane.look_ns, CLIENT_STALLED)
        return UpstreamRequest.rearm(self)

    cdef int deadline_passed(self, int64_t now_ns) except -1:
        cdef Reason reason = self.deadline_reason
        cdef bint total = self.total_deadline_ns != 0 and now_ns >= self.total_deadline_ns
        if self.state == X_FINISHED:
            return 0
        self.ctx.now_ns = now_ns
        if reason is PLUGIN_TIMEOUT:
            return self.fail(PLUGIN_TIMEOUT)
        if not total:
            if self.state == X_LOOKING and self.lookup.waiting:
                return self.looked(self.lookup.wait_over())
            if reason is CLIENT_STALLED:
                reason = self.client.too_slow(now_ns)
                if reason is None:
                    return self.rearm()
                self.deadline_reason = reason
        if self.state == X_TUNNEL:
            self.ctx.reason = TOTAL_TIMEOUT if total else reason
            return self.finish()
        return UpstreamRequest.deadline_passed(self, now_ns)


cdef bytes refusal_body(Reason reason, RequestContext ctx):
    """`{"error": …, "code": …, details…, "request_id": …}`"""
    if ctx.detail is None:
        return reason.body_start + b',"request_id":"' + ctx.request_id_bytes + b'"}'
    return msgspec.json.encode({"error": reason.text, "code": None, **ctx.detail, "code": reason.code, "request_id": ctx.request_id})


cdef Headers answer_fields(Answer answer):
    """The prebuilt lines of an `Answer` as a table, for hooks that edit them."""
    cdef Headers fields = Headers()
    for line in answer.lines.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b": ")
            fields.add(name, value)
    return fields
