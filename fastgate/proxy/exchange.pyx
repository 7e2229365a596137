# cython: boundscheck=False, nonecheck=True
"""The life of a request. Read this file first.

WHAT     An `Exchange` takes one request from its parsed head to its log line: decide, suspend, forward, relay, reply, fail, finish.
         It knows nothing of wire versions: a `ClientStream` writes the response, an `UpstreamStream` sends the request and
         tells what came back.

             start ─ no route ───────────────────────────────► reply
               │ decide ─ RESPOND ───────────────────────────► reply ─────────────┐
               │    └──── SUSPEND ─► task: request() … ─► decide (next step)      │
               ▼ CONTINUE                                                         │
             forward ─► attempt ─ idle connection ─► send ─► relay ─ end ─────────┤
                          ▲  └─ none ─► wait ─► on_connection ─► send             ▼
                          │            └─ failed ─► attempt (next target) / fail  finish
                        replay ◄── on_failed ──► fail ─ nothing out yet ─► reply  ▲
                                                   └─── bytes are out ──► cut ────┘

STATE    NEW → SUSPENDED → NEW → COLLECTING → WAITING → SENDING → RELAYING | TUNNEL → FINISHED. Every path ends in `_finish`, exactly once.
WHO      The worker's loop.
COST     See DESIGN: the kernel is most of it. No task, dict, closure or exception unless a plugin must await.
SOURCES  Varnish cache_req_fsm.c (steps and verdicts); pingora-error (source, retryable); RFC 9110 §9.2.2 (what may be sent twice).
"""

import asyncio
import logging
import os

import msgspec

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.time cimport time

from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.pipeline.context cimport M_HEAD, Answer, Reason, RequestContext, method_idempotent, method_number
from fastgate._core.shm.counters cimport Counters, route_counts_t
from fastgate._core.gates.auth cimport AuthGate
from fastgate._core.http.headers cimport H_CONTENT_TYPE, H_UPGRADE, Headers, HeadWriter
from fastgate._core.stats.histogram cimport histogram_record
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, V_RESPOND, V_SUSPEND, Pipeline, Plugin, RequestHead, ResponseHead, hook_done, verdict_of
from fastgate._core.pipeline.plan cimport Destination, Plan, RoutePlan
from fastgate._core.pipeline.wheel cimport TimerWheel
from fastgate.proxy.accesslog cimport AccessLog
from fastgate.proxy.client_stream cimport LENGTH_NONE, LENGTH_UNKNOWN, ClientStream
from fastgate.proxy.cache_stage cimport CachedRequest, cache_begin
from fastgate.upstream.h1_request cimport upstream_target
from fastgate.upstream.pool cimport A_FULL, A_OPENING, Target, Upstream
from fastgate.upstream.stream cimport (
    BODY_NONE, BODY_UNKNOWN, SAME_CLIENT, SAME_LISTENER, SAME_ROUTE, ResponseSink, UpstreamStream,
)

from email.utils import formatdate

from fastgate.errors import REASONS

log = logging.getLogger("fastgate")

cdef enum:
    # What is kept of a request's body so that it can be replayed on a fresh connection. A larger upload
    # is not held in memory for the rare connection that turns out dead.
    REPLAY_BYTES = 65536
    # A smaller piece joins the one before it while that is below JOINED_BYTES: an object takes 48 bytes beside its content, and a
    # client that sends two bytes at a time would need 28 times the memory that the bounds count.
    SMALL_PIECE_BYTES = 256
    JOINED_BYTES = 1024
    # Body held for an upstream connection that is not there yet; beyond it the client is not read.
    PENDING_BYTES = 65536
    # Of all bodies that are being collected in a worker; beyond it they stream as they arrive.
    COLLECTED_MOST_BYTES = 67108864

cdef int64_t LOUD_NS = 10_000_000_000           # between two log lines about the same target
cdef int64_t PLUGIN_WAIT_NS = 60_000_000_000    # a plugin's request() may take this long, unless the route's total is less

cdef Reason AMBIGUOUS_PATH = REASONS["ambiguous_path"]
cdef Reason NO_ROUTE = REASONS["no_route"]
cdef Reason METHOD_NOT_ALLOWED = REASONS["method_not_allowed"]
cdef Reason BODY_TOO_LARGE = REASONS["body_too_large"]
cdef Reason BODY_TIMEOUT = REASONS["body_timeout"]
cdef Reason BODY_TOO_SLOW = REASONS["body_too_slow"]
cdef Reason CLIENT_CLOSED = REASONS["client_closed"]
cdef Reason CLIENT_STALLED = REASONS["client_stalled"]
cdef Reason PLUGIN_ERROR = REASONS["plugin_error"]
cdef Reason PLUGIN_RESPONSE_ERROR = REASONS["plugin_response_error"]
cdef Reason PLUGIN_TIMEOUT = REASONS["plugin_timeout"]
cdef Reason INTERNAL_ERROR = REASONS["internal_error"]
cdef Reason BAD_RESPONSE = REASONS["bad_upstream_response"]
cdef Reason UPSTREAM_CLOSED = REASONS["upstream_closed"]
cdef Reason CREDENTIAL_UNAVAILABLE = REASONS["credential_unavailable"]
cdef Reason UNKNOWN_UPSTREAM = REASONS["unknown_upstream"]
cdef Reason QUEUE_FULL = REASONS["upstream_queue_full"]
cdef Reason QUEUE_TIMEOUT = REASONS["upstream_queue_timeout"]
cdef Reason CONNECT_TIMEOUT = REASONS["upstream_connect_timeout"]
cdef Reason FIRST_BYTE_TIMEOUT = REASONS["upstream_first_byte_timeout"]
cdef Reason BETWEEN_BYTES_TIMEOUT = REASONS["upstream_between_bytes_timeout"]
cdef Reason TOTAL_TIMEOUT = REASONS["total_timeout"]


cdef extern from *:
    """
    #include <stdint.h>
    /* The 8 hexadecimal digits of value, all at once: each of its half-bytes is spread to a byte, then turned into a character. */
    static inline void fastgate_hex_digits(uint32_t value, char* out) {
        const uint64_t ones = 0x0101010101010101ULL;
        uint64_t x = value;
        int i;
        x = ((x << 16) | x) & 0x0000ffff0000ffffULL;
        x = ((x << 8) | x) & 0x00ff00ff00ff00ffULL;
        x = ((x << 4) | x) & 0x0f0f0f0f0f0f0f0fULL;
        x += ones * '0' + (((x + ones * 6) >> 4) & ones) * ('a' - '0' - 10);
        for (i = 0; i < 8; i++) out[i] = (char)(x >> (56 - 8 * i));
    }
    """
    void hex_digits "fastgate_hex_digits"(uint32_t value, char* out) noexcept nogil


