# cython: boundscheck=False, nonecheck=False
"""LimitGate: every limit of a request, asked and debited as one decision.

WHAT     A rule says what is counted (by consumer, key, address, header, route, the whole gateway, or several of these together)
         and its limits: requests per second, minute, hour, day, burst, cost per hour, requests at once. The gate asks the rules of
         a request in order (the tier's, the root's, the route's): all grant and all are debited, or none is.
STATE    one record per rule and key in the host's LimiterTable, always of the same shape, so that changed amounts find their counts:

           word 0 burst | 1-2 second | 3-4 minute | 5-6 hour | 7-8 day | 9-10 cost per hour | 11 requests ever | 12 cost ever

         A burst and a token bucket are one word, the time at which they are full again, in sixteenths of a nanosecond: it says the
         same whatever the rate is. Windows are those of limits.pyx. Requests at once: InflightTable.
WHO      The limits of one rule change in one swing of one index word (table.pyx), so a killed worker leaves them whole. Over several
         rules: those that granted are given back when a later one refuses; until then (under a microsecond) others may be
         refused what was free, and a worker killed in that moment leaves one request counted too much. Never too little.
COST     a rule with three windows and a burst takes about 200 ns with its two cache misses, `concurrent` 20 ns, the header lines
         60 ns and one bytes object. A refusal reads and writes nothing back.
SOURCES  limits.pyx, table.pyx and inflight.pyx name theirs; draft-ietf-httpapi-ratelimit-headers-10 (RateLimit,
         RateLimit-Policy); RFC 9651 (structured fields); fail2ban (growing bans)
"""

import logging

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastgate._core.http.cidr cimport CidrSet, address_parse
from fastgate._core.clock cimport monotonic_ns, realtime_ns
from fastgate._core.log_throttle cimport log_throttle_pass
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.hashing cimport hash128, hash128_t, siphash13
from fastgate._core.http.headers cimport Headers, field_t
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.limits.inflight cimport InflightTable
from fastgate._core.limits.limits cimport (
    FIXED, LARGEST, LATEST_NS, NEVER, SLIDING, limit_charge, limit_idle_at_ns, limit_refund, limit_reset_ns, limit_t, limit_take,
    now_argument, outcome_t,
)
from fastgate._core.shm.metric cimport Metric, metric_add
from fastgate._core.limits.penalty cimport PenaltyBox
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, V_RESPOND, Plugin, ResponseHead
from fastgate._core.shm.table cimport (
    STATE_WORDS, TABLE_EVICT, TABLE_FAIR, TABLE_FULL, TABLE_STORED, LimiterTable, cursor_t, rule_mark, source_mark, table_find,
    table_forget, table_ready, table_store,
)

__all__ = ["AccessGate", "COST_UNIT", "CostedLimitGate", "Health", "LIMIT_TYPES", "LimitGate", "LimitRule", "RECORD_WORDS", "TierBook", "Usual",
           "client_key"]

log = logging.getLogger("fastgate")

LIMIT_TYPES = ("burst", "per_second", "per_minute", "per_hour", "per_day", "cost_per_hour", "concurrent", "ban")
COST_UNIT = 1000        # a cost has three decimals
RECORD_WORDS = 13

cdef enum:
    # kinds: index into LIMIT_TYPES
    K_BURST = 0
    K_COST = 5
    K_CONCURRENT = 6
    K_BAN = 7
    W_REQUESTS = 11
    W_SPENT = 12
    # what a take says
    TAKEN = 1
    REFUSED = 0
    NO_PLACE = -1
    ONE = 65536             # a factor of 1
    FROM_CLIENT = 1         # context.CLIENT: whose fault a reason tells of
    # Networks that share one source's part of the table: what a customer of a provider is given at most.
    SOURCE_V4_BITS = 24
    SOURCE_V6_BITS = 48
    LINES = 2048            # header lines of one answer; more rules than fit are not told of

cdef int[6] WORDS = [0, 1, 3, 5, 7, 9]
cdef int64_t[6] PERIODS = [0, 1, 60, 3600, 86_400, 3600]
cdef list _types = [name.encode() for name in LIMIT_TYPES]
cdef int64_t DAY_NS = 86_400_000_000_000
cdef int64_t MINUTE_NS = 60_000_000_000
cdef int64_t LOOK_NS = 100_000_000      # how long a worker goes by what it last saw of the upstream's health
cdef uint64_t ANONYMOUS = 0x9E3779B97F4A7C15    # keeps the address of a client apart from a consumer of that name


# --- a bucket that does not know its rate

cdef inline int64_t paced_debt(const limit_t* limit, int64_t full_at, int64_t now_ns) noexcept nogil:
    """Sixteenths of a nanosecond to a full bucket; after a charge up to twice its whole."""
    cdef int64_t debt = full_at - (now_ns << 4)
    cdef int64_t most = 2 * limit.limit * limit.window_ns
    return 0 if debt < 0 else most if debt > most else debt


cdef bint paced_take(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns, outcome_t* outcome) noexcept nogil:
    cdef int64_t debt = paced_debt(limit, state[0], now_ns)
    cdef int64_t room = limit.limit * limit.window_ns - debt
    cdef int64_t need
    outcome.changed = False
    if amount > limit.limit:
        outcome.retry_after_ns = NEVER
    else:
        need = amount * limit.window_ns
        if need <= room:
            state[0] = (now_ns << 4) + debt + need
            outcome.remaining = (room - need) // limit.window_ns
            outcome.retry_after_ns = 0
            return True
        outcome.retry_after_ns = (need - room + 15) >> 4
    outcome.remaining = room // limit.window_ns if room > 0 else 0
    return False


cdef inline bint slot_take(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns, int64_t wall_ns,
                           outcome_t* outcome) noexcept nogil:
    if limit.kind == PACED:
        return paced_take(limit, state, amount, now_ns, outcome)
    return limit_take(limit, state, amount, now_ns + wall_ns if limit.kind == FIXED else now_ns, outcome)


cdef inline void slot_charge(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns, int64_t wall_ns) noexcept nogil:
    cdef int64_t debt, most
    if limit.kind != PACED:
        limit_charge(limit, state, amount, now_ns + wall_ns if limit.kind == FIXED else now_ns)
        return
    debt = paced_debt(limit, state[0], now_ns)
    most = (2 * limit.limit * limit.window_ns - debt) // limit.window_ns
    state[0] = (now_ns << 4) + debt + min(amount, most) * limit.window_ns


