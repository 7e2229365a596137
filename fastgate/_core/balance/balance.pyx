"""Balancers by weight, requests in flight and latency. For balancing by key see consistent.pyx.

WHAT
    SmoothWeighted   of any sum(weights) picks in a row, target i gets exactly weights[i], evenly distributed.
    LeastRequests    the target with the fewest requests in flight per weight; ties are broken by smooth weighted round robin.
    P2C              two targets drawn at random by weight, and of these the less loaded one. Load is requests in flight per
                     weight, or with half_life_s: peak latency x (1 + requests in flight per weight), which also avoids slow
                     targets. Workers that compare all targets by stale data would all pick the same one; random pairs avoid
                     that.

STATE   per target: weight, current (the counter of smooth round robin), requests in flight, peak latency; plain C arrays.

WHO WRITES
    The owner, under the GIL: each worker balances its own requests, like nginx without a zone, Envoy and Finagle. With N
    workers give SmoothWeighted a different `start` each.

COST
    SmoothWeighted, LeastRequests: O(targets), about 1 ns each. P2C: O(log targets), with a mask O(targets); half_life_s adds two
    exp(). benchmarks/core/bench_balance.py; skew: benchmarks/quality/bench_balance_skew.py.

SOURCES
    nginx ngx_http_upstream_round_robin.c (commit 52327e0) and ngx_http_upstream_least_conn_module.c; Mitzenmacher, The Power of Two
    Choices (2001); Finagle PeakEwma; splitmix64.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.balance.ewma cimport peak_ewma_t, peak_ewma_update, peak_ewma_value

import os

__all__ = ["P2C", "LeastRequests", "SmoothWeighted"]

cdef extern from *:
    """
    static inline uint64_t fastgate_scaled(uint64_t x, uint64_t n) { return (uint64_t)(((unsigned __int128)x * n) >> 64); }
    """
    uint64_t scaled "fastgate_scaled"(uint64_t x, uint64_t n) noexcept nogil

cdef enum:
    MAX_WEIGHT = 1_000_000
    MAX_TARGETS = 65_536

cdef int64_t LATEST_NS = 1 << 62
cdef double LN2 = 0.6931471805599453
# A target with requests in flight that has never responded is tried last; Finagle's penalty, as in ewma.pyx.
cdef double UNKNOWN = 1e150


cdef int64_t* weights_of(object weights, Py_ssize_t* size) except NULL:
    """The validated weights, copied. ValueError or TypeError names the invalid one."""
    cdef list values = list(weights)
    cdef int64_t* out
    cdef Py_ssize_t index
    if not 1 <= len(values) <= MAX_TARGETS:
        raise ValueError(f"weights: expected 1 to {MAX_TARGETS} of them, got {len(values)}")
    for index in range(len(values)):
        int_argument(values[index], f"weights[{index}]", 0, MAX_WEIGHT)
    if not any(values):
        raise ValueError("weights: expected at least one above 0, got only zeros")
    out = <int64_t*>calloc(len(values), sizeof(int64_t))
    if out == NULL:
        raise MemoryError()
    for index in range(len(values)):
        out[index] = values[index]
    size[0] = len(values)
    return out


cdef unsigned char* usable_of(object usable, Py_ssize_t size) except NULL:
    """One byte per target from a sequence of truth values."""
    cdef list values = list(usable)
    cdef unsigned char* out
    cdef Py_ssize_t index
    if len(values) != size:
        raise ValueError(f"usable: expected {size} flags, one per target, got {len(values)}")
    out = <unsigned char*>calloc(size, 1)
    if out == NULL:
        raise MemoryError()
    try:
        for index in range(size):
            out[index] = bool(values[index])
    except BaseException:
        free(out)
        raise
    return out


cdef Py_ssize_t busy(object index, Py_ssize_t size, const int64_t* in_flight) except -1:
    """index, if that target has a request in flight to finish."""
    cdef Py_ssize_t at = int_argument(index, "index", 0, size - 1)
    if in_flight[at] == 0:
        raise ValueError(f"index: target {at} has no request in flight")
    return at


@cython.final
cdef class SmoothWeighted:
    """SmoothWeighted(weights, start=0)\n--\n
    Smooth weighted round robin.

    weights: ints 0..1 000 000, at least one above 0; 0 = never picked. start: how many picks to skip (0..65 536), so that several
    workers with the same weights do not all begin with the same target.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, weights, start=0):
        cdef Py_ssize_t _, skip
        debug_live_add(1)
        skip = int_argument(start, "start", 0, MAX_TARGETS)
        self._weights = weights_of(weights, &self.size)
        self._current = <int64_t*>calloc(self.size, sizeof(int64_t))
        if self._current == NULL:
            raise MemoryError()
        for _ in range(skip):
            self.pick_usable(NULL)

    def __dealloc__(self):
        debug_live_add(-1)
        free(self._weights)
        free(self._current)

    def __len__(self):
        return self.size

    cpdef Py_ssize_t pick(self) noexcept:
        """The index of the next target."""
        return self.pick_usable(NULL)

    def pick_among(self, usable):
        """The same among the targets whose flag in usable is true; -1 if none of them has a weight above 0."""
        cdef unsigned char* flags = usable_of(usable, self.size)
        cdef Py_ssize_t index = self.pick_usable(flags)
        free(flags)
        return index

    cdef Py_ssize_t pick_usable(self, const unsigned char* usable) noexcept:
        """Excluded targets neither gain nor lose their turn."""
        cdef Py_ssize_t index, best = -1
        cdef int64_t total = 0
        for index in range(self.size):
            if self._weights[index] == 0 or (usable != NULL and not usable[index]):
                continue
            total += self._weights[index]
            self._current[index] += self._weights[index]
            if best < 0 or self._current[index] > self._current[best]:
                best = index
        if best >= 0:
            self._current[best] -= total
        return best


