"""Public C interface of fastgate._core.gates.limit_rule."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.limits.inflight cimport InflightTable
from fastgate._core.limits.limits cimport limit_t
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.shm.table cimport LimiterTable

cdef enum:
    PACED = 4               # a bucket whose state does not depend on its rate: one more kind than limits.pxd has
    MOST_SLOTS = 6          # limits of one rule: burst, second, minute, hour, day, cost per hour
    MOST_PARTS = 6          # parts of one key

    # amounts a request takes, and what a slot counts
    REQUESTS = 0
    COST = 1

    # parts of a key
    BY_CONSUMER = 0
    BY_KEY = 1
    BY_IP = 2
    BY_HEADER = 3
    BY_CONSTANT = 4         # route, gateway

    # kinds: index into LIMIT_TYPES
    K_BURST = 0
    K_COST = 5
    K_CONCURRENT = 6
    K_BAN = 7

    # results of LimitRule.take
    TAKEN = 1
    REFUSED = 0
    NO_PLACE = -1           # the table is full

    ONE = 65536             # a factor of 1

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
