"""C interface of fastgate.upstream.credential."""

from libc.stdint cimport int64_t

cdef class Credential:
    cdef readonly str masked
    cdef bytes field_name             # lower case; fields of this name sent by the client are dropped
    cdef bytes line                   # prebuilt header line
    cdef bytes parameter              # prebuilt "name=value" of the query
    cdef bytes parameter_name
    cdef readonly bint set_
    cdef readonly int64_t until_ns    # CLOCK_MONOTONIC; 0 = until replaced
    cdef bint usable(self, int64_t now_ns) noexcept
    cdef bytes target_with(self, bytes target)
    cdef bint names(self, bytes part) except -1
