"""C interface of fastgate.upstream.h1_request."""

from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers, HeadWriter
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.pipeline.plan cimport Destination, RoutePlan
from fastgate.upstream.credential cimport Credential

cdef bytes upstream_target(RequestContext ctx, RoutePlan route)
cdef int64_t body_length(RequestContext ctx) noexcept
cdef int write_request_head(HeadWriter w, RequestContext ctx, Destination destination, bytes authority, Credential credential,
                            bytes method, bytes path, Headers fields, int64_t length, int64_t left_ns) except -1
