"""C interface of fastgate.proxy.hooks."""

from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport Answer, RequestContext
from fastgate._core.pipeline.pipeline cimport RequestHead, ResponseHead
from fastgate._core.pipeline.plan cimport RoutePlan
from fastgate.proxy.plane cimport Plane

cdef int plugin_failed(Plane plane, RoutePlan route, RequestContext ctx, object plugin, str phase) except -1
cdef bint upstream_request_hooks(Plane plane, RoutePlan route, RequestContext ctx, RequestHead head) except -1
cdef bint upstream_response_hooks(Plane plane, RoutePlan route, RequestContext ctx, ResponseHead head) except -1
cdef int response_hooks(Plane plane, RoutePlan route, RequestContext ctx, ResponseHead head) except -1
cdef list request_chunk_hooks(Plane plane, RoutePlan route, RequestContext ctx, list pieces, bint ends)
cdef bytes response_chunk_hooks(Plane plane, RoutePlan route, RequestContext ctx, bytes chunk, bint last)
cdef int log_hooks(Plane plane, RoutePlan route, RequestContext ctx) except -1
