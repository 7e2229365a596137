# cython: boundscheck=False
"""Traffic counts in shared memory, summed over all workers and kept when a worker dies.

WHAT     Per worker slot and route: responses by class, refusals by reason, bytes, attempts, two latency histograms; per worker
         slot: open connections and other gauges. The controller sums the slots when metrics are requested.
STATE    [keys: capacity × 16 bytes][worker_counts_t × slots][route_counts_t × slots × capacity]
         A route's place is found by the SipHash-128 of its name in an open-addressed table of keys, claimed by CAS; places are
         never moved, so a reload changes no layout and counts survive it. Place 0 is for requests without a route, and for
         routes that found the table full (counted by `overflow`). Untouched pages of the mapping cost nothing.
WHO      keys: any worker, CAS from zero, never changed again. counts: the worker(s) of that slot (two while an old generation
         drains), relaxed atomic adds. The controller only reads.
COST     One relaxed atomic add, about 5 ns, on a cache line that no other worker writes.
SOURCES  Envoy's shared-memory stats of hot restart; Open addressing: Knuth, TAOCP 3, §6.4.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport _SC_PAGESIZE, sysconf

from fastgate._core.shm.atomic cimport atomic_cas_u64, atomic_load_relaxed_u64, atomic_load_u64, atomic_store_u64
from fastgate._core.hashing cimport hash128, hash128_t
from fastgate._core.stats.histogram cimport (
    HISTOGRAM_BUCKETS, HISTOGRAM_LOWEST_BIT, HISTOGRAM_SUB_BITS, histogram_merge, histogram_quantile, histogram_t)
from fastgate._core.shm.shm cimport SharedMemory

cdef extern from "<sys/mman.h>" nogil:
    int mincore(void* addr, size_t length, unsigned char* vec)

__all__ = ["OCTAVES_NS", "Counters", "RouteCounts"]

cdef enum:
    OCTAVE_FIRST = 17                              # 131 us: above the time of a fixed response
    OCTAVE_LAST = 36                               # 69 s: above any sensible time-out

OCTAVES_NS = tuple(2**k for k in range(OCTAVE_FIRST, OCTAVE_LAST + 1))

cdef uint64_t[2] KEY = [0x66617374, 0x67617465]        # not secret: names come from the config, not from clients

WORKER_FIELDS = ("connections_open", "connections_total", "connections_refused", "requests_active", "tunnels_open",
                 "upstream_open", "upstream_opened_total", "upstream_waiting", "log_lines_dropped", "plugin_errors",
                 "loop_ticks", "loop_stalls", "upstream_limited_total", "bodies_collecting")


cdef class RouteCounts:
    """The counts of one route, summed over the worker slots, at the time of the call."""

    cdef route_counts_t total
    cdef readonly str name

    cdef bint is_used(self) noexcept:
        cdef int i
        for i in range(6):
            if self.total.responses[i]:
                return True
        return False

    @property
    def responses(self):
        """Responses by status class: index 1 to 5; index 0 counts requests that ended without a response."""
        return tuple(self.total.responses[i] for i in range(6))

    @property
    def reasons(self):
        """Refusals by REASONS index (index 0 is unused)."""
        return tuple(self.total.reasons[i] for i in range(MAX_REASONS))

    @property
    def bytes_received(self):
        return self.total.bytes_received

    @property
    def bytes_sent(self):
        return self.total.bytes_sent

    @property
    def attempts(self):
        return self.total.attempts

    @property
    def replays(self):
        return self.total.replays

    @property
    def shadow(self):
        return self.total.shadow

    def merge(self, RouteCounts other not None):
        """Add the counts of another route."""
        cdef int i
        for i in range(6):
            self.total.responses[i] += other.total.responses[i]
        for i in range(MAX_REASONS):
            self.total.reasons[i] += other.total.reasons[i]
        self.total.bytes_received += other.total.bytes_received
        self.total.bytes_sent += other.total.bytes_sent
        self.total.attempts += other.total.attempts
        self.total.replays += other.total.replays
        self.total.shadow += other.total.shadow
        histogram_merge(&self.total.duration, &other.total.duration)
        histogram_merge(&self.total.upstream, &other.total.upstream)

    def cumulative(self, which):
        """(count, sum in ns, number of values below 2**k ns for k from OCTAVE_FIRST to OCTAVE_LAST) of a histogram. Octaves are
        exact: their bounds are bucket bounds."""
        cdef histogram_t* h = &self.total.duration if which == "duration" else &self.total.upstream
        cdef uint64_t below = 0
        cdef int i = 0
        cdef int octave
        cdef list out = []
        for octave in range(OCTAVE_FIRST, OCTAVE_LAST + 1):
            while i < 1 + (octave - HISTOGRAM_LOWEST_BIT) * (1 << HISTOGRAM_SUB_BITS):
                below += h.buckets[i]
                i += 1
            out.append(below)
        # The sum of the buckets, not `count`: a worker may be between the two adds, and +Inf must not be below a bucket.
        while i < HISTOGRAM_BUCKETS:
            below += h.buckets[i]
            i += 1
        return below, h.sum, out

    def quantile_ns(self, which, double q):
        """The value in ns that a share q of the requests did not exceed; 0 without requests."""
        cdef histogram_t* h = &self.total.duration if which == "duration" else &self.total.upstream
        return histogram_quantile(h, q) if h.count else 0.0

    def _histogram(self, which):
        cdef histogram_t* h = &self.total.duration if which == "duration" else &self.total.upstream
        return h.count, h.sum, [h.buckets[i] for i in range(HISTOGRAM_BUCKETS)]

    @property
    def duration(self):
        """(count, sum in ns, buckets): see fastgate._core.stats.histogram for the bucket bounds."""
        return self._histogram("duration")

    @property
    def upstream(self):
        """(count, sum in ns, buckets) of the time to the first byte from upstream."""
        return self._histogram("upstream")


cdef class Counters:
    """The counts of `slots` worker slots and at most `capacity` routes, in a SharedMemory of Counters.size(…) bytes."""

    def __cinit__(self, SharedMemory memory not None, int slots, int capacity):
        if slots < 1 or capacity < 1:
            raise ValueError(f"slots and capacity: expected >= 1, got {slots} and {capacity}")
        if memory.size < Counters.size(slots, capacity):
            raise ValueError(f"memory: expected at least {Counters.size(slots, capacity)} bytes, got {memory.size}")
        self.memory = memory
        self.base = <char*>memory.address
        self.slots = slots
        self.capacity = capacity

    @staticmethod
    def size(int slots, int capacity):
        """Bytes of memory for this many slots and routes."""
        return <int64_t>capacity * 16 + <int64_t>slots * sizeof(worker_counts_t) \
            + <int64_t>slots * (capacity + 1) * sizeof(route_counts_t)

    cdef worker_counts_t* worker(self, int slot) noexcept nogil:
        return <worker_counts_t*>(self.base + <int64_t>self.capacity * 16) + slot

    cdef route_counts_t* route(self, int slot, int series) noexcept nogil:
        return <route_counts_t*>(self.base + <int64_t>self.capacity * 16 + <int64_t>self.slots * sizeof(worker_counts_t)) \
            + <int64_t>slot * (self.capacity + 1) + series

    cpdef int series(self, bytes name, bint add=False) except -1:
        """The place of a route's counts, 1 to capacity; 0 if it has none (and none is free, with add)."""
        cdef hash128_t h
        cdef uint64_t* key
        cdef uint64_t low, high, expected
        cdef int i, probe
        hash128(<const char*>name, len(name), KEY, &h)
        low = h.low | 1                                # zero means free
        high = h.high
        i = <int>(high % <uint64_t>self.capacity)
        for probe in range(self.capacity):
            key = <uint64_t*>(self.base + <int64_t>i * 16)
            expected = atomic_load_u64(key)
            if expected == 0:
                if not add:
                    return 0
                if atomic_cas_u64(key, &expected, low):
                    atomic_store_u64(key + 1, high)
                    return i + 1
            # The second word may lag behind the first for an instant after a claim: the same name claimed by two workers at once
            # is identified by its 63 bits in the first word alone, which suffice for the names of one config.
            if expected == low:
                return i + 1
            i += 1
            if i == self.capacity:
                i = 0
        return 0

    def read(self, name):
        """RouteCounts of a route (bytes or str name; None for requests without a route), or None if it was never counted."""
        cdef RouteCounts out = RouteCounts.__new__(RouteCounts)
        cdef int slot
        cdef int place = 0
        if name is not None:
            place = self.series(name if isinstance(name, bytes) else name.encode())
            if place == 0:
                return None
            out.name = name.decode() if isinstance(name, bytes) else name
        for slot in range(self.slots):
            if atomic_load_relaxed_u64(&self.worker(slot).loop_ticks):
                _add(self, out, slot, place)
        return out

    def read_touched(self, names):
        """RouteCounts of those of these routes (str) that have counted anything, without reading the memory of the others:
        reading a hole in shared memory fills it, and 10 000 idle routes would cost 40 MB per worker."""
        cdef list found = []
        cdef list used = []
        cdef RouteCounts out
        cdef int slot, place
        cdef size_t page = sysconf(_SC_PAGESIZE)
        cdef size_t size = (<SharedMemory>self.memory).size
        cdef bytearray resident = bytearray((size + page - 1) // page)
        cdef unsigned char* pages = resident
        for slot in range(self.slots):
            # Every worker counts its ticks, so a slot without ticks never had a worker.
            if atomic_load_relaxed_u64(&self.worker(slot).loop_ticks) and _mark_resident(self, slot, pages, page) == 0:
                used.append(slot)
        for name in names:
            place = self.series(name.encode())
            if place == 0:
                continue
            out = None
            for slot in used:
                if not _is_resident(self, slot, place, pages, page):
                    continue
                if out is None:
                    out = RouteCounts.__new__(RouteCounts)
                    out.name = name
                _add(self, out, slot, place)
            if out is not None and out.is_used():
                found.append(out)
        return found

    def worker_counts(self, int slot):
        """The gauges and counters of one worker slot, by name. IndexError for an invalid slot."""
        cdef uint64_t* words
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot: expected 0 to {self.slots - 1}, got {slot}")
        words = <uint64_t*>self.worker(slot)
        return {name: atomic_load_relaxed_u64(&words[i]) for i, name in enumerate(WORKER_FIELDS)}

    def reset_gauges(self, int slot):
        """Resets the gauges of a slot whose worker is gone."""
        cdef worker_counts_t* w
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot: expected 0 to {self.slots - 1}, got {slot}")
        w = self.worker(slot)
        atomic_store_u64(&w.connections_open, 0)
        atomic_store_u64(&w.requests_active, 0)
        atomic_store_u64(&w.tunnels_open, 0)
        atomic_store_u64(&w.upstream_open, 0)
        atomic_store_u64(&w.upstream_waiting, 0)
        atomic_store_u64(&w.bodies_collecting, 0)


cdef void _add(Counters self, RouteCounts out, int slot, int place) noexcept:
    """Adds one slot's counts of a route."""
    cdef route_counts_t* counts = self.route(slot, place)
    cdef int i
    for i in range(6):
        out.total.responses[i] += atomic_load_relaxed_u64(&counts.responses[i])
    for i in range(MAX_REASONS):
        out.total.reasons[i] += atomic_load_relaxed_u64(&counts.reasons[i])
    out.total.bytes_received += atomic_load_relaxed_u64(&counts.bytes_received)
    out.total.bytes_sent += atomic_load_relaxed_u64(&counts.bytes_sent)
    out.total.attempts += atomic_load_relaxed_u64(&counts.attempts)
    out.total.replays += atomic_load_relaxed_u64(&counts.replays)
    out.total.shadow += atomic_load_relaxed_u64(&counts.shadow)
    histogram_merge(&out.total.duration, &counts.duration)
    histogram_merge(&out.total.upstream, &counts.upstream)


cdef int _mark_resident(Counters self, int slot, unsigned char* pages, size_t page) except -1:
    """Asks the kernel which pages of this slot's counts are resident (mincore(2))."""
    cdef size_t first = <size_t>(<char*>self.route(slot, 0) - self.base) // page
    cdef size_t last = (<size_t>(<char*>self.route(slot, self.capacity + 1) - self.base) - 1) // page
    if mincore(self.base + first * page, (last - first + 1) * page, pages + first) != 0:
        memset(pages + first, 1, last - first + 1)     # unknown: read them all
    return 0


cdef bint _is_resident(Counters self, int slot, int place, unsigned char* pages, size_t page) noexcept:
    """True if the page with the first words of these counts is resident; every finished request counts there."""
    cdef size_t begin = <size_t>(<char*>self.route(slot, place) - self.base)
    return (pages[begin // page] | pages[(begin + 47) // page]) & 1
