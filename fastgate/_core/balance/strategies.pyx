# cython: boundscheck=False, cdivision=True
"""The strategies by which a TargetSet chooses a target.

WHAT
    RoundRobin       in turns, by weight, spread out evenly: earliest deadline first
    Random           drawn by weight
    P2cRequests      of `choices` drawn by weight, the one with the fewest requests in flight, per weight
    P2cEwma          of `choices` drawn by weight, the one with the lowest latency × (1 + requests in flight per weight)
    LatencyWeighted  drawn by weight / latency
    Scored           of `choices` drawn by weight, the one with the lowest weighted sum of latency, cost, failures and lack of quality
    KeyHash          by key: Maglev's table, with bounded loads

    Requests in flight, latency and failures are those of all processes. A target without a latency has the benefit of the doubt, until
    a request is in flight there.
STATE       RoundRobin: a deadline per target. LatencyWeighted: running sums, renewed every 100 ms. KeyHash: the table. Others: none.
WHO WRITES  The owner, under the GIL.
COST        RoundRobin: log2(targets) steps. PowerOfChoices and its kinds: per draw a binary search and one or two cache lines for each 16
            processes. KeyHash: one load; with a load_factor a sum of the requests in flight for each target that is looked at.
            Measured in benchmarks/core/bench_strategies.py.
SOURCES     Envoy edf_scheduler.h; Mitzenmacher, The power of two choices (2001); Finagle PeakEwma.scala; Eisenbud et al., Maglev (2016);
            Mirrokni, Thorup, Zadimoghaddam, Consistent Hashing with Bounded Loads (2016).
"""

from libc.math cimport ceil
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.balance.consistent cimport Maglev
from fastgate._core.balance.targets cimport Strategy, TargetSet, tier_t
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.resilience.health cimport Health

__all__ = ["LatencyWeighted", "KeyHash", "P2cRequests", "P2cEwma", "Random", "RoundRobin", "Scored"]

cdef double UNKNOWN = 1e150             # latency of a target that has not responded yet, once a request is in flight there
cdef double GOLDEN = 0.6180339887498949
cdef double TIME_MAX = 1e9              # of the virtual clock: above it, deadlines are counted from 0 again
cdef Py_ssize_t LARGEST_TABLE = 3_999_000
cdef int64_t WEIGH_AGAIN_NS = 100_000_000
cdef double LEAST_LATENCY_NS = 1e3      # below a microsecond, latencies are the same