cdef inline void slot_refund(const limit_t* limit, int64_t* state, int64_t amount, int64_t taken_ns, int64_t now_ns,
                             int64_t wall_ns) noexcept nogil:
    cdef int64_t debt
    if limit.kind == PACED:
        debt = paced_debt(limit, state[0], now_ns)
        state[0] = (now_ns << 4) + debt - min(amount, debt // limit.window_ns) * limit.window_ns
    elif limit.kind == FIXED:
        limit_refund(limit, state, amount, taken_ns + wall_ns, now_ns + wall_ns)
    else:
        limit_refund(limit, state, amount, taken_ns, now_ns)


cdef inline int64_t slot_reset_ns(const limit_t* limit, const int64_t* state, int64_t now_ns, int64_t wall_ns) noexcept nogil:
    if limit.kind == PACED:
        return (paced_debt(limit, state[0], now_ns) + 15) >> 4
    return limit_reset_ns(limit, state, now_ns + wall_ns if limit.kind == FIXED else now_ns)


cdef inline int64_t slot_idle_at_ns(const limit_t* limit, const int64_t* state, int64_t now_ns, int64_t wall_ns) noexcept nogil:
    if limit.kind == PACED:
        return (state[0] >> 4) + 1
    if limit.kind == FIXED:
        return limit_idle_at_ns(limit, state, now_ns + wall_ns) - wall_ns
    return limit_idle_at_ns(limit, state, now_ns)


cdef inline void slot_scaled(const slot_t* slot, int64_t factor, const int64_t* usual, limit_t* out) noexcept nogil:
    """The limit as it is for now: times factor, and no more than what is usual for the client allows. usual: its requests a minute
    times the allowed multiple, in 1/1024, and the least share of the limit that it has anyway, in 1/65536; NULL for none."""
    cdef int64_t most, least
    cdef int64_t amount = slot.spec.limit
    out[0] = slot.spec
    if factor != ONE:
        amount = <int64_t>(<double>amount * <double>factor / <double>ONE)
    if usual != NULL and slot.unit == REQUESTS and slot.period_s != 0:
        least = <int64_t>(<double>slot.spec.limit * <double>usual[1] / <double>ONE)
        most = <int64_t>(<double>usual[0] * <double>slot.period_s / 61440.0)        # 60 s × 1024
        amount = min(amount, max(most, least))
    amount = min(max(amount, 1), LARGEST)
    if out.kind == PACED and slot.kind == K_BURST:
        # A burst keeps its size and fills slower: at least one request must pass.
        out.window_ns = <int64_t>(<double>out.window_ns * <double>ONE / <double>max(factor, 1))
    else:
        if out.kind == PACED:
            out.window_ns = <int64_t>(<double>out.window_ns * <double>slot.spec.limit / <double>amount)
        out.limit = amount


# --- keys

cdef int pack_client(const char* text, Py_ssize_t n, int v4_bits, int v6_bits, unsigned char* out) noexcept nogil:
    """The network of a client's address, packed, with its length in bytes; the text itself where it is no address (a Unix socket)."""
    cdef int length = address_parse(text, n, out)
    cdef int bits, i
    if length < 0:
        length = <int>min(n, 16)
        memcpy(out, text, length)
        return length
    bits = v4_bits if length == 4 else v6_bits
    for i in range(length):
        if bits >= 8:
            bits -= 8
        elif bits > 0:
            out[i] &= <unsigned char>(0xff << (8 - bits))
            bits = 0
        else:
            out[i] = 0
    return length


cdef uint64_t source_hash(RequestContext ctx, const uint64_t* key) noexcept:
    """Who brought the keys of this request, hashed: its consumer, or the network of its address."""
    cdef unsigned char packed[16]
    cdef bytes name
    cdef int n
    if ctx.identity is not None and not ctx.identity.by_address:
        name = ctx.identity.consumer_bytes
        return siphash13(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), key)
    n = pack_client(PyBytes_AS_STRING(ctx.client), PyBytes_GET_SIZE(ctx.client), SOURCE_V4_BITS, SOURCE_V6_BITS, packed)
    return siphash13(packed, n, key)


def client_key(str client not None, int v4_bits=32, int v6_bits=64):
    """What a client's address is counted under: its network, packed. For PenaltyBox and LimitRule.read by hand."""
    cdef unsigned char packed[16]
    cdef bytes text = client.encode("latin-1", "replace")
    cdef int n = pack_client(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), v4_bits, v6_bits, packed)
    return PyBytes_FromStringAndSize(<const char*>packed, n)


cdef int64_t wall_offset(LimiterTable table) except? -1:
    """What turns the monotonic clock into UTC, the same for every process of the table: the first one to ask writes it there."""
    cdef cursor_t c
    c.low = 0x66617374676174
    c.high = 0x77616c6c
    c.mark = rule_mark(0)
    table.ready()
    while not table_find(&table.handle, &c):
        c.state[0] = realtime_ns() - monotonic_ns()
        # Idle as late as a record can say, so that it is never given away.
        if table_store(&table.handle, &c, LATEST_NS, monotonic_ns(), TABLE_EVICT) == TABLE_FULL:
            return 0
    return c.state[0]


