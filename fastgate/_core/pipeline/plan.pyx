# cython: boundscheck=False
"""The frozen plan: the form of the config that the request path reads.

WHAT     `RoutePlan` has everything that one route needs at run time, `Destination` what depends on the upstream of its requests,
         `Plan` the router over all routes. `FixedResponse` and `Redirect` are the compiled gates behind `respond:` and
         `redirect:`.
STATE    Immutable after freeze (fastgate/plan/freeze.py); replaced as a whole by one pointer swap. Counts are in shared memory.
WHO      Built at freeze, read by the worker's loop.
COST     A match is one router lookup plus one mask test per candidate; header and query tests only on routes that have them.
SOURCES  RFC 9110 §15.5.6 (405 lists the allowed methods).
"""

import json

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.pipeline.context cimport (
    M_CONNECT, M_GET, M_HEAD, M_OPTIONS, M_OTHER, M_TRACE, M_UNKNOWN, MAX_PARAMS, Answer, Reason, RequestContext, method_number,
)
from fastgate._core.resilience.retry_policy cimport RetryPolicy
from fastgate._core.shm.counters cimport Counters
from fastgate._core.http.headers cimport H_DROPPED, field_t, name_equal
from fastgate._core.pipeline.pipeline cimport V_RESPOND, Pipeline, Plugin
from fastgate._core.http.router cimport Route, Router, match_t
from fastgate._core.http.urlpath cimport SECOND_PARAMETER, next_reading, read_as, reading_t

from urllib.parse import unquote_to_bytes

__all__ = ["Destination", "FixedResponse", "Plan", "PluginFailed", "Redirect", "RoutePlan", "plugin_title"]


# A route without a list of methods accepts all HTTP methods except TRACE, whose response shows what the gateway adds to a
# request.
cdef unsigned int ANY_METHOD = (1 << (M_OTHER + 1)) - 1 - (1 << M_TRACE) - (1 << M_CONNECT)
cdef tuple ANY_METHOD_NAMES = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


cdef class Destination:
    """The requests of a route at one upstream, frozen: the settings that depend on both.

    owned: names of fields that clients may not set on the route; that of the deadline header is added here.
    """

    def __init__(self, upstream, timeouts, *, bint preserve_host=False, cache=None, RetryPolicy retry=None, owned=()):
        self.upstream = upstream
        self.cache = cache
        self.retry = retry
        self.timeouts = timeouts
        self.connect_ns = timeouts.connect_ns
        self.first_byte_ns = timeouts.first_byte_ns
        self.between_bytes_ns = timeouts.between_bytes_ns
        self.total_ns = timeouts.total_ns
        self.deadline_header = timeouts.deadline_header.encode() if timeouts.deadline_header else None
        names = set(owned)
        if self.deadline_header is not None:
            names.add(self.deadline_header.lower())
        self.owned = tuple(sorted(names)) or None
        self.preserve_host = preserve_host

    def __repr__(self):
        return f"Destination({self.upstream!r})"


cdef class RoutePlan:
    """One route, frozen."""

    def __init__(self, str name, *, Pipeline pipeline not None, Counters counters, int slot, source=None,
                 Destination destination=None, max_body_bytes=0, request_buffering_bytes=0, rewrite=None, request_edits=None,
                 response_edits=None, methods=(), header_tests=(), query_tests=(), accepts_preflight=False,
                 bint allow_encoded_slashes=False):
        self.name = name
        self.name_bytes = name.encode()
        self.name_json = json.dumps(name).encode()
        self.source = source
        self.services = ()
        self.pipeline = pipeline
        self.destination = destination
        self.max_body_bytes = max_body_bytes
        self.request_buffering_bytes = request_buffering_bytes
        self.allow_encoded_slashes = allow_encoded_slashes
        self.rewrite = rewrite
        self.request_edits = request_edits
        self.response_edits = response_edits
        self.header_tests = tuple(header_tests)     # (lower-case name, predicate on bytes)
        self.query_tests = tuple(query_tests)
        self.accepts_preflight = accepts_preflight
        rare = []
        names = list(methods)
        for method in methods:
            raw = method.encode()
            number = method_number(raw, len(raw))
            if number >= M_OTHER:                       # including methods unknown to HTTP, by their names
                rare.append(raw)
                self.methods |= 1 << M_UNKNOWN
                self.methods |= 1 << M_OTHER
            else:
                self.methods |= 1 << number
                if number == M_GET:
                    self.methods |= 1 << M_HEAD
                    if "HEAD" not in names:
                        names.insert(names.index("GET") + 1, "HEAD")
        self.rare_methods = frozenset(rare)
        self.method_names = tuple(names)
        if not names:
            self.any_method = True
            self.methods = ANY_METHOD
        if counters is not None:
            self._counters = counters
            self.counts = counters.route(slot, counters.series(self.name_bytes, True))

    cdef bint takes_method(self, RequestContext ctx) except -1:
        if not self.methods & (1 << ctx.method_id):
            return False
        return ctx.method_id < M_OTHER or self.any_method or ctx.method_bytes in self.rare_methods

    cdef bint takes_rest(self, RequestContext ctx) except -1:
        """True if the header and query tests pass: one of several fields or parameters of a name is sufficient."""
        cdef bytes name
        cdef field_t* field
        cdef int i
        for name, test in self.header_tests:
            for i in range(ctx.headers.count):
                field = &ctx.headers.fields[i]
                if field.name_n == PyBytes_GET_SIZE(name) and field.id != H_DROPPED \
                        and name_equal(field.name, PyBytes_AS_STRING(name), field.name_n) and test(field.value[:field.value_n]):
                    break
            else:
                return False
        if self.query_tests:
            pairs = query_pairs(ctx.query_bytes)
            for name, test in self.query_tests:
                if not any(key == name and test(value) for key, value in pairs):
                    return False
        return True

    def __repr__(self):
        return f"RoutePlan({self.name!r})"


