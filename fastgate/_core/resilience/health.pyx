# cython: boundscheck=False
"""HealthTable: what all processes of a host know about each target, upstream and route: load, latency, health and breakers.

WHAT        A row has a name ("target/orders/http://10.0.0.7:80", "upstream/orders", "route/orders"). A process that uses a row
            holds it (`hold`), and a row that a process holds keeps its place, so the process reads and writes it by address. What
            a row says outlives a reload, and the death of every process but the last one on the host.
STATE       header 8 words: lock | keys 2 words each | rows

              row       health_t | in flight: 32 bits per process | holders: 32 bits per process | requests, failures: 64 bits each

            A row is looked for from the place that the hash of its name gives up to one that never had a name. A row that no process
            holds keeps what it says until its place is needed for another name.
WHO WRITES  a lane: only the process in that slot, so what a dead process held or had in flight is found and cleared without help
            from others (`clear_slot`). Other words: any process, by CAS. Names: under the lock, which names its owner and is taken
            from one that is dead. A process killed at any instruction leaves a row complete or without a name.
COST        begin and finish: a store each, 2 ns. running: one load per 16 processes. latency: one exp(), about 15 ns.
            Memory: 896 bytes per row with up to 16 processes, untouched until used.
SOURCES     Finagle PeakEwma.scala for the latency; per-CPU counters of the Linux kernel for the lanes.
"""

cimport cython
from libc.math cimport exp
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.hashing cimport hash128, hash128_t
from fastgate._core.resilience.breaker_slot cimport BREAKER_OPEN, breaker_t
from fastgate._core.resilience.breaker_window cimport bits_of, double_of
from fastgate._core.shm.atomic cimport (
    atomic_add_relaxed, atomic_cas, atomic_cas_u64, atomic_load, atomic_load_u64, atomic_max, atomic_store, atomic_store_u64,
)
from fastgate._core.shm.owners cimport owner_alive, owner_self
from fastgate._core.shm.shm cimport SharedMemory

import time

__all__ = ["Health", "HealthTable", "HealthTableFull"]

cdef enum:
    HEADER_WORDS = 8
    AT_LOCK = 0                     # the owner that may give names to rows now; 0 = none
    AT_USED = 1                     # rows with a name
    AT_FAILURES = 2                 # names for which there was no place
    LANES_PER_LINE = 16
    LARGEST_CAPACITY = 1 << 20
    MOST_PROCESSES = 1024

BREAKER_STATES = ("closed", "open", "half_open")

cdef uint64_t[2] KEY = [0x6865616c, 0x74680001]        # not secret: names come from the config, not from clients
cdef double LN2 = 0.6931471805599453
cdef double LOCK_WAIT_S = 1.0       # its owner holds it for microseconds; a stopped one (SIGSTOP) would hold it for longer

cdef extern from *:
    """
    static inline uint32_t health_load(const uint32_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void health_store(uint32_t* p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    """
    uint32_t load32 "health_load"(const uint32_t* p) noexcept nogil
    void store32 "health_store"(uint32_t* p, uint32_t value) noexcept nogil


class HealthTableFull(Exception):
    """There is no place for another name. Nothing was changed. Raised by HealthTable.hold()."""


cdef int key_of(str name, uint64_t* key) except -1:
    cdef bytes text = name.encode()
    cdef hash128_t hash
    hash128(<const char*>text, len(text), KEY, &hash)
    key[0] = hash.low | 1           # zero means free
    key[1] = hash.high
    return 0


