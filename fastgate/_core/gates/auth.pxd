"""Public C interface of fastgate._core.gates.auth."""

from libc.stdint cimport uint64_t

from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.shm.directory cimport Directory
from fastgate._core.gates.credentials cimport CredentialCache
from fastgate._core.http.headers cimport Headers, field_t
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.pipeline.pipeline cimport Plugin

cdef class AuthGate(Plugin):
    cdef readonly tuple schemes
    cdef CredentialCache cache
    cdef Directory directory
    cdef tuple needs                # of each scheme: lower-case names of fields, one of which it must see, or None
    cdef tuple claims               # (lower-case names of fields, scheme): checked if no scheme accepted a credential
    cdef tuple places               # lower-case names of the fields that are a scheme's credential on their own
    cdef int places_n
    cdef bytes alone                # by place: 1 if its name has other spellings, which are dropped
    cdef uint64_t sizes             # a bit for each length that such a name has (63: that, or more)
    cdef tuple hides                # by place: {scheme: hides it}
    cdef list last_method           # by place: the last method looked up, and whether it hides the credential
    cdef list last_hides
    cdef object responded
    cdef tuple strips               # (lower-case name, whether that very spelling may be sent) of other fields to drop, or None
    cdef readonly tuple owned       # lower-case names that no trailer may have
    cdef uint64_t family
    cdef bint forward
    cdef bint waits
    cdef dict reasons
    cdef Reason missing
    cdef Reason invalid
    cdef Reason repeated
    cdef Reason unavailable
    cdef bytes key_prefix           # prefix of an Authorization field that is a credential, or None: any
    cdef bytes query_name           # the query parameter for a key, or None
    cdef tuple concealing           # schemes whose credentials are hidden from the upstream or the log
    cdef bytes invalid_lines
    cdef object rejected
    cdef object later
    cdef object unavailable_error
    cdef bint is_hidden(self, int place, str method) except -1
    cdef field_t* credential(self, RequestContext ctx, int* at) except? NULL
    cdef int count_of(self, Headers headers, bytes name) noexcept
    cdef int conceal(self, RequestContext ctx) except -1
    cdef int refuse_repeated(self, RequestContext ctx, int place) except -1
    cdef Reason reason_of(self, scheme)
    cdef Reason unclaimed(self, RequestContext ctx)
    cdef int relay(self, RequestContext ctx) except -1
    cdef bint current(self, Identity identity) noexcept
    cdef int accept(self, RequestContext ctx, Identity identity, bint hide, field_t* field) except -1
    cdef int refuse(self, RequestContext ctx, Reason reason) except -1
    cdef int walk(self, RequestContext ctx, int start, Reason wrong, bint unavailable) except -1
    cdef bint passes(self, RequestContext ctx, scheme, error) except -1
    cdef int take(self, RequestContext ctx, Identity identity, scheme) except -1
