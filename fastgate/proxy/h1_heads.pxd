"""C interface of fastgate.proxy.h1_heads."""

from libc.stdint cimport int64_t

from fastgate._core.pipeline.context cimport Answer, RequestContext
from fastgate._core.http.headers cimport Headers, HeadWriter
from fastgate._core.pipeline.plan cimport Destination, RoutePlan
from fastgate.upstream.pool cimport Target

cdef bytes upstream_target(RequestContext ctx, RoutePlan route)
cdef int write_request_head(HeadWriter w, RequestContext ctx, Destination destination, Target target, bytes method, bytes path, Headers fields,
                            int64_t length, bint chunked, int64_t left_ns) except -1
cdef int write_status_line(HeadWriter w, int status, bytes phrase) except -1
cdef int write_response_fields(HeadWriter w, Headers fields, bint keep_trailer) except -1