cdef list query_pairs(bytes query):
    """The parameters of a query, decoded like forms (WHATWG URL §5.1). All of them: `server.max_target_bytes` bounds their
    number, and an ignored one could make the gateway match another route than the upstream sees."""
    cdef list out = []
    if query is None:
        return out
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        out.append((unquote_to_bytes(name.replace(b"+", b" ")), unquote_to_bytes(value.replace(b"+", b" "))))
    return out


class PluginFailed(Exception):
    """A plugin raised an exception outside of a request; the text names the plugin and its route."""


def plugin_title(plugin):
    """The name of a plugin in messages, with its route; a shared service by its name."""
    if not isinstance(plugin, Plugin) or plugin.key is None:
        return f"service {plugin.name}"
    return f"plugin {plugin.name} of " + ("every route" if plugin.key[0] is None else f"route {plugin.key[0]}")


cdef struct match_state_t:
    void* ctx
    bint failed           # an accept raised: no candidate is accepted

cdef bint accept(void* arg, Route route) noexcept:
    cdef match_state_t* state = <match_state_t*>arg
    cdef RequestContext ctx = <RequestContext>state.ctx
    cdef RoutePlan plan = <RoutePlan>route.value
    try:
        return plan.takes_method(ctx) and plan.takes_rest(ctx)
    except Exception:
        state.failed = True
        return False

cdef struct allow_state_t:
    void* ctx
    void* names           # set of str

cdef bint collect(void* arg, Route route) noexcept:
    cdef allow_state_t* state = <allow_state_t*>arg
    cdef RequestContext ctx = <RequestContext>state.ctx
    cdef RoutePlan plan = <RoutePlan>route.value
    try:
        if not plan.takes_method(ctx) and plan.takes_rest(ctx):
            (<set>state.names).update(plan.method_names or ANY_METHOD_NAMES)
    except Exception:
        pass              # a failing predicate allows nothing
    return False


cdef bytes rewritten(RequestContext ctx, RoutePlan plan, bytes path, Route route, match_t* found):
    """The route's rewrite of another path, with the parameters found in it."""
    cdef bytes own_path = ctx.path_bytes
    cdef tuple own_names = ctx.param_names
    cdef int own_n = ctx.params_n, i
    cdef int[MAX_PARAMS] start
    cdef int[MAX_PARAMS] size
    for i in range(own_n):
        start[i] = ctx.param_start[i]
        size[i] = ctx.param_size[i]
    ctx.path_bytes = path
    ctx.param_names = route.param_names
    ctx.params_n = found.count
    for i in range(found.count):
        ctx.param_start[i] = found.params[i].start
        ctx.param_size[i] = found.params[i].length
    try:
        return plan.rewrite.apply(ctx)
    finally:
        ctx.path_bytes = own_path
        ctx.param_names = own_names
        ctx.params_n = own_n
        for i in range(own_n):
            ctx.param_start[i] = start[i]
            ctx.param_size[i] = size[i]


