"""C interface of fastgate.upstream.credential."""

from libc.stdint cimport int64_t

cdef class Credential:
    cdef readonly str masked
    cdef bytes field_name             # lower case; the client's own fields of this name do not pass
    cdef bytes line                   # ready header line
    cdef bytes parameter              # ready "name=value" of the query
    cdef bytes parameter_name
    cdef readonly bint set_
    cdef readonly int64_t until_ns    # CLOCK_MONOTONIC; 0 = for as long as nobody says otherwise
    cdef bint usable(self, int64_t now_ns) noexcept
    cdef bytes target_with(self, bytes target)
    cdef bint names(self, bytes part) except -1