@cython.no_gc_clear
cdef class HealthTable:
    """HealthTable(capacity, processes, shared=None)\n--\n
    Named rows of load, latency, health and breakers, shared by the processes of a host.

    capacity: rows (1 to 2**20). processes: processes that hold rows at once (1 to 1024); each has a number of its own from 0 on. shared:
    memory of `HealthTable.size(capacity, processes)` bytes or more, inherited over fork; without it the table has memory of its own.
    ValueError: out of range, or memory too small.
    """

    def __cinit__(self, capacity, processes, SharedMemory shared=None):
        cdef size_t needed = HealthTable.size(capacity, processes)
        if shared is None:
            shared = SharedMemory(needed)
        elif shared.size < needed:
            raise ValueError(f"shared: expected at least {needed} bytes for {capacity} rows and {processes} processes, got {shared.size}")
        self.shared = shared
        self.capacity = capacity
        self.processes = processes
        self.lanes = lanes_for(processes)
        self.row_bytes = bytes_of(self.lanes)
        self.header = <int64_t*>shared.address
        self.keys = <uint64_t*>(self.header + HEADER_WORDS)
        self.rows = <char*>shared.address + first_row(capacity)

    @staticmethod
    def size(capacity, processes):
        """Bytes of shared memory for so many rows and processes."""
        cdef int64_t rows = int_argument(capacity, "capacity", 1, LARGEST_CAPACITY)
        cdef int64_t lanes = lanes_for(int_argument(processes, "processes", 1, MOST_PROCESSES))
        return first_row(rows) + rows * bytes_of(lanes)

    def hold(self, str name not None, slot):
        """The Health of this name, for the process in this slot; the row keeps its place for as long as the object lives.
        HealthTableFull: no place for the name. TimeoutError: another process is stopped while it holds the lock."""
        cdef int number = int_argument(slot, "slot", 0, self.processes - 1)
        cdef uint64_t key[2]
        cdef Py_ssize_t place, free_place = -1
        cdef Health health
        cdef uint32_t* holders
        key_of(name, key)
        self.lock()
        try:
            place = self.find(key, &free_place)
            if place < 0:
                if free_place < 0:
                    atomic_add_relaxed(&self.header[AT_FAILURES], 1)
                    raise HealthTableFull(f"no place for {name!r}: {self.header[AT_USED]} of {self.capacity} rows are taken")
                place = free_place
                if self.keys[2 * place] == 0:
                    atomic_add_relaxed(&self.header[AT_USED], 1)
                atomic_store_u64(&self.keys[2 * place], 0)
                memset(<void*>self.row(place), 0, self.row_bytes)
                atomic_store_u64(&self.keys[2 * place + 1], key[1])
                atomic_store_u64(&self.keys[2 * place], key[0])
            holders = in_flight_lanes(self.row(place)) + self.lanes + number
            store32(holders, load32(holders) + 1)
        finally:
            atomic_store(&self.header[AT_LOCK], 0)
        health = Health.__new__(Health)
        health.table = self
        health.row = self.row(place)
        health.slot = number
        health.name = name
        return health

    def clear_slot(self, slot):
        """Releases what the dead process in this slot held and had in flight."""
        cdef int number = int_argument(slot, "slot", 0, self.processes - 1)
        cdef Py_ssize_t place
        cdef uint32_t* lanes
        for place in range(self.capacity):
            if atomic_load_u64(&self.keys[2 * place]):
                lanes = in_flight_lanes(self.row(place)) + number
                if load32(lanes):
                    store32(lanes, 0)
                if load32(lanes + self.lanes):
                    store32(lanes + self.lanes, 0)

    def read(self, str name not None, *, now_ns=None, half_life_s=10.0):
        """What the row of this name says, without holding it; None if there is no such row. A dict:

        in_flight, requests, failures   of all processes, the latter two since the row got its name
        latency_ns                      peak EWMA with this half-life
        checks                          "passed", "failed" or "none": active checks
        breaker, ejection               "closed", "half_open" or "open", with breaker_left_ns and ejection_left_ns: time until the
                                        next probe, 0 unless open; breaker_opened, breaker_refused, ejections: totals
        """
        cdef uint64_t key[2]
        cdef Py_ssize_t place, free_place = -1
        cdef Health row = Health.__new__(Health)
        cdef health_t* h
        cdef int64_t now = monotonic_ns() if now_ns is None else int_argument(now_ns, "now_ns", 0, 1 << 62)
        cdef double tau_ns = float_argument(half_life_s, "half_life_s", 1e-6, 1e9) * 1e9 / LN2
        cdef uint64_t status
        key_of(name, key)
        place = self.find(key, &free_place)
        if place < 0:
            return None
        row.table = self
        h = row.row = self.row(place)
        status = atomic_load_u64(&h.status)
        found = {
            "in_flight": row.running(),
            "requests": total(row, 0),
            "failures": total(row, 1),
            "latency_ns": row.latency(row.running(), now, tau_ns),
            "checks": "failed" if status & HEALTH_FAILED else "passed" if status & HEALTH_PASSED else "none",
            "breaker": BREAKER_STATES[atomic_load_u64(&h.breaker.state) & 3],
            "breaker_left_ns": open_for_ns(&h.breaker, now),
            "breaker_opened": atomic_load_u64(&h.breaker.opened_total),
            "breaker_refused": atomic_load_u64(&h.breaker.refused_total),
            "ejection": BREAKER_STATES[atomic_load_u64(&h.ejection.state) & 3],
            "ejection_left_ns": open_for_ns(&h.ejection, now),
            "ejections": atomic_load_u64(&h.ejection.opened_total),
        }
        row.row = NULL                                      # it is not held
        # The row may have got another name meanwhile.
        return found if self.find(key, &free_place) == place else None

    def statistics(self):
        """Rows used and there are, and names for which there was no place."""
        return {"rows": atomic_load(&self.header[AT_USED]), "capacity": self.capacity,
                "failures": atomic_load(&self.header[AT_FAILURES])}

    cdef health_t* row(self, Py_ssize_t place) noexcept nogil:
        return <health_t*>(self.rows + place * self.row_bytes)

    cdef Py_ssize_t find(self, const uint64_t* key, Py_ssize_t* free_place) noexcept nogil:
        """The place of the key; -1 if it has none, and free_place is one it can have: unused, else held by no process, else -1."""
        cdef Py_ssize_t i, place = <Py_ssize_t>(key[1] % <uint64_t>self.capacity), unheld = -1
        cdef uint64_t found
        for i in range(self.capacity):
            found = atomic_load_u64(&self.keys[2 * place])
            if found == key[0] and atomic_load_u64(&self.keys[2 * place + 1]) == key[1]:
                return place
            if found == 0:
                free_place[0] = place
                return -1
            if unheld < 0 and not self.is_held(self.row(place)):
                unheld = place
            place = place + 1 if place + 1 < self.capacity else 0
        free_place[0] = unheld
        return -1

    cdef bint is_held(self, health_t* row) noexcept nogil:
        cdef uint32_t* holders = in_flight_lanes(row) + self.lanes
        cdef Py_ssize_t i
        for i in range(self.processes):
            if load32(holders + i):
                return True
        return False

    cdef bint lock(self) except -1:
        cdef int64_t me = owner_self(), found = 0
        cdef object started = None
        while not atomic_cas(&self.header[AT_LOCK], &found, me):
            # A dead owner left a row complete or without a name.
            if not owner_alive(found) and atomic_cas(&self.header[AT_LOCK], &found, me):
                return True
            found = 0
            if started is None:
                started = time.monotonic()
            elif time.monotonic() - started > LOCK_WAIT_S:
                raise TimeoutError("another process does not release the table of targets")
            time.sleep(0.0001)
        return True


