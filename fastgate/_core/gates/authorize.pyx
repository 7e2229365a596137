# cython: boundscheck=False
"""AuthorizeGate: whether an identity may use a route with a method. Decided once, then cached.

WHAT     The gate behind `scopes`, `roles`, `permissions` and `rbac` of a route. `judge` decides (Python,
         fastgate/features/rbac/build.py); an Identity never changes, so a positive verdict is valid as long as the object lives.
STATE    256 places per route, by the identity's serial number: [serial] [a bit per allowed method]. A second identity in the same
         place replaces the first. Negative verdicts are not cached: refusals contain what is missing. No identity is kept
         alive: claims of a token are dropped with its credential.
WHO      The worker's loop.
COST     A cached verdict 16 ns, whatever the number of scopes and roles. 4 KiB per route, from its first request on.
SOURCES  A direct-mapped cache.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from fastgate._core.pipeline.context cimport M_OTHER, RequestContext
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, V_RESPOND, Plugin

__all__ = ["AuthorizeGate"]


cdef class AuthorizeGate(Plugin):
    """judge(identity or None, method) is None if it is allowed, else (reason, detail, headers) of the refusal."""

    def __cinit__(self, judge):
        self.compiled_decide = True
        self.name = "authorize"
        self.judge = judge

    def __dealloc__(self):
        free(self.allowed)

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef Identity identity = ctx.identity
        cdef int place
        if identity is not None and self.allowed != NULL:
            place = <int>(identity.serial & (AUTHORIZED_PLACES - 1))
            if self.allowed[place].serial == identity.serial and self.allowed[place].methods >> ctx.method_id & 1:
                return V_CONTINUE
        return self.slow(ctx, identity)

    cdef int slow(self, RequestContext ctx, Identity identity) except -1:
        cdef int place
        refusal = self.judge(identity, ctx.method)
        if refusal is not None:
            reason, detail, headers = refusal
            ctx.refuse(reason, detail, headers)
            return V_RESPOND
        if identity is not None and ctx.method_id < M_OTHER:    # the rare methods share one number
            if self.allowed == NULL:
                self.allowed = <allowed_t*>calloc(AUTHORIZED_PLACES, sizeof(allowed_t))
                if self.allowed == NULL:
                    raise MemoryError()
            place = <int>(identity.serial & (AUTHORIZED_PLACES - 1))
            if self.allowed[place].serial != identity.serial:
                self.allowed[place].serial = identity.serial
                self.allowed[place].methods = 0
            self.allowed[place].methods |= <uint64_t>1 << ctx.method_id
        return V_CONTINUE

    def decide(self, RequestContext ctx not None):
        """The Python entry point."""
        return self.c_decide(ctx)
