# cython: boundscheck=False, nonecheck=False
"""One rule of limits: what is counted together, and how much of it is allowed.

WHAT     A rule has a key (consumer, API key, address, header, route, the whole gateway, or several of these together) and limits on it:
         requests per second, minute, hour, day, burst, cost per hour. `take` debits all of them or none.
STATE    One record per rule and key in the host's LimiterTable, always of the same layout, so that counts survive a change of amounts:

           word 0 burst | 1-2 second | 3-4 minute | 5-6 hour | 7-8 day | 9-10 cost per hour | 11 requests ever | 12 cost ever

         A burst and a token bucket are one word, the time at which they are full again, in sixteenths of a nanosecond: it has the
         same meaning at any rate. Windows are those of limits/limits.pyx.
WHO      The limits of one rule change with one swap of an index word (shm/table_slots.pyx), so a killed worker leaves them whole.
COST     A rule with three windows and a burst takes about 200 ns with its two cache misses. A refusal writes nothing.
SOURCES  limits/limits.pyx and shm/table_slots.pyx name theirs.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastgate._core.clock cimport monotonic_ns, realtime_ns
from fastgate._core.gates.client_key cimport ANONYMOUS, pack_client, source_hash
from fastgate._core.hashing cimport hash128, hash128_t
from fastgate._core.http.headers cimport field_t
from fastgate._core.limits.inflight cimport InflightTable
from fastgate._core.limits.limits cimport (
    FIXED, LARGEST, LATEST_NS, NEVER, SLIDING, limit_charge, limit_idle_at_ns, limit_refund, limit_reset_ns, limit_t, limit_take,
    now_argument, outcome_t,
)
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.shm.table cimport (
    TABLE_EVICT, TABLE_FAIR, TABLE_FULL, TABLE_STORED, LimiterTable, cursor_t, rule_mark, source_mark, table_find, table_forget,
    table_ready, table_store,
)

__all__ = ["COST_UNIT", "LIMIT_TYPES", "RECORD_WORDS", "LimitRule"]

LIMIT_TYPES = ("burst", "per_second", "per_minute", "per_hour", "per_day", "cost_per_hour", "concurrent", "ban")
COST_UNIT = 1000        # a cost has three decimals
RECORD_WORDS = 13

cdef enum:
    W_REQUESTS = 11
    W_SPENT = 12

cdef int[6] WORDS = [0, 1, 3, 5, 7, 9]
cdef int64_t[6] PERIODS = [0, 1, 60, 3600, 86_400, 3600]
cdef int64_t MINUTE_NS = 60_000_000_000


# --- a bucket whose state does not depend on its rate

cdef inline int64_t paced_debt(const limit_t* limit, int64_t full_at, int64_t now_ns) noexcept nogil:
    """Sixteenths of a nanosecond until the bucket is full; after a charge up to twice its capacity."""
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
    """The limit in effect now: times factor, and at most what the client's usual rate allows. usual: its requests per minute times the
    allowed multiple, in 1/1024, and the minimum share of the limit, in 1/65536; NULL for none."""
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


cdef int64_t wall_offset(LimiterTable table) except? -1:
    """The offset from the monotonic clock to UTC, the same for every process of the table: the first process stores it there."""
    cdef cursor_t c
    c.low = 0x66617374676174
    c.high = 0x77616c6c
    c.mark = rule_mark(0)
    table.ready()
    while not table_find(&table.handle, &c):
        c.state[0] = realtime_ns() - monotonic_ns()
        # Idle at the latest time a record can hold, so that the entry is never evicted.
        if table_store(&table.handle, &c, LATEST_NS, monotonic_ns(), TABLE_EVICT) == TABLE_FULL:
            return 0
    return c.state[0]


@cython.final
cdef class LimitRule:
    """What is counted together, and its limits. Made by fastgate.features.ratelimit.build.

    scope: the name of its counts, the same across reloads and processes. by: parts of its key, from "consumer", "key", "ip",
    ("header", name), ("constant", text). amounts: {limit type: how much}; cost_per_hour in cost units. algorithm: "token_bucket",
    "sliding_window" or "fixed_window". label: prefix of its names in RateLimit, if not empty. keep_s: the totals remain
    readable for this long after the last request, even if nothing else keeps the record.
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
                # Sixteenths of a nanosecond per token, rounded up: never faster than configured.
                interval = -(-16_000_000_000 * period // rate)
                if interval * amount > 1 << 60:
                    raise ValueError(f"{LIMIT_TYPES[kind]}: {amount} at {rate} in {period} s take more than two years to fill")
                slot.spec.window_ns = interval
            else:
                slot.spec.kind = FIXED if algorithm == "fixed_window" else SLIDING
                slot.spec.window_ns = period * 1_000_000_000
            self.count += 1

    cdef int say(self, str label) except -1:
        """The rule's limits as clients see them: the names and policies of RateLimit fields."""
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
                # The time to fill the whole bucket, in seconds: the time of a token was rounded up, by less than 1.
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
        """The hash of the request's key; its parts are hashed in place."""
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
                # Requests without the header share one count: omitting it evades nothing.
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
        """TAKEN if every limit granted (and, with commit, was debited), REFUSED, or NO_PLACE. tight: updated if this rule
        is the tightest so far. ctx: the source of the key; None: unknown."""
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
                return                          # idle and evicted: nothing to refund
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
        """(allowed, limit type, remaining, retry_after_ns, reset_ns): the decision for a request with this key and amount. For tests and tools."""
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
        """Refunds what decide() took; negative amounts are charged."""
        cdef hash128_t key
        cdef int64_t amounts[2]
        cdef int64_t now = now_argument(now_ns)
        self.hash_parts(parts, &key)
        amounts[REQUESTS] = amount
        amounts[COST] = round(cost * COST_UNIT)
        self.table.ready()
        self.give_back(&key, amounts, now if taken_ns is None else now_argument(taken_ns), now)

    def read(self, parts, now_ns=None):
        """{limits: [{limit_type, limit, remaining, reset_s}, …], requests, cost}: the state of this key; nothing is taken."""
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
            # Before slot_take, which writes
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
        """True if anything was counted for this key; its counts are removed. Requests in flight remain counted."""
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