@cython.no_gc_clear
cdef class Health:
    """One row, held by this process. Returned by HealthTable.hold()."""

    def __dealloc__(self):
        cdef uint32_t* holders
        if self.row != NULL:
            holders = in_flight_lanes(self.row) + self.table.lanes + self.slot
            if load32(holders):                             # else `clear_slot` was faster
                store32(holders, load32(holders) - 1)

    cdef void begin(self) noexcept nogil:
        """A request began."""
        cdef uint32_t* lane = in_flight_lanes(self.row) + self.slot
        store32(lane, load32(lane) + 1)

    cdef void finish(self, bint ok) noexcept nogil:
        """It is over."""
        cdef uint32_t* lane = in_flight_lanes(self.row) + self.slot
        cdef uint64_t* totals = <uint64_t*>(in_flight_lanes(self.row) + 2 * self.table.lanes) + self.slot
        if load32(lane):
            store32(lane, load32(lane) - 1)
        totals[0] += 1
        if not ok:
            totals[self.table.lanes] += 1

    cdef double failure_ratio(self) noexcept nogil:
        """The share of failed requests among about the last 100."""
        return double_of(atomic_load_u64(&self.row.failing))

    cdef void count(self, bint ok) noexcept nogil:
        """Counts a result in the share of failed requests. Of two processes at one instant, one may be lost."""
        cdef uint64_t seen = atomic_load_u64(&self.row.failing)
        if seen or not ok:
            atomic_cas_u64(&self.row.failing, &seen, bits_of(double_of(seen) + ((0.0 if ok else 1.0) - double_of(seen)) / 100.0))

    cdef int64_t running(self) noexcept nogil:
        """Requests in flight, over all processes."""
        cdef uint32_t* lanes = in_flight_lanes(self.row)
        cdef int64_t total = 0
        cdef Py_ssize_t i
        for i in range(self.table.lanes):                   # whole lines: a vectorised sum
            total += lanes[i]
        return total

    cdef void observe(self, int64_t latency_ns, int64_t now_ns, double tau_ns) noexcept nogil:
        """A response took this long: a peak EWMA, see ewma.pyx. Of two processes at one instant, one may be lost. Within a thousandth of
        the time constant only a peak counts: the value would hardly move, and many processes would share the cache line."""
        cdef uint64_t seen = atomic_load_u64(&self.row.latency)
        cdef int64_t at_ns = atomic_load(&self.row.latency_at_ns)
        cdef double cost = double_of(seen), kept
        if <double>latency_ns <= cost and <double>(now_ns - at_ns) < tau_ns * 0.001:
            return
        if <double>latency_ns > cost:
            cost = <double>latency_ns
        else:
            kept = exp(-<double>(now_ns - at_ns) / tau_ns) if now_ns > at_ns else 1.0
            cost = cost * kept + <double>latency_ns * (1.0 - kept)
        if atomic_cas_u64(&self.row.latency, &seen, bits_of(cost)):
            atomic_max(&self.row.latency_at_ns, now_ns)

    cdef void observe_failure(self, int64_t elapsed_ns, int64_t now_ns) noexcept nogil:
        """An attempt ended without a response after this time: the latency is at least that, and does not fall. A target that refuses
        every connection would otherwise become the fastest one."""
        cdef uint64_t seen = atomic_load_u64(&self.row.latency)
        if double_of(seen) < <double>elapsed_ns:
            atomic_cas_u64(&self.row.latency, &seen, bits_of(<double>elapsed_ns))
        atomic_max(&self.row.latency_at_ns, now_ns)

    cdef double latency(self, int64_t running, int64_t now_ns, double tau_ns) noexcept nogil:
        """The latency at now_ns; it falls towards 0 while nothing is in flight. running: requests in flight."""
        cdef double cost = double_of(atomic_load_u64(&self.row.latency))
        cdef int64_t at_ns = atomic_load(&self.row.latency_at_ns)
        return cost * exp(-<double>(now_ns - at_ns) / tau_ns) if now_ns > at_ns and running == 0 else cost

    # For Python

    cdef int check(self) except -1:
        if self.row == NULL:
            raise ValueError("a Health is returned by HealthTable.hold()")
        return 0

    def started(self):
        """A request began."""
        self.check()
        self.begin()

    def finished(self, ok=True, latency_ns=None, *, now_ns=None, half_life_s=10.0):
        """A request is over. ok: it did not fail. latency_ns: its duration, for the latency; None if it yielded none."""
        cdef double tau_ns = float_argument(half_life_s, "half_life_s", 1e-6, 1e9) * 1e9 / LN2
        cdef int64_t now = monotonic_ns() if now_ns is None else int_argument(now_ns, "now_ns", 0, 1 << 62)
        self.check()
        if latency_ns is not None:
            self.observe(int_argument(latency_ns, "latency_ns", 0, 1 << 62), now, tau_ns)
        self.finish(bool(ok))

    @property
    def in_flight(self):
        """Requests in flight, over all processes."""
        self.check()
        return self.running()

    @property
    def requests(self):
        """Requests that are over, since the row got its name."""
        self.check()
        return total(self, 0)

    @property
    def failures(self):
        """Those of them that failed."""
        self.check()
        return total(self, 1)

    def latency_ns(self, *, now_ns=None, half_life_s=10.0):
        """The latency at now_ns (default: the monotonic clock): it jumps to each peak, and falls by half in half_life_s."""
        cdef double tau_ns = float_argument(half_life_s, "half_life_s", 1e-6, 1e9) * 1e9 / LN2
        self.check()
        return self.latency(self.running(), monotonic_ns() if now_ns is None else int_argument(now_ns, "now_ns", 0, 1 << 62), tau_ns)

    def __repr__(self):
        return "Health()" if self.row == NULL else f"Health({self.name!r}, in_flight={self.running()})"


cdef object total(Health health, int which):
    cdef uint64_t* totals = <uint64_t*>(in_flight_lanes(health.row) + 2 * health.table.lanes) + which * health.table.lanes
    cdef Py_ssize_t i
    return sum([totals[i] for i in range(health.table.processes)])


cdef int64_t open_for_ns(const breaker_t* breaker, int64_t now_ns) noexcept nogil:
    """How long it stays open; 0 if it is not."""
    cdef uint64_t word = atomic_load_u64(&breaker.state)
    return max(0, <int64_t>(word >> 8 << 7) - now_ns) if word & 3 == BREAKER_OPEN else 0


cdef Py_ssize_t lanes_for(int64_t processes) noexcept:
    return (processes + LANES_PER_LINE - 1) // LANES_PER_LINE * LANES_PER_LINE


cdef size_t bytes_of(Py_ssize_t lanes) noexcept:
    return sizeof(health_t) + lanes * (4 + 4 + 8 + 8)


cdef size_t first_row(int64_t capacity) noexcept:
    """Where the rows begin: at a cache line behind the keys."""
    return (HEADER_WORDS * 8 + <size_t>capacity * 16 + 63) // 64 * 64
