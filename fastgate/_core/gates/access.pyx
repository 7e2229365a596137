# cython: nonecheck=False
"""The compiled gate of allow and deny lists of addresses."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.gates.refusal cimport refuse
from fastgate._core.http.cidr cimport CidrSet
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, Plugin
from fastgate._core.shm.metric cimport Metric, metric_add

__all__ = ["AccessGate"]


cdef class AccessGate(Plugin):
    """The compiled gate behind `access:` of the root or of a route: refuses addresses in `denied` and, if there is an `allowed` list,
    those that are not in it. Either may be None.

    A client without an address (a Unix socket) is in no list.
    """

    cdef CidrSet denied
    cdef CidrSet allowed
    cdef Reason why
    cdef Metric count

    def __cinit__(self, CidrSet denied, CidrSet allowed, Reason why not None, metrics):
        self.compiled_decide = True
        self.name = "access"
        self.denied = denied
        self.allowed = allowed
        self.why = why
        self.count = metrics.counter("fastgate_access_denied_total")

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef const char* text = PyBytes_AS_STRING(ctx.client)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(ctx.client)
        if (self.denied is None or self.denied.contains_text(text, n) != 1) \
                and (self.allowed is None or self.allowed.contains_text(text, n) == 1):
            return V_CONTINUE
        metric_add(self.count, 1)
        return refuse(ctx, self.why)
