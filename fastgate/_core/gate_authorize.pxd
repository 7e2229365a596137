"""C interface of fastgate._core.gate_authorize."""

from fastgate._core.context cimport RequestContext
from fastgate._core.identity cimport Identity
from fastgate._core.pipeline cimport Plugin

cdef enum:
    AUTHORIZED_PLACES = 256             # identities remembered per route, a power of two

cdef class AuthorizeGate(Plugin):
    cdef object judge
    cdef list known                     # Identity or None
    cdef unsigned int* allowed          # a bit for each M_* that the identity in the same place may use
    cdef int slow(self, RequestContext ctx, Identity identity) except -1