cdef class Plane:
    """What all exchanges of one worker share."""

    def __init__(self, loop, memory, int slot, AccessLog access_log not None):
        self.loop = loop
        self.memory = memory
        self.counters = memory.counters
        self.slot = slot
        self.counts = self.counters.worker(slot)
        self.wheel = TimerWheel(WHEEL_TICK_NS, monotonic_ns())
        self.log = access_log
        self.out = HeadWriter()
        self.connections = set()
        self.of_listener = {}
        self.id_high = int.from_bytes(os.urandom(8), "little")
        self.id_low = int.from_bytes(os.urandom(8), "little")

    cdef bytes new_request_id(self):
        """32 hex digits: 64 random bits of this worker, then a mixed counter that started at random (splitmix64)."""
        cdef uint64_t z
        cdef char[32] digits
        self.id_low += <uint64_t>0x9E3779B97F4A7C15
        z = self.id_low
        z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
        z ^= z >> 31
        hex_digits(<uint32_t>(self.id_high >> 32), digits)
        hex_digits(<uint32_t>self.id_high, digits + 8)
        hex_digits(<uint32_t>(z >> 32), digits + 16)
        hex_digits(<uint32_t>z, digits + 24)
        return PyBytes_FromStringAndSize(digits, 32)

    cdef bytes date_value(self, int64_t now_ns):
        """The value of Date, made once a second."""
        if now_ns >= self.date_until_ns:
            self.date = formatdate(time(NULL), usegmt=True).encode()
            self.date_until_ns = now_ns + 500_000_000
        return self.date


