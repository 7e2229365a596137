# cython: boundscheck=False, cdivision=True
"""TargetSet: the targets of an upstream as one process sees them, and the choice of one for each attempt.

WHAT        The set knows which targets are usable (active checks, passive ejection, circuit breakers, drains), sorts them into tiers in
            order of preference (priority, zone, region), and gives each tier a share of the requests by its health. A `Strategy`
            chooses within a tier.

                usable targets ─► tiers ─► shares ─► a tier is drawn ─► strategy ─► circuit breaker admits ─► index

            A tier keeps all requests while at least 1 / spill_factor of its weight is usable; below that, the rest of them goes to
            the next tier. Without a usable target, health is ignored (`is_panicking`): a wrong health check must not stop
            all traffic. Drained targets and open circuit breakers are respected even then.
STATE       Private arrays, derived from the rows of the HealthTable. They are derived again when `changes` of the upstream's row has
            moved, or at the time when a target is due to become usable.
WHO WRITES  The owner, under the GIL; the rows are shared, see health.pyx.
COST        pick: one load and one compare beyond the strategy, whatever the number of targets. Deriving: 20 ns per target.
SOURCES     Envoy: priority levels, overprovisioning factor, outlier detection, slow start; HAProxy: slowstart.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.resilience.backoff cimport splitmix64
from fastgate._core.resilience.breaker cimport CircuitBreaker, breaker_acquire, breaker_forget, breaker_record, breaker_reset
from fastgate._core.resilience.breaker_slot cimport BREAKER_HALF_OPEN, BREAKER_OPEN, breaker_t
from fastgate._core.resilience.health cimport HEALTH_FAILED, Health, health_t
from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64, atomic_load, atomic_load_u64, atomic_store
from fastgate._core.shm.runtime cimport RuntimeValue

import os

__all__ = ["Strategy", "TargetSet"]

cdef enum:
    MOST_TARGETS = 65536
    MOST_WEIGHT = 1_000_000

cdef double LN2 = 0.6931471805599453
cdef double SLOW_START_LEAST = 0.1      # a target that has just returned gets this share of its weight
cdef int64_t READ_AGAIN_NS = 100_000_000        # while a target starts slowly, and for strategies that weigh by latency


cdef class Strategy:
    """How a target is chosen within a tier. Abstract."""

    cdef void rebuild(self, TargetSet targets, int64_t now_ns) noexcept:
        """The usable targets, or their weights, are different from now on."""

    cdef bint suits(self, Py_ssize_t size) noexcept:
        """True if it can choose among so many targets."""
        return True

    cdef bint needs_total(self) noexcept:
        """True if it looks at the requests in flight of the whole upstream."""
        return False

    cdef Py_ssize_t choose(self, TargetSet targets, tier_t* tier, uint64_t point, int64_t now_ns) noexcept:
        """One of the targets of a tier, which has at least one. point: hash of the request's key, for those that go by key."""
        return targets.members[tier.start]


