"""Refusing a request from a compiled gate: RequestContext.refuse without its Python call, inlined."""

from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.pipeline.pipeline cimport V_RESPOND

cdef inline int refuse(RequestContext ctx, Reason reason) except -1:
    """Refuse with a row of REASONS. Shadow mode restores the header lines from before."""
    ctx.reason = reason
    ctx.detail = None
    ctx.answer = None
    ctx.ready_body = None
    ctx.lines_before = ctx.gate_lines
    ctx.extra_before = 0 if ctx.extra_response is None else <int>len(ctx.extra_response)
    return V_RESPOND
