# cython: boundscheck=False, nonecheck=True
"""Calls of plugin hooks on the way to the upstream and back, and checks of their results.

WHAT     One function per phase that runs after the decisions. An exception in a plugin is logged with the plugin's name and
         counted; the function reports the failure, and its caller decides how the request continues.
STATE    None.
WHO      The worker's loop.
COST     A clock reading and a Python call per hook; a route without hooks calls none of this.
SOURCES  RFC 9110 §15 (statuses without a body), §9.3.2 (HEAD).
"""

import logging

from libc.stdint cimport int64_t

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.pipeline.context cimport M_HEAD, Answer, Reason, RequestContext
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.pipeline cimport Plugin, RequestHead, ResponseHead, hook_done
from fastgate._core.pipeline.plan cimport RoutePlan
from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate.proxy.plane cimport Plane

__all__ = []

log = logging.getLogger("fastgate")


cdef int plugin_failed(Plane plane, RoutePlan route, RequestContext ctx, object plugin, str phase) except -1:
    """Count and log a plugin's failure, with the exception that is being handled. route: None before one is found."""
    cdef str name = str(getattr(plugin, "name", plugin))
    atomic_add_relaxed_u64(&plane.counts.plugin_errors, 1)
    log.error("plugin %s of route %s failed in %s on request %s", name, route.name if route is not None else "?", phase,
              ctx.request_id, exc_info=True, extra={"throttle": (name, phase)})
    return 0


cdef bint upstream_request_hooks(Plane plane, RoutePlan route, RequestContext ctx, RequestHead head) except -1:
    """Run the upstream_request hooks on the head of one attempt. False if one failed."""
    cdef int64_t began_ns = monotonic_ns()
    for plugin in route.pipeline.upstream_request:
        try:
            edited_only(plugin.upstream_request(ctx, head), ctx, None, None, "upstream_request")
            check_head(head, ctx)
            hook_done(<Plugin>plugin, ctx, began_ns, "upstream_request")
            began_ns = ctx.now_ns
        except BaseException:
            plugin_failed(plane, route, ctx, plugin, "upstream_request")
            return False
    return True


cdef bint upstream_response_hooks(Plane plane, RoutePlan route, RequestContext ctx, ResponseHead head) except -1:
    """Run the upstream_response hooks on the head of a response. head.body: its body, if it is held. False if one failed."""
    cdef int status = head.status
    cdef int64_t began_ns
    cdef object body = head.body
    if not route.pipeline.upstream_response:
        return True
    began_ns = monotonic_ns()
    for plugin in route.pipeline.upstream_response:
        try:
            edited_only(plugin.upstream_response(ctx, head), ctx, None, None, "upstream_response")
            check_response(head, status, body, ctx)
            hook_done(<Plugin>plugin, ctx, began_ns, "upstream_response")
            began_ns = ctx.now_ns
        except BaseException:
            plugin_failed(plane, route, ctx, plugin, "upstream_response")
            return False
    return True


cdef int response_hooks(Plane plane, RoutePlan route, RequestContext ctx, ResponseHead head) except -1:
    """Run the response hooks. If a hook fails, the response continues without its edits."""
    cdef Headers fields
    cdef int status
    cdef int64_t began_ns
    cdef Reason reason = ctx.reason
    cdef Answer answer = ctx.answer
    if not route.pipeline.response:
        return 0
    began_ns = monotonic_ns()
    for plugin in route.pipeline.response:
        fields = head.headers.copy()
        status = head.status
        body = head.body
        try:
            edited_only(plugin.response(ctx, head), ctx, reason, answer, "response")
            check_response(head, status, body, ctx)
            hook_done(<Plugin>plugin, ctx, began_ns, "response")
            began_ns = ctx.now_ns
        except BaseException:
            plugin_failed(plane, route, ctx, plugin, "response")
            began_ns = monotonic_ns()                   # the next plugin is not charged for its time
            head.headers = fields
            head.status = status
            head.body = body
    return 0


cdef list request_chunk_hooks(Plane plane, RoutePlan route, RequestContext ctx, list pieces, bint ends):
    """The pieces as edited by the request_chunk hooks; None if a hook failed."""
    cdef list out = []
    cdef list todo = pieces if pieces is not None else []
    cdef int64_t began_ns
    cdef Py_ssize_t i, n = len(todo)
    if ends and n == 0:
        todo = [b""]
        n = 1
    for i in range(n):
        chunk = todo[i]
        for plugin in route.pipeline.request_chunk:
            try:
                began_ns = monotonic_ns()
                chunk = plugin.request_chunk(ctx, chunk, ends and i == n - 1)
                hook_done(<Plugin>plugin, ctx, began_ns, "request_chunk")
                if not isinstance(chunk, bytes):
                    raise TypeError(f"request_chunk returned {type(chunk).__name__}, expected bytes")
            except BaseException:
                plugin_failed(plane, route, ctx, plugin, "request_chunk")
                return None
        out.append(chunk)
    return out


cdef bytes response_chunk_hooks(Plane plane, RoutePlan route, RequestContext ctx, bytes chunk, bint last):
    """A piece as edited by the response_chunk hooks; None if a hook failed."""
    cdef int64_t began_ns
    for plugin in route.pipeline.response_chunk:
        try:
            began_ns = monotonic_ns()
            out = plugin.response_chunk(ctx, chunk, last)
            hook_done(<Plugin>plugin, ctx, began_ns, "response_chunk")
            if not isinstance(out, bytes):
                raise TypeError(f"response_chunk returned {type(out).__name__}, expected bytes")
            chunk = out
        except BaseException:
            plugin_failed(plane, route, ctx, plugin, "response_chunk")
            return None
    return chunk


cdef int log_hooks(Plane plane, RoutePlan route, RequestContext ctx) except -1:
    """Run the log hooks, each once, even if others fail."""
    cdef int64_t began_ns
    for plugin in route.pipeline.log:
        try:
            began_ns = monotonic_ns()
            plugin.log(ctx)
            hook_done(<Plugin>plugin, ctx, began_ns, "log")
        except BaseException:
            plugin_failed(plane, route, ctx, plugin, "log")
    return 0


cdef int edited_only(object returned, RequestContext ctx, Reason reason, Answer answer, str phase) except -1:
    """Raises TypeError if a hook that edits in place returned a value or refused: its intent is not carried out, so the request
    must not pass. reason, `answer`: from before the hook."""
    if ctx.reason is not reason or ctx.answer is not answer:
        ctx.reason = reason
        ctx.answer = answer
        raise TypeError(f"{phase} called ctx.refuse or ctx.respond; only decide and request may")
    if returned is not None:
        if hasattr(returned, "close"):                  # a coroutine that would never be awaited
            returned.close()
        raise TypeError(f"{phase} returned a {type(returned).__name__}; expected None: it edits head in place")
    return 0


cdef int check_head(RequestHead head, RequestContext ctx) except -1:
    """Raises ValueError or TypeError if a request edited by a plugin cannot be sent, or if its response would be framed
    differently."""
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


cdef int check_response(ResponseHead head, int status, object body, RequestContext ctx) except -1:
    """Raises ValueError or TypeError if a response edited by a plugin cannot be sent. status and body are the values from before
    the hook."""
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