@cython.final
cdef class Exchange(ResponseSink):
    """One request on its way."""

    # What the client side calls

    cdef int start(self) except -1:
        """The head is parsed and checked: decide. What has arrived of the body is in `pending`."""
        cdef RequestContext ctx = self.ctx
        cdef RoutePlan route
        cdef bytes allow
        self.told_length = -1
        self.begin()
        self.counts = self.plan.unmatched               # also for what fails before a route is found
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

    cdef int begin(self) except -1:
        """Count the request, in the worker and in its plan, until `_finish`."""
        self.plan.requests += 1
        atomic_add_relaxed_u64(&self.plane.counts.requests_active, 1)
        return 0

    cdef int shared_with(self, ResponseSink other) noexcept:
        cdef Exchange x
        cdef Identity mine, theirs
        cdef int common = 0
        if type(other) is not Exchange:
            return 0
        x = <Exchange>other
        if self.counts == x.counts:
            common |= SAME_ROUTE
        if self.client is not None and x.client is not None and self.client.listener == x.client.listener:
            common |= SAME_LISTENER
        mine = self.ctx.identity
        theirs = x.ctx.identity
        if mine is not None and not mine.by_address and mine.consumer_bytes is not None:
            if theirs is not None and mine.consumer_bytes == theirs.consumer_bytes:
                common |= SAME_CLIENT
        elif self.ctx.client == x.ctx.client:
            common |= SAME_CLIENT
        return common

    cdef bint up_active(self):
        """True while an upstream connection takes the request body."""
        return self.up is not None

    cdef int body_chunk(self, bytes chunk) except -1:
        """A piece of the request body arrived."""
        self.body_bytes += PyBytes_GET_SIZE(chunk)
        if self.state == X_FINISHED or self.response_complete:
            return 0
        if self.route is not None and self.route.max_body_bytes and self.body_bytes > self.route.max_body_bytes:
            return self._fail(BODY_TOO_LARGE)
        if self.pending is None:
            self.pending = []
        add_piece(self.pending, chunk)
        self.pending_bytes += PyBytes_GET_SIZE(chunk)
        return 0

    cdef int body_end(self, Headers trailers) except -1:
        """The request body is complete."""
        self.body_complete = True
        self.request_trailers = trailers
        return 0

    cdef int body_read_done(self) except -1:
        """One read from the client is digested: send what it brought, or keep it within bounds."""
        if self.state == X_FINISHED or self.response_complete:
            return 0
        if self.buffer_body:
            if self.pending_bytes > self.buffer_bytes:
                return self._fail(BODY_TOO_LARGE)
            if self.body_complete:
                if self.body_waiter is not None and not self.body_waiter.done():
                    self.body_waiter.set_result(None)
            else:
                self._await_body()
            return 0
        if self.state == X_COLLECTING:
            return self._collect()
        if self.up is not None and not self.end_sent:
            return self._send_pending()
        if self.pending_bytes > PENDING_BYTES:
            self._pause_client()
        return 0

    cdef int _pause_client(self) except -1:
        """Read no more of the body until `_resume_client`."""
        if not self.body_paused and not self.body_complete:
            self.body_paused = True
            self.body_paused_ns = self.ctx.now_ns
            self.client.pause_body()
        return 0

    cdef int _resume_client(self) except -1:
        if self.body_paused:
            self.body_paused = False
            if self.body_clock_ns:
                self.body_clock_ns += self.ctx.now_ns - self.body_paused_ns
            self.client.resume_body()
        return 0

    cdef int _await_body(self) except -1:
        """Wait for the client to send more of the body: not longer than body_timeout, and not below the minimum rate."""
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
                return self._fail(BODY_TOO_SLOW)
            if left_ns < self.body_timeout_ns:
                return self._arm(left_ns, BODY_TOO_SLOW)
        return self._arm(self.body_timeout_ns, BODY_TIMEOUT)

    cdef int client_gone(self) except -1:
        """The client closed: cancel the upstream at once, answer nothing."""
        if self.state == X_FINISHED:
            return 0
        if self.state != X_TUNNEL:
            self.ctx.reason = CLIENT_CLOSED
        return self._finish()

    cdef int client_drained(self, bint writable) except -1:
        """The client's write buffer filled up, or has room again."""
        if self.up is None or self.state == X_FINISHED:
            return 0
        if writable:
            self.up.resume()
        else:
            self.up.pause()
            if self.cached is not None:
                (<CachedRequest>self.cached).on_stalled(self)
        return self._rearm()

    cdef int deadline_passed(self, int64_t now_ns) except -1:
        """The deadline set by `_arm` is over."""
        cdef Reason reason = self.deadline_reason
        if self.state == X_FINISHED:
            return 0
        self.ctx.now_ns = now_ns
        if self.total_deadline_ns and now_ns >= self.total_deadline_ns and reason is not PLUGIN_TIMEOUT:
            reason = TOTAL_TIMEOUT
        elif self.cached is not None and (<CachedRequest>self.cached).waiting:
            return (<CachedRequest>self.cached).wait_over(self)
        if reason is CLIENT_STALLED:
            reason = self.client.too_slow(now_ns)
            if reason is None:
                return self._rearm()
        if reason is None:
            return 0
        if self.state == X_TUNNEL:
            self.ctx.reason = reason
            return self._finish()
        self._fail(reason)
        return 0

    cdef int refuse(self, Reason reason) except -1:
        """Answer with a row of REASONS."""
        self.ctx.reason = reason
        self.ctx.answer = None
        self.ctx.ready_body = None
        return self._reply()

    # decide, suspend

    cdef int _decide(self, int start) except -1:
        """Walk the steps from start. A refusal of a plugin in shadow mode is counted and passed over."""
        cdef Pipeline pipeline = self.route.pipeline
        cdef Plugin plugin
        cdef int at = start
        cdef int verdict
        while True:
            try:
                verdict = pipeline.decide(self.ctx, start, &at)
            except BaseException:
                self._plugin_failed(pipeline.steps[at], "decide")
                self.ctx.reason = PLUGIN_ERROR
                self.ctx.answer = None
                return V_RESPOND
            self.suspended_at = at
            if verdict == V_RESPOND:
                plugin = <Plugin>pipeline.steps[at]
                if not plugin.enforce and self._pass_over(plugin):
                    start = at + 1
                    continue
            return verdict

    cdef bint _pass_over(self, Plugin plugin) except -1:
        """Shadow mode: undo a refusal; True if it was one."""
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
            del ctx.extra_response[ctx.extra_before:]   # those of the refusal; what others added stays
        return True

    cdef int _after_decide(self, int verdict) except -1:
        if verdict == V_CONTINUE:
            if self.ctx.upstream_override is not None and not self._go_elsewhere(self.ctx.upstream_override):
                return self.refuse(UNKNOWN_UPSTREAM)
            if self.destination is None:
                return self.refuse(INTERNAL_ERROR)
            if self.destination.cache is None:
                return self._forward()
            return cache_begin(self)
        if verdict == V_RESPOND:
            if self.ctx.reason is not None or self.ctx.answer is not None:
                return self._reply()
            self._plugin_failed(self.route.pipeline.steps[self.suspended_at], "decide or request: RESPOND without an answer:")
            return self.refuse(PLUGIN_ERROR)
        if verdict == V_SUSPEND:
            self.state = X_SUSPENDED
            self._arm(PLUGIN_WAIT_NS, PLUGIN_TIMEOUT)
            self.task = self.plane.loop.create_task(self._suspended())
            return 0
        self._plugin_failed(self.route.pipeline.steps[self.suspended_at], f"decide returned {verdict}, which is no verdict:")
        return self.refuse(PLUGIN_ERROR)

    async def _suspended(self):
        """Await the request hooks, in listed order, then go on where the walk stopped."""
        cdef Plugin plugin = None
        cdef int verdict = V_SUSPEND
        try:
            while verdict == V_SUSPEND:
                plugin = <Plugin>self.route.pipeline.steps[self.suspended_at]
                if plugin.request_body_bytes > 0 and self.ctx.body is None:
                    await self._whole_body(self.route.pipeline.request_body_bytes)
                    if self.state != X_SUSPENDED:
                        return
                answer = await plugin.request(self.ctx)
                if self.state != X_SUSPENDED:
                    return
                verdict = verdict_of(answer, self.ctx, "request")
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
                return                                  # we cancelled it: the request is over
            self._plugin_failed(plugin, "request (cancelled itself)")
            self.ctx.reason = PLUGIN_ERROR
            self.ctx.answer = None
            verdict = V_RESPOND
        except BaseException:
            if self.state != X_SUSPENDED:
                return
            self._plugin_failed(plugin, "request")
            self.ctx.reason = PLUGIN_ERROR
            self.ctx.answer = None
            verdict = V_RESPOND
        self.task = None
        self.state = X_NEW
        self.ctx.now_ns = monotonic_ns()
        try:
            self._after_decide(verdict)
        except Exception:
            log.exception("while handling request %s", self.ctx.request_id)
            if self.state != X_FINISHED:
                self.client.cut()
                self._finish()

    async def _whole_body(self, int64_t bound):
        """Wait until the whole request body is here; one larger than bound is refused."""
        self.buffer_body = True
        self.buffer_bytes = bound
        if self.ctx.content_length > bound:
            self._fail(BODY_TOO_LARGE)
            return
        if not self.body_complete:
            if self.ctx.expects_continue and self.body_bytes == 0:
                self.client.send_continue()
                self.ctx.expects_continue = False
                self.ctx.headers.drop(b"expect", 6)
            self.body_waiter = self.plane.loop.create_future()
            self.ctx.now_ns = monotonic_ns()
            self._await_body()
            self._resume_client()
            await self.body_waiter
            self.body_waiter = None
            if self.state == X_FINISHED:
                return
            self.ctx.now_ns = monotonic_ns()
            self._arm(PLUGIN_WAIT_NS, PLUGIN_TIMEOUT)
        elif self.pending_bytes > bound:
            self._fail(BODY_TOO_LARGE)
            return
        self.ctx.body = b"".join(self.pending) if self.pending else b""

    cdef int _plugin_failed(self, object plugin, str phase) except -1:
        atomic_add_relaxed_u64(&self.plane.counts.plugin_errors, 1)
        cdef str name = str(getattr(plugin, "name", plugin))
        log.error("plugin %s of route %s failed in %s on request %s", name, self.route.name if self.route is not None else "?", phase,
                  self.ctx.request_id, exc_info=True, extra={"throttle": (name, phase)})
        return 0

    # forward

    cdef bint _go_elsewhere(self, str upstream) except -1:
        """A policy or a plugin sends this request to another upstream, by that one's settings. False if there is no such upstream."""
        cdef Destination destination = self.plan.destination(self.route, upstream)
        if destination is None:
            log.warning("request %s of route %s is sent to the upstream %r, which the config does not have", self.ctx.request_id,
                      self.route.name, upstream[:100], extra={"throttle": ("unknown_upstream", self.route.name)})
            return False
        self.destination = destination
        self.total_deadline_ns = self.ctx.started_ns + destination.total_ns if destination.total_ns else 0
        return True

    cdef int _forward(self) except -1:
        """Every decision is made: send it upstream."""
        cdef RequestContext ctx = self.ctx
        self.upstream = <Upstream>self.destination.upstream
        if self.upstream.credential is not None and not self.upstream.credential.usable(ctx.now_ns):
            return self.refuse(CREDENTIAL_UNAVAILABLE)
        self.buffer_body = False
        if ctx.body_replaced:
            self.pending = [ctx.body] if ctx.body else None
            self.pending_bytes = len(ctx.body)
            ctx.content_length = len(ctx.body)
            ctx.has_body = True
        self.length_open = ctx.has_body and (ctx.content_length < 0 or len(self.route.pipeline.request_chunk) > 0)
        if ctx.has_body and not self.body_complete and not ctx.expects_continue and not ctx.upgrade \
                and self.pending_bytes < self.route.request_buffering_bytes:
            self.state = X_COLLECTING
            atomic_add_relaxed_u64(&self.plane.counts.bodies_collecting, 1)
            self._resume_client()
            return self._collect()
        return self._first_attempt()

    cdef int _collect(self) except -1:
        """Wait until the body is whole or has reached the bound of the route: a slow client holds no connection to the upstream."""
        cdef Plane plane = self.plane
        plane.collected_bytes += self.pending_bytes - self.collected
        self.collected = self.pending_bytes
        if self.body_complete or self.pending_bytes >= self.route.request_buffering_bytes \
                or plane.collected_bytes > COLLECTED_MOST_BYTES:
            self._end_collecting()
            return self._first_attempt()
        return self._await_body()

    cdef int _end_collecting(self) except -1:
        self.state = X_NEW
        self.plane.collected_bytes -= self.collected
        self.collected = 0
        atomic_add_relaxed_u64(&self.plane.counts.bodies_collecting, <uint64_t>-1)
        return 0

    cdef int _first_attempt(self) except -1:
        self.attempts_left = len(self.upstream.targets)
        self.target = self.upstream.pick()
        return self._attempt()

    cdef int _attempt(self) except -1:
        """One try at the target: an idle connection, or wait for one."""
        cdef RequestContext ctx = self.ctx
        cdef UpstreamStream connection = None
        cdef int outcome
        self.attempts_left -= 1
        ctx.attempts += 1
        ctx.upstream_address = self.target.address
        atomic_add_relaxed_u64(&self.counts.attempts, 1)
        if not self.replayed:
            connection = self.target.take(self, ctx.now_ns)
        if connection is not None:
            self.up = connection
            return self._send_head()
        self.state = X_WAITING
        outcome = self.target.acquire(self)
        if outcome == A_FULL:
            return self._fail(QUEUE_FULL)
        if outcome == A_OPENING:
            return self._arm(self.destination.connect_ns, CONNECT_TIMEOUT)
        return self._arm(self.upstream.queue_timeout_ns, QUEUE_TIMEOUT)

    cdef int on_connection(self, UpstreamStream stream) except -1:
        cdef RequestContext ctx = self.ctx
        self.up = stream
        ctx.now_ns = monotonic_ns()
        return self._send_head()

    cdef int on_connect_failed(self, Reason reason, str detail) except -1:
        self.ctx.now_ns = monotonic_ns()
        self.target.failed_quietly += 1
        if self.target.failed_loudly_ns == 0 or self.ctx.now_ns >= self.target.failed_loudly_ns + LOUD_NS:     # a dead upstream must not fill the disk with its name
            self.target.failed_loudly_ns = self.ctx.now_ns
            log.warning("upstream %s at %s: %s (%s), %d since the last such line", self.upstream.name, self.target.url,
                        reason.label, detail, self.target.failed_quietly)
            self.target.failed_quietly = 0
        if self.attempts_left > 0:
            # Not by the balancer, which other requests move on: it might name this very target again.
            self.target = self.upstream.after(self.target)
            return self._attempt()
        return self._fail(reason)

    cdef int _send_head(self) except -1:
        """Write the head, and what is here of the body, in one piece."""
        cdef RequestContext ctx = self.ctx
        cdef RoutePlan route = self.route
        cdef Headers fields = ctx.headers
        cdef bytes method = ctx.method_bytes
        cdef bytes path
        cdef int64_t length = ctx.content_length
        cdef RequestHead head
        cdef int64_t began_ns
        cdef int method_id = ctx.method_id
        path = upstream_target(ctx, route)
        if self.length_open:
            length = BODY_UNKNOWN
        elif length < 0:
            length = BODY_NONE
        if route.request_edits is not None or route.pipeline.upstream_request or self.cached is not None:
            fields = ctx.headers.copy()
            if self.cached is not None:
                (<CachedRequest>self.cached).conditions(fields)
            if route.request_edits is not None:
                route.request_edits.apply(ctx, fields)
            if route.pipeline.upstream_request:
                head = RequestHead(method.decode("latin-1"), path.decode("latin-1"), fields, ctx.body)
                began_ns = monotonic_ns()
                for plugin in route.pipeline.upstream_request:
                    try:
                        edited_only(plugin.upstream_request(ctx, head), ctx, None, None, "upstream_request")
                        check_head(head, ctx)
                        hook_done(<Plugin>plugin, ctx, began_ns, "upstream_request")
                        began_ns = ctx.now_ns
                    except BaseException:
                        self._plugin_failed(plugin, "upstream_request")
                        return self._fail(PLUGIN_ERROR)
                method = head.method.encode("latin-1")
                path = head.target.encode("latin-1")
                method_id = method_number(PyBytes_AS_STRING(method), PyBytes_GET_SIZE(method))
                if head.body is not None and head.body is not ctx.body:
                    self.pending = [head.body] if head.body else None
                    self.pending_bytes = len(head.body)
                    if not self.length_open:
                        length = len(head.body)
        self.up.send_head(self, ctx, self.destination, self.upstream.credential, method, path, fields, length,
                          self.total_deadline_ns - ctx.now_ns if self.total_deadline_ns else 0)
        self.state = X_SENDING
        ctx.upstream_started_ns = ctx.now_ns
        self.end_sent = False
        self.keeps = method_idempotent(method_id) and not ctx.upgrade and not route.pipeline.request_chunk
        self.kept = None
        self.kept_bytes = 0
        return self._send_pending()

    cdef int _send_pending(self) except -1:
        """Send what is written of the head, and the pieces of the body that are here."""
        cdef bytes chunk
        cdef bint ends = self.body_complete and not self.end_sent
        cdef list pieces = self.pending
        cdef UpstreamStream up = self.up
        if pieces is not None or ends:
            self.pending = None
            self.pending_bytes = 0
            if self.route.pipeline.request_chunk and self.ctx.has_body:
                pieces = self._hooked_request_chunks(pieces, ends)
                if pieces is None:
                    return self._fail(PLUGIN_ERROR)
            if pieces is not None:
                for piece in pieces:
                    chunk = <bytes>piece
                    if self.keeps:
                        self._keep(chunk)
                    up.send_chunk(chunk)
            if ends:
                self.end_sent = True
                up.send_end(self.request_trailers)
        up.flush()
        if self.up is not up:
            return 0
        if up.writable:
            self._resume_client()
        else:
            self._pause_client()
        return self._rearm()

    cdef int _keep(self, bytes chunk) except -1:
        """Keep a piece of the body for a replay, as long as they are few."""
        self.kept_bytes += PyBytes_GET_SIZE(chunk)
        if self.kept_bytes > REPLAY_BYTES:
            self.keeps = False
            self.kept = None
        elif self.kept is None:
            self.kept = [chunk]
        else:
            add_piece(self.kept, chunk)
        return 0

    cdef list _hooked_request_chunks(self, list pieces, bint ends):
        """The pieces as the request_chunk hooks make them; None when a hook failed."""
        cdef list out = []
        cdef list todo = pieces if pieces is not None else []
        cdef int64_t began_ns
        cdef Py_ssize_t i, n = len(todo)
        if ends and n == 0:
            todo = [b""]
            n = 1
        for i in range(n):
            chunk = todo[i]
            for plugin in self.route.pipeline.request_chunk:
                try:
                    began_ns = monotonic_ns()
                    chunk = plugin.request_chunk(self.ctx, chunk, ends and i == n - 1)
                    hook_done(<Plugin>plugin, self.ctx, began_ns, "request_chunk")
                    if not isinstance(chunk, bytes):
                        raise TypeError(f"request_chunk returned {type(chunk).__name__}, expected bytes")
                except BaseException:
                    self._plugin_failed(plugin, "request_chunk")
                    return None
            out.append(chunk)
        return out

    cdef int on_upstream_writable(self, bint writable) except -1:
        if self.state == X_FINISHED:
            return 0
        self.ctx.now_ns = monotonic_ns()
        if writable:
            self._resume_client()
        else:
            self._pause_client()
        return self._rearm()

    # relay

    cdef int on_interim(self, UpstreamStream stream) except -1:
        self.ctx.expects_continue = False
        return self.client.respond_interim(stream.status, stream.phrase, stream.fields)

    cdef int on_head(self, UpstreamStream stream) except -1:
        cdef RequestContext ctx = self.ctx
        cdef int status = stream.status
        cdef int64_t length
        cdef Headers fields
        ctx.first_byte_ns = stream.now_ns
        ctx.upstream_status = status
        self.kept = None
        self.keeps = False
        histogram_record(&self.counts.upstream, ctx.first_byte_ns - ctx.upstream_started_ns)
        if status == 101:
            fields = self._switching_head(stream)
            if fields is None:
                return 0
            ctx.status = 101
            self.response_started = True
            self.client.respond_head(101, stream.phrase, fields, LENGTH_NONE)
            self.client.flush()
            self.state = X_TUNNEL
            atomic_add_relaxed_u64(&self.plane.counts.tunnels_open, 1)
            return self.client.open_tunnel()
        if ctx.method_id == M_HEAD or status == 204 or status == 304:
            length = LENGTH_NONE
            # What GET would say: nothing where hooks may change the length
            self.told_length = -1 if status == 204 or self.route.pipeline.response_chunk else stream.content_length
        else:
            length = stream.content_length          # -1 = LENGTH_UNKNOWN
        if self.route.pipeline.response_body_bytes > 0 and length != LENGTH_NONE \
                and length <= self.route.pipeline.response_body_bytes and not is_event_stream(stream.fields):
            self.held = []
            self.held_status = status
            self.held_phrase = stream.phrase
            self.held_fields = stream.fields
            return 0
        return self._answer_head(status, stream.phrase, stream.fields, length, None)

    cdef Headers _switching_head(self, UpstreamStream stream):
        """The fields of a 101 as gates, hooks and edits leave them. What is switched to is the upstream's word, and neither status
        nor Upgrade can be changed. None when a hook failed: the request is over then."""
        cdef RequestContext ctx = self.ctx
        cdef Pipeline pipeline = self.route.pipeline
        cdef Headers fields = stream.fields
        cdef bytes protocol = fields.find_known(H_UPGRADE)
        cdef ResponseHead head
        cdef int64_t began_ns
        for gate in pipeline.answer:
            (<Plugin>gate).c_answer(ctx, fields)
        if pipeline.upstream_response or pipeline.response:
            head = ResponseHead(101, fields, None)
            for plugin in pipeline.upstream_response:
                try:
                    began_ns = monotonic_ns()
                    edited_only(plugin.upstream_response(ctx, head), ctx, None, None, "upstream_response")
                    check_answer(head, 101, None, ctx)
                    hook_done(<Plugin>plugin, ctx, began_ns, "upstream_response")
                except BaseException:
                    self._plugin_failed(plugin, "upstream_response")
                    self._fail(PLUGIN_RESPONSE_ERROR)
                    return None
            if self.route.response_edits is not None:
                self.route.response_edits.apply(ctx, head.headers)
            self._response_hooks(head)
            fields = head.headers
        elif self.route.response_edits is not None:
            self.route.response_edits.apply(ctx, fields)
        fields.drop(b"upgrade", 7)
        if protocol is not None:
            fields.add(b"Upgrade", protocol)
        return fields

    cdef int _answer_head(self, int status, bytes phrase, Headers fields, int64_t length, bytes whole) except -1:
        """Run the head hooks and edits, and give the head to the client. `whole` is the body of a held answer."""
        cdef RequestContext ctx = self.ctx
        cdef Pipeline pipeline = self.route.pipeline
        cdef ResponseHead head
        cdef int64_t began_ns
        for gate in pipeline.answer:
            (<Plugin>gate).c_answer(ctx, fields)
        if pipeline.upstream_response or pipeline.response:
            head = ResponseHead(status, fields, whole)
            began_ns = monotonic_ns() if pipeline.upstream_response else 0
            for plugin in pipeline.upstream_response:
                try:
                    edited_only(plugin.upstream_response(ctx, head), ctx, None, None, "upstream_response")
                    check_answer(head, status, whole, ctx)
                    hook_done(<Plugin>plugin, ctx, began_ns, "upstream_response")
                    began_ns = ctx.now_ns
                except BaseException:
                    self._plugin_failed(plugin, "upstream_response")
                    return self._fail(PLUGIN_RESPONSE_ERROR)
            if self.cached is not None:
                if (<CachedRequest>self.cached).on_answer(self, head.status, phrase, head.headers):
                    return 0
                if whole is not None:                   # what is kept has not met the response hooks: every hit does
                    (<CachedRequest>self.cached).on_chunk(<bytes>head.body, self)
            if self.route.response_edits is not None:
                self.route.response_edits.apply(ctx, fields)
            self._response_hooks(head)
            fields = head.headers
            if head.status != status:
                status = head.status
                phrase = None
            if whole is not None and head.body is not whole:
                self.held = [head.body]
                length = len(head.body)
        elif self.cached is not None or self.route.response_edits is not None:
            if self.cached is not None:
                if (<CachedRequest>self.cached).on_answer(self, status, phrase, fields):
                    return 0
                if whole is not None:
                    (<CachedRequest>self.cached).on_chunk(whole, self)
            if self.route.response_edits is not None:
                self.route.response_edits.apply(ctx, fields)
        if pipeline.response_chunk and length >= 0:
            length = LENGTH_UNKNOWN
        self.state = X_RELAYING
        self.response_started = True
        ctx.status = status
        return self.client.respond_head(status, phrase, fields, length)

    cdef int _response_hooks(self, ResponseHead head) except -1:
        """Run the response hooks. The answer goes on as it was before a hook that fails."""
        cdef Headers fields
        cdef int status
        cdef int64_t began_ns
        cdef Reason reason = self.ctx.reason
        cdef Answer answer = self.ctx.answer
        if not self.route.pipeline.response:
            return 0
        began_ns = monotonic_ns()
        for plugin in self.route.pipeline.response:
            fields = head.headers.copy()
            status = head.status
            body = head.body
            try:
                edited_only(plugin.response(self.ctx, head), self.ctx, reason, answer, "response")
                check_answer(head, status, body, self.ctx)
                hook_done(<Plugin>plugin, self.ctx, began_ns, "response")
                began_ns = self.ctx.now_ns
            except BaseException:
                self._plugin_failed(plugin, "response")
                began_ns = monotonic_ns()               # its time is not the next plugin's
                head.headers = fields
                head.status = status
                head.body = body
        return 0

    cdef int on_chunk(self, bytes chunk) except -1:
        if self.held is not None:
            add_piece(self.held, chunk)
            self.held_bytes += PyBytes_GET_SIZE(chunk)
            if self.held_bytes > self.route.pipeline.response_body_bytes:
                return self._give_up_holding()
            return 0
        if self.cached is not None:
            (<CachedRequest>self.cached).on_chunk(chunk, self)
        return self._relay_chunk(chunk)

    cdef int _relay_chunk(self, bytes chunk) except -1:
        """A piece of the answer for the client."""
        if self.route.pipeline.response_chunk:
            chunk = self._hooked_response_chunk(chunk, False)
            if chunk is None:
                return 0
        if PyBytes_GET_SIZE(chunk) == 0:
            return 0
        return self.client.respond_chunk(chunk)

    cdef int _give_up_holding(self) except -1:
        """A longer answer than the plugins can take whole: it passes as a stream, unread by them."""
        cdef list held = self.held
        self.held = None
        log.warning("request %s: answer larger than response_body_bytes (%d) passes unread", self.ctx.request_id,
                    self.route.pipeline.response_body_bytes)
        self._answer_head(self.held_status, self.held_phrase, self.held_fields, self.up.content_length, None)
        for piece in held:
            if self.state == X_FINISHED:
                return 0
            self.on_chunk(piece)
        return 0

    cdef bytes _hooked_response_chunk(self, bytes chunk, bint last):
        """The piece as the response_chunk hooks make it; None, and the stream cut, when a hook failed."""
        cdef int64_t began_ns
        for plugin in self.route.pipeline.response_chunk:
            try:
                began_ns = monotonic_ns()
                out = plugin.response_chunk(self.ctx, chunk, last)
                hook_done(<Plugin>plugin, self.ctx, began_ns, "response_chunk")
                if not isinstance(out, bytes):
                    raise TypeError(f"response_chunk returned {type(out).__name__}, expected bytes")
                chunk = out
            except BaseException:
                self._plugin_failed(plugin, "response_chunk")
                self._fail(PLUGIN_ERROR)
                return None
        return chunk

    cdef int on_end(self, Headers trailers) except -1:
        cdef bytes last, whole
        if self.state == X_FINISHED:
            return 0
        if self.held is not None:
            whole = b"".join(self.held)
            self._answer_head(self.held_status, self.held_phrase, self.held_fields, len(whole), whole)
            if self.state == X_FINISHED:
                return 0
            whole = b"".join(self.held)
            self.held = None
            if whole:
                self._relay_chunk(whole)
                if self.state == X_FINISHED:
                    return 0
        if self.cached is not None and (<CachedRequest>self.cached).served:
            self.response_complete = True               # the client had its answer from the store, this was but a 304
            return 0
        if self.route.pipeline.response_chunk and self.ctx.method_id != M_HEAD:
            last = self._hooked_response_chunk(b"", True)
            if last is None:
                return 0
            if last:
                self.client.respond_chunk(last)
        self.response_complete = True
        return self.client.respond_end(trailers)

    cdef int on_read_done(self, int64_t now_ns) except -1:
        if self.state == X_FINISHED:
            return 0
        if now_ns > self.ctx.now_ns:                    # a hook may have read the clock since
            self.ctx.now_ns = now_ns
        self.client.flush()
        if self.state == X_FINISHED:
            return 0
        if self.response_complete:
            if self.cached is not None:
                (<CachedRequest>self.cached).on_whole(self)
            return self._finish()
        if not self.client.client_writable and self.up is not None:
            self.up.pause()
            if self.cached is not None:
                (<CachedRequest>self.cached).on_stalled(self)
        return self._rearm()

    cdef int on_failed(self, UpstreamStream stream, Reason reason) except -1:
        self.up = None
        self.ctx.now_ns = monotonic_ns()
        if self.state == X_TUNNEL or self.state == X_FINISHED:
            return self._finish()
        if self._may_replay(stream, reason):
            self.replayed = True
            self.attempts_left += 1
            atomic_add_relaxed_u64(&self.counts.replays, 1)
            return self._replay()
        return self._fail(reason)

    cdef int _may_replay(self, UpstreamStream stream, Reason reason) except -1:
        """A kept-alive connection that the upstream closed as we used it says nothing about the request: send it once more, on a
        fresh connection, if it may be sent twice, if not one byte came back and if all of it is still here."""
        return reason is UPSTREAM_CLOSED and stream.reused and not stream.saw_bytes and not self.replayed \
            and self.keeps and self.end_sent

    cdef int _replay(self) except -1:
        cdef int outcome
        self.state = X_WAITING
        self.pending = self.kept
        self.ctx.attempts += 1
        outcome = self.target.acquire(self)
        if outcome == A_FULL:
            return self.refuse(QUEUE_FULL)
        if outcome == A_OPENING:
            return self._arm(self.destination.connect_ns, CONNECT_TIMEOUT)
        return self._arm(self.upstream.queue_timeout_ns, QUEUE_TIMEOUT)

    # tunnel

    cdef int on_tunnel_data(self, bytes data) except -1:
        self.client.tunnel_write(data)
        if not self.client.client_writable and self.up is not None:
            self.up.pause()
        self.ctx.now_ns = monotonic_ns()
        return self._rearm()

    cdef int on_tunnel_eof(self) except -1:
        """The upstream closed its half."""
        self.tunnel_ends |= 2
        if self.tunnel_ends == 3:
            return self._finish()
        return self.client.tunnel_eof()

    cdef int tunnel_received(self, bytes data) except -1:
        """Bytes from the client inside a tunnel."""
        self.body_bytes += PyBytes_GET_SIZE(data)
        if self.up is not None:
            self.up.tunnel_write(data)
            self.ctx.now_ns = monotonic_ns()
            return self._rearm()
        return 0

    cdef int tunnel_client_eof(self) except -1:
        """The client closed its half of a tunnel."""
        self.tunnel_ends |= 1
        if self.tunnel_ends == 3:
            return self._finish()
        if self.up is not None:
            self.up.tunnel_eof()
        return 0

    # reply, fail, finish

    cdef int _reply(self) except -1:
        """Write a local answer."""
        cdef RequestContext ctx = self.ctx
        cdef Reason reason = ctx.reason
        cdef Answer answer = ctx.answer
        cdef ResponseHead head
        cdef Headers fields
        cdef bytes body
        self._let_go()
        self.response_started = True
        self.state = X_RELAYING
        if self.cached is not None and reason is not None:
            (<CachedRequest>self.cached).on_refused(self)
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
            self._response_hooks(head)
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
        return self._finish()

    cdef int _challenge(self, bint has_one) except -1:
        """Add the challenges of the route to a 401 that has none (RFC 9110 §11.6.1), whether a policy, a plugin, a fixed response or
        the service that forward-auth asked made it."""
        cdef RequestContext ctx = self.ctx
        cdef bytes lines = None
        if has_one or (ctx.gate_lines is not None and b"WWW-Authenticate: " in ctx.gate_lines):
            return 0
        if ctx.extra_response is not None and any([name.lower() == b"www-authenticate" for name, _ in ctx.extra_response]):
            return 0
        if self.route is not None:
            for plugin in self.route.pipeline.plugins:
                if isinstance(plugin, AuthGate):
                    lines = (<AuthGate>plugin).challenge_lines
        if not lines:
            lines = b'WWW-Authenticate: Bearer realm="fastgate"\r\n'
        ctx.gate_lines = lines if ctx.gate_lines is None else ctx.gate_lines + lines
        return 0

    cdef int _fail(self, Reason reason) except -1:
        """It cannot go on: say so if nothing is out yet, else cut what is out so that nobody takes it for whole."""
        if self.state == X_FINISHED:
            return 0
        self._let_go()
        self.held = None
        if self.cached is not None and (<CachedRequest>self.cached).on_failure(self, reason):
            return 0
        if not self.response_started:
            return self.refuse(reason)
        self.ctx.reason = reason
        self.client.cut()
        return self._finish()

    cdef int _let_go(self) except -1:
        """Give up what is held upstream: the connection, the place in a queue, the task."""
        cdef UpstreamStream up = self.up
        if self.waiting:
            self.target.forget(self)
        elif self.state == X_COLLECTING:
            self._end_collecting()
        if self.task is not None:
            task = self.task
            self.task = None
            if self.state == X_SUSPENDED:
                self.state = X_NEW
                task.cancel()
        if self.body_waiter is not None and not self.body_waiter.done():
            self.body_waiter.cancel()
        if up is None:
            return 0
        self.up = None
        if self.response_complete or self.state == X_TUNNEL:
            up.release(self.ctx.now_ns)
        else:
            up.abort()
        return 0

    cdef int _finish(self) except -1:
        """The end of every request, exactly once."""
        cdef RequestContext ctx = self.ctx
        cdef route_counts_t* counts = self.counts
        cdef ClientStream client = self.client
        cdef int64_t began_ns
        cdef int status_class
        if self.state == X_FINISHED:
            return 0
        self._let_go()
        if self.cached is not None:
            cached = <CachedRequest>self.cached
            self.cached = None
            (<CachedRequest>cached).on_finish(self)
        if self.state == X_TUNNEL:
            atomic_add_relaxed_u64(&self.plane.counts.tunnels_open, <uint64_t>-1)
        self.state = X_FINISHED
        ctx.finished_ns = monotonic_ns() if self.target is None or ctx.reason is not None or ctx.status == 101 else ctx.now_ns
        ctx.bytes_received = ctx.bytes_received + self.body_bytes
        self.deadline_reason = None
        self.total_deadline_ns = 0
        client.deadline_ns = 0
        if self.background:
            atomic_add_relaxed_u64(&self.plane.counts.requests_active, <uint64_t>-1)
            return self._forget(client)
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
            for plugin in self.route.pipeline.log:
                try:
                    began_ns = monotonic_ns()
                    plugin.log(ctx)
                    hook_done(<Plugin>plugin, ctx, began_ns, "log")
                except BaseException:
                    self._plugin_failed(plugin, "log")
        self.plane.log.record(ctx)
        atomic_add_relaxed_u64(&self.plane.counts.requests_active, <uint64_t>-1)    # last: who sees none active finds all counted
        return self._forget(client)

    cdef int _forget(self, ClientStream client) except -1:
        """Let go of everything this request knew."""
        self.plan.requests -= 1
        if self.plan.requests == 0 and self.plan.unused is not None:
            self.plan.tell_unused()
        self.pending = None
        self.kept = None
        self.upstream = None
        self.target = None
        self.client = None
        return client.exchange_finished()

    # deadlines

    cdef int _arm(self, int64_t after_ns, Reason reason) except -1:
        """Let `reason` end the request unless something happens within after_ns (0: no limit of its own)."""
        cdef int64_t deadline = self.ctx.now_ns + after_ns if after_ns else 0
        self.deadline_reason = reason
        if self.total_deadline_ns and (deadline == 0 or self.total_deadline_ns < deadline):
            deadline = self.total_deadline_ns
        if deadline:
            self.plane.wheel.arm(self.client, deadline)
        else:
            self.client.deadline_ns = 0
        return 0

    cdef int _rearm(self) except -1:
        """Set the deadline that fits what is being waited for."""
        cdef Destination destination = self.destination
        if self.state == X_SENDING:
            if self.held is not None:                   # its head is here: what is missing now is the rest of its body
                return self._arm(destination.between_bytes_ns, BETWEEN_BYTES_TIMEOUT)
            if self.end_sent:
                return self._arm(destination.first_byte_ns, FIRST_BYTE_TIMEOUT)
            if self.body_paused:
                return self._arm(destination.between_bytes_ns, BETWEEN_BYTES_TIMEOUT)
            if self.ctx.expects_continue and self.body_bytes == 0:
                return self._arm(destination.first_byte_ns, FIRST_BYTE_TIMEOUT)       # it is for the upstream to say 100
            return self._await_body()
        if self.state == X_RELAYING or self.state == X_TUNNEL:
            if not self.client.client_writable:
                return self._arm(self.plane.look_ns, CLIENT_STALLED)
            return self._arm(destination.between_bytes_ns, BETWEEN_BYTES_TIMEOUT)
        return 0


