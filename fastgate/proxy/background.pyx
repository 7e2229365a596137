# cython: boundscheck=False, nonecheck=True
"""A request that the gateway makes for itself, without a client: its response goes to its stages only.

WHAT     `background_get` sends a GET for the resource that another request asks for, by the same route, on behalf of the same
         client. The cache revalidates and prefetches with it.
STATE    As an UpstreamRequest; not counted as a request of its route, and not logged.
WHO      The worker's loop. It starts in the loop's next iteration and delays no other request.
COST     A copy of the request's fields.
SOURCES  RFC 5861 §3 (stale-while-revalidate); Varnish's background fetch.
"""

import logging

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport M_GET, Reason, RequestContext
from fastgate._core.pipeline.wheel cimport Timed
from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate.proxy.upstream_request cimport X_FINISHED, X_RELAYING, UpstreamRequest

from fastgate.errors import REASONS

__all__ = ["BackgroundRequest"]

log = logging.getLogger("fastgate")

cdef Reason INTERNAL_ERROR = REASONS["internal_error"]


@cython.final
cdef class BackgroundTimer(Timed):
    """The deadline of a background request. That of an exchange is its client connection's."""

    cdef int expired(self, int64_t now_ns) except -1:
        cdef BackgroundRequest request = self.request
        try:
            request.deadline_passed(now_ns)
        except Exception:
            log.exception("while a deadline of background request %s passed", request.ctx.request_id)
            request.fail(INTERNAL_ERROR)
        return 0


@cython.final
@cython.no_gc
cdef class BackgroundRequest(UpstreamRequest):
    """A request without a client."""

    cdef int start(self) except -1:
        """Forward it in the loop's next iteration."""
        cdef BackgroundTimer timer = BackgroundTimer.__new__(BackgroundTimer)
        timer.request = self
        self.timer = timer
        self.begin()
        self.plane.loop.call_soon(forward, self)
        return 0

    cdef int fail(self, Reason reason) except -1:
        if self.state == X_FINISHED:
            return 0
        self.give_up_attempt()
        if self.state != X_RELAYING:
            self.stands_in()
        return self.finish()

    cdef int finish(self) except -1:
        if self.state == X_FINISHED:
            return 0
        self.give_up_attempt()
        self.state = X_FINISHED
        self.deadline_reason = None
        self.total_deadline_ns = 0
        self.plane.wheel.cancel(self.timer)
        (<BackgroundTimer>self.timer).request = None
        self.timer = None
        atomic_add_relaxed_u64(&self.plane.counts.requests_active, <uint64_t>-1)
        return self.release()

    cdef int respond(self, int status, bytes phrase, Headers fields, int64_t length, bytes body) except -1:
        self.state = X_RELAYING
        return 0

    cdef int respond_replaced(self) except -1:
        return 0 if self.replaced else self.finish()

    cdef int respond_chunk(self, bytes chunk) except -1:
        return 0

    cdef int respond_end(self, Headers trailers) except -1:
        self.response_complete = True
        return 0


cdef BackgroundRequest background_get(UpstreamRequest x):
    """A GET for the resource that x asks for. It is not started, and has no stages yet."""
    cdef BackgroundRequest behind = BackgroundRequest.__new__(BackgroundRequest)
    cdef RequestContext ctx = RequestContext.__new__(RequestContext)
    cdef RequestContext source = x.ctx
    cdef int i
    behind.plane = x.plane
    behind.plan = x.plan
    behind.ctx = ctx
    behind.route = x.route
    behind.destination = x.destination
    behind.counts = x.counts
    behind.body_complete = True
    ctx.method_bytes = b"GET"
    ctx.method_id = M_GET
    ctx.target = source.target
    ctx.path_bytes = source.path_bytes
    ctx.query_bytes = source.query_bytes
    ctx.authority = source.authority
    ctx.host_bytes = source.host_bytes
    ctx.version_minor = 1
    ctx.headers = source.headers.copy()
    ctx.scheme = source.scheme
    ctx.peer = source.peer
    ctx.client = source.client
    ctx.trusted = source.trusted
    ctx.request_id_bytes = source.request_id_bytes
    ctx.forwarding = source.forwarding
    ctx.upstream_lines = source.upstream_lines
    ctx.identity = source.identity
    ctx.route = source.route
    ctx.param_names = source.param_names
    ctx.params_n = source.params_n
    for i in range(source.params_n):
        ctx.param_start[i] = source.param_start[i]
        ctx.param_size[i] = source.param_size[i]
    ctx.now_ns = ctx.started_ns = source.now_ns
    return behind


def forward(BackgroundRequest behind):
    """Callback of the loop."""
    behind.ctx.now_ns = monotonic_ns()
    try:
        behind.forward()
    except Exception:
        log.exception("while carrying out background request %s", behind.ctx.request_id)
        behind.fail(INTERNAL_ERROR)
