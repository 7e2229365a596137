# cython: boundscheck=False
"""RuntimeTable: numbers that an operator changes while requests read them, one 64-bit slot for each name.

WHAT        A slot has a name ("target/orders/http://10.0.0.7:80/drain", "flag/x/share") and a value. A plan looks its slots up when it
            is built and keeps their addresses; a request reads a value with one load. An unset slot represents the value of the
            plan (of the config), so a plan that is being built, or is refused, changes nothing for the one that serves.
STATE       header 8 words | index, 1 word per bucket: 0 empty, 1 deleted, else row + 2 | rows 40 bytes each

              row           key 2 words (0 = free) | value | since | until

            since, until: the first and the newest version of the plan that uses the name. A name keeps its row and value from
            plan to plan. A row is freed when no live process uses a plan as old as `until`, or when the plan that it was
            assigned for was refused. A freed row reads as unset.
WHO WRITES  names: one process (the supervisor), which knows which plans are in use; values: one process (the controller). A value
            must not be written to a row that goes to another name at that moment, so both hold `lock` for it: the controller
            from the lookup to the store, the other one while it frees. It holds an owner, and is taken from one that is dead.
            The supervisor never waits for it: a row that cannot be freed now is freed later. Readers take no lock. A process
            killed at any instruction leaves a value old or new.
COST        read: one load, one compare. Lookup by name: one SHA-256 and 1.5 probes, 1 µs. Assigning 10 000 names: 20 ms.
            8 bytes x 2 to 4 and 40 bytes per slot of capacity, untouched until used.
SOURCES     Linear probing with deletion marks, Knuth TAOCP 6.4. `struct runtime` of Envoy has the same role (runtime overrides
            with a default in the config): https://www.envoyproxy.io/docs/envoy/latest/configuration/operations/runtime
"""

from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcpy

from fastgate._core.arguments cimport int_argument
from fastgate._core.shm.atomic cimport (
    atomic_add, atomic_cas, atomic_load, atomic_load_u64, atomic_store, atomic_store_relaxed,
    atomic_store_relaxed_u64, atomic_store_u64,
)
from fastgate._core.shm.owners cimport owner_alive, owner_self
from fastgate._core.shm.shm cimport SharedMemory

import hashlib
import time

__all__ = ["RuntimeTable", "RuntimeTableFull", "RuntimeValue"]

cdef enum:
    HEADER_WORDS = 8
    LARGEST_CAPACITY = 1 << 24
    # words of the header
    AT_LOCK = 0                     # the owner that may change values or free rows now; 0 no process
    AT_USED = 1                     # rows with a name
    AT_FAILURES = 2                 # plans that did not fit
    AT_HIGH = 3                     # rows that were ever in use: those behind are untouched memory
    AT_UNSET = 4                    # always RUNTIME_UNSET: what a name without a row reads
    # words of the index
    EMPTY = 0
    DELETED = 1
    FIRST_ROW = 2

LOCK_WAIT_S = 1.0
"""The other side holds the lock for microseconds; a stopped one (SIGSTOP) would hold it for longer."""


class RuntimeTableFull(Exception):
    """There are more names than slots. Nothing was changed. Raised by RuntimeTable.assign()."""


cdef int key_of(str name, uint64_t* key) except -1:
    cdef bytes digest = hashlib.sha256(name.encode()).digest()
    memcpy(key, <const char*>digest, 16)
    if key[0] == 0:
        key[0] = 1
    return 0


