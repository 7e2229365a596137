# cython: boundscheck=False
"""The extension interface: what a plugin is, and how a route's plugins are walked.

WHAT     `Plugin` is the one extension class; every phase is optional. A Python plugin overrides methods; a compiled gate
         overrides the C entry `c_decide` and sets `compiled_decide`. `Pipeline` binds, once, only what is overridden, and
         keeps both kinds in one list in the order the config gives.
STATE    None per request here; a request's position in the walk lives in its exchange.
WHO      Built at freeze, immutable afterwards, read by the worker's loop.
COST     Per request: empty walk 2 ns, compiled gate 5 to 50 ns, Python hook 100 ns and what it does, await 7 to 11 us (a task).
         Measured in benchmarks/gateway.
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
    """The request as it is about to go upstream; `upstream_request` hooks may edit it. `body` is the whole body on routes that
    buffer it, else None (it streams)."""

    def __init__(self, method, target, Headers headers not None, body=None):
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body


cdef class ResponseHead:
    """An answer on its way to the client. `body` is the whole body on routes that buffer it, else None (it streams)."""

    def __init__(self, int status, Headers headers not None, body=None):
        self.status = status
        self.headers = headers
        self.body = body


cdef class Plugin:
    """Base of every plugin. Subclass it, set `Config` to a msgspec Struct, override the phases you need.

    Attributes a subclass may set in build():
      enforce              False = shadow mode: refusals are counted and logged, the request goes on
      request_body_bytes   > 0: `request` sees the whole body in ctx.body; a larger one is refused with 413
      response_body_bytes  > 0: `upstream_response` and `response` see head.body; a larger one passes unread, counted
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
        """For compiled gates that set `compiled_begin`: called once the route is known, before anything can refuse the request.
        What it puts into `gate_lines` goes out with every answer, what it puts into `local_lines` with those made here."""
        return 0

    cdef int c_answer(self, RequestContext ctx, Headers fields) except -1:
        """For compiled gates that set `compiled_answer`: may edit the fields that came from upstream, before hooks, edits and cache."""
        return 0

    cdef int c_finish(self, RequestContext ctx) except -1:
        """For compiled gates that set `compiled_finish`: called exactly once at the end of every request of their route, also of
        one that was refused before it came to them. What they hold of it lies in typed slots of ctx."""
        return 0

    @classmethod
    def build(cls, config, env):
        """Make the plugin from its checked Config; env offers `loop`-independent services (name, route). No I/O here."""
        plugin = cls()
        plugin.config = config
        return plugin

    async def start(self):
        """Called once before the first request; may do I/O. An exception fails the start or the reload."""

    async def close(self):
        """Called once when no request can reach the plugin any more; works after a half start too."""

    def decide(self, RequestContext ctx not None):
        """Sync, no I/O. Return None or CONTINUE, ctx.refuse(…), ctx.respond(…), or SUSPEND to have `request` awaited."""
        return V_CONTINUE

    async def request(self, RequestContext ctx):
        """Awaited in listed order. Return None or CONTINUE, ctx.refuse(…) or ctx.respond(…)."""
        return V_CONTINUE

    def upstream_request(self, RequestContext ctx, RequestHead head):
        """Sync, once per attempt: edit what goes upstream."""

    def cache_key(self, RequestContext ctx):
        """Sync, for a plugin with `upstream_request` or `request_chunk` on a route that caches: what its edits depend on, as str or
        bytes, which becomes part of the key; "" when they are the same for every request, or do not matter to the response. None: the
        request does not touch the cache, as when this is not overridden."""
        return None

    def upstream_response(self, RequestContext ctx not None, ResponseHead head not None):
        """Sync: edit what came from upstream."""

    def response(self, RequestContext ctx not None, ResponseHead head not None):
        """Sync, for every answer, local ones too: edit what goes to the client."""

    def request_chunk(self, RequestContext ctx, bytes chunk, bint last):
        """Replace a piece of the request body; last is True exactly once, with the final (maybe empty) piece."""
        return chunk

    def response_chunk(self, RequestContext ctx, bytes chunk, bint last):
        """Replace a piece of the response body; last is True exactly once, with the final (maybe empty) piece."""
        return chunk

    def log(self, RequestContext ctx not None):
        """Sync, last, exactly once for every request."""


cdef int verdict_of(object returned, RequestContext ctx, str phase) except -1:
    """The verdict in what a hook returned; TypeError for everything else, so that a mistake never lets a request pass: False and True
    are numbers to Python, and False would be CONTINUE. A refusal refuses whatever is returned after it: a forgotten `return`, or a
    CONTINUE at the end of the method, must not undo it."""
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
    """A synchronous hook has returned. Its time is read, so that no deadline of the upstream's is measured from before it; one that
    blocked the worker is named."""
    ctx.now_ns = monotonic_ns()
    if ctx.now_ns - began_ns < BLOCKED_NS:
        return 0
    cdef int64_t calls = log_throttle_pass(&plugin.blocked, ctx.now_ns, BLOCKED_LOG_NS)
    if calls:
        log.warning("plugin %s of route %s blocked its worker for %d ms in %s on request %s, %d calls since the last such line",
                    plugin.name, getattr(ctx.route, "name", "?"), (ctx.now_ns - began_ns) // 1_000_000, phase, ctx.request_id, calls)
    return 0


cdef str shown(object returned):
    """A value as an error shows it: short, and never the content of what may be the client's data."""
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
        # The tightest bound counts: a body that one plugin cannot take is a body the route cannot take.
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
        """Walk the steps from start. stopped_at is the step that gave the verdict, also when it raised."""
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