cdef bint is_event_stream(Headers fields):
    """True for a response that is never whole: its parts are for the client as they come (WHATWG HTML §9.2, server-sent events)."""
    cdef bytes value = fields.find_known(H_CONTENT_TYPE)
    return value is not None and value.partition(b";")[0].strip().lower() == b"text/event-stream"


cdef int add_piece(list pieces, bytes piece) except -1:
    """Append a piece of a body that is held in memory."""
    cdef Py_ssize_t n = len(pieces)
    cdef bytes last
    if n and PyBytes_GET_SIZE(piece) < SMALL_PIECE_BYTES:
        last = <bytes>pieces[n - 1]
        if PyBytes_GET_SIZE(last) < JOINED_BYTES:
            pieces[n - 1] = last + piece
            return 0
    pieces.append(piece)
    return 0


cdef int edited_only(object returned, RequestContext ctx, Reason reason, Answer answer, str phase) except -1:
    """TypeError when a hook that edits in place returned something, or refused: what was meant is not done, so it must not pass.
    reason and answer are what they were."""
    if ctx.reason is not reason or ctx.answer is not answer:
        ctx.reason = reason
        ctx.answer = answer
        raise TypeError(f"{phase} called ctx.refuse or ctx.respond; only decide and request may")
    if returned is not None:
        if hasattr(returned, "close"):                  # a coroutine that nobody will await
            returned.close()
        raise TypeError(f"{phase} returned a {type(returned).__name__}; expected None: it edits head in place")
    return 0