@cython.final
cdef class LeastRequests:
    """LeastRequests(weights)\n--\n
    The target with the fewest requests in flight per weight; call finished() for every pick.

    weights: ints 0..1 000 000, at least one above 0; 0 = never picked.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, weights):
        debug_live_add(1)
        self._weights = weights_of(weights, &self.size)
        self._current = <int64_t*>calloc(self.size, sizeof(int64_t))
        self._in_flight = <int64_t*>calloc(self.size, sizeof(int64_t))
        if self._current == NULL or self._in_flight == NULL:
            raise MemoryError()

    def __dealloc__(self):
        debug_live_add(-1)
        free(self._weights)
        free(self._current)
        free(self._in_flight)

    def __len__(self):
        return self.size

    @property
    def in_flight(self):
        """Requests in flight, per target."""
        return tuple([self._in_flight[index] for index in range(self.size)])

    def pick(self):
        """The index of the target for a new request, which counts as in flight from then on."""
        return self.pick_usable(NULL)

    def pick_among(self, usable):
        """The same among the targets whose flag in usable is true; -1 if none of them has a weight above 0."""
        cdef unsigned char* flags = usable_of(usable, self.size)
        cdef Py_ssize_t index = self.pick_usable(flags)
        free(flags)
        return index

    def finished(self, index):
        """The request is over. ValueError if the target has none in flight."""
        self.finish(busy(index, self.size, self._in_flight))

    cdef Py_ssize_t pick_usable(self, const unsigned char* usable) noexcept:
        cdef Py_ssize_t index, least = -1, best = -1
        cdef int64_t total = 0
        for index in range(self.size):
            if self._weights[index] == 0 or (usable != NULL and not usable[index]):
                continue
            if least < 0 or self._in_flight[index] * self._weights[least] < self._in_flight[least] * self._weights[index]:
                least = index
        if least < 0:
            return -1
        for index in range(least, self.size):
            if self._weights[index] == 0 or (usable != NULL and not usable[index]):
                continue
            if self._in_flight[index] * self._weights[least] != self._in_flight[least] * self._weights[index]:
                continue
            total += self._weights[index]
            self._current[index] += self._weights[index]
            if best < 0 or self._current[index] > self._current[best]:
                best = index
        self._current[best] -= total
        self._in_flight[best] += 1
        return best

    cdef void finish(self, Py_ssize_t index) noexcept:
        if self._in_flight[index] > 0:
            self._in_flight[index] -= 1


@cython.final
cdef class P2C:
    """P2C(weights, *, half_life_s=None, seed=None)\n--\n
    Power of two choices; call finished() for every pick.

    weights      ints 0..1 000 000, at least one above 0; 0 = never picked. They steer the draw and divide the requests in flight.
    half_life_s  1e-6..1e9: judge by peak latency too, which falls by half in that time (10 is Finagle's order). None: requests in
                 flight alone. A target not yet heard from, with nothing in flight, is tried first.
    seed         0..2**63-1, default random.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, weights, *, half_life_s=None, seed=None):
        cdef int64_t end = 0
        cdef Py_ssize_t index
        debug_live_add(1)
        if half_life_s is not None:
            self._tau_ns = float_argument(half_life_s, "half_life_s", 1e-6, 1e9) * 1e9 / LN2
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little") >> 1
        self._random = int_argument(seed, "seed", 0, 0x7FFFFFFFFFFFFFFF)
        self._weights = weights_of(weights, &self.size)
        self._ends = <int64_t*>calloc(self.size, sizeof(int64_t))
        self._in_flight = <int64_t*>calloc(self.size, sizeof(int64_t))
        if half_life_s is not None:
            self._latency = <peak_ewma_t*>calloc(self.size, sizeof(peak_ewma_t))
        if self._ends == NULL or self._in_flight == NULL or (half_life_s is not None and self._latency == NULL):
            raise MemoryError()
        for index in range(self.size):
            end += self._weights[index]
            self._ends[index] = end

    def __dealloc__(self):
        debug_live_add(-1)
        free(self._weights)
        free(self._ends)
        free(self._in_flight)
        free(self._latency)

    def __len__(self):
        return self.size

    @property
    def in_flight(self):
        """Requests in flight, per target."""
        return tuple([self._in_flight[index] for index in range(self.size)])

    def pick(self, *, now_ns=None):
        """The index of the target for a new request, which counts as in flight from then on."""
        return self.pick_usable(NULL, now_of(self, now_ns))

    def pick_among(self, usable, *, now_ns=None):
        """The same among the targets whose flag in usable is true; -1 if none of them has a weight above 0."""
        cdef int64_t now = now_of(self, now_ns)
        cdef unsigned char* flags = usable_of(usable, self.size)
        cdef Py_ssize_t index = self.pick_usable(flags, now)
        free(flags)
        return index

    def finished(self, index, latency_ns=None, *, now_ns=None):
        """The request is over. latency_ns: its duration; None if it yielded no latency (cancelled)."""
        cdef int64_t latency = -1, now = now_of(self, now_ns)
        if latency_ns is not None:
            latency = int_argument(latency_ns, "latency_ns", 0, LATEST_NS)
        self.finish(busy(index, self.size, self._in_flight), latency, now)

    cdef Py_ssize_t pick_usable(self, const unsigned char* usable, int64_t now_ns) noexcept:
        cdef Py_ssize_t first, second
        cdef int64_t total
        cdef double load
        if usable == NULL:
            total = self._ends[self.size - 1]
        else:
            total = 0
            for first in range(self.size):
                if usable[first]:
                    total += self._weights[first]
        if total == 0:
            return -1
        first = drawn(self, usable, <int64_t>scaled(next_random(self), total), -1)
        if self._weights[first] < total:
            second = drawn(self, usable, <int64_t>scaled(next_random(self), total - self._weights[first]), first)
            load = load_of(self, second, now_ns)
            if load < load_of(self, first, now_ns):
                first = second
        self._in_flight[first] += 1
        return first

    cdef void finish(self, Py_ssize_t index, int64_t latency_ns, int64_t now_ns) noexcept:
        if self._in_flight[index] > 0:
            self._in_flight[index] -= 1
        if self._latency != NULL and latency_ns >= 0:
            peak_ewma_update(&self._latency[index], <double>latency_ns, now_ns, self._tau_ns)


