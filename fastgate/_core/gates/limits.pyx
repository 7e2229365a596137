# cython: boundscheck=False, nonecheck=False
"""LimitGate: every limit of a request, checked and debited as one decision.

WHAT     The gate checks the rules of a request in order (the tier's, the root's, the route's): either all grant it and all are
         debited, or none is. Rules are in limit_rule.pyx, limits that change with conditions in limit_factor.pyx.
STATE    In the host's LimiterTable, one record per rule and key (limit_rule.pyx). Concurrent requests: InflightTable. Resources
         of a request until it ends: `hold_t`, from a free list.
WHO      With several rules, the debits of earlier rules are returned when a later one refuses; until then (under a microsecond)
         other requests may be refused although capacity is free, and a worker killed in that moment leaves one request too many
         counted, never too few.
COST     A rule takes about 200 ns, `concurrent` 20 ns, the header lines 60 ns and one bytes object.
SOURCES  Those of limit_rule.pyx and inflight.pyx; draft-ietf-httpapi-ratelimit-headers-10 (RateLimit, RateLimit-Policy);
         RFC 9651 (structured fields); fail2ban (increasing bans)
"""

import logging

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.gates.client_key cimport pack_client, source_hash
from fastgate._core.gates.limit_rule cimport (
    BY_CONSUMER, BY_IP, BY_KEY, COST, K_BAN, K_CONCURRENT, MOST_SLOTS, NO_PLACE, ONE, REQUESTS, TAKEN,
)
from fastgate._core.gates.refusal cimport refuse
from fastgate._core.hashing cimport hash128
from fastgate._core.limits.limits cimport LARGEST, NEVER
from fastgate._core.log_throttle cimport log_throttle_pass
from fastgate._core.pipeline.context cimport Reason
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, V_RESPOND, ResponseHead
from fastgate._core.shm.metric cimport metric_add
from fastgate._core.shm.table cimport TABLE_EVICT

from fastgate._core.gates.limit_rule import COST_UNIT, LIMIT_TYPES

__all__ = ["CostedLimitGate", "LimitGate", "TierBook"]

log = logging.getLogger("fastgate")

cdef enum:
    FROM_CLIENT = 1         # Reason.source: the client caused it
    LINES = 2048            # bytes of the header lines of one response; rules that do not fit are left out

cdef tuple TYPE_BYTES = tuple([name.encode() for name in LIMIT_TYPES])
cdef int64_t MINUTE_NS = 60_000_000_000


@cython.final
cdef class TierBook:
    """The rule of each tier, and of consumers with their own limits. `make(identity)` builds those, once per identity."""

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


cdef inline int64_t seconds_up(int64_t ns) noexcept nogil:
    return (ns + 999_999_999) // 1_000_000_000


cdef class LimitGate(Plugin):
    """The compiled gate of `limits:`, `tiers:` and penalties. Created by fastgate.features.ratelimit.build."""

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
        """The cost of the request; before it is known, the cost to reserve."""
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
                cost += self.cost_reserve - self.cost_fixed     # not reported: the reserved cost applies
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
                # The book or the identity's memo keeps it alive: both outlive this call.
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
                    continue                    # not counted by this rule, but by the others
            for j in range(i):
                (<LimitRule>rules[j]).give_back(&keys[j], amounts, now_ns, now_ns)
            if said == NO_PLACE:
                return refuse(ctx, LIMITS_FULL)
            # The response reports the tightest rule: the one with the longest wait.
            for j in range(i + 1, n):
                rule = <LimitRule>rules[j]
                rule.key_of(ctx, &keys[j])
                rule.take(ctx, &keys[j], amounts, now_ns, False, factor, usual_at, j, &tight)
            refused = True
            break
        # Concurrent requests
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
                    if tight.rule < 0:          # it is released without a known wait: reported only if no other limit applies
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
                    return refuse(ctx, LIMITS_FULL)
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
        """Counts a request for which the table had no room, and logs it once a minute."""
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
            # The request failed, and the client did not cause it: it is free. A client that disconnects, or sends too slowly,
            # after its request was sent upstream is charged, because the work was done.
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
        """The resources that this gate holds for the request, or NULL; take: remove them from the request. A route has at most
        two gates."""
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

    # --- response headers and bodies

    cdef int tell(self, RequestContext ctx, void** rules, int n, const tight_t* tight, int64_t retry_s) except -1:
        """Header lines: RateLimit-Policy, RateLimit, a warning, Retry-After (if retry_s is not negative)."""
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
        """Write a 429 with its body and its lines, without a dict or a formatted string."""
        cdef char[512] body                 # a request id has 128 bytes at most
        cdef char* at = body
        cdef LimitRule rule = <LimitRule>rules[tight.rule]
        cdef int kind = K_CONCURRENT if tight.slot == MOST_SLOTS else rule.slots[tight.slot].kind
        cdef int64_t retry_s
        if tight.retry_ns == NEVER:         # more than the limit ever grants: at least after its whole period
            retry_s = rule.slots[tight.slot].period_s
        else:
            retry_s = max(seconds_up(tight.retry_ns), 1)
        metric_add(<Metric>self.refused[kind], 1)
        at = put_bytes(at, RATE_LIMITED.body_start)
        at = put(at, b',"limit_type":"', 15)
        at = put_bytes(at, <bytes>TYPE_BYTES[kind])
        at = put(at, b'","retry_after":', 16)
        at = put_number(at, retry_s)
        at = put(at, b',"request_id":"', 15)
        if ctx.request_id_bytes is not None:
            at = put_bytes(at, ctx.request_id_bytes)
        at = put(at, b'"}', 2)
        refuse(ctx, RATE_LIMITED)
        ctx.ready_body = PyBytes_FromStringAndSize(body, at - body)
        if self.enforce:
            self.tell(ctx, rules, n, tight, retry_s)
        return V_RESPOND

    cdef int refuse_banned(self, RequestContext ctx, int64_t left_ns) except -1:
        """Write a 429 for a client that is banned."""
        cdef char[512] text
        cdef char* at
        cdef bytes line
        cdef int64_t retry_s = max(seconds_up(left_ns), 1)
        metric_add(<Metric>self.refused[K_BAN], 1)
        refuse(ctx, BANNED)
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
    """The gate of routes whose upstream reports the cost of a request."""

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