cdef int check_head(RequestHead head, RequestContext ctx) except -1:
    """ValueError or TypeError when what a plugin made of a request cannot be sent, or would be answered in another framing."""
    if not isinstance(head.method, str) or not isinstance(head.target, str):
        raise TypeError(f"method and target: expected str, got {head.method!r} and {head.target!r}")
    if not (head.method.isascii() and head.method.isalpha()) or (head.method == "HEAD") != (ctx.method_id == M_HEAD) \
            or head.method == "CONNECT":
        raise ValueError(f"method: expected letters, and neither CONNECT nor a change from or to HEAD, got {head.method!r}")
    if not head.target.startswith("/") or not all("!" <= character <= "~" for character in head.target):
        raise ValueError(f"target: expected printable ASCII that begins with /, got {head.target!r}")
    if head.body is not ctx.body and not isinstance(head.body, bytes):
        raise TypeError(f"body: expected bytes, got {type(head.body).__name__}")
    return 0


cdef int check_answer(ResponseHead head, int status, object body, RequestContext ctx) except -1:
    """ValueError or TypeError when what a plugin made of an answer cannot be sent. status and body are what they were."""
    if head.status != status:
        if status == 101:
            raise ValueError(f"status: 101 cannot become {head.status}, the upstream has switched protocols")
        if not 200 <= head.status <= 599:
            raise ValueError(f"status: expected 200 to 599, got {head.status}")
        if ctx.method_id != M_HEAD and (head.status in (204, 304) or status in (204, 304)):
            raise ValueError(f"status: {status} cannot become {head.status}, one of them has no body (RFC 9110 §15)")
    if head.body is not body:
        if body is None:
            raise ValueError("body: it streams; set response_body_bytes to have it whole")
        if not isinstance(head.body, bytes):
            raise TypeError(f"body: expected bytes, got {type(head.body).__name__}")
    return 0