@cython.no_gc_clear
cdef class TargetSet:
    """TargetSet(names, healths, upstream, strategy, weights=None, *, costs=None, tiers=None, spill_factor=1.4, breaker=None,
        ejection=None, max_ejected=0.5, slow_start_s=0.0, half_life_s=10.0, drains=None, seed=None)\n--\n
    The targets of an upstream.

    names, healths   of the targets: str, and Health objects of their rows. upstream: the Health of the upstream's row.
    strategy         a Strategy of its own.
    weights          ints 0..1 000 000, default 1 each; 0 = never picked.
    costs            floats, 0..1e12: what a request costs at the target, for strategies that look at it; default 0.
    tiers            ints 0..65535: preference, lowest first; default all 0.
    spill_factor     1..1000: a tier keeps all requests while 1 / spill_factor of its weight is usable.
    breaker          a CircuitBreaker whose settings each target's breaker has; None: no breakers.
    ejection         the same for passive ejection: a target is ejected while its ejection breaker is open.
    max_ejected      0..1: at most this share of the targets is ejected at a time (but always one, if it is above 0).
    slow_start_s     a target that returns reaches its whole weight after this time.
    half_life_s      of the latency (peak EWMA).
    drains           RuntimeValues, one per target: a target whose value is not 0 gets no new requests.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, names, healths, Health upstream not None, Strategy strategy not None, weights=None, *, costs=None, tiers=None,
                  spill_factor=1.4, CircuitBreaker breaker=None, CircuitBreaker ejection=None, max_ejected=0.5, slow_start_s=0.0,
                  half_life_s=10.0, drains=None, seed=None):
        cdef Py_ssize_t index
        cdef int32_t highest = 0
        debug_live_add(1)
        upstream.check()
        self.names = tuple(names)
        self.healths = tuple(healths)
        self.size = len(self.names)
        if not 1 <= self.size <= MOST_TARGETS:
            raise ValueError(f"names: expected 1..{MOST_TARGETS}, got {self.size}")
        self.upstream = upstream
        self.strategy = strategy
        self.breaker = breaker
        self.ejection = ejection
        self.max_ejected = float_argument(max_ejected, "max_ejected", 0.0, 1.0)
        self.slow_start_ns = <int64_t>(float_argument(slow_start_s, "slow_start_s", 0.0, 86400.0) * 1e9)
        self.tau_ns = float_argument(half_life_s, "half_life_s", 1e-6, 1e9) * 1e9 / LN2
        self.spill_factor = float_argument(spill_factor, "spill_factor", 1.0, 1000.0)
        self.drains = None if drains is None else tuple(drains)
        self.random = int_argument(int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else seed, "seed", 0, INT64_MAX)
        self.base = doubles(self.size, weights, 1.0, "weights", MOST_WEIGHT)
        self.costs = doubles(self.size, costs, 0.0, "costs", 1e12)
        self.rows = <health_t**>calloc(self.size, sizeof(health_t*))
        self.weights = <double*>calloc(self.size, sizeof(double))
        self.ends = <double*>calloc(self.size, sizeof(double))
        self.places = <int32_t*>calloc(self.size, sizeof(int32_t))
        self.members = <int32_t*>calloc(self.size, sizeof(int32_t))
        self.by_tier = <int32_t*>calloc(self.size, sizeof(int32_t))
        if self.by_tier == NULL or self.rows == NULL or self.weights == NULL or self.ends == NULL or self.places == NULL or self.members == NULL:
            raise MemoryError()
        for each in (self.healths, self.drains, tiers):
            if each is not None and len(each) != self.size:
                raise ValueError(f"names: expected as many healths, drains and tiers, got {self.size} names and {len(each)} of another")
        for index in range(self.size):
            (<Health?>self.healths[index]).check()
            self.rows[index] = (<Health>self.healths[index]).row
            if tiers is not None:
                self.places[index] = <int32_t>int_argument(tiers[index], f"tiers[{index}]", 0, MOST_TARGETS - 1)
                highest = max(highest, self.places[index])
            if self.drains is not None:
                <RuntimeValue?>self.drains[index]
        self.tiers_n = highest + 1
        self.tiers = <tier_t*>calloc(self.tiers_n, sizeof(tier_t))
        if self.tiers == NULL:
            raise MemoryError()
        for index, (tier, place) in enumerate(sorted([(self.places[place], place) for place in range(self.size)])):
            self.by_tier[index] = place
        if not strategy.suits(self.size):
            raise ValueError(f"strategy: expected one made for {self.size} targets")
        self.counts_all = strategy.needs_total()
        self.is_plain = self.size == 1 and self.base[0] > 0 and breaker is None and ejection is None and drains is None
        self.seen_changes = atomic_load_u64(&upstream.row.changes) - 1      # read at the first pick

    def __dealloc__(self):
        debug_live_add(-1)
        free(self.base)
        free(self.costs)
        free(self.rows)
        free(self.weights)
        free(self.ends)
        free(self.places)
        free(self.members)
        free(self.by_tier)
        free(self.tiers)

    def __len__(self):
        return self.size

    # --- the choice

    cdef Py_ssize_t pick(self, uint64_t point, list tried, bint is_new, int64_t now_ns, ticket_t* ticket) noexcept:
        """The index of the target for an attempt that begins now: it counts as in flight until `finish`. PICK_NONE, PICK_OPEN: none.
        tried: targets that this request has tried, or None; they are picked again only if no other is usable, and with is_new not
        even then."""
        cdef Py_ssize_t index, other, tries
        cdef tier_t* tier
        if self.is_plain and not (is_new and tried):
            ticket.breaker = ticket.ejection = 0
            self.begin(0)
            return 0
        if atomic_load_u64(&self.upstream.row.changes) != self.seen_changes or now_ns >= self.read_again_ns:
            self.read(now_ns)
        for tries in range(self.size + 1):
            tier = self.drawn_tier(point)
            if tier == NULL:
                return PICK_OPEN if self.has_open else PICK_NONE
            index = self.strategy.choose(self, tier, point, now_ns)
            if tried is not None and index in tried:
                other = self.untried(tried)
                if other >= 0:
                    index = other
                elif is_new:
                    return PICK_NONE
            if self.admitted(index, now_ns, ticket):
                self.begin(index)
                return index
            self.has_open = True
            self.weights[index] = 0                     # until it is read again: it has as many probes as it may, or has opened meanwhile
            self.share_out()
            self.strategy.rebuild(self, now_ns)
            self.read_again_ns = min(self.read_again_ns, now_ns + READ_AGAIN_NS)
        return PICK_OPEN

    cdef void again(self, Py_ssize_t index, int64_t now_ns, ticket_t* ticket) noexcept:
        """Another attempt at the same target, whatever its circuit breaker says: the last one was no evidence against it."""
        self.admitted(index, now_ns, ticket)
        self.begin(index)

    cdef void begin(self, Py_ssize_t index) noexcept:
        (<Health>self.healths[index]).begin()
        if self.counts_all:
            self.upstream.begin()

    cdef int64_t closes_after_ns(self, int64_t now_ns) noexcept:
        """Time until the first open circuit breaker admits a probe."""
        cdef Py_ssize_t index
        cdef int64_t first_ns = INT64_MAX
        for index in range(self.size):
            if is_open(&self.rows[index].breaker, now_ns):
                first_ns = min(first_ns, open_until_ns(&self.rows[index].breaker) - now_ns)
        return 0 if first_ns == INT64_MAX else first_ns

    cdef bint admitted(self, Py_ssize_t index, int64_t now_ns, ticket_t* ticket) noexcept:
        cdef health_t* row = self.rows[index]
        cdef int32_t moved = -1
        ticket.breaker = ticket.ejection = 0
        if self.breaker is not None:
            ticket.breaker = breaker_acquire(&row.breaker, &self.breaker.config, now_ns, &moved)
            self.moved(moved)
            if ticket.breaker == 0:
                return False
        if self.ejection is not None:
            # 0: it is ejected, and is used because no target is usable: then the result does not count
            ticket.ejection = breaker_acquire(&row.ejection, &self.ejection.config, now_ns, &moved)
            if moved >= 0:
                atomic_store(&row.returned_ns, now_ns)
            self.moved(moved)
        return True

    cdef bint head(self, Py_ssize_t index, ticket_t* ticket, int outcome, int64_t latency_ns, int64_t now_ns) noexcept:
        """The head of a response arrived. True if the outcome has been counted: a failure, and the success of a probe, for a response
        may take long to end. Any other success counts when the response is complete, because it may still be cut.
        latency_ns: from the end of the request; -1: the response came before that."""
        if latency_ns >= 0:
            (<Health>self.healths[index]).observe(latency_ns, now_ns, self.tau_ns)
        if outcome == OUTCOME_OK and not is_probe(ticket.breaker) and not is_probe(ticket.ejection):
            return False
        self.count(index, ticket, outcome, max(0, latency_ns), now_ns)
        return True

    cdef void no_head(self, Py_ssize_t index, int64_t elapsed_ns, int64_t now_ns) noexcept:
        """The attempt failed after this time without the head of a response; call `finish` next."""
        (<Health>self.healths[index]).observe_failure(elapsed_ns, now_ns)

    cdef void finish(self, Py_ssize_t index, ticket_t* ticket, int counted, int outcome, int64_t latency_ns, int64_t now_ns) noexcept:
        """The attempt at this target is over. counted: the outcome that was counted when the head arrived, else OUTCOME_NONE.
        latency_ns: to the head, 0 if there was none."""
        cdef health_t* row = self.rows[index]
        (<Health>self.healths[index]).finish(outcome != OUTCOME_FAILED)
        if self.counts_all:
            self.upstream.finish(outcome != OUTCOME_FAILED)
        if outcome == OUTCOME_NONE:
            if ticket.breaker:
                breaker_forget(&row.breaker, ticket.breaker)
            if ticket.ejection:
                breaker_forget(&row.ejection, ticket.ejection)
        elif outcome != counted:
            if counted != OUTCOME_NONE:                     # a probe whose response was cut
                self.admitted(index, now_ns, ticket)
            self.count(index, ticket, outcome, latency_ns, now_ns)

    cdef void count(self, Py_ssize_t index, ticket_t* ticket, int outcome, int64_t latency_ns, int64_t now_ns) noexcept:
        """Counts an outcome other than OUTCOME_NONE."""
        cdef health_t* row = self.rows[index]
        cdef int32_t moved = -1
        (<Health>self.healths[index]).count(outcome == OUTCOME_OK)
        if ticket.breaker:
            breaker_record(&row.breaker, &self.breaker.config, ticket.breaker, outcome == OUTCOME_OK, latency_ns, now_ns, &moved)
            self.moved(moved)
        if ticket.ejection:
            breaker_record(&row.ejection, &self.ejection.config, ticket.ejection, outcome == OUTCOME_OK, latency_ns, now_ns, &moved)
            if moved >= 0 and moved & 3 == BREAKER_OPEN and self.too_many_ejected(now_ns):
                breaker_reset(&row.ejection, now_ns, &moved)
            self.moved(moved)
        ticket.breaker = ticket.ejection = 0

    cdef bint too_many_ejected(self, int64_t now_ns) noexcept:
        """True if more targets are ejected than may be, with the one that has just been."""
        cdef Py_ssize_t index, ejected = 0
        for index in range(self.size):
            ejected += is_open(&self.rows[index].ejection, now_ns)
        return ejected > max(1, <Py_ssize_t>(self.max_ejected * <double>self.size)) or self.max_ejected == 0

    cdef void moved(self, int32_t transition) noexcept:
        if transition >= 0:
            atomic_add_relaxed_u64(&self.upstream.row.changes, 1)

    # --- what is usable

    cdef void read(self, int64_t now_ns) noexcept:
        """Derives everything from the rows."""
        cdef Py_ssize_t index
        cdef double elapsed
        cdef int64_t until_ns = INT64_MAX, returned_ns
        cdef bint any_usable = False
        self.seen_changes = atomic_load_u64(&self.upstream.row.changes)        # first: what changes meanwhile is read again
        self.is_panicking = self.has_open = False
        while True:
            for index in range(self.size):
                self.weights[index] = 0
                if self.base[index] > 0 and self.is_usable(index, now_ns, self.is_panicking, &until_ns):
                    any_usable = True
                    self.weights[index] = self.base[index]
                    returned_ns = atomic_load(&self.rows[index].returned_ns)
                    if self.slow_start_ns and returned_ns and now_ns - returned_ns < self.slow_start_ns:
                        elapsed = <double>max(0, now_ns - returned_ns) / <double>self.slow_start_ns
                        self.weights[index] *= max(SLOW_START_LEAST, elapsed)
                        until_ns = min(until_ns, now_ns + READ_AGAIN_NS)
            if any_usable or self.is_panicking:
                break
            self.is_panicking = True
        self.read_again_ns = until_ns
        self.share_out()
        self.strategy.rebuild(self, now_ns)

    cdef bint is_usable(self, Py_ssize_t index, int64_t now_ns, bint panic, int64_t* until_ns) noexcept:
        """True if the target may get requests. until_ns: lowered to the time when that changes without a request."""
        cdef health_t* row = self.rows[index]
        if self.drains is not None and (<RuntimeValue>self.drains[index]).c_get() != 0:
            return False
        if self.breaker is not None and is_open(&row.breaker, now_ns):
            until_ns[0] = min(until_ns[0], open_until_ns(&row.breaker))
            self.has_open = True
            return False
        if panic:
            return True
        if self.ejection is not None and is_open(&row.ejection, now_ns):
            until_ns[0] = min(until_ns[0], open_until_ns(&row.ejection))
            return False
        return atomic_load_u64(&row.status) & HEALTH_FAILED == 0

    cdef void share_out(self) noexcept:
        """Sorts the usable targets into their tiers, and shares the requests out between these."""
        cdef Py_ssize_t index, tier, next = 0, at = 0
        cdef double whole, usable, weight, health, left = 1.0, total = 0.0
        for tier in range(self.tiers_n):
            self.tiers[tier].start = at
            whole = usable = weight = 0.0
            while next < self.size and self.places[self.by_tier[next]] == tier:
                index = self.by_tier[next]
                next += 1
                whole += self.base[index]
                if self.weights[index] > 0:
                    usable += self.base[index]                  # not what slow start leaves of it: that is no lack of health
                    weight += self.weights[index]
                    self.members[at] = <int32_t>index
                    self.ends[at] = weight
                    at += 1
            self.tiers[tier].count = at - self.tiers[tier].start
            health = min(1.0, self.spill_factor * usable / whole) if whole > 0 and usable > 0 else 0.0
            self.tiers[tier].share = min(health, left)
            left -= self.tiers[tier].share
            total += self.tiers[tier].share
        if total > 0:
            for tier in range(self.tiers_n):
                self.tiers[tier].share /= total

    cdef tier_t* drawn_tier(self, uint64_t point) noexcept:
        """A tier, by the shares; the same for the same point, unless that is 0. NULL if no target is usable."""
        cdef Py_ssize_t tier, found = -1
        cdef double at = -1.0
        for tier in range(self.tiers_n):
            if self.tiers[tier].count == 0:
                continue
            if self.tiers[tier].share >= 1.0:
                return &self.tiers[tier]
            if self.tiers[tier].share > 0:
                if found < 0:
                    at = <double>(point >> 11) * (1.0 / 9007199254740992.0) if point else self.uniform()
                found = tier
                at -= self.tiers[tier].share
                if at < 0:
                    break
        return NULL if found < 0 else &self.tiers[found]

    cdef Py_ssize_t drawn(self, tier_t* tier, Py_ssize_t without) noexcept:
        """A place in `members`, drawn by weight; another one than `without` (-1: any), if the tier has another."""
        cdef Py_ssize_t low = tier.start, high = tier.start + tier.count - 1, middle
        cdef double total = self.ends[high], gap = 0.0, begin = 0.0, at
        if tier.count == 1:
            return low
        if without >= 0:
            begin = self.ends[without - 1] if without > low else 0.0
            gap = self.ends[without] - begin
        at = self.uniform() * (total - gap)
        if without >= 0 and at >= begin:
            at += gap
        while low < high:
            middle = (low + high) // 2
            if at < self.ends[middle]:
                high = middle
            else:
                low = middle + 1
        if low == without:                              # rounding at the border of its gap
            low = low + 1 if low + 1 < tier.start + tier.count else low - 1
        return low

    cdef Py_ssize_t untried(self, list tried) noexcept:
        """A usable target that was not tried, in order of preference; -1 if there is none."""
        cdef Py_ssize_t tier, step, place
        cdef tier_t* segment
        for tier in range(self.tiers_n):
            segment = &self.tiers[tier]
            if segment.count == 0:
                continue
            place = self.drawn(segment, -1)
            for step in range(segment.count):
                if self.members[place] not in tried:
                    return self.members[place]
                place = place + 1 if place + 1 < segment.start + segment.count else segment.start
        return -1

    cdef double uniform(self) noexcept:
        """0 <= x < 1, by splitmix64."""
        cdef uint64_t drawn = splitmix64(self.random)
        self.random += <uint64_t>0x9E3779B97F4A7C15
        return <double>(drawn >> 11) * (1.0 / 9007199254740992.0)

    # --- for Python

    def choose(self, key=None, tried=(), *, now_ns=None):
        """(index, ticket) of the target for an attempt, which counts as in flight until `finished`; (-1, None) if no target may be
        used, (-2, None) if all that could be used have an open circuit breaker. key: int below 2**64, the hash of the request's key."""
        cdef ticket_t ticket
        cdef int64_t now = monotonic_ns() if now_ns is None else int_argument(now_ns, "now_ns", 0, 1 << 62)
        cdef uint64_t point = 0 if key is None else key
        cdef Py_ssize_t index = self.pick(point, list(tried) if tried else None, False, now, &ticket)
        return index, None if index < 0 else (ticket.breaker, ticket.ejection)

    def finished(self, index, ticket, ok=True, latency_ns=None, *, now_ns=None):
        """The attempt is over. ok: False if it failed; None if it says nothing about the target. latency_ns: time to the head of the
        response, None if there was none."""
        cdef ticket_t held
        cdef Py_ssize_t place = int_argument(index, "index", 0, self.size - 1)
        cdef int64_t now = monotonic_ns() if now_ns is None else int_argument(now_ns, "now_ns", 0, 1 << 62)
        cdef int64_t latency = -1 if latency_ns is None else int_argument(latency_ns, "latency_ns", 0, 1 << 62)
        cdef int outcome = OUTCOME_NONE if ok is None else OUTCOME_OK if ok else OUTCOME_FAILED
        held.breaker, held.ejection = ticket
        if outcome != OUTCOME_NONE and latency >= 0 and self.head(place, &held, outcome, latency, now):
            self.finish(place, &held, outcome, outcome, latency, now)
        else:
            self.finish(place, &held, OUTCOME_NONE, outcome, max(0, latency), now)

    def usable(self, *, now_ns=None):
        """The weights in effect: 0 = gets no requests now."""
        self.read(monotonic_ns() if now_ns is None else int_argument(now_ns, "now_ns", 0, 1 << 62))
        return tuple([self.weights[index] for index in range(self.size)])

    @property
    def tiers_of_targets(self):
        """The tier of each target."""
        return tuple([self.places[index] for index in range(self.size)])

    def shares(self):
        """The share of the requests of each tier."""
        return tuple([self.tiers[tier].share for tier in range(self.tiers_n)])


cdef inline int64_t open_until_ns(const breaker_t* breaker) noexcept nogil:
    return <int64_t>(atomic_load_u64(&breaker.state) >> 8 << 7)


cdef inline bint is_probe(uint64_t ticket) noexcept nogil:
    """True if a half-open breaker gave the ticket."""
    return ticket != 0 and ~ticket & 3 == BREAKER_HALF_OPEN


cdef inline bint is_open(const breaker_t* breaker, int64_t now_ns) noexcept nogil:
    return atomic_load_u64(&breaker.state) & 3 == BREAKER_OPEN and now_ns < open_until_ns(breaker)


cdef double* doubles(Py_ssize_t size, object values, double default, str name, double most) except NULL:
    cdef double* made = <double*>calloc(size, sizeof(double))
    cdef Py_ssize_t index
    if made == NULL:
        raise MemoryError()
    try:
        if values is not None and len(values) != size:
            raise ValueError(f"{name}: expected {size}, one per name, got {len(values)}")
        for index in range(size):
            made[index] = default if values is None else float_argument(values[index], f"{name}[{index}]", 0.0, most)
    except BaseException:
        free(made)
        raise
    return made


def live_objects():
    """How many sets are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
