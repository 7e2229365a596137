# cython: boundscheck=False
"""The extension interface: the Plugin class, and the pipeline of a route's plugins.

WHAT     `Plugin` is the one extension class; every phase is optional. A Python plugin overrides methods; a compiled gate
         overrides the C entry `c_decide` and sets `compiled_decide`. `Pipeline` binds the overridden phases once, and
         keeps both kinds in one list in config order.
STATE    None per request here; the current step of a request is in its exchange.
WHO      Built at freeze, immutable afterwards, read by the worker's loop.
COST     Per request: empty pipeline 2 ns, compiled gate 5 to 50 ns, Python hook 100 ns plus its own time, await 7 to 11 us (a
         task). Measured in benchmarks/gateway.
SOURCES  pingora's ProxyHttp (every phase has a default); httptools' _init (bind only the callbacks the object has).
"""

import logging

from cpython.long cimport PyLong_CheckExact
from libc.stdint cimport int64_t

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.log_throttle cimport log_throttle_pass
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.http.headers cimport Headers

cdef extern from "Python.h":
    bint PyCoro_CheckExact(object)

__all__ = ["Pipeline", "Plugin", "RequestHead", "ResponseHead"]

log = logging.getLogger("fastgate")


cdef class RequestHead:
    """The request about to go upstream; `upstream_request` hooks may edit it. `body` is the whole body on routes that buffer it,
    else None (it streams)."""

    def __init__(self, method, target, Headers headers not None, body=None):
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body


cdef class ResponseHead:
    """A response on its way to the client. `body` is the whole body on routes that buffer it, else None (it streams)."""

    def __init__(self, int status, Headers headers not None, body=None):
        self.status = status
        self.headers = headers
        self.body = body


cdef class Plugin:
    """Base of every plugin. Subclass it, set `Config` to a msgspec Struct, override the phases you need.

    Attributes that a subclass may set in build():
      enforce              False = shadow mode: refusals are counted and logged, the request continues
      request_body_bytes   > 0: `request` sees the whole body in ctx.body; a larger one is rejected with 413
      response_body_bytes  > 0: `upstream_response` and `response` see head.body; a larger one passes unread and is counted
    """

    Config = None

    def __cinit__(self, *args, **kwargs):
        self.enforce = True
        self.place = 0
        self.name = type(self).__name__

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef int64_t began_ns = monotonic_ns()
        cdef int verdict = verdict_of(self.decide(ctx), ctx, "decide")
        hook_done(self, ctx, began_ns, "decide")
        if verdict == V_SUSPEND and not overrides(self, "request"):
            raise TypeError("decide returned SUSPEND, but the class has no request()")
        return verdict

    cdef int c_begin(self, RequestContext ctx) except -1:
        """For compiled gates that set `compiled_begin`: called when the route is known, before any step can refuse the request.
        `gate_lines` are added to every response, `local_lines` to local responses."""
        return 0

    cdef int c_answer(self, RequestContext ctx, Headers fields) except -1:
        """For compiled gates that set `compiled_answer`: may edit the fields of the upstream response, before hooks, edits and
        cache."""
        return 0

    cdef int c_finish(self, RequestContext ctx) except -1:
        """For compiled gates that set `compiled_finish`: called exactly once at the end of every request of their route,
        including one that was refused before it reached them. What they hold for it is in typed slots of ctx."""
        return 0

    @classmethod
    def build(cls, config, env):
        """Creates the plugin from its checked Config; env has `loop`-independent services (name, route). No I/O here."""
        plugin = cls()
        plugin.config = config
        return plugin

    async def start(self):
        """Called once before the first request; may do I/O. An exception fails the start or the reload."""

    async def close(self):
        """Called once when no request can reach the plugin any longer; must work after a partial start."""

    def decide(self, RequestContext ctx not None):
        """Synchronous, no I/O. Returns None, CONTINUE, ctx.refuse(…), ctx.respond(…), or SUSPEND to have `request` awaited."""
        return V_CONTINUE

    async def request(self, RequestContext ctx):
        """Awaited in config order. Returns None or CONTINUE, ctx.refuse(…) or ctx.respond(…)."""
        return V_CONTINUE

    def upstream_request(self, RequestContext ctx, RequestHead head):
        """Synchronous, once per attempt: edits the upstream request."""

    def cache_key(self, RequestContext ctx):
        """Synchronous, for a plugin with `upstream_request` or `request_chunk` on a route that caches: the data that its edits
        depend on, as str or bytes, which becomes part of the key; "" if they are the same for every request, or do not affect the
        response. None: the request bypasses the cache, which is also the case if this is not overridden."""
        return None

    def upstream_response(self, RequestContext ctx not None, ResponseHead head not None):
        """Synchronous: edits the upstream response."""

    def response(self, RequestContext ctx not None, ResponseHead head not None):
        """Synchronous, for every response, including local ones: edits what is sent to the client."""

    def request_chunk(self, RequestContext ctx, bytes chunk, bint last):
        """Replaces a chunk of the request body; last is True exactly once, with the final (maybe empty) chunk."""
        return chunk

    def response_chunk(self, RequestContext ctx, bytes chunk, bint last):
        """Replaces a chunk of the response body; last is True exactly once, with the final (maybe empty) chunk."""
        return chunk

    def log(self, RequestContext ctx not None):
        """Synchronous, last, exactly once for every request."""