cdef bytes refusal_body(Reason reason, RequestContext ctx):
    """`{"error": …, "code": …, details…, "request_id": …}`"""
    if ctx.detail is None:
        return reason.body_start + b',"request_id":"' + ctx.request_id_bytes + b'"}'
    return msgspec.json.encode({"error": reason.text, "code": None, **ctx.detail, "code": reason.code, "request_id": ctx.request_id})


cdef Headers answer_fields(Answer answer):
    """An Answer's ready lines as a table, for hooks that want to edit them."""
    cdef Headers fields = Headers()
    for line in answer.lines.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b": ")
            fields.add(name, value)
    return fields


cdef class NoClient(ClientStream):
    """The client of a background revalidation: nobody. It never asks for an upgrade, so it has no tunnel."""

    cdef int respond_head(self, int status, bytes phrase, Headers fields, int64_t length) except -1:
        return 0

    cdef int respond_chunk(self, bytes chunk) except -1:
        return 0

    cdef int respond_end(self, Headers trailers) except -1:
        return 0

    cdef int respond_interim(self, int status, bytes phrase, Headers fields) except -1:
        return 0

    cdef int respond_answer(self, Answer answer) except -1:
        return 0

    cdef int respond_refusal(self, Reason reason, bytes body) except -1:
        return 0

    cdef int respond_ready(self, bytes head, const char* tail, int tail_n, bytes body) except -1:
        return 0

    cdef int flush(self) except -1:
        return 0

    cdef int cut(self) except -1:
        return 0

    cdef int expired(self, int64_t now_ns) except -1:
        if self.exchange is not None:
            self.exchange.deadline_passed(now_ns)
        return 0

    cdef int exchange_finished(self) except -1:
        self.exchange.plane.wheel.cancel(self)
        self.exchange = None
        return 0
