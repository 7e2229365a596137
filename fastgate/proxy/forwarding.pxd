"""C interface of fastgate.proxy.forwarding."""

from fastgate._core.pipeline.context cimport RequestContext

cdef bytes forwarding_lines(bytes peer, str scheme, bytes authority)
cdef int believe(RequestContext ctx, object trusted) except -1
