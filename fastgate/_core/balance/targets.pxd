"""C interface of fastgate._core.balance.targets."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from fastgate._core.resilience.breaker cimport CircuitBreaker
from fastgate._core.resilience.health cimport Health, health_t

cdef enum:
    # Results of TargetSet.pick other than an index
    PICK_NONE = -1              # no target may be used
    PICK_OPEN = -2              # every target that could be used has an open circuit breaker

cdef enum:
    # How a request at a target ended, for TargetSet.finish
    OUTCOME_OK = 0
    OUTCOME_FAILED = 1
    OUTCOME_NONE = 2            # it says nothing about the target: the client left, or another attempt won

# The usable targets of one tier: a segment of TargetSet.members
ctypedef struct tier_t:
    Py_ssize_t start
    Py_ssize_t count
    double share                # of the requests, 0..1
    double clock                # virtual time of round robin

ctypedef struct ticket_t:
    uint64_t breaker
    uint64_t ejection

cdef class TargetSet:
    cdef readonly Py_ssize_t size
    cdef readonly tuple names
    cdef readonly tuple healths         # Health of each target
    cdef readonly Health upstream       # its `changes` say that this set must be read again
    cdef readonly Strategy strategy
    cdef readonly CircuitBreaker breaker        # None: no circuit breakers
    cdef readonly CircuitBreaker ejection       # None: no passive ejection
    cdef readonly double max_ejected    # share of the targets, 0..1
    cdef readonly int64_t slow_start_ns
    cdef readonly double tau_ns         # of the latency
    cdef tuple drains                   # RuntimeValue of each target, not 0 = it gets no new requests; None without a runtime table
    cdef health_t** rows
    cdef double* base                   # weights of the config
    cdef double* weights                # effective ones: 0 = not usable now
    cdef double* costs
    cdef int32_t* places                # tier of each target, in the order of preference
    cdef int32_t* by_tier               # all targets, sorted by tier
    cdef int32_t* members               # usable targets, by tier
    cdef double* ends                   # running sums of their weights within the tier, by place in `members`
    cdef tier_t* tiers
    cdef readonly Py_ssize_t tiers_n
    cdef double spill_factor
    cdef uint64_t random
    cdef uint64_t seen_changes
    cdef int64_t read_again_ns
    cdef bint is_plain                  # a single target without conditions: there is nothing to choose
    cdef bint counts_all                # the requests in flight of the upstream are counted, too
    cdef bint has_open                  # a target has an open circuit breaker
    cdef readonly bint is_panicking     # no target is usable, so all are used that are not drained
    cdef Py_ssize_t pick(self, uint64_t point, list tried, bint is_new, int64_t now_ns, ticket_t* ticket) noexcept
    cdef void begin(self, Py_ssize_t index) noexcept
    cdef void no_head(self, Py_ssize_t index, int64_t elapsed_ns, int64_t now_ns) noexcept
    cdef bint head(self, Py_ssize_t index, ticket_t* ticket, int outcome, int64_t latency_ns, int64_t now_ns) noexcept
    cdef void finish(self, Py_ssize_t index, ticket_t* ticket, int counted, int outcome, int64_t latency_ns, int64_t now_ns) noexcept
    cdef void count(self, Py_ssize_t index, ticket_t* ticket, int outcome, int64_t latency_ns, int64_t now_ns) noexcept
    cdef void read(self, int64_t now_ns) noexcept
    cdef bint is_usable(self, Py_ssize_t index, int64_t now_ns, bint panic, int64_t* until_ns) noexcept
    cdef void share_out(self) noexcept
    cdef tier_t* drawn_tier(self, uint64_t point) noexcept
    cdef Py_ssize_t drawn(self, tier_t* tier, Py_ssize_t without) noexcept
    cdef Py_ssize_t untried(self, list tried) noexcept
    cdef bint admitted(self, Py_ssize_t index, int64_t now_ns, ticket_t* ticket) noexcept
    cdef int64_t closes_after_ns(self, int64_t now_ns) noexcept
    cdef void again(self, Py_ssize_t index, int64_t now_ns, ticket_t* ticket) noexcept
    cdef void moved(self, int32_t transition) noexcept
    cdef double uniform(self) noexcept
    cdef bint too_many_ejected(self, int64_t now_ns) noexcept

cdef class Strategy:
    cdef void rebuild(self, TargetSet targets, int64_t now_ns) noexcept
    cdef bint suits(self, Py_ssize_t size) noexcept
    cdef bint needs_total(self) noexcept
    cdef Py_ssize_t choose(self, TargetSet targets, tier_t* tier, uint64_t point, int64_t now_ns) noexcept
