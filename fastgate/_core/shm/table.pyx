"""LimiterTable: a bounded hash table in shared memory, private or shared by several processes.

WHAT        The object that owns the memory: its layout, its header, its places for processes. How entries are found, stored and displaced,
            and why a process may die at any moment, is in table_slots.pyx.
STATE       header 32 words | owners 8 words each | index 1 word per slot, 8 slots to a bucket | records. Zero bytes are a valid empty
            table. The header is written by the first process, under a word that names it; if that process dies, the next one begins again.
COST        Memory: 1.75 × (8 + record) bytes per key: 126 for up to 5 words of state, 238 for up to 13.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from fastgate._core.arguments cimport int_argument
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.hashing cimport hash128, hash_key_random, siphash
from fastgate._core.shm.atomic cimport atomic_cas, atomic_load, atomic_load_u64, atomic_store
from fastgate._core.shm.owners cimport fork_generation, owner_alive, owner_self
from fastgate._core.shm.table_slots cimport (
    AT_BOOT, AT_DISPLACED, AT_EVICTED, AT_INSERTED, AT_LAYOUT, AT_OVER_SHARE, AT_OWNERS, AT_RECOVERED, AT_REFUSED, AT_REUSED, AT_SECRET,
    AT_SLOTS, AT_STATE, AT_WORDS, BUCKET, LARGEST_CAPACITY, LARGEST_OWNERS, RECORD_WORDS, TABLE_PENDING, record_at, record_of,
    table_join, table_recover, tag_of,
)

import time

__all__ = ["LimiterTable", "live_objects"]

cdef extern from *:
    """
    #include <sys/mman.h>
    #define TABLE_MAGIC INT64_C(0x6661737467617465)
    """
    const int64_t TABLE_MAGIC
    int madvise(void* address, size_t length, int advice) noexcept nogil
    const int MADV_HUGEPAGE

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:
    LAYOUT = 2              # raised with every change of what lies in the memory
    HEADER_WORDS = 32


cdef int key_argument(object key, const uint64_t* secret, hash128_t* out) except -1:
    """Hashes a key from Python: bytes, or str as UTF-8."""
    cdef Py_ssize_t n
    cdef const char* text
    if PyBytes_CheckExact(key):
        hash128(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), secret, out)
        return 0
    if not PyUnicode_Check(key):
        raise TypeError(f"key: expected str or bytes, got {key!r}")
    try:
        text = PyUnicode_AsUTF8AndSize(key, &n)
    except UnicodeEncodeError:
        raise ValueError(f"key: expected text without lone surrogates, got {key!r}") from None
    hash128(text, n, secret, out)
    return 0


cdef int how_argument(object when_full) except -1:
    if when_full == "refuse":
        return TABLE_KEEP
    if when_full == "share":
        return TABLE_FAIR
    if when_full == "evict":
        return TABLE_EVICT
    raise ValueError(f"when_full: expected 'refuse', 'share' or 'evict', got {when_full!r}")


cdef uint64_t boot_name() except? 0:
    """A number that identifies this boot of the host; 1 if it cannot be determined."""
    cdef bytes text
    cdef uint64_t key[2]
    key[0] = key[1] = 0
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            text = file.read()
    except OSError:
        return 1
    return siphash(<const char*>text, len(text), key) | 1


# The collector would release the memory that __dealloc__ still writes to.
@cython.no_gc_clear
cdef class LimiterTable:
    """LimiterTable(capacity, state_words=5, shared=None, processes=256)\n--\n
    The memory of KeyedLimiter and PenaltyBox: bounded, private or shared, for one limiter or for many.

    capacity: minimum number of keys (1 to 9 000 000). state_words: of the widest entry (1 to 29); TokenBucket takes 1,
    FixedWindow and SlidingWindow 2, PenaltyBox 4. Up to 5 words an entry is one cache line, up to 13 two. shared: memory of at
    least `LimiterTable.size(...)` bytes, else the table is private. processes: maximum number of concurrent handles.
    ValueError: out of range, memory too small, or it already contains a table of another shape. RuntimeError: all places in use.
    """

    def __cinit__(self, capacity, state_words=5, SharedMemory shared=None, processes=256):
        cdef int64_t keys = int_argument(capacity, "capacity", 1, LARGEST_CAPACITY)
        cdef int64_t state = int_argument(state_words, "state_words", 1, STATE_WORDS)
        cdef int64_t owners = int_argument(processes, "processes", 1, LARGEST_OWNERS)
        cdef table_t* t = &self.handle
        cdef uint64_t* memory
        cdef size_t needed
        debug_live_add(1)
        self.capacity = keys
        self.state_words = <int>state
        self.shared = shared
        t.is_shared = shared is not None
        t.owner_count = owners if t.is_shared else 1
        t.words = (RECORD_WORDS + state + 7) // 8 * 8
        t.buckets = (keys * 7 // 4 + BUCKET - 1) // BUCKET + 1
        t.slots = t.buckets * BUCKET
        needed = table_bytes(t)
        if shared is None:
            memory = <uint64_t*>mmap(NULL, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
            if <void*>memory == MAP_FAILED:
                raise MemoryError(f"capacity: {keys} keys need {needed} bytes")
            self._private = memory
            self._private_bytes = needed
        else:
            if shared.size < needed:
                raise ValueError(f"shared: expected at least {needed} bytes for {keys} keys, got {shared.size}")
            memory = <uint64_t*>shared.address
        if needed >= 8 << 20:
            # A random key touches a page each in index and records; 2 MB pages avoid the page walks. A refusal is harmless.
            madvise(memory, needed & ~<size_t>4095, MADV_HUGEPAGE)
        t.header = memory
        t.owners = <owner_t*>(memory + HEADER_WORDS)
        t.index = memory + HEADER_WORDS + t.owner_count * 8
        t.records = <int64_t*>(t.index + t.slots)
        self.lay_out()
        self.secret[0] = t.header[AT_SECRET]
        self.secret[1] = t.header[AT_SECRET + 1]
        if not table_join(t):
            raise RuntimeError(f"processes: all {owners} places of the table are in use")

    cdef int lay_out(self) except -1:
        """Writes the header of new memory, or checks that of an existing table."""
        cdef table_t* t = &self.handle
        cdef int64_t* state = <int64_t*>&t.header[AT_STATE]
        cdef int64_t me = owner_self()
        cdef int64_t found
        cdef uint64_t boot = boot_name()
        while True:
            found = atomic_load(state)
            if found == TABLE_MAGIC and t.header[AT_BOOT] == boot:
                break
            if found == 0 or found == TABLE_MAGIC or not owner_alive(found):
                if not atomic_cas(state, &found, me):
                    continue
                memset(t.header + 1, 0, (HEADER_WORDS - 1) * 8)
                if found != 0:          # the host restarted: the stored times are invalid
                    memset(t.owners, 0, <size_t>(<char*>(t.records + (t.slots + t.owner_count + 1) * t.words) - <char*>t.owners))
                t.header[AT_LAYOUT] = LAYOUT
                t.header[AT_SLOTS] = t.slots
                t.header[AT_WORDS] = t.words
                t.header[AT_OWNERS] = t.owner_count
                hash_key_random(&t.header[AT_SECRET])
                t.header[AT_BOOT] = boot
                atomic_store(state, TABLE_MAGIC)
                return 0
            time.sleep(0.0005)          # another process is writing the header
        if t.header[AT_LAYOUT] != LAYOUT or t.header[AT_SLOTS] != t.slots or t.header[AT_WORDS] != t.words \
                or t.header[AT_OWNERS] != t.owner_count:
            raise ValueError(
                f"shared: expected a table of layout {LAYOUT}, {t.slots} slots, {t.words} words, {t.owner_count} processes; "
                f"it holds one of layout {t.header[AT_LAYOUT]}, {t.header[AT_SLOTS]} slots, {t.header[AT_WORDS]} words, "
                f"{t.header[AT_OWNERS]} processes")
        return 0

    def __dealloc__(self):
        cdef table_t* t = &self.handle
        debug_live_add(-1)
        if t.is_shared and t.generation == fork_generation() and t.header != NULL:
            atomic_store(&t.owners[t.owner].ident, 0)
        if self._private != NULL:
            munmap(self._private, self._private_bytes)

    cdef int ready(self) except -1:
        if not table_ready(&self.handle):
            raise RuntimeError(f"processes: all {self.handle.owner_count} places of the table are in use")
        return 0

    @staticmethod
    def size(capacity, state_words=5, processes=256):
        """Bytes of shared memory for a table of that shape."""
        cdef table_t t
        cdef int64_t keys = int_argument(capacity, "capacity", 1, LARGEST_CAPACITY)
        t.words = (RECORD_WORDS + int_argument(state_words, "state_words", 1, STATE_WORDS) + 7) // 8 * 8
        t.owner_count = int_argument(processes, "processes", 1, LARGEST_OWNERS)
        t.slots = ((keys * 7 // 4 + BUCKET - 1) // BUCKET + 1) * BUCKET
        return table_bytes(&t)

    def counts(self):
        """Counts since the table was created: inserted, reused, evicted, displaced (for a rule or source with few entries),
        refused (no place), over_share (of those refused: there was room reserved for other rules), recovered."""
        cdef table_t* t = &self.handle
        return {
            "inserted": t.header[AT_INSERTED],
            "reused": t.header[AT_REUSED],
            "evicted": t.header[AT_EVICTED],
            "refused": t.header[AT_REFUSED],
            "recovered": t.header[AT_RECOVERED],
            "displaced": t.header[AT_DISPLACED],
            "over_share": t.header[AT_OVER_SHARE],
        }

    def statistics(self):
        """counts(), and `entries`: the current number, including idle ones. Reads the whole index (1 ms per million slots)."""
        cdef table_t* t = &self.handle
        cdef uint64_t slot
        cdef uint64_t entries = 0
        with nogil:
            for slot in range(t.slots):
                entries += tag_of(atomic_load_u64(&t.index[slot])) != 0
        return {"entries": entries, **self.counts()}

    def audit(self):
        """What is wrong with the table, as a list of sentences; empty if all is well. Only while it is not in use.

        Checks that every record belongs to exactly one slot or owner and that no key is live twice. Reads everything.
        """
        cdef table_t* t = &self.handle
        cdef uint64_t slot, record, i
        cdef uint64_t head
        found = []
        seen = {}
        keys = set()
        for i in range(t.owner_count):
            if t.owners[i].ident != 0 and not owner_alive(t.owners[i].ident):
                table_recover(t, i)
            seen[t.owners[i].spare or t.slots + 1 + i] = f"the spare of owner {i}"
        if <uint64_t>len(seen) != t.owner_count:
            found.append("two owners have the same spare")
        for slot in range(t.slots):
            head = t.index[slot]
            record = record_of(head, slot)
            if record in seen:
                found.append(f"record {record} is in slot {slot} and is {seen[record]}")
            seen[record] = f"in slot {slot}"
            if tag_of(head) and not head & TABLE_PENDING:
                key = (record_at(t, record)[0], record_at(t, record)[1] >> 24)
                if key in keys:
                    found.append(f"key {key} is live twice")
                keys.add(key)
        return found


cdef size_t table_bytes(const table_t* t) noexcept nogil:
    return (HEADER_WORDS + t.owner_count * 8 + t.slots + (t.slots + t.owner_count + 1) * t.words) * 8


def live_objects():
    """How many objects of this module are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