cdef class RoundRobin(Strategy):
    """RoundRobin()\n--\n
    In turns: a target of weight 2 gets two requests for each one of weight 1, and they are spread out evenly.
    """

    def __dealloc__(self):
        free(self.heap)
        free(self.deadlines)

    cdef void rebuild(self, TargetSet targets, int64_t now_ns) noexcept:
        cdef Py_ssize_t tier, place, index
        cdef tier_t* segment
        cdef double spread
        cdef bint even
        if self.size != targets.size:
            free(self.heap)
            free(self.deadlines)
            self.size = targets.size
            self.heap = <int32_t*>calloc(self.size, sizeof(int32_t))
            self.deadlines = <double*>calloc(self.size, sizeof(double))
            if self.heap == NULL or self.deadlines == NULL:
                self.size = 0
                return                                  # `choose` takes the first target then
            for index in range(self.size):
                self.deadlines[index] = -1.0
        for tier in range(targets.tiers_n):
            segment = &targets.tiers[tier]
            even = True
            for place in range(segment.start, segment.start + segment.count):
                even = even and targets.weights[targets.members[place]] == targets.weights[targets.members[segment.start]]
            for place in range(segment.start, segment.start + segment.count):
                index = targets.members[place]
                # One that was there keeps its place in the order. The first deadlines of others are spread over an interval by the
                # golden ratio, so that targets of equal intervals do not have their turns together; equal weights: in listed order.
                if not segment.clock <= self.deadlines[index] <= segment.clock + 1.0 / targets.weights[index]:
                    spread = 1.0 if even else 1.0 - GOLDEN * <double>index % 1.0
                    self.deadlines[index] = segment.clock + spread / targets.weights[index]
                self.heap[place] = <int32_t>index
            for place in range(segment.start + segment.count // 2 - 1, segment.start - 1, -1):
                self.sink(segment, place)

    cdef Py_ssize_t choose(self, TargetSet targets, tier_t* tier, uint64_t point, int64_t now_ns) noexcept:
        cdef Py_ssize_t index, place
        if self.size == 0:
            return targets.members[tier.start]
        index = self.heap[tier.start]
        tier.clock = self.deadlines[index]
        self.deadlines[index] += 1.0 / targets.weights[index]
        self.sink(tier, tier.start)
        if tier.clock > TIME_MAX:
            for place in range(tier.start, tier.start + tier.count):
                self.deadlines[self.heap[place]] -= tier.clock
            tier.clock = 0
        return index

    cdef void sink(self, tier_t* tier, Py_ssize_t place) noexcept:
        """Moves the target at this place of the heap down until none below is earlier."""
        cdef Py_ssize_t end = tier.start + tier.count, child
        cdef int32_t moved = self.heap[place]
        while True:
            child = 2 * place - tier.start + 1
            if child >= end:
                break
            if child + 1 < end and self.earlier(self.heap[child + 1], self.heap[child]):
                child += 1
            if not self.earlier(self.heap[child], moved):
                break
            self.heap[place] = self.heap[child]
            place = child
        self.heap[place] = moved

    cdef bint earlier(self, int32_t a, int32_t b) noexcept:
        if self.deadlines[a] != self.deadlines[b]:
            return self.deadlines[a] < self.deadlines[b]
        return a < b


cdef class Random(Strategy):
    """Random()\n--\n
    Drawn by weight.
    """

    cdef Py_ssize_t choose(self, TargetSet targets, tier_t* tier, uint64_t point, int64_t now_ns) noexcept:
        return targets.members[targets.drawn(tier, -1)]


cdef class PowerOfChoices(Strategy):
    """Of some targets drawn by weight, the one with the lowest load. Abstract."""

    def __cinit__(self, *_, choices=2, **__):
        self.choices = int_argument(choices, "choices", 2, 100)

    cdef double load(self, TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept:
        return 0.0

    cdef Py_ssize_t choose(self, TargetSet targets, tier_t* tier, uint64_t point, int64_t now_ns) noexcept:
        cdef Py_ssize_t first = targets.drawn(tier, -1), second
        cdef double least, other
        cdef int draw
        if tier.count == 1:
            return targets.members[first]
        least = self.load(targets, targets.members[first], now_ns)
        for draw in range(min(self.choices, <int>tier.count) - 1):
            second = targets.drawn(tier, first)
            other = self.load(targets, targets.members[second], now_ns)
            if other < least:
                first = second
                least = other
        return targets.members[first]


cdef inline double latency_of(TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept:
    cdef Health health = <Health>targets.healths[index]
    return health.latency(health.running(), now_ns, targets.tau_ns)


cdef inline double waiting(TargetSet targets, Py_ssize_t index) noexcept:
    """Requests in flight per weight."""
    return <double>(<Health>targets.healths[index]).running() / targets.weights[index]


cdef double busy_latency(TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept:
    """latency × (1 + requests in flight per weight). One that has not responded yet, with a request in flight, is the slowest."""
    cdef Health health = <Health>targets.healths[index]
    cdef int64_t running = health.running()
    cdef double latency = health.latency(running, now_ns, targets.tau_ns)
    if latency == 0 and running > 0:
        latency = UNKNOWN
    return latency * (1.0 + <double>running / targets.weights[index])


cdef class P2cRequests(PowerOfChoices):
    """P2cRequests(*, choices=2)\n--\n
    choices: 2..100 targets that are compared for a request.
    """

    cdef double load(self, TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept:
        return waiting(targets, index)


cdef class P2cEwma(PowerOfChoices):
    """P2cEwma(*, choices=2)\n--\n
    choices: 2..100 targets that are compared for a request.
    """

    cdef double load(self, TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept:
        return busy_latency(targets, index, now_ns)


cdef class Scored(PowerOfChoices):
    """Scored(quality=None, *, latency=1.0, cost=1.0, health=1.0, quality_share=1.0, choices=2)\n--\n
    The lowest score of `choices` targets. Each term is 0 for the best value: latency and cost count by how many times they exceed the
    lowest one, health by the share of failed requests, quality by what it lacks to 1.

    quality: floats 0..1, one per target; default 1 each. latency, cost, health, quality_share: 0..1000, the weight of each term.
    """

    def __cinit__(self, quality=None, *, latency=1.0, cost=1.0, health=1.0, quality_share=1.0, choices=2):
        self.latency_share = float_argument(latency, "latency", 0.0, 1000.0)
        self.cost_share = float_argument(cost, "cost", 0.0, 1000.0)
        self.health_share = float_argument(health, "health", 0.0, 1000.0)
        self.quality_share = float_argument(quality_share, "quality_share", 0.0, 1000.0)
        self.quality = None if quality is None else tuple(
            [float_argument(value, f"quality[{index}]", 0.0, 1.0) for index, value in enumerate(quality)])

    cdef bint suits(self, Py_ssize_t size) noexcept:
        return self.quality is None or len(self.quality) == size

    cdef void rebuild(self, TargetSet targets, int64_t now_ns) noexcept:
        cdef Py_ssize_t index
        cdef double latency
        self.lowest_ns = self.lowest_cost = 0
        for index in range(targets.size):
            if targets.weights[index] > 0:
                latency = latency_of(targets, index, now_ns)
                if latency > 0 and (self.lowest_ns == 0 or latency < self.lowest_ns):
                    self.lowest_ns = latency
                if targets.costs[index] > 0 and (self.lowest_cost == 0 or targets.costs[index] < self.lowest_cost):
                    self.lowest_cost = targets.costs[index]
        targets.read_again_ns = min(targets.read_again_ns, now_ns + WEIGH_AGAIN_NS)

    cdef double term_latency(self, TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept:
        if self.lowest_ns == 0:
            return waiting(targets, index)
        return max(0.0, busy_latency(targets, index, now_ns) / self.lowest_ns - 1.0)

    cdef double term_health(self, TargetSet targets, Py_ssize_t index) noexcept:
        return (<Health>targets.healths[index]).failure_ratio()

    cdef double load(self, TargetSet targets, Py_ssize_t index, int64_t now_ns) noexcept:
        cdef double score = self.latency_share * self.term_latency(targets, index, now_ns)
        if self.lowest_cost > 0:
            score += self.cost_share * max(0.0, targets.costs[index] / self.lowest_cost - 1.0)
        score += self.health_share * self.term_health(targets, index)
        if self.quality is not None:
            score += self.quality_share * (1.0 - <double>self.quality[index])
        return score

    def explain(self, TargetSet targets not None, *, now_ns=None):
        """The terms of each usable target: [{"target", "latency", "cost", "health", "quality", "score"}], best score first."""
        cdef int64_t now = monotonic_ns() if now_ns is None else int_argument(now_ns, "now_ns", 0, 1 << 62)
        cdef Py_ssize_t index
        cdef list rows = []
        targets.read(now)
        for index in range(targets.size):
            if targets.weights[index] > 0:
                rows.append({
                    "target": targets.names[index],
                    "latency": self.latency_share * self.term_latency(targets, index, now),
                    "cost": self.cost_share * max(0.0, targets.costs[index] / self.lowest_cost - 1.0) if self.lowest_cost else 0.0,
                    "health": self.health_share * self.term_health(targets, index),
                    "quality": 0.0 if self.quality is None else self.quality_share * (1.0 - self.quality[index]),
                    "score": self.load(targets, index, now),
                })
        return sorted(rows, key=lambda row: row["score"])


cdef class LatencyWeighted(Strategy):
    """LatencyWeighted()\n--\n
    Drawn by weight / latency: a target that takes twice as long gets half the requests.
    """

    def __dealloc__(self):
        free(self.ends)

    cdef void rebuild(self, TargetSet targets, int64_t now_ns) noexcept:
        if self.size != targets.size:
            free(self.ends)
            self.size = targets.size
            self.ends = <double*>calloc(self.size, sizeof(double))
            if self.ends == NULL:
                self.size = 0
                return
        self.weigh(targets, now_ns)

    cdef void weigh(self, TargetSet targets, int64_t now_ns) noexcept:
        cdef Py_ssize_t tier, place, index
        cdef tier_t* segment
        cdef double latency, lowest, sum
        for tier in range(targets.tiers_n):
            segment = &targets.tiers[tier]
            lowest = sum = 0.0
            for place in range(segment.start, segment.start + segment.count):
                latency = latency_of(targets, targets.members[place], now_ns)
                if latency > 0 and (lowest == 0 or latency < lowest):
                    lowest = latency
            for place in range(segment.start, segment.start + segment.count):
                index = targets.members[place]
                latency = latency_of(targets, index, now_ns)
                sum += targets.weights[index] / max(latency, lowest, LEAST_LATENCY_NS)
                self.ends[place] = sum
        self.weigh_again_ns = now_ns + WEIGH_AGAIN_NS

    cdef Py_ssize_t choose(self, TargetSet targets, tier_t* tier, uint64_t point, int64_t now_ns) noexcept:
        cdef Py_ssize_t low = tier.start, high = tier.start + tier.count - 1, middle
        cdef double at
        if self.size == 0:
            return targets.members[tier.start]
        if now_ns >= self.weigh_again_ns:
            self.weigh(targets, now_ns)
        at = targets.uniform() * self.ends[high]
        while low < high:
            middle = (low + high) // 2
            if at < self.ends[middle]:
                high = middle
            else:
                low = middle + 1
        return targets.members[low]


cdef class KeyHash(Strategy):
    """KeyHash(names, weights=None, *, load_factor=None, seed=0)\n--\n
    The same key goes to the same target, in every process and after every restart, while that target is usable and has room.

    names, weights: of the targets, as for the TargetSet. load_factor: 1.01..1000: no target gets more than this times its fair share
    of the requests in flight; None: no bound. seed: 0..2**63-1, the same wherever keys should go the same way.
    Without a key: drawn by weight.
    """

    def __cinit__(self, names, weights=None, *, load_factor=None, seed=0):
        self.table = Maglev(names, weights, table_size=prime_above(min(100 * len(names), LARGEST_TABLE)), seed=seed)
        self.load_factor = 0.0 if load_factor is None else float_argument(load_factor, "load_factor", 1.01, 1000.0)
        self.looked = <uint32_t*>calloc(len(names), sizeof(uint32_t))
        if self.looked == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.looked)

    cdef bint suits(self, Py_ssize_t size) noexcept:
        return len(self.table.names) == size

    cdef bint needs_total(self) noexcept:
        return self.load_factor > 0

    cdef uint64_t point_of(self, const char* key, Py_ssize_t n) noexcept:
        """The point of a key, never 0."""
        return self.table.key_hash(key, n) | 1

    def point(self, key):
        """The point of a key (str or bytes), for TargetSet.choose."""
        cdef bytes text = key.encode() if isinstance(key, str) else key
        return self.point_of(<const char*>text, len(text))

    cdef Py_ssize_t choose(self, TargetSet targets, tier_t* tier, uint64_t point, int64_t now_ns) noexcept:
        cdef Py_ssize_t at, step, index, first = -1, full = 0
        cdef double weight = targets.ends[tier.start + tier.count - 1], most
        cdef int64_t running
        if point == 0:
            return targets.members[targets.drawn(tier, -1)]
        at = <Py_ssize_t>(point % <uint64_t>self.table.table_size)
        running = targets.upstream.running() if self.load_factor > 0 else 0
        self.look += 1
        for step in range(self.table.table_size):
            index = self.table._table[at]
            if targets.weights[index] > 0 and self.looked[index] != self.look and &targets.tiers[targets.places[index]] == tier:
                if self.load_factor == 0:
                    return index
                if first < 0:
                    first = index
                most = ceil(self.load_factor * <double>(running + 1) * targets.weights[index] / weight)
                if <double>(<Health>targets.healths[index]).running() < most:
                    return index
                self.looked[index] = self.look          # full: each is looked at once
                full += 1
                if full == tier.count:
                    return first                        # with requests of other tiers in flight, all may be full
            at = at + 1 if at + 1 < self.table.table_size else 0
        return first if first >= 0 else targets.members[targets.drawn(tier, -1)]    # one of little weight may have no entry


cdef Py_ssize_t prime_above(Py_ssize_t least):
    cdef Py_ssize_t n = max(least, 307) | 1, divisor
    while True:
        divisor = 3
        while divisor * divisor <= n and n % divisor:
            divisor += 2
        if divisor * divisor > n:
            return n
        n += 2
