"""C interface of fastgate.upstream.balance_key."""

from libc.stdint cimport uint64_t

from fastgate._core.balance.strategies cimport KeyHash
from fastgate._core.pipeline.context cimport RequestContext

cdef class BalanceKey:
    cdef tuple parts            # (KEY_*, name) in the order in which they are tried
    cdef KeyHash table
    cdef uint64_t point(self, RequestContext ctx) except? 0