cdef class LimitRule:
    """What is counted together, and how much of it may be. Made by fastgate.features.ratelimit.build.

    scope: the name its counts are found by, over reloads and processes. by: parts of its key, from "consumer", "key", "ip",
    ("header", name), ("constant", text). amounts: {limit type: how much}; cost_per_hour in cost units. algorithm: "token_bucket",
    "sliding_window" or "fixed_window". label: goes before its names in RateLimit where that is not empty. keep_s: what was used
    ever stays readable so long after the last request, also when nothing else keeps the record.
    """

    def __cinit__(self, LimiterTable table not None, InflightTable inflight, str scope not None, by, dict amounts not None, *,
                 str algorithm="sliding_window", str name="", str label="", when_full="deny", double keep_s=0.0, int v4_bits=32, int v6_bits=64):
        cdef hash128_t derived
        if table.state_words < RECORD_WORDS:
            raise ValueError(f"table: expected state_words of at least {RECORD_WORDS}, got {table.state_words}")
        self.table = table
        self.inflight = inflight
        self.name = name
        self.scope = scope
        self.by = tuple(by)
        self.v4_bits = v4_bits
        self.v6_bits = v6_bits
        self.how = TABLE_EVICT if when_full == "evict" else TABLE_FAIR
        self.wall_ns = wall_offset(table)
        self.keep_ns = <int64_t>(keep_s * 1e9)
        if not 1 <= len(self.by) <= MOST_PARTS:
            raise ValueError(f"by: expected 1 to {MOST_PARTS} parts, got {len(self.by)}")
        named = repr(("limit", scope, self.by, algorithm, (v4_bits, v6_bits) if "ip" in self.by else ())).encode()
        hash128(PyBytes_AS_STRING(named), len(named), table.secret, &derived)
        self.key[0] = derived.low
        self.key[1] = derived.high
        self.mark = rule_mark(derived.low)
        headers = []
        constants = []
        for each in self.by:
            if each == "consumer":
                self.add_part(BY_CONSUMER)
            elif each == "key":
                self.add_part(BY_KEY)
            elif each == "ip":
                self.add_part(BY_IP)
            elif each[0] == "header":
                self.add_part(BY_HEADER)
                headers.append(each[1].lower().encode("latin-1"))
            elif each[0] == "constant":
                constants.append(each[1])
            else:
                raise ValueError(f"by: unknown part {each!r}")
        if constants:
            self.add_part(BY_CONSTANT)
            text = repr(constants).encode()
            hash128(PyBytes_AS_STRING(text), len(text), self.key, &self.constant)
        self.headers = tuple(headers)
        self.fill(amounts, algorithm)
        self.concurrent = amounts.get("concurrent") or 0
        if self.concurrent and inflight is None:
            raise ValueError("concurrent: expected an InflightTable to count in")
        self.say(label)

    cdef int add_part(self, int kind) except -1:
        self.parts[self.parts_n] = kind
        self.parts_n += 1

    cdef int fill(self, dict amounts, str algorithm) except -1:
        """The slots, from amounts."""
        cdef slot_t* slot
        cdef int kind
        windows = [kind for kind in range(1, K_COST) if amounts.get(LIMIT_TYPES[kind]) is not None]
        burst = amounts.get("burst")
        for kind in range(K_COST + 1):
            if kind == K_BURST:
                # The bucket of a burst fills at the rate of the shortest window. In a token bucket it is that one's size.
                if burst is None or not windows or algorithm == "token_bucket":
                    continue
                amount = burst
                rate, period = amounts[LIMIT_TYPES[windows[0]]], PERIODS[windows[0]]
            else:
                amount = amounts.get(LIMIT_TYPES[kind])
                if amount is None:
                    continue
                if kind == K_COST:
                    amount = round(amount * COST_UNIT)
                rate, period = amount, PERIODS[kind]
                if algorithm == "token_bucket" and burst is not None and windows and kind == windows[0]:
                    amount = burst
            if not 1 <= amount <= LARGEST:
                raise ValueError(f"{LIMIT_TYPES[kind]}: expected 1 to {LARGEST}, got {amount}")
            slot = &self.slots[self.count]
            slot.kind = kind
            slot.word = WORDS[kind]
            slot.unit = COST if kind == K_COST else REQUESTS
            slot.period_s = PERIODS[kind]
            slot.spec.limit = amount
            slot.spec.slack = MINUTE_NS
            if kind == K_BURST or algorithm == "token_bucket":
                slot.spec.kind = PACED
                # Sixteenths of a nanosecond that one token takes, rounded up: never faster than told.
                interval = -(-16_000_000_000 * period // rate)
                if interval * amount > 1 << 60:
                    raise ValueError(f"{LIMIT_TYPES[kind]}: {amount} at {rate} in {period} s take more than two years to fill")
                slot.spec.window_ns = interval
            else:
                slot.spec.kind = FIXED if algorithm == "fixed_window" else SLIDING
                slot.spec.window_ns = period * 1_000_000_000
            self.count += 1

    cdef int say(self, str label) except -1:
        """How the rule's limits are told to clients."""
        cdef int i
        policies = []
        self.policy_names = []
        prefix = f"{label}." if label else ""
        for i in range(self.count):
            kind = self.slots[i].kind
            text = f'"{prefix}{LIMIT_TYPES[kind]}"'
            self.policy_names.append(text.encode())
            if kind == K_COST:
                policies.append(f'{text};q={self.slots[i].spec.limit // COST_UNIT};qu="cost";w=3600')
            elif self.slots[i].spec.kind == PACED:
                # What fills the whole bucket, in seconds: the time of a token was rounded up, by less than 1.
                full = self.slots[i].spec.limit * (self.slots[i].spec.window_ns - 1) + 1
                seconds = max(1, -(-full // 16_000_000_000))
                policies.append(f"{text};q={self.slots[i].spec.limit};w={seconds}")
            else:
                policies.append(f"{text};q={self.slots[i].spec.limit};w={self.slots[i].period_s}")
        while len(self.policy_names) < MOST_SLOTS:
            self.policy_names.append(b"")
        text = f'"{prefix}concurrent"'
        self.policy_names.append(text.encode())
        if self.concurrent:
            policies.append(f'{text};q={self.concurrent};qu="concurrent-requests"')
        self.policy = ", ".join(policies).encode()

    cdef void combine(self, hash128_t* out, const hash128_t* part, bint first) noexcept nogil:
        cdef uint64_t both[4]
        if first:
            out[0] = part[0]
            return
        both[0] = out.low
        both[1] = out.high
        both[2] = part.low
        both[3] = part.high
        hash128(both, 32, self.key, out)

    cdef void key_of(self, RequestContext ctx, hash128_t* out):
        """The hash of the request's key: parts hashed where they lie."""
        cdef hash128_t part
        cdef unsigned char packed[16]
        cdef Identity identity = ctx.identity
        cdef bytes name
        cdef field_t* field
        cdef int i, kind, n
        cdef int header = 0
        for i in range(self.parts_n):
            kind = self.parts[i]
            if kind == BY_CONSTANT:
                part = self.constant
            elif kind == BY_HEADER:
                name = <bytes>PyTuple_GET_ITEM(self.headers, header)
                header += 1
                field = ctx.headers.find_field(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
                # Without the header a request counts among all those without: leaving it out opens nothing.
                if field == NULL:
                    part.low = part.high = 0
                else:
                    hash128(field.value, field.value_n, self.key, &part)
            elif kind != BY_IP and identity is not None and not identity.by_address:
                name = identity.consumer_bytes if kind == BY_CONSUMER else identity.key_bytes
                hash128(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), self.key, &part)
            else:
                n = pack_client(PyBytes_AS_STRING(ctx.client), PyBytes_GET_SIZE(ctx.client), self.v4_bits, self.v6_bits, packed)
                hash128(packed, n, self.key, &part)
                part.low ^= ANONYMOUS
            self.combine(out, &part, i == 0)

    cdef int hash_parts(self, object parts, hash128_t* out) except -1:
        """The same from bytes: one for each part of `by` but the constants; ("ip", packed) where a consumer is an address."""
        cdef hash128_t part
        cdef bytes text
        cdef int i
        cdef bint is_address
        given = list(parts)
        for i in range(self.parts_n):
            if self.parts[i] == BY_CONSTANT:
                part = self.constant
            else:
                if not given:
                    raise ValueError(f"key: expected one part for each of {self.by!r}")
                each = given.pop(0)
                is_address = self.parts[i] == BY_IP or isinstance(each, tuple)
                if self.parts[i] == BY_HEADER and each is None:
                    part.low = part.high = 0
                else:
                    text = <bytes?>(each[1] if isinstance(each, tuple) else each)
                    hash128(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), self.key, &part)
                if is_address:
                    part.low ^= ANONYMOUS
            self.combine(out, &part, i == 0)
        if given:
            raise ValueError(f"key: expected one part for each of {self.by!r}")
        return 0

    cdef int take(self, RequestContext ctx, const hash128_t* key, const int64_t* amounts, int64_t now_ns, bint commit, int64_t factor,
                  const int64_t* usual, int number, tight_t* tight) noexcept:
        """TAKEN if every limit granted (and, with commit, was debited), REFUSED, or NO_PLACE. tight: made tighter where this
        rule is the tightest so far. ctx: who brings the key; None: unknown."""
        cdef cursor_t c
        cdef outcome_t outcome
        cdef limit_t scaled
        cdef limit_t* spec
        cdef slot_t* slot
        cdef tight_t mine
        cdef int64_t idle_at_ns, amount, at_ns
        cdef double left
        cdef int i, stored
        cdef bint allowed, granted
        if self.count == 0:
            return TAKEN
        if not table_ready(&self.table.handle):
            return NO_PLACE
        c.low = key.low
        c.high = key.high
        while True:
            if not table_find(&self.table.handle, &c):
                c.mark = self.mark
                if ctx is not None:
                    c.mark |= source_mark(source_hash(ctx, self.key))
            allowed = True
            idle_at_ns = 0
            mine.slot = -1
            for i in range(self.count):
                slot = &self.slots[i]
                spec = &slot.spec
                if factor != ONE or usual != NULL:
                    slot_scaled(slot, factor, usual, &scaled)
                    spec = &scaled
                amount = amounts[slot.unit]
                granted = slot_take(spec, &c.state[slot.word], amount, now_ns, self.wall_ns, &outcome)
                if granted:
                    left = <double>outcome.remaining / <double>spec.limit
                    if allowed and (mine.slot < 0 or left < mine.left):
                        mine.slot = i
                        mine.left = left
                        mine.limit = spec.limit
                        mine.remaining = outcome.remaining
                else:
                    if allowed or outcome.retry_after_ns > mine.retry_ns:
                        mine.slot = i
                        mine.left = 0
                        mine.limit = spec.limit
                        mine.remaining = outcome.remaining
                        mine.retry_ns = outcome.retry_after_ns
                    allowed = False
                at_ns = slot_idle_at_ns(spec, &c.state[slot.word], now_ns, self.wall_ns)
                idle_at_ns = max(idle_at_ns, at_ns)
            if not allowed or not commit:
                break
            c.state[W_REQUESTS] += amounts[REQUESTS]
            c.state[W_SPENT] += amounts[COST]
            stored = table_store(&self.table.handle, &c, max(idle_at_ns, now_ns + self.keep_ns), now_ns, self.how)
            if stored == TABLE_STORED:
                break
            if stored == TABLE_FULL:
                return NO_PLACE
        if tight.rule < 0 or (not allowed and (not tight.refused or mine.retry_ns > tight.retry_ns)) \
                or (allowed and not tight.refused and mine.left < tight.left):
            slot = &self.slots[mine.slot]
            spec = &slot.spec
            if factor != ONE or usual != NULL:
                slot_scaled(slot, factor, usual, &scaled)
                spec = &scaled
            mine.refused = not allowed
            mine.rule = number
            if allowed:
                mine.retry_ns = 0
            mine.reset_ns = slot_reset_ns(spec, &c.state[slot.word], now_ns, self.wall_ns)
            tight[0] = mine
        return TAKEN if allowed else REFUSED

    cdef void give_back(self, const hash128_t* key, const int64_t* amounts, int64_t taken_ns, int64_t now_ns) noexcept nogil:
        """Refunds positive amounts and charges negative ones, in one step."""
        cdef cursor_t c
        cdef slot_t* slot
        cdef int64_t idle_at_ns, amount, at_ns
        cdef int i, stored
        if self.count == 0 or not table_ready(&self.table.handle):
            return
        c.low = key.low
        c.high = key.high
        c.mark = self.mark
        while True:
            if not table_find(&self.table.handle, &c) and amounts[REQUESTS] >= 0 and amounts[COST] >= 0:
                return                          # idle, and given to another key: nothing left to give back to
            idle_at_ns = 0
            for i in range(self.count):
                slot = &self.slots[i]
                amount = amounts[slot.unit]
                if amount > 0:
                    slot_refund(&slot.spec, &c.state[slot.word], amount, taken_ns, now_ns, self.wall_ns)
                elif amount < 0:
                    slot_charge(&slot.spec, &c.state[slot.word], -amount, now_ns, self.wall_ns)
                at_ns = slot_idle_at_ns(&slot.spec, &c.state[slot.word], now_ns, self.wall_ns)
                idle_at_ns = max(idle_at_ns, at_ns)
            c.state[W_REQUESTS] = max(c.state[W_REQUESTS] - amounts[REQUESTS], 0)
            c.state[W_SPENT] = max(c.state[W_SPENT] - amounts[COST], 0)
            stored = table_store(&self.table.handle, &c, max(idle_at_ns, now_ns + self.keep_ns), now_ns, self.how)
            if stored == TABLE_STORED or stored == TABLE_FULL:
                return

    def decide(self, parts, int64_t amount=1, cost=1, now_ns=None, bint commit=True, factor=1.0):
        """(allowed, limit type, remaining, retry_after_ns, reset_ns): what a request of this key and size meets. For tests and tools."""
        cdef hash128_t key
        cdef tight_t tight
        cdef int64_t amounts[2]
        cdef int said
        cdef int64_t now = now_argument(now_ns)
        self.hash_parts(parts, &key)
        amounts[REQUESTS] = amount
        amounts[COST] = round(cost * COST_UNIT)
        memset(&tight, 0, sizeof(tight))
        tight.rule = -1
        said = self.take(None, &key, amounts, now, commit, <int64_t>(factor * ONE), NULL, 0, &tight)
        if said == NO_PLACE:
            return False, "full", 0, 0, 0
        if tight.rule < 0:
            return True, "", 0, 0, 0
        unit = COST_UNIT if self.slots[tight.slot].unit == COST else 1
        return said == TAKEN, LIMIT_TYPES[self.slots[tight.slot].kind], tight.remaining // unit, tight.retry_ns, tight.reset_ns

    def refund(self, parts, int64_t amount=1, cost=1, taken_ns=None, now_ns=None):
        """Gives back what decide() took; negative amounts are charged."""
        cdef hash128_t key
        cdef int64_t amounts[2]
        cdef int64_t now = now_argument(now_ns)
        self.hash_parts(parts, &key)
        amounts[REQUESTS] = amount
        amounts[COST] = round(cost * COST_UNIT)
        self.table.ready()
        self.give_back(&key, amounts, now if taken_ns is None else now_argument(taken_ns), now)

    def read(self, parts, now_ns=None):
        """{limits: [{limit_type, limit, remaining, reset_s}, …], requests, cost}: how it stands for this key; nothing is taken."""
        cdef hash128_t key
        cdef cursor_t c
        cdef outcome_t outcome
        cdef slot_t* slot
        cdef int i
        cdef int64_t now = now_argument(now_ns)
        self.hash_parts(parts, &key)
        self.table.ready()
        c.low = key.low
        c.high = key.high
        c.mark = self.mark
        table_find(&self.table.handle, &c)
        limits = []
        for i in range(self.count):
            slot = &self.slots[i]
            # Before the amount, which writes
            reset = slot_reset_ns(&slot.spec, &c.state[slot.word], now, self.wall_ns)
            slot_take(&slot.spec, &c.state[slot.word], 0, now, self.wall_ns, &outcome)
            unit = COST_UNIT if slot.unit == COST else 1
            limits.append({
                "limit_type": LIMIT_TYPES[slot.kind],
                "limit": slot.spec.limit / unit if unit != 1 else slot.spec.limit,
                "remaining": outcome.remaining / unit if unit != 1 else outcome.remaining,
                "reset_s": reset / 1e9,
            })
        if self.concurrent:
            used = self.inflight.c_count(&key)
            limits.append({"limit_type": "concurrent", "limit": self.concurrent, "remaining": max(self.concurrent - used, 0),
                           "reset_s": 0.0})
        return {"limits": limits, "requests": c.state[W_REQUESTS], "cost": c.state[W_SPENT] / COST_UNIT}

    def reset(self, parts):
        """True if anything was counted for this key, which is as good as new now. Requests under way stay counted as such."""
        cdef hash128_t key
        cdef cursor_t c
        self.hash_parts(parts, &key)
        self.table.ready()
        c.low = key.low
        c.high = key.high
        c.mark = self.mark
        return table_forget(&self.table.handle, &c)

    def __repr__(self):
        return f"LimitRule({self.scope!r}, by={self.by!r})"


cdef class TierBook:
    """The rule of each tier, and of consumers with limits of their own. `make(identity)` builds those, once per identity."""

    def __cinit__(self, dict rules not None, make):
        self.rules = rules
        self.make = make

    cdef LimitRule rule_of(self, Identity identity):
        cdef PyObject* found
        cdef tuple memo
        if identity.limits is None:
            found = <PyObject*>PyDict_GetItem(self.rules, identity.tier)
            if found != NULL:
                return <LimitRule>found
        memo = <tuple>identity.limits_memo
        if memo is not None and <PyObject*>PyTuple_GET_ITEM(memo, 0) == <PyObject*>self:
            return <LimitRule>PyTuple_GET_ITEM(memo, 1)
        rule = self.make(identity)
        identity.limits_memo = (self, rule)
        return rule


# --- limits that move

cdef class Health:
    """A factor for limits, from how the upstream does: lowered when it fails or is slow, raised when it is well.

    lowest, highest: bounds of the factor; it starts at 1. error_ratio: bad answers among all that lower it. slow_ns: a later first
    byte is a bad answer (0: latency does not matter). interval_ns: between two steps. least: fewer answers in an interval than this
    say nothing bad. One factor for all workers: a record of its own.
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
        """Tells the others what was seen here and takes up their factor; whoever is first in a new interval moves it."""
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
        if ctx.upstream_status >= 500 or (ctx.upstream_status == 0 and ctx.reason is not None and ctx.reason.source == 3) \
                or (self.slow_ns and ctx.first_byte_ns - ctx.upstream_started_ns > self.slow_ns):
            self.pending_bad += 1
        self.look(now_ns)

    def see(self, int64_t requests, int64_t bad, int64_t now_ns):
        """Counts so many answers, and takes a look. For tests."""
        self.pending += requests
        self.pending_bad += bad
        self.look(now_ns)

    @property
    def factor(self):
        """What limits are multiplied by now."""
        return <double>self.now_factor / <double>ONE


cdef class Usual:
    """What is usual for a client: a mean of its requests a minute, over the minutes in which it sent any.

    multiple: how many times the usual it may send. lowest: the share of its limit that it may use whatever is usual; so much
    does a new client have.
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
        """Counts one request of this key; what it may send a minute now. For tests."""
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


# --- the gate

cdef Reason RATE_LIMITED = None
cdef Reason BANNED = None
cdef Reason LIMITS_FULL = None
cdef hold_t* FREE_HOLDS = NULL


cdef hold_t* new_hold() noexcept:
    global FREE_HOLDS
    cdef hold_t* hold = FREE_HOLDS
    if hold != NULL:
        FREE_HOLDS = hold.next
    else:
        hold = <hold_t*>malloc(sizeof(hold_t))
    return hold


cdef inline char* put(char* at, const char* text, Py_ssize_t n) noexcept nogil:
    memcpy(at, text, n)
    return at + n


cdef inline char* put_bytes(char* at, bytes text):
    return put(at, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef char* put_number(char* at, int64_t number) noexcept nogil:
    cdef char[20] digits
    cdef int n = 0
    if number < 0:
        number = 0
    while True:
        digits[19 - n] = <char>(48 + number % 10)
        n += 1
        number //= 10
        if number == 0:
            break
    return put(at, &digits[20 - n], n)


cdef inline int refusing(RequestContext ctx, Reason reason) except -1:
    """Refuse with a row of REASONS; shadow mode puts back what stood there before."""
    ctx.reason = reason
    ctx.detail = None
    ctx.answer = None
    ctx.ready_body = None
    ctx.lines_before = ctx.gate_lines
    ctx.extra_before = 0 if ctx.extra_response is None else <int>len(ctx.extra_response)
    return V_RESPOND


cdef inline int64_t seconds_up(int64_t ns) noexcept nogil:
    return (ns + 999_999_999) // 1_000_000_000


cdef class LimitGate(Plugin):
    """The compiled gate behind `limits:`, `tiers:` and penalties. Made by fastgate.features.ratelimit.build."""

    def __cinit__(self, rules, TierBook tiers, *, metrics, reasons, PenaltyBox box=None, str box_by="ip", Health health=None, Usual usual=None,
                 bint tells=True, warn_at=None, str when_full="deny", cost=1.0, reserve=None, int64_t request_unit=0,
                 int64_t response_unit=0, str cost_header=None, int v4_bits=32, int v6_bits=64):
        self.compiled_decide = True
        self.compiled_finish = True
        self.name = "limits"
        self.rules = tuple(rules)
        if len(self.rules) + 1 > MOST_RULES:
            raise ValueError(f"rules: expected at most {MOST_RULES - 1}, got {len(self.rules)}")
        self.tiers = tiers
        self.box = box
        self.box_part = BY_IP if box_by == "ip" else BY_KEY if box_by == "key" else BY_CONSUMER
        self.box_v4 = v4_bits
        self.box_v6 = v6_bits
        self.health = health
        self.usual = usual
        self.tells = tells
        self.warn_left = -1.0 if warn_at is None else 1.0 - warn_at + 1e-9
        self.passes_full = when_full == "allow"
        self.cost_fixed = round(cost * COST_UNIT)
        self.cost_reserve = self.cost_fixed if reserve is None else round(reserve * COST_UNIT)
        self.request_unit = request_unit
        self.response_unit = response_unit
        self.cost_header = None if cost_header is None else cost_header.lower().encode("latin-1")
        self.settles = self.cost_reserve != self.cost_fixed or request_unit != 0 or response_unit != 0 or cost_header is not None
        self.policy = b", ".join([rule.policy for rule in self.rules if rule.policy])
        self.refused = [metrics.counter("fastgate_limits_refused_total", limit=name) for name in LIMIT_TYPES]
        self.full = metrics.counter("fastgate_limits_full_total")
        self.warned = metrics.counter("fastgate_limits_warned_total")
        self.bans = metrics.counter("fastgate_limits_bans_total")
        global RATE_LIMITED, BANNED, LIMITS_FULL
        RATE_LIMITED = reasons["rate_limited"]
        BANNED = reasons["client_banned"]
        LIMITS_FULL = reasons["limits_full"]

    cdef void client_hash(self, RequestContext ctx, hash128_t* out) noexcept:
        cdef unsigned char packed[16]
        cdef bytes name
        cdef int n
        if self.box_part != BY_IP and ctx.identity is not None and not ctx.identity.by_address:
            name = ctx.identity.consumer_bytes if self.box_part == BY_CONSUMER else ctx.identity.key_bytes
            hash128(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), self.box.key, out)
            return
        n = pack_client(PyBytes_AS_STRING(ctx.client), PyBytes_GET_SIZE(ctx.client), self.box_v4, self.box_v6, packed)
        hash128(packed, n, self.box.key, out)

    cdef int64_t cost_of(self, RequestContext ctx, bint known, int64_t reported) noexcept:
        """What the request costs; before it is known, what is reserved for it."""
        cdef int64_t cost = self.cost_fixed if known else self.cost_reserve
        cdef int64_t received
        if self.request_unit:
            received = <int64_t>ctx.bytes_received if known else max(ctx.content_length, 0)
            cost += received * 1000 // self.request_unit
        if known:
            if self.response_unit:
                cost += <int64_t>ctx.bytes_sent * 1000 // self.response_unit
            if reported >= 0:
                cost += reported
            elif self.cost_header is not None:
                cost += self.cost_reserve - self.cost_fixed     # it did not say: what was reserved stands
        return min(max(cost, 0), LARGEST)

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef void* rules[MOST_RULES]
        cdef hash128_t keys[MOST_RULES]
        cdef int64_t entries[MOST_RULES]
        cdef int64_t amounts[2]
        cdef int64_t usual[2]
        cdef int64_t* usual_at = NULL
        cdef int64_t now_ns = ctx.now_ns
        cdef int64_t factor = ONE
        cdef int64_t in_use, limit
        cdef tight_t tight
        cdef LimitRule rule
        cdef hash128_t client
        cdef hold_t* hold
        cdef int n = 0, i, j, said
        cdef bint holds = self.settles
        cdef bint refused = False
        if self.box is not None:
            self.client_hash(ctx, &client)
            in_use = self.box.banned_hashed(&client, now_ns)
            if in_use > 0:
                return self.refuse_banned(ctx, in_use)
        if self.tiers is not None and ctx.identity is not None:
            rule = self.tiers.rule_of(ctx.identity)
            if rule is not None and (rule.count != 0 or rule.concurrent != 0):
                # Alive as long as the book or the identity's memo: both outlive this call.
                rules[0] = <void*>rule
                n = 1
        for i in range(<int>PyTuple_GET_SIZE(self.rules)):
            rules[n] = <void*>PyTuple_GET_ITEM(self.rules, i)
            n += 1
        if n == 0:
            return V_CONTINUE
        if self.health is not None:
            self.health.look(now_ns)
            factor = self.health.now_factor
        if self.usual is not None:
            usual[0] = self.usual.note(ctx, now_ns)
            usual[1] = self.usual.lowest
            usual_at = usual
        amounts[REQUESTS] = 1
        amounts[COST] = self.cost_of(ctx, False, -1) if self.settles else self.cost_fixed
        tight.rule = -1
        tight.refused = False
        tight.retry_ns = 0
        tight.left = 2.0
        # The windows and buckets of every rule
        for i in range(n):
            rule = <LimitRule>rules[i]
            rule.key_of(ctx, &keys[i])
            if rule.concurrent != 0:
                rule.inflight.c_prefetch(&keys[i])
            entries[i] = -1
            said = rule.take(ctx, &keys[i], amounts, now_ns, True, factor, usual_at, i, &tight)
            if said == TAKEN:
                continue
            if said == NO_PLACE:
                self.tell_full(rule, now_ns)
                if self.passes_full:
                    continue                    # this rule does not count it; the others do
            for j in range(i):
                (<LimitRule>rules[j]).give_back(&keys[j], amounts, now_ns, now_ns)
            if said == NO_PLACE:
                return refusing(ctx, LIMITS_FULL)
            # The tightest answers: the one that makes the client wait longest.
            for j in range(i + 1, n):
                rule = <LimitRule>rules[j]
                rule.key_of(ctx, &keys[j])
                rule.take(ctx, &keys[j], amounts, now_ns, False, factor, usual_at, j, &tight)
            refused = True
            break
        # Requests at once
        if not refused:
            for i in range(n):
                rule = <LimitRule>rules[i]
                if rule.concurrent == 0:
                    continue
                limit = rule.concurrent
                if factor != ONE:
                    limit = max(<int64_t>(<double>limit * <double>factor / <double>ONE), 1)
                entries[i] = rule.inflight.c_acquire(&keys[i], rule.mark, limit, &in_use)
                if entries[i] >= 0:
                    holds = True
                    if tight.rule < 0:          # it comes back by itself: of interest only where nothing else is told
                        tight.left = <double>(limit - in_use) / <double>limit
                        tight.rule = i
                        tight.slot = MOST_SLOTS
                        tight.limit = limit
                        tight.remaining = limit - in_use
                        tight.reset_ns = 0
                    continue
                if in_use < 0:
                    self.tell_full(rule, now_ns)
                    if self.passes_full or rule.how == TABLE_EVICT:
                        continue
                for j in range(i):
                    if entries[j] >= 0:
                        (<LimitRule>rules[j]).inflight.c_release(entries[j])
                for j in range(n):
                    (<LimitRule>rules[j]).give_back(&keys[j], amounts, now_ns, now_ns)
                if in_use < 0:
                    return refusing(ctx, LIMITS_FULL)
                tight.refused = True
                tight.rule = i
                tight.slot = MOST_SLOTS
                tight.limit = limit
                tight.remaining = 0
                tight.retry_ns = 1_000_000_000
                tight.reset_ns = 0
                refused = True
                break
        if refused:
            if self.box is not None:
                in_use = self.box.strike_hashed(&client, source_hash(ctx, self.box.key), now_ns)
                if in_use > 0:
                    metric_add(self.bans, 1)
                    log.warning("limits: %s is banned for %d s", ctx.client_ip, in_use // 1_000_000_000)
            return self.refuse_with(ctx, rules, n, &tight, now_ns)
        if holds:
            hold = new_hold()
            if hold == NULL:
                raise MemoryError
            hold.n = n
            hold.gate = <void*>self
            hold.next = <hold_t*>ctx.limits_hold
            hold.reserved = amounts[COST]
            hold.reported = -1
            hold.taken_ns = now_ns
            for i in range(n):
                hold.rules[i] = rules[i]
                Py_INCREF(<object>rules[i])
                hold.keys[i] = keys[i]
                hold.entries[i] = entries[i]
            ctx.limits_hold = <void*>hold
        if tight.rule >= 0 and (self.tells or tight.left <= self.warn_left):
            self.tell(ctx, rules, n, &tight, -1)
        return V_CONTINUE

    cdef int tell_full(self, LimitRule rule, int64_t now_ns) except -1:
        """Counts a request that found no room to be counted, and logs it once a minute."""
        metric_add(self.full, 1)
        if log_throttle_pass(&self.full_log, now_ns, MINUTE_NS):
            log.warning("limits: no room to count a new key: rule %s (by %s), see memory.limiter_keys and when_full", rule.scope, rule.by)
        return 0

    cdef int c_finish(self, RequestContext ctx) except -1:
        cdef hold_t* hold
        cdef int64_t now_ns
        cdef int64_t amounts[2]
        cdef LimitRule rule
        cdef int i
        if self.health is not None:
            self.health.learn(ctx, ctx.finished_ns)
        hold = self.hold_of(ctx, True)
        if hold == NULL:
            return 0
        if self.settles:
            # Nothing came of it, and not by the client's doing: nothing to pay. A client that leaves, or sends too slowly, once its
            # request went upstream has had the work done: else it could have that for nothing.
            amounts[COST] = hold.reserved
            if ctx.upstream_status != 0 or ctx.reason is None or (ctx.attempts != 0 and ctx.reason.source == FROM_CLIENT):
                amounts[COST] -= self.cost_of(ctx, True, hold.reported)
            amounts[REQUESTS] = 0
            now_ns = monotonic_ns()
            if amounts[COST] != 0:
                for i in range(hold.n):
                    rule = <LimitRule>hold.rules[i]
                    rule.give_back(&hold.keys[i], amounts, hold.taken_ns, now_ns)
        self.let_go(hold)
        return 0

    cdef hold_t* hold_of(self, RequestContext ctx, bint take) noexcept:
        """What this gate holds of the request, or NULL; take: it is no longer the request's. A route has two gates at most."""
        cdef hold_t* before = NULL
        cdef hold_t* hold = <hold_t*>ctx.limits_hold
        while hold != NULL and hold.gate != <void*>self:
            before = hold
            hold = hold.next
        if take and hold != NULL:
            if before == NULL:
                ctx.limits_hold = <void*>hold.next
            else:
                before.next = hold.next
        return hold

    cdef void let_go(self, hold_t* hold) noexcept:
        global FREE_HOLDS
        cdef int i
        for i in range(hold.n):
            if hold.entries[i] >= 0:
                (<LimitRule>hold.rules[i]).inflight.c_release(hold.entries[i])
            Py_DECREF(<object>hold.rules[i])
        hold.next = FREE_HOLDS
        FREE_HOLDS = hold

    # --- what the client sees

    cdef int tell(self, RequestContext ctx, void** rules, int n, const tight_t* tight, int64_t retry_s) except -1:
        """Header lines: RateLimit-Policy, RateLimit, a warning, Retry-After (from 0 on)."""
        cdef char[LINES] lines
        cdef char* at = lines
        cdef LimitRule rule = <LimitRule>rules[tight.rule]
        cdef LimitRule first = <LimitRule>rules[0]
        cdef bint with_tier = n > <int>PyTuple_GET_SIZE(self.rules) and PyBytes_GET_SIZE(first.policy) > 0
        cdef int64_t unit = 1000 if tight.slot < MOST_SLOTS and rule.slots[tight.slot].unit == COST else 1
        cdef bytes name = <bytes>rule.policy_names[tight.slot]
        cdef bytes written
        cdef bint own = PyBytes_GET_SIZE(self.policy) > 0
        if retry_s >= 0:
            at = put(at, b"Retry-After: ", 13)
            at = put_number(at, retry_s)
            at = put(at, b"\r\n", 2)
        if self.tells:
            if (PyBytes_GET_SIZE(first.policy) if with_tier else 0) + PyBytes_GET_SIZE(self.policy) < LINES - 600 and (own or with_tier):
                at = put(at, b"RateLimit-Policy: ", 18)
                if with_tier:
                    at = put_bytes(at, first.policy)
                    if own:
                        at = put(at, b", ", 2)
                if own:
                    at = put_bytes(at, self.policy)
                at = put(at, b"\r\n", 2)
            if PyBytes_GET_SIZE(name) < 150:
                at = put(at, b"RateLimit: ", 11)
                at = put_bytes(at, name)
                at = put(at, b";r=", 3)
                at = put_number(at, tight.remaining // unit)
                if tight.slot < MOST_SLOTS:
                    at = put(at, b";t=", 3)
                    at = put_number(at, retry_s if retry_s >= 0 else seconds_up(tight.reset_ns))
                at = put(at, b"\r\n", 2)
        if retry_s < 0 and tight.left <= self.warn_left and PyBytes_GET_SIZE(name) < 150:
            metric_add(self.warned, 1)
            at = put(at, b"X-RateLimit-Warning: ", 21)
            at = put_bytes(at, name)
            at = put(at, b";used=", 6)
            at = put_number(at, (tight.limit - tight.remaining) // unit)
            at = put(at, b";q=", 3)
            at = put_number(at, tight.limit // unit)
            at = put(at, b";t=", 3)
            at = put_number(at, seconds_up(tight.reset_ns))
            at = put(at, b"\r\n", 2)
        written = PyBytes_FromStringAndSize(lines, at - lines)
        ctx.gate_lines = written if ctx.gate_lines is None else ctx.gate_lines + written
        return 0

    cdef int refuse_with(self, RequestContext ctx, void** rules, int n, const tight_t* tight, int64_t now_ns) except -1:
        """429, its body and its lines, without a dict or a formatted string."""
        cdef char[512] body                 # a request id has 128 bytes at most
        cdef char* at = body
        cdef LimitRule rule = <LimitRule>rules[tight.rule]
        cdef int kind = K_CONCURRENT if tight.slot == MOST_SLOTS else rule.slots[tight.slot].kind
        cdef int64_t retry_s
        if tight.retry_ns == NEVER:         # more than the limit ever grants: after its whole period, at least
            retry_s = rule.slots[tight.slot].period_s
        else:
            retry_s = max(seconds_up(tight.retry_ns), 1)
        metric_add(<Metric>self.refused[kind], 1)
        at = put_bytes(at, RATE_LIMITED.body_start)
        at = put(at, b',"limit_type":"', 15)
        at = put_bytes(at, <bytes>_types[kind])
        at = put(at, b'","retry_after":', 16)
        at = put_number(at, retry_s)
        at = put(at, b',"request_id":"', 15)
        if ctx.request_id_bytes is not None:
            at = put_bytes(at, ctx.request_id_bytes)
        at = put(at, b'"}', 2)
        refusing(ctx, RATE_LIMITED)
        ctx.ready_body = PyBytes_FromStringAndSize(body, at - body)
        if self.enforce:
            self.tell(ctx, rules, n, tight, retry_s)
        return V_RESPOND

    cdef int refuse_banned(self, RequestContext ctx, int64_t left_ns) except -1:
        """429 for a client that is banned."""
        cdef char[512] text
        cdef char* at
        cdef bytes line
        cdef int64_t retry_s = max(seconds_up(left_ns), 1)
        metric_add(<Metric>self.refused[K_BAN], 1)
        refusing(ctx, BANNED)
        at = put_bytes(text, BANNED.body_start)
        at = put(at, b',"limit_type":"ban","retry_after":', 34)
        at = put_number(at, retry_s)
        at = put(at, b',"request_id":"', 15)
        if ctx.request_id_bytes is not None:
            at = put_bytes(at, ctx.request_id_bytes)
        at = put(at, b'"}', 2)
        ctx.ready_body = PyBytes_FromStringAndSize(text, at - text)
        at = put(text, b"Retry-After: ", 13)
        at = put_number(at, retry_s)
        at = put(at, b"\r\n", 2)
        line = PyBytes_FromStringAndSize(text, at - text)
        ctx.gate_lines = line if ctx.gate_lines is None else ctx.gate_lines + line
        return V_RESPOND


cdef class CostedLimitGate(LimitGate):
    """The same on routes whose upstream says what a request has cost."""

    def upstream_response(self, RequestContext ctx not None, ResponseHead head not None):
        cdef hold_t* hold = self.hold_of(ctx, False)
        cdef bytes value
        if hold == NULL:
            return
        value = head.headers.find(PyBytes_AS_STRING(self.cost_header), PyBytes_GET_SIZE(self.cost_header))
        if value is not None:
            hold.reported = parse_cost(value)


cdef int64_t parse_cost(bytes text) noexcept:
    """A cost in thousandths from `12` or `0.25`; -1 when it is neither. More decimals are rounded up."""
    cdef const char* p = PyBytes_AS_STRING(text)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(text), i
    cdef int64_t whole = 0
    cdef int decimals = -1
    cdef bint more = False
    if n == 0 or n > 24:
        return -1
    for i in range(n):
        if p[i] == c"." and decimals < 0 and i > 0:
            decimals = 0
        elif c"0" <= p[i] <= c"9":
            if decimals >= 3:
                more = more or p[i] != c"0"
                continue
            whole = whole * 10 + (p[i] - 48)
            if decimals >= 0:
                decimals += 1
            if whole > LARGEST:
                return LARGEST
        else:
            return -1
    if decimals == 0:
        return -1
    for i in range(3 - max(decimals, 0)):
        whole *= 10
    return min(whole + more, LARGEST)


# --- allow and deny lists

cdef class AccessGate(Plugin):
    """The compiled gate behind `access:` of the root or of a route: addresses in `denied` are refused, and with an `allowed` list those
    that are not in it. Either may be None.

    An address that is none (a Unix socket) is in no list.
    """

    cdef CidrSet denied
    cdef CidrSet allowed
    cdef Reason why
    cdef Metric count

    def __cinit__(self, CidrSet denied, CidrSet allowed, Reason why not None, metrics):
        self.compiled_decide = True
        self.name = "access"
        self.denied = denied
        self.allowed = allowed
        self.why = why
        self.count = metrics.counter("fastgate_access_denied_total")

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef const char* text = PyBytes_AS_STRING(ctx.client)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(ctx.client)
        if (self.denied is None or self.denied.contains_text(text, n) != 1) \
                and (self.allowed is None or self.allowed.contains_text(text, n) == 1):
            return V_CONTINUE
        metric_add(self.count, 1)
        return refusing(ctx, self.why)
