"""Public C interface of fastgate._core.gates.limits."""

from libc.stdint cimport int64_t

from fastgate._core.gates.limit_factor cimport Health, Usual
from fastgate._core.gates.limit_rule cimport LimitRule, tight_t
from fastgate._core.hashing cimport hash128_t
from fastgate._core.limits.penalty cimport PenaltyBox
from fastgate._core.log_throttle cimport log_throttle_t
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.pipeline.pipeline cimport Plugin
from fastgate._core.shm.metric cimport Metric

cdef enum:
    MOST_RULES = 12         # rules of one request: the tier's, the root's, the route's

# Resources that one request holds until it is over.
ctypedef struct hold_t:
    hold_t* next            # in the free list, or of the same request for another gate
    void* gate
    int n
    void* rules[MOST_RULES] # owned references
    hash128_t keys[MOST_RULES]
    int64_t entries[MOST_RULES]
    int64_t reserved        # cost
    int64_t reported        # the cost reported by the upstream, -1: none
    int64_t taken_ns

cdef class TierBook:
    cdef readonly dict rules            # by tier
    cdef object make                    # identity -> LimitRule or None, for consumers with limits of their own
    cdef LimitRule rule_of(self, Identity identity)

cdef class LimitGate(Plugin):
    cdef readonly tuple rules
    cdef readonly TierBook tiers
    cdef readonly Health health
    cdef readonly Usual usual
    cdef readonly PenaltyBox box
    cdef int box_part
    cdef int box_v4
    cdef int box_v6
    cdef bytes policy                   # of the fixed rules
    cdef bint tells                     # RateLimit fields are sent
    cdef double warn_left               # remaining / limit below which the warning is sent; -1: never
    cdef bint passes_full
    cdef int64_t cost_fixed             # all costs in thousandths
    cdef int64_t cost_reserve
    cdef int64_t request_unit           # bytes of a request that cost one unit more; 0: none
    cdef int64_t response_unit
    cdef bytes cost_header
    cdef bint settles
    cdef list refused                   # Metric, indexed as LIMIT_TYPES
    cdef Metric full
    cdef log_throttle_t full_log
    cdef Metric warned
    cdef Metric bans
    cdef int64_t cost_of(self, RequestContext ctx, bint known, int64_t reported) noexcept
    cdef int refuse_with(self, RequestContext ctx, void** rules, int n, const tight_t* tight, int64_t now_ns) except -1
    cdef int tell(self, RequestContext ctx, void** rules, int n, const tight_t* tight, int64_t retry_s) except -1
    cdef int refuse_banned(self, RequestContext ctx, int64_t left_ns) except -1
    cdef void client_hash(self, RequestContext ctx, hash128_t* out) noexcept
    cdef hold_t* hold_of(self, RequestContext ctx, bint take) noexcept
    cdef int tell_full(self, LimitRule rule, int64_t now_ns) except -1
    cdef void let_go(self, hold_t* hold) noexcept