cdef class RuntimeTable:
    """RuntimeTable(capacity, shared=None)\n--\n
    Named 64-bit values: one process assigns the slots, one writes the values, all read them with one load.

    capacity: names it holds (1 to 2**24). shared: memory of `RuntimeTable.size(capacity)` bytes or more, inherited over fork;
    without it the table is made in memory of its own. ValueError: out of range, or memory too small.
    """

    def __cinit__(self, capacity, SharedMemory shared=None):
        cdef int64_t slots = int_argument(capacity, "capacity", 1, LARGEST_CAPACITY)
        if shared is None:
            shared = SharedMemory(size_of(slots))
        elif shared.size < size_of(slots):
            raise ValueError(f"shared: expected at least {size_of(slots)} bytes for {slots} slots, got {shared.size}")
        self.shared = shared
        self.capacity = slots
        self.mask = bucket_count(slots) - 1
        self.header = <int64_t*>shared.address
        self.index = <uint64_t*>(self.header + HEADER_WORDS)
        self.rows = <runtime_row_t*>(self.index + self.mask + 1)
        atomic_store(&self.header[AT_UNSET], RUNTIME_UNSET)     # by each process, and the same each time

    @staticmethod
    def size(capacity):
        """Bytes of shared memory for so many slots."""
        return size_of(int_argument(capacity, "capacity", 1, LARGEST_CAPACITY))

    # --- readers

    def value(self, str name not None, default):
        """The RuntimeValue of this name, for the life of a plan that the name was assigned for. A name without a slot always has
        the default (a 64-bit integer). Look it up while the plan is built, not later: afterwards the slot may be another's."""
        cdef uint64_t key[2]
        cdef uint64_t place
        cdef int64_t row
        cdef RuntimeValue made = RuntimeValue.__new__(RuntimeValue)
        made.default = int_argument(default, "default", -INT64_MAX, INT64_MAX)
        key_of(name, key)
        row = self.find(key, &place)
        made.at = &self.header[AT_UNSET] if row < 0 else &self.rows[row].value
        made.shared = self.shared
        made.name = name
        return made

    def get(self, str name not None):
        """The value that was set for this name, or None. LookupError: it has no slot."""
        cdef int64_t value = atomic_load(self.value_of(name))
        return None if value == RUNTIME_UNSET else value

    def __len__(self):
        """How many names have a slot."""
        return atomic_load(&self.header[AT_USED])

    def statistics(self):
        """Slots used and there are, and plans that did not fit."""
        return {
            "slots": atomic_load(&self.header[AT_USED]),
            "capacity": self.capacity,
            "failures": atomic_load(&self.header[AT_FAILURES]),
        }

    cdef int64_t find(self, const uint64_t* key, uint64_t* place) noexcept nogil:
        """The row of this key and its place in the index, or -1."""
        cdef uint64_t at = key[0] & self.mask
        cdef uint64_t steps, found
        cdef runtime_row_t* row
        for steps in range(self.mask + 1):
            found = atomic_load_u64(&self.index[at])
            if found == EMPTY:
                return -1
            if found != DELETED:
                row = &self.rows[found - FIRST_ROW]
                if atomic_load_u64(&row.key[0]) == key[0] and atomic_load_u64(&row.key[1]) == key[1]:
                    place[0] = at
                    return <int64_t>(found - FIRST_ROW)
            at = (at + 1) & self.mask
        return -1

    cdef int64_t* value_of(self, str name) except NULL:
        cdef uint64_t key[2]
        cdef uint64_t place
        key_of(name, key)
        cdef int64_t row = self.find(key, &place)
        if row < 0:
            raise LookupError(f"there is no runtime value {name!r}")
        return &self.rows[row].value

    # --- the one that writes values

    def set(self, str name not None, value):
        """Every process reads this value from now on. LookupError: no plan uses the name. ValueError: not a 64-bit integer above
        the smallest. TimeoutError: the process that assigns the slots is stopped."""
        cdef int64_t wanted = int_argument(value, "value", -INT64_MAX, INT64_MAX)
        self.store(name, wanted)

    def reset(self, str name not None):
        """Every plan uses its own value again. LookupError, TimeoutError: as for `set`."""
        self.store(name, RUNTIME_UNSET)

    cdef int store(self, str name, int64_t value) except -1:
        started = time.monotonic()
        while not self.try_lock():
            if time.monotonic() - started > LOCK_WAIT_S:
                raise TimeoutError("the process that assigns runtime values does not release the table")
            time.sleep(0.0001)
        try:
            atomic_store(self.value_of(name), value)
        finally:
            self.unlock()
        return 0

    # --- the one that assigns names

    def assign(self, names, int64_t version):
        """Gives each of these names a slot for the plan of this version; a name that has one keeps it, with its value.
        RuntimeTableFull: they do not fit, and nothing was changed but the count of failures."""
        cdef uint64_t key[2]
        cdef uint64_t place
        cdef int64_t row
        cdef list wanted = list(dict.fromkeys(names))
        cdef int64_t fresh = 0
        for name in wanted:
            key_of(name, key)
            if self.find(key, &place) < 0:
                fresh += 1
        if atomic_load(&self.header[AT_USED]) + fresh > self.capacity:
            atomic_add(&self.header[AT_FAILURES], 1)
            raise RuntimeTableFull(f"all {self.capacity} slots are taken: {len(wanted)} names, {fresh} of them new, "
                                   f"and {self.capacity - self.header[AT_USED]} slots free")
        for name in wanted:
            key_of(name, key)
            row = self.find(key, &place)
            if row < 0:
                self.claim(key, version)
            elif self.rows[row].until < version:
                self.rows[row].until = version

    def release(self, int64_t oldest, int64_t newest):
        """Frees the slots that only versions before `oldest` or after `newest` use: plans that no process uses any more, and plans
        that were refused. False when that is not possible now, because a value is being written; try again later."""
        cdef uint64_t i
        cdef runtime_row_t* row
        if not self.try_lock():
            return False
        for i in range(<uint64_t>self.header[AT_HIGH]):
            row = &self.rows[i]
            if row.key[0] != 0 and (row.until < oldest or row.since > newest):
                self.clear(i)
        self.unlock()
        return True

    cdef void claim(self, const uint64_t* key, int64_t version) noexcept nogil:
        """Puts the key into a free row; there is one."""
        cdef uint64_t i = self.hint
        cdef uint64_t at = key[0] & self.mask
        cdef runtime_row_t* row
        while self.rows[i].key[0] != 0:
            i += 1
        self.hint = i + 1
        row = &self.rows[i]
        atomic_store_relaxed(&row.value, RUNTIME_UNSET)
        row.since = version
        row.until = version
        atomic_store_relaxed_u64(&row.key[1], key[1])
        atomic_store_u64(&row.key[0], key[0])
        if <int64_t>i >= self.header[AT_HIGH]:
            atomic_store(&self.header[AT_HIGH], <int64_t>i + 1)
        while self.index[at] > DELETED:
            at = (at + 1) & self.mask
        atomic_store_u64(&self.index[at], i + FIRST_ROW)
        atomic_add(&self.header[AT_USED], 1)

    cdef void clear(self, uint64_t i) noexcept nogil:
        """Frees a row. A reader that still has its address reads it as unset."""
        cdef runtime_row_t* row = &self.rows[i]
        cdef uint64_t place
        if self.find(row.key, &place) < 0:
            return
        atomic_store_u64(&self.index[place], DELETED)
        # Before an empty bucket no deletion mark is needed: no search that passes it finds anything.
        while self.index[place] == DELETED and self.index[(place + 1) & self.mask] == EMPTY:
            atomic_store_u64(&self.index[place], EMPTY)
            place = (place - 1) & self.mask
        atomic_store(&row.value, RUNTIME_UNSET)
        atomic_store_u64(&row.key[0], 0)
        if i < self.hint:
            self.hint = i
        atomic_add(&self.header[AT_USED], -1)

    # --- the lock

    cdef bint try_lock(self) except -1:
        cdef int64_t me = owner_self()
        cdef int64_t found = 0
        if atomic_cas(&self.header[AT_LOCK], &found, me):
            return True
        # A dead owner left nothing half done: a value is one store, and the one who assigns does not die alone.
        return not owner_alive(found) and atomic_cas(&self.header[AT_LOCK], &found, me)

    cdef void unlock(self) noexcept nogil:
        atomic_store(&self.header[AT_LOCK], 0)


cdef class RuntimeValue:
    """The value of one name as a plan sees it: what was set at run time, else the plan's own."""

    def get(self):
        """The value in effect."""
        if self.at == NULL:
            raise ValueError("make a RuntimeValue with RuntimeTable.value()")
        return self.c_get()

    def __repr__(self):
        return f"RuntimeValue({self.name!r}, default={self.default})"


cdef uint64_t bucket_count(uint64_t capacity) noexcept nogil:
    cdef uint64_t count = 2
    while count < 2 * capacity:
        count <<= 1
    return count


cdef size_t size_of(uint64_t capacity) noexcept nogil:
    return HEADER_WORDS * 8 + bucket_count(capacity) * 8 + capacity * sizeof(runtime_row_t)
