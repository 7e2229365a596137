"""ConcurrencyLimit: a bound on concurrent operations, by leases that are recovered even if their process dies.

WHAT        acquire() returns a Lease or None; a Lease is released exactly once: by release(), by leaving its `with`, or when it
            is dropped. A lease of a dead process is free again at the next acquire that needs it.
STATE       header 8 words: [ready] [capacity] [limit] [unused ...] | one word per slot: 0 = free, else the owner (owners.pyx)

            There is no counter. The number in use is the number of taken slots, so no count can disagree with them, and one
            CAS is the whole of acquire and of release: a process killed between the two leaves its name in the slot.
WHO WRITES  a slot: CAS 0 → owner by the acquiring process, owner → 0 by the owner, or by any process once the owner is dead. The
            limit word: set_limit. A limit lowered below the number held admits only into slots below it while the others drain.
COST        acquire and release about 30 ns each; a refusal reads `limit` words (100 ns per 1000). When all are taken, at most
            every 100 ms, the owners are looked up in /proc (10 µs for each process that holds any).
SOURCES     owner names as in robust futexes, set_robust_list(2), without the kernel; pid + start time: proc_pid_stat(5)
"""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.arguments cimport int_argument
from fastgate._core.shm.atomic cimport atomic_cas, atomic_load, atomic_load_relaxed, atomic_store
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.shm.owners cimport fork_generation, owner_alive, owner_self
from fastgate._core.shm.shm cimport SharedMemory

__all__ = ["ConcurrencyLimit", "Lease", "live_objects"]

cdef enum:
    HEADER_WORDS = 8
    READY = 0
    CAPACITY = 1
    LIMIT = 2
    ESTIMATE = 3            # not 0: adaptive.pyx moves the limit
    LARGEST_CAPACITY = 1_000_000
    REAP_EVERY_NS = 100_000_000


cdef void notice_fork(leases_t* leases) noexcept nogil:
    """In a forked child a private limit starts empty: the copied leases belong to the parent."""
    cdef int64_t slot
    leases.generation = fork_generation()
    leases.reaped_at_ns = 0
    if not leases.is_shared:
        for slot in range(leases.capacity):
            leases.slots[slot] = 0


cdef int64_t try_slots(leases_t* leases, int64_t me) noexcept nogil:
    cdef int64_t limit = atomic_load(&leases.header[LIMIT])
    cdef int64_t slot = leases.hint
    cdef int64_t i, free
    if slot >= limit:
        slot = 0
    for i in range(limit):
        if atomic_load_relaxed(&leases.slots[slot]) == 0:
            free = 0
            if atomic_cas(&leases.slots[slot], &free, me):
                leases.hint = slot + 1
                return slot
        slot += 1
        if slot == limit:
            slot = 0
    return -1


cdef int64_t lease_acquire(leases_t* leases) noexcept nogil:
    cdef int64_t me = owner_self()
    cdef int64_t slot, now_ns
    if leases.generation != fork_generation():
        notice_fork(leases)
    slot = try_slots(leases, me)
    if slot >= 0 or not leases.is_shared:
        return slot
    now_ns = monotonic_ns()
    if now_ns - leases.reaped_at_ns < REAP_EVERY_NS:
        return -1
    leases.reaped_at_ns = now_ns
    return try_slots(leases, me) if lease_reap(leases) != 0 else -1


cdef bint lease_release(leases_t* leases, int64_t slot) noexcept nogil:
    cdef int64_t me = owner_self()
    if not atomic_cas(&leases.slots[slot], &me, 0):
        return False
    leases.hint = slot
    return True


cdef int64_t lease_reap(leases_t* leases) noexcept nogil:
    cdef int64_t me = owner_self()
    cdef int64_t living = me        # the last owner found alive: neighbors often have the same one
    cdef int64_t dead = 0
    cdef int64_t freed = 0
    cdef int64_t slot, owner
    for slot in range(leases.capacity):
        owner = atomic_load(&leases.slots[slot])
        if owner == 0 or owner == me or owner == living:
            continue
        if owner != dead and owner_alive(owner):
            living = owner
            continue
        dead = owner
        freed += atomic_cas(&leases.slots[slot], &owner, 0)
    return freed


cdef int64_t lease_count(leases_t* leases) noexcept nogil:
    cdef int64_t held = 0
    cdef int64_t slot
    if leases.generation != fork_generation():
        notice_fork(leases)
    for slot in range(leases.capacity):
        held += atomic_load_relaxed(&leases.slots[slot]) != 0
    return held