cdef int verdict_of(object returned, RequestContext ctx, str phase) except -1:
    """The verdict returned by a hook. TypeError for every other value, so that a mistake never lets a request pass: False and
    True are numbers in Python, and False would be CONTINUE. A refusal remains in effect whatever is returned after it: a
    forgotten `return`, or a CONTINUE at the end of the method, must not undo it."""
    cdef int verdict
    if returned is None:
        verdict = V_CONTINUE
    elif PyLong_CheckExact(returned) and V_CONTINUE <= returned <= V_SUSPEND:
        verdict = returned
    else:
        if PyCoro_CheckExact(returned):
            returned.close()
        raise TypeError(f"{phase} returned {shown(returned)}; expected None, CONTINUE, SUSPEND, ctx.refuse(...) or ctx.respond(...)")
    if verdict == V_CONTINUE and (ctx.reason is not None or ctx.answer is not None):
        return V_RESPOND
    return verdict


cdef int hook_done(Plugin plugin, RequestContext ctx, int64_t began_ns, str phase) except -1:
    """Called after a synchronous hook. Updates the clock, so that no upstream deadline starts before the hook returned; logs a
    hook that blocked the worker."""
    ctx.now_ns = monotonic_ns()
    if ctx.now_ns - began_ns < BLOCKED_NS:
        return 0
    cdef int64_t calls = log_throttle_pass(&plugin.blocked, ctx.now_ns, BLOCKED_LOG_NS)
    if calls:
        log.warning("plugin %s of route %s blocked its worker for %d ms in %s on request %s, %d calls since the last such line",
                    plugin.name, getattr(ctx.route, "name", "?"), (ctx.now_ns - began_ns) // 1_000_000, phase, ctx.request_id, calls)
    return 0


cdef str shown(object returned):
    """A value for an error message: short, and never the contents of client data."""
    return str(returned) if returned is True or returned is False or PyLong_CheckExact(returned) else f"a {type(returned).__name__}"


def overrides(plugin, phase):
    """True if the plugin's class overrides this phase."""
    return getattr(type(plugin), phase) is not getattr(Plugin, phase)


cdef class Pipeline:
    """A route's plugins, with only the overridden phases bound."""

    def __init__(self, plugins=()):
        cdef Plugin plugin
        cdef list steps = []
        self.plugins = tuple(plugins)
        for plugin in self.plugins:
            if plugin.compiled_decide or overrides(plugin, "decide") or overrides(plugin, "request"):
                steps.append(plugin)
        if len(steps) > MAX_STEPS:
            raise ValueError(f"plugins: expected at most {MAX_STEPS} that decide on one route, got {len(steps)}")
        self.steps = tuple(steps)
        for i, plugin in enumerate(steps):      # request alone, without decide: always awaited
            self.waits[i] = not plugin.compiled_decide and not overrides(plugin, "decide")
        self.steps_n = len(steps)
        for phase in ("upstream_request", "upstream_response", "response", "request_chunk", "response_chunk", "log"):
            self._bind(phase, tuple(p for p in self.plugins if overrides(p, phase)))
        self.begin = tuple(p for p in self.plugins if (<Plugin>p).compiled_begin)
        self.answer = tuple(p for p in self.plugins if (<Plugin>p).compiled_answer)
        self.finish = tuple(p for p in self.plugins if (<Plugin>p).compiled_finish)
        for plugin in self.plugins:
            if plugin.challenge_lines:
                self.challenge_lines = plugin.challenge_lines
        # The smallest bound applies: a body that one plugin cannot accept is one that the route cannot accept.
        bounds = [p.request_body_bytes for p in self.plugins if p.request_body_bytes > 0]
        self.request_body_bytes = min(bounds) if bounds else 0
        bounds = [p.response_body_bytes for p in self.plugins if p.response_body_bytes > 0]
        self.response_body_bytes = min(bounds) if bounds else 0

    def _bind(self, str phase, tuple bound):
        if phase == "upstream_request":
            self.upstream_request = bound
        elif phase == "upstream_response":
            self.upstream_response = bound
        elif phase == "response":
            self.response = bound
        elif phase == "request_chunk":
            self.request_chunk = bound
        elif phase == "response_chunk":
            self.response_chunk = bound
        else:
            self.log = bound

    cdef int decide(self, RequestContext ctx, int start, int* stopped_at) except -1:
        """Runs the steps from start. stopped_at is the step with the verdict, also if it raised."""
        cdef int i, verdict
        cdef Plugin plugin
        for i in range(start, self.steps_n):
            stopped_at[0] = i
            if self.waits[i]:
                return V_SUSPEND
            plugin = <Plugin>self.steps[i]
            verdict = plugin.c_decide(ctx)
            if verdict != V_CONTINUE:
                return verdict
        return V_CONTINUE
