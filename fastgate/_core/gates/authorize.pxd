"""C interface of fastgate._core.gates.authorize."""

from libc.stdint cimport uint64_t

from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.pipeline.pipeline cimport Plugin

cdef enum:
    AUTHORIZED_PLACES = 256             # identities cached per route, a power of two

ctypedef struct allowed_t:
    uint64_t serial                     # of the Identity, 0: none
    uint64_t methods                    # a bit for each M_* that it may use

cdef class AuthorizeGate(Plugin):
    cdef object judge
    cdef allowed_t* allowed
    cdef int slow(self, RequestContext ctx, Identity identity) except -1