cdef class Plan:
    """All routes of a config, frozen."""

    def __init__(self, Router router not None, routes, upstreams, config, plugins, fresh, trusted, Counters counters, int slot,
                 redirects=None, *, bint trusts_unix=False, make_destination=None):
        self.router = router
        self.routes = list(routes)
        self.upstreams = dict(upstreams)
        self.config = config
        self.plugins = tuple(plugins)
        self.fresh = tuple(fresh)
        self.trusted = trusted
        self.redirects = dict(redirects or {})
        self.trusts_unix = trusts_unix
        self.make_destination = make_destination
        self.made_destinations = {}
        self.merge_slashes = config is None or config.server.merge_slashes
        self.named_methods = frozenset(name.encode() for route in self.routes for name in (<RoutePlan>route).method_names)
        self.has_preflights = any((<RoutePlan>route).accepts_preflight for route in self.routes)
        if counters is not None:
            self._counters = counters
            self.unmatched = counters.route(slot, 0)

    cdef int tell_unused(self) except -1:
        """The last request of an inactive plan is over."""
        if not self.unused.done():
            self.unused.set_result(None)
        return 0

    cdef Destination destination(self, RoutePlan route, str upstream):
        """The destination of the route's requests at this upstream, instead of the route's own; None if there is no such
        upstream. One per route and upstream, created on first use."""
        cdef tuple key
        if upstream not in self.upstreams or self.make_destination is None:
            return None
        if route.destination is not None and route.destination.upstream is self.upstreams[upstream]:
            return route.destination
        key = (route, upstream)
        found = self.made_destinations.get(key)
        if found is None:
            found = self.made_destinations[key] = self.make_destination(route, upstream)
        return <Destination?>found

    cdef RoutePlan match(self, RequestContext ctx):
        """The route of a request, with its parameters set in ctx; None if no route matches."""
        cdef match_t found
        cdef match_state_t state
        cdef Route route
        cdef RoutePlan preflight, plan
        cdef int i
        ctx.ambiguous = False
        if self.has_preflights and ctx.method_id == M_OPTIONS:
            preflight = self.match_preflight(ctx)
            if preflight is not None:
                return preflight
        state.ctx = <void*>ctx
        state.failed = False
        route = self.router.find(PyBytes_AS_STRING(ctx.host_bytes), PyBytes_GET_SIZE(ctx.host_bytes),
                                 PyBytes_AS_STRING(ctx.path_bytes), PyBytes_GET_SIZE(ctx.path_bytes),
                                 accept, <void*>&state, &found)
        if state.failed:                                # skipping a route by mistake could let another one respond
            raise RuntimeError(f"a condition of a route failed on {ctx!r}")
        if route is None:
            return None
        ctx.params_n = found.count
        ctx.param_names = route.param_names
        for i in range(found.count):
            ctx.param_start[i] = found.params[i].start
            ctx.param_size[i] = found.params[i].length
        plan = <RoutePlan>route.value
        if (ctx.second and self.is_ambiguous(ctx, route)) or (plan.rewrite is not None and not plan.rewrite.stays(ctx)):
            ctx.ambiguous = True
            ctx.route = None
            ctx.params_n = 0
            return None
        ctx.route = plan
        return plan

    cdef bint is_ambiguous(self, RequestContext ctx, Route route) except -1:
        """True if an upstream that decodes the path differently would serve a path that belongs to another route, or a different
        path of this route."""
        cdef RoutePlan plan = <RoutePlan>route.value
        cdef Route other_route
        cdef match_t found
        cdef match_state_t state
        cdef reading_t how, plain
        cdef int second = ctx.second
        cdef bytes path = ctx.path_bytes, other, upstream = None
        cdef str pattern = route.pattern
        cdef bint keep = plan.allow_encoded_slashes
        cdef list seen = [path]
        if ";" in pattern:                              # the pattern contains it explicitly; the same applies to an encoded slash
            second &= ~SECOND_PARAMETER
        if not keep and "%" in pattern:
            keep = "%2F" in pattern.upper() or "%5C" in pattern.upper()
        if plan.rewrite is not None:
            upstream = plan.rewrite.apply(ctx)
        how.decoding = 0
        how.backslash = how.strips_first = how.strips_last = how.merge = False
        plain = how
        while next_reading(&how, second):
            other = read_as(path, &how, keep)
            if other is None:
                return True
            if other in seen:
                continue
            seen.append(other)
            state.ctx = <void*>ctx
            state.failed = False
            other_route = self.router.find(PyBytes_AS_STRING(ctx.host_bytes), PyBytes_GET_SIZE(ctx.host_bytes),
                                           PyBytes_AS_STRING(other), PyBytes_GET_SIZE(other), accept, <void*>&state, &found)
            if state.failed:
                raise RuntimeError(f"a condition of a route failed on {ctx!r}")
            if other_route is None or other_route.value is not plan:
                return True
            if upstream is not None:
                # The upstream's reading of the rewritten path must equal the rewrite of its reading of the original path.
                plain.merge = how.merge
                if read_as(upstream, &how, keep) != read_as(rewritten(ctx, plan, other, other_route, &found), &plain, keep):
                    return True
        return False

    cdef RoutePlan match_redirect(self, RequestContext ctx, int port):
        """The route of a request on a listener that redirects to https: that of its path if the client used https to a trusted
        proxy, else the redirect."""
        cdef RoutePlan redirect
        ctx.ambiguous = False
        if ctx.c_secure():
            return self.match(ctx)
        if PyBytes_GET_SIZE(ctx.host_bytes) == 0:       # HTTP/1.0 without Host: there is no redirect target
            return None
        redirect = self.redirects.get(port)
        if redirect is None:                            # impossible: a change of listeners starts new workers
            raise RuntimeError(f"no redirect to port {port}")
        ctx.params_n = 0
        ctx.route = redirect
        return redirect

    cdef RoutePlan match_preflight(self, RequestContext ctx):
        """The route of a CORS preflight: the one that matches the method announced by the browser, if that route accepts
        preflights. None if the request is not a preflight; OPTIONS is then a method like any other."""
        cdef bytes wanted = ctx.headers.find(b"access-control-request-method", 29)
        cdef bytes method = ctx.method_bytes
        cdef RoutePlan found = None
        if wanted is None or ctx.headers.find_field(b"origin", 6) == NULL:
            return None
        ctx.method_bytes = wanted
        ctx.method_id = method_number(PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted))
        try:
            if ctx.method_id != M_OPTIONS:              # the route lookup would recurse
                found = self.match(ctx)
        finally:
            ctx.method_bytes = method
            ctx.method_id = M_OPTIONS
        if found is not None and found.accepts_preflight:
            return found
        ctx.route = None
        ctx.params_n = 0
        return None

    cdef bytes allowed(self, RequestContext ctx):
        """The value of Allow: the methods that would have matched; None if no method matches."""
        cdef match_t found
        cdef allow_state_t state
        cdef set names = set()
        state.ctx = <void*>ctx
        state.names = <void*>names
        self.router.find(PyBytes_AS_STRING(ctx.host_bytes), PyBytes_GET_SIZE(ctx.host_bytes),
                         PyBytes_AS_STRING(ctx.path_bytes), PyBytes_GET_SIZE(ctx.path_bytes), collect, <void*>&state, &found)
        if not names:
            return None
        return ", ".join(sorted(names)).encode()

    async def start(self):
        """Starts the plugins that are new with this plan. If one fails, its error is raised; `close` then closes them all."""
        for plugin in self.fresh:
            try:
                await plugin.start()
            except Exception as error:
                if not isinstance(plugin, Plugin) or plugin.key is None:
                    raise
                raise PluginFailed(f"{plugin_title(plugin)} failed in start: {type(error).__name__}: {error}") from error

    async def close(self):
        """Closes the plugins: all of a plan that was active, or only the new ones of a plan that never was."""
        failures = []
        for plugin in self.plugins if self.installed else self.fresh:
            try:
                await plugin.close()
            except BaseException as error:              # sys.exit() in a plugin must not end the worker
                failures.append(error if isinstance(error, Exception) else RuntimeError(f"plugin {plugin.name}: {error!r}"))
        if failures:
            raise ExceptionGroup("plugins failed in close", failures)

    def __repr__(self):
        return f"Plan({len(self.routes)} routes)"


cdef class FixedResponse(Plugin):
    """The gate behind `respond:`."""

    def __init__(self, Answer answer not None):
        self.compiled_decide = True
        self.name = "respond"
        self.answer = answer

    cdef int c_decide(self, RequestContext ctx) except -1:
        ctx.answer = self.answer
        return V_RESPOND


cdef class Redirect(Plugin):
    """The gate behind `redirect:`."""

    def __init__(self, Template location not None, int status, bint keep_query, Reason refusal not None):
        self.compiled_decide = True
        self.name = "redirect"
        self.location = location
        self.refusal = refusal
        self.status = status
        self.keep_query = keep_query

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef bytes location = self.location.render_location(ctx)
        if location is None:                            # the request would choose the target
            ctx.refuse(self.refusal)
            return V_RESPOND
        if self.keep_query and ctx.query_bytes and b"?" not in location:
            location = location + b"?" + ctx.query_bytes
        ctx.answer = Answer(self.status, b"", [("Location", location)])
        return V_RESPOND