cdef inline uint64_t next_random(P2C self) noexcept:
    """splitmix64."""
    cdef uint64_t x
    self._random += <uint64_t>0x9E3779B97F4A7C15
    x = self._random
    x = (x ^ x >> 30) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ x >> 27) * <uint64_t>0x94D049BB133111EB
    return x ^ x >> 31


cdef Py_ssize_t drawn(P2C self, const unsigned char* usable, int64_t at, Py_ssize_t without) noexcept:
    """The target at this point of a line on which each (usable) target except `without` is as long as its weight."""
    cdef Py_ssize_t low = 0, high = self.size - 1, middle
    if usable == NULL:
        if without >= 0 and at >= self._ends[without] - self._weights[without]:
            at += self._weights[without]
        while low < high:
            middle = (low + high) // 2
            if at < self._ends[middle]:
                high = middle
            else:
                low = middle + 1
        return low
    for low in range(self.size):
        if usable[low] and low != without:
            if at < self._weights[low]:
                return low
            at -= self._weights[low]
    return without      # not reached: at is below the sum


cdef inline double load_of(P2C self, Py_ssize_t index, int64_t now_ns) noexcept:
    cdef double waiting = <double>self._in_flight[index] / <double>self._weights[index], latency
    if self._latency == NULL:
        return waiting
    latency = peak_ewma_value(&self._latency[index], now_ns, self._tau_ns)
    if latency == 0 and waiting > 0:
        latency = UNKNOWN
    return latency * (1.0 + waiting)


cdef int64_t now_of(P2C self, object now_ns) except -1:
    if now_ns is not None:
        return int_argument(now_ns, "now_ns", 0, LATEST_NS)
    return monotonic_ns() if self._latency != NULL else 0


def live_objects():
    """How many objects of this module are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