cdef class ConcurrencyLimit:
    """ConcurrencyLimit(limit, shared=None, capacity=None)\n--\n
    At most `limit` leases at a time, over all threads, and all processes that share the memory.

    limit: 1 to capacity. capacity: what set_limit may raise it to, at most 1 000 000 (default: limit). shared: SharedMemory of
    ConcurrencyLimit.size(capacity) bytes, which must see the same pids; without it the limit is this process's own and
    a forked child starts with none in use. ValueError: out of range, too little memory, or it holds another limit.
    """

    def __cinit__(self, limit, SharedMemory shared=None, capacity=None):
        cdef int64_t most = int_argument(limit if capacity is None else capacity, "limit" if capacity is None else "capacity",
                                         1, LARGEST_CAPACITY)
        cdef int64_t first = int_argument(limit, "limit", 1, most)
        cdef leases_t* leases = &self.leases
        cdef int64_t found
        cdef size_t needed = (HEADER_WORDS + most) * 8
        self.is_shared = leases.is_shared = shared is not None
        if shared is not None and shared.size < needed:
            raise ValueError(f"shared: expected at least {needed} bytes for {most} leases, got {shared.size}")
        if shared is None:
            # A fork must copy private memory, not share it: it copies a bytearray.
            self.keep = bytearray(needed + 8)
            leases.header = <int64_t*>((<size_t><char*>self.keep + 7) & ~<size_t>7)
        else:
            self.keep = shared
            leases.header = <int64_t*>shared.address
        leases.slots = leases.header + HEADER_WORDS
        leases.capacity = most
        leases.generation = fork_generation()
        found = 0
        if not atomic_cas(&leases.header[CAPACITY], &found, most) and found != most:
            leases.header = NULL
            raise ValueError(f"shared: it holds a limit of capacity {found}, expected {most}")
        found = 0
        if not atomic_cas(&leases.header[LIMIT], &found, first) and found != first and leases.header[ESTIMATE] == 0:
            raise ValueError(f"shared: it holds a limit of {found}, got {first}; change it with set_limit")

    def acquire(self):
        """A Lease, or None if all are taken."""
        cdef Lease lease
        cdef int64_t slot = lease_acquire(&self.leases)
        if slot < 0:
            return None
        lease = Lease.__new__(Lease)
        lease.owner = self
        lease.slot = slot
        lease.generation = self.leases.generation
        return lease

    def reap(self):
        """Frees the leases of dead processes now; returns how many. acquire() does so automatically when no lease is free."""
        return lease_reap(&self.leases)

    @property
    def in_use(self):
        """Leases held now, those of dead processes excluded."""
        if self.is_shared:
            lease_reap(&self.leases)
        return lease_count(&self.leases)

    @property
    def limit(self):
        """The current limit, the same for every process."""
        return atomic_load(&self.leases.header[LIMIT])

    def set_limit(self, limit):
        """Changes the limit for every process; leases held above it drain."""
        atomic_store(&self.leases.header[LIMIT], int_argument(limit, "limit", 1, self.leases.capacity))

    @property
    def capacity(self):
        """The largest limit that set_limit accepts."""
        return self.leases.capacity

    @staticmethod
    def size(capacity):
        """Bytes of shared memory for this many leases."""
        return (HEADER_WORDS + int_argument(capacity, "capacity", 1, LARGEST_CAPACITY)) * 8

    def __repr__(self):
        return f"ConcurrencyLimit(limit={self.limit}, capacity={self.leases.capacity})"


@cython.final
@cython.freelist(64)
cdef class Lease:
    """One unit of a ConcurrencyLimit. Usable as a context manager. Made by acquire()."""

    def __cinit__(self):
        self.slot = -1
        debug_live_add(1)

    cdef bint give_back(self) noexcept:
        cdef int64_t slot = self.slot
        self.slot = -1
        # A copy in a forked child holds nothing: the lease belongs to the parent.
        return slot >= 0 and self.generation == fork_generation() and lease_release(&self.owner.leases, slot)

    def release(self):
        """True if this call released the lease; False if it was released before, or in a process that did not acquire it."""
        return self.give_back()

    @property
    def is_held(self):
        """Whether this process holds the lease."""
        return self.slot >= 0 and self.generation == fork_generation()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.give_back()
        return False

    def __dealloc__(self):
        debug_live_add(-1)
        if self.slot >= 0 and self.owner is not None:
            self.give_back()


def live_objects():
    """How many objects of this module are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
