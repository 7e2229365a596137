# cython: boundscheck=False, nonecheck=False
"""Limits that change with conditions: with the health of the upstream, and with what is usual for a client.

STATE    One record of the LimiterTable for each route with a Health, and one per client for a Usual. Shared by all workers.
WHO      Any worker, by compare-and-swap of the whole record (shm/table_slots.pyx).
COST     Health.look is one comparison, ten times a second a look into the table; Usual.note about 100 ns.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.gates.client_key cimport ANONYMOUS, pack_client, source_hash
from fastgate._core.gates.limit_rule cimport ONE
from fastgate._core.hashing cimport hash128, hash128_t
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.shm.table cimport (
    TABLE_FAIR, TABLE_FULL, TABLE_STORED, LimiterTable, cursor_t, rule_mark, source_mark, table_find, table_ready, table_store,
)

__all__ = ["Health", "Usual"]

cdef enum:
    FROM_UPSTREAM = 3                   # Reason.source: the upstream caused it

cdef int64_t DAY_NS = 86_400_000_000_000
cdef int64_t MINUTE_NS = 60_000_000_000
cdef int64_t LOOK_NS = 100_000_000      # for how long a worker uses the factor that it last read


@cython.final
cdef class Health:
    """A factor for limits, from the health of the upstream: lowered when it fails or is slow, raised when it is healthy.

    lowest, highest: bounds of the factor; it starts at 1. error_ratio: share of bad responses that lowers it. slow_ns: a response
    with a later first byte is bad (0: latency is ignored). interval_ns: between two steps. least: an interval with fewer responses
    never lowers it. One factor for all workers: a record of its own.
    """

    def __cinit__(self, LimiterTable table not None, str scope not None, double lowest, double highest, double error_ratio, int64_t slow_ns,
                 int64_t interval_ns=1_000_000_000, int64_t least=10):
        text = repr(("health", scope)).encode()
        hash128(PyBytes_AS_STRING(text), len(text), table.secret, &self.key)
        self.table = table
        self.lowest = <int64_t>(lowest * ONE)
        self.highest = <int64_t>(highest * ONE)
        self.error_ratio = error_ratio
        self.slow_ns = slow_ns
        self.interval_ns = interval_ns
        self.least = least
        self.now_factor = min(max(ONE, self.lowest), self.highest)

    cdef void look(self, int64_t now_ns) noexcept nogil:
        """Publishes the counts of this worker and reads the common factor; the first worker in a new interval changes it."""
        cdef cursor_t c
        cdef int64_t factor
        cdef int stored
        if now_ns - self.looked_ns < LOOK_NS or not table_ready(&self.table.handle):
            return
        self.looked_ns = now_ns
        c.low = self.key.low
        c.high = self.key.high
        c.mark = rule_mark(self.key.low)
        while True:
            if not table_find(&self.table.handle, &c):
                c.state[0] = ONE
                c.state[1] = now_ns
            factor = min(max(c.state[0], self.lowest), self.highest)
            c.state[2] += self.pending
            c.state[3] += self.pending_bad
            if now_ns - c.state[1] >= self.interval_ns:
                if c.state[2] >= self.least and <double>c.state[3] > self.error_ratio * <double>c.state[2]:
                    factor = max(factor * 7 // 10, self.lowest)
                else:
                    factor = min(factor + max((self.highest - self.lowest) // 20, 1), self.highest)
                c.state[1] = now_ns
                c.state[2] = c.state[3] = 0
            c.state[0] = factor
            stored = table_store(&self.table.handle, &c, now_ns + 10 * MINUTE_NS, now_ns, TABLE_FAIR)
            if stored == TABLE_STORED:
                self.now_factor = factor
                self.pending = self.pending_bad = 0
                return
            if stored == TABLE_FULL:
                return

    cdef void learn(self, RequestContext ctx, int64_t now_ns):
        if ctx.attempts == 0:
            return
        self.pending += 1
        if ctx.upstream_status >= 500 or (ctx.upstream_status == 0 and ctx.reason is not None and ctx.reason.source == FROM_UPSTREAM) \
                or (self.slow_ns and ctx.first_byte_ns - ctx.upstream_started_ns > self.slow_ns):
            self.pending_bad += 1
        self.look(now_ns)

    def see(self, int64_t requests, int64_t bad, int64_t now_ns):
        """Counts responses, and updates the factor. For tests."""
        self.pending += requests
        self.pending_bad += bad
        self.look(now_ns)

    @property
    def factor(self):
        """The factor in effect."""
        return <double>self.now_factor / <double>ONE


@cython.final
cdef class Usual:
    """The usual rate of a client: a mean of its requests per minute, over the minutes in which it sent any.

    multiple: how many times its usual rate it may send. lowest: the share of its limit that it may always use, and a new client
    starts with.
    """

    def __cinit__(self, LimiterTable table not None, str scope not None, double multiple, double lowest):
        cdef hash128_t derived
        text = repr(("usual", scope)).encode()
        hash128(PyBytes_AS_STRING(text), len(text), table.secret, &derived)
        self.table = table
        self.key[0] = derived.low
        self.key[1] = derived.high
        self.multiple = <int64_t>(multiple * 1024)
        self.lowest = <int64_t>(lowest * ONE)

    cdef int64_t note(self, RequestContext ctx, int64_t now_ns) noexcept:
        """Counts the request; multiple × usual, in 1/1024 requests a minute."""
        cdef hash128_t key
        cdef unsigned char packed[16]
        cdef int n
        if ctx.identity is not None and not ctx.identity.by_address:
            hash128(PyBytes_AS_STRING(ctx.identity.consumer_bytes), PyBytes_GET_SIZE(ctx.identity.consumer_bytes), self.key, &key)
        else:
            n = pack_client(PyBytes_AS_STRING(ctx.client), PyBytes_GET_SIZE(ctx.client), 32, 64, packed)
            hash128(packed, n, self.key, &key)
            key.low ^= ANONYMOUS
        return usual_note(self.table, &key, rule_mark(self.key[0]) | source_mark(source_hash(ctx, self.key)), now_ns) * self.multiple >> 10

    def see(self, bytes client not None, int64_t now_ns):
        """Counts one request of this key; what it may send per minute now. For tests."""
        cdef hash128_t key
        hash128(PyBytes_AS_STRING(client), PyBytes_GET_SIZE(client), self.key, &key)
        return (usual_note(self.table, &key, rule_mark(self.key[0]), now_ns) * self.multiple >> 10) / 1024


cdef int64_t usual_note(LimiterTable table, const hash128_t* key, uint64_t mark, int64_t now_ns) noexcept:
    """Record: [minute] [requests in it] [mean, in 1/1024]. The mean after this request was counted."""
    cdef cursor_t c
    cdef int64_t minute = now_ns // MINUTE_NS
    cdef int stored
    if not table_ready(&table.handle):
        return 0
    c.low = key.low
    c.high = key.high
    c.mark = mark
    while True:
        table_find(&table.handle, &c)
        if c.state[0] != minute:
            c.state[2] += (c.state[1] * 1024 - c.state[2]) // 8
            c.state[0] = minute
            c.state[1] = 0
        c.state[1] += 1
        stored = table_store(&table.handle, &c, now_ns + 7 * DAY_NS, now_ns, TABLE_FAIR)
        if stored == TABLE_STORED or stored == TABLE_FULL:
            return c.state[2]
