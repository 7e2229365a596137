# The declarations of gate_limits.pyx, for cimport.

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.log_throttle cimport log_throttle_t
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.hashing cimport hash128_t
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.limits.inflight cimport InflightTable
from fastgate._core.limits.limits cimport limit_t
from fastgate._core.shm.metric cimport Metric
from fastgate._core.limits.penalty cimport PenaltyBox
from fastgate._core.pipeline.pipeline cimport Plugin
from fastgate._core.shm.table cimport LimiterTable

cdef enum:
    PACED = 4               # a bucket whose state does not depend on its rate, beside the kinds of limits.pxd
    MOST_SLOTS = 6          # limits of one rule: burst, second, minute, hour, day, cost per hour
    MOST_PARTS = 6          # parts of one key
    MOST_RULES = 12         # rules of one request: the tier's, the root's, the route's

    # amounts a request takes, and what a slot counts
    REQUESTS = 0
    COST = 1

    # parts of a key
    BY_CONSUMER = 0
    BY_KEY = 1
    BY_IP = 2
    BY_HEADER = 3
    BY_CONSTANT = 4         # route, gateway

# One limit of a rule.
ctypedef struct slot_t:
    limit_t spec
    int unit
    int word                # where its state lies in the record
    int kind                # index into LIMIT_TYPES
    int64_t period_s

# The tightest limit met so far.
ctypedef struct tight_t:
    bint refused
    int rule
    int slot                # MOST_SLOTS: the rule's `concurrent`
    int64_t limit
    int64_t remaining
    int64_t retry_ns        # of a refusal
    int64_t reset_ns
    double left             # remaining / limit

# What one request holds until it is over.
ctypedef struct hold_t:
    hold_t* next            # in the list of free ones, or of the same request for another gate
    void* gate
    int n
    void* rules[MOST_RULES] # owned references
    hash128_t keys[MOST_RULES]
    int64_t entries[MOST_RULES]
    int64_t reserved        # cost
    int64_t reported        # what the upstream said it cost, -1: nothing
    int64_t taken_ns


cdef class LimitRule:
    cdef readonly str name
    cdef readonly str scope
    cdef readonly tuple by
    cdef LimiterTable table
    cdef InflightTable inflight
    cdef uint64_t key[2]
    cdef slot_t slots[6]
    cdef int count
    cdef int64_t concurrent             # 0: any number
    cdef int how                        # what a new key may take of a full table: TABLE_FAIR or TABLE_EVICT
    cdef uint64_t mark                  # of its entries, without a source
    cdef int64_t keep_ns
    cdef int64_t wall_ns                # what turns the monotonic clock into the one fixed windows are cut by
    cdef int parts[6]
    cdef int parts_n
    cdef readonly int v4_bits
    cdef readonly int v6_bits
    cdef tuple headers                  # lower-case names of the BY_HEADER parts, in order
    cdef hash128_t constant             # of the BY_CONSTANT parts
    cdef readonly list policy_names     # as they stand in RateLimit, one for each slot and one for `concurrent`
    cdef readonly bytes policy          # items of RateLimit-Policy
    cdef void key_of(self, RequestContext ctx, hash128_t* out)
    cdef void combine(self, hash128_t* out, const hash128_t* part, bint first) noexcept nogil
    cdef int take(self, RequestContext ctx, const hash128_t* key, const int64_t* amounts, int64_t now_ns, bint commit, int64_t factor,
                  const int64_t* usual, int number, tight_t* tight) noexcept
    cdef void give_back(self, const hash128_t* key, const int64_t* amounts, int64_t taken_ns, int64_t now_ns) noexcept nogil
    cdef int add_part(self, int kind) except -1
    cdef int fill(self, dict amounts, str algorithm) except -1
    cdef int say(self, str label) except -1
    cdef int hash_parts(self, object parts, hash128_t* out) except -1


cdef class TierBook:
    cdef readonly dict rules            # by tier
    cdef object make                    # identity -> LimitRule or None, for consumers with limits of their own
    cdef LimitRule rule_of(self, Identity identity)


cdef class Health:
    cdef LimiterTable table
    cdef hash128_t key
    cdef int64_t lowest                 # factors, in 1/65536
    cdef int64_t highest
    cdef double error_ratio
    cdef int64_t slow_ns
    cdef int64_t interval_ns
    cdef int64_t least
    cdef int64_t pending                # requests and bad ones not yet told to the others
    cdef int64_t pending_bad
    cdef int64_t looked_ns
    cdef int64_t now_factor
    cdef void look(self, int64_t now_ns) noexcept nogil
    cdef void learn(self, RequestContext ctx, int64_t now_ns)


cdef class Usual:
    cdef LimiterTable table
    cdef uint64_t key[2]
    cdef int64_t multiple               # in 1/1024
    cdef int64_t lowest                 # share of the limit, in 1/65536
    cdef int64_t note(self, RequestContext ctx, int64_t now_ns) noexcept


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
    cdef bint tells                     # RateLimit fields go out
    cdef double warn_left               # remaining / limit at which the warning begins; -1: never
    cdef bint passes_full
    cdef int64_t cost_fixed             # all costs in thousandths
    cdef int64_t cost_reserve
    cdef int64_t request_unit           # bytes of a request that cost one more; 0: none
    cdef int64_t response_unit
    cdef bytes cost_header
    cdef bint settles
    cdef list refused                   # Metric, by LIMIT_TYPES
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
