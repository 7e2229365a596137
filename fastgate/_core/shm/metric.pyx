# cython: boundscheck=False
"""Counters and gauges by name, in shared memory: the metrics of features, one series for all processes.

WHAT     `MetricTable.counter(name, **labels)` returns the same series in every process; `read()` lists them all. For counts per
         route and per request see counters.pyx, which is faster and has a fixed layout.
STATE    an open-addressed table of rows, each a name and one 64-bit word. Rows are never freed: series are created from the
         config and from fixed label values, never from client data.
WHO      A row is claimed with one CAS; any process adds to its word. A process that dies while it writes a name leaves an
         unused row.
LIMIT    `capacity` series. Further ones share the first row, `fastgate_metrics_overflow_total`.
COST     an add is one atomic add, about 5 ns. Looking up a series is for build time: about 2 us.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastgate._core.shm.atomic cimport atomic_add_relaxed, atomic_cas, atomic_load, atomic_load_relaxed, atomic_store
from fastgate._core.hashing cimport siphash13
from fastgate._core.shm.shm cimport SharedMemory

__all__ = ["Metric", "MetricTable"]

cdef uint64_t[2] HASH_KEY = [0, 0]          # names come from the config, so no client can choose colliding ones
cdef bytes OVERFLOW = b"fastgate_metrics_overflow_total"


cdef void metric_add(Metric metric, int64_t n) noexcept:
    atomic_add_relaxed(metric.value_at, n)


cdef class Metric:
    """One series. Created by MetricTable; one created directly counts privately."""

    def __cinit__(self):
        self.value_at = &self.own

    def add(self, int64_t n=1):
        """Adds n."""
        atomic_add_relaxed(self.value_at, n)

    def set(self, int64_t value):
        """Sets a gauge."""
        atomic_store(self.value_at, value)

    @property
    def value(self):
        """The current value."""
        return atomic_load_relaxed(self.value_at)

    def __repr__(self):
        return f"Metric({self.series}, {self.value})"


cdef class MetricTable:
    """Series by name in `memory`, a SharedMemory of MetricTable.size(capacity) bytes; private memory without one."""

    def __init__(self, int capacity=4096, SharedMemory memory=None):
        if capacity < 2:
            raise ValueError(f"capacity: expected >= 2, got {capacity}")
        if memory is None:
            memory = SharedMemory(MetricTable.size(capacity))
        if memory.size < <size_t>MetricTable.size(capacity):
            raise ValueError(f"memory: expected at least {MetricTable.size(capacity)} bytes, got {memory.size}")
        self.memory = memory
        self.capacity = capacity
        self.rows = <metric_t*>memory.address
        if atomic_load(&self.rows[0].state) == 0:
            self.rows[0].name_n = <unsigned char>len(OVERFLOW)
            memcpy(self.rows[0].name, <const char*>OVERFLOW, len(OVERFLOW))
            atomic_store(&self.rows[0].state, 2)

    @staticmethod
    def size(int capacity):
        """Bytes of memory for this many series."""
        return capacity * sizeof(metric_t)

    def counter(self, str name not None, **labels):
        """The counter with this name and these labels, shared by every process."""
        return self.series(name, labels, 0)

    def gauge(self, str name not None, **labels):
        """The same for a value that goes up and down."""
        return self.series(name, labels, 1)

    cdef Metric series(self, str name, dict labels, int kind):
        cdef bytes key
        cdef Metric made = Metric.__new__(Metric)
        cdef metric_t* row
        cdef int64_t free
        cdef uint64_t at
        cdef int i
        text = name
        if labels:
            text += "{" + ",".join(f'{label}="{escaped(str(value))}"' for label, value in sorted(labels.items())) + "}"
        key = text.encode()
        made.series = text
        made._memory = self.memory
        made.value_at = &self.rows[0].value
        if len(key) > NAME_BYTES - 1:
            return made
        at = siphash13(<const char*>key, len(key), HASH_KEY) % <uint64_t>(self.capacity - 1)
        for i in range(min(self.capacity - 1, 256)):
            row = &self.rows[1 + (at + <uint64_t>i) % <uint64_t>(self.capacity - 1)]
            free = 0
            if atomic_load(&row.state) == 0 and atomic_cas(&row.state, &free, 1):
                row.name_n = <unsigned char>len(key)
                memcpy(row.name, <const char*>key, len(key))
                row.kind = kind
                atomic_store(&row.state, 2)
                made.value_at = &row.value
                return made
            if wait_for_name(row) and row.name_n == len(key) and memcmp(row.name, <const char*>key, len(key)) == 0:
                made.value_at = &row.value
                return made
        return made

    def read(self):
        """[(name, labels as in the exposition format without braces, kind, value), …], sorted."""
        cdef int i
        cdef list out = []
        for i in range(self.capacity):
            if atomic_load(&self.rows[i].state) == 2:
                text = self.rows[i].name[:self.rows[i].name_n].decode("utf-8", "replace")
                name, _, labels = text.partition("{")
                out.append((name, labels[:len(labels) - 1] if labels else "", "gauge" if self.rows[i].kind else "counter", atomic_load_relaxed(&self.rows[i].value)))
        out.sort()
        return out


cdef bint wait_for_name(metric_t* row) noexcept nogil:
    """True if the row's name is complete. Writing one takes nanoseconds, so a row that stays without one belongs to a dead
    process."""
    cdef int i
    for i in range(100000):
        if atomic_load(&row.state) == 2:
            return True
    return False


cdef str escaped(str value):
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
