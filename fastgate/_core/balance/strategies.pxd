"""C interface of fastgate._core.balance.strategies."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from fastgate._core.balance.consistent cimport Maglev
from fastgate._core.balance.targets cimport Strategy, TargetSet, tier_t

cdef class RoundRobin(Strategy):
    cdef void sink(self, tier_t* tier, Py_ssize_t place) noexcept
    cdef bint earlier(self, int32_t a, int32_t b) noexcept
    cdef int32_t* heap          # usable targets: for each tier a heap by deadline, at its places in `members`
    cdef double* deadlines      # by target, in the virtual time of its tier
    cdef Py_ssize_t size

cdef class Random(Strategy):
    pass

cdef class PowerOfChoices(Strategy):
    cdef readonly int choices
    cdef double load(self, TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept

cdef class P2cRequests(PowerOfChoices):
    pass

cdef class P2cEwma(PowerOfChoices):
    pass

cdef class Scored(PowerOfChoices):
    cdef readonly double latency_share
    cdef readonly double cost_share
    cdef readonly double health_share
    cdef readonly double quality_share
    cdef tuple quality
    cdef double lowest_ns       # latency and cost of the best target, when the set was last read
    cdef double lowest_cost
    cdef double term_latency(self, TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept
    cdef double term_health(self, TargetSet targets, Py_ssize_t index) noexcept

cdef class LatencyWeighted(Strategy):
    cdef double* ends           # running sums of weight / latency, by place in `members`
    cdef Py_ssize_t size
    cdef int64_t weigh_again_ns
    cdef void weigh(self, TargetSet targets, int64_t now_ns) noexcept

cdef class KeyHash(Strategy):
    cdef readonly Maglev table
    cdef readonly double load_factor
    cdef uint32_t* looked       # by target: the number of the last choice that found it full
    cdef uint32_t look
    cdef uint64_t point_of(self, const char* key, Py_ssize_t n) noexcept
