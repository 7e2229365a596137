"""Directory: a map in shared memory that one process writes and all read without waiting.

WHAT        A map from a 32-byte digest to a blob, with a use count and the time of the last use. It does not interpret the blobs:
            the controller defines them, and stores the contents of the store in it (keys, consumers and other documents).
STATE       header 16 words | watches 2 words each | buckets 1 word each, the first record of a chain | records 64 bytes each
            | arena, units of 16 bytes

              record.head   changes 22 | place in the arena 26 | length in units 16        0 units = dead
              arena         blobs, each after its length in 4 bytes; the last `scratch` units are for compaction only

            `head` is the record and its version in one word: one store replaces a blob or revokes a record, and a holder of
            the old head detects with one load that it is outdated (c_current). Equal heads of one record mean the same blob,
            unless 4 million changes later it is at the same place again.
            A watch is the first word of a digest and the number of changes under that digest, whether or not it has an entry:
            a reader of a document detects its change with one load, and changes of other documents do not affect it.
            A chain changes by one store. Before a removed record is reused for another digest, `generation` advances:
            a reader that may have followed a pointer into another chain detects that and retries. So a miss is never false.
WHO WRITES  One process (`writer`, taken over if it is dead): everything except the uses, which any process counts with an atomic
            add, and the digest of a watch, which the first watcher sets with one CAS. Watches are never removed: there is one per
            kind of document in the program. The writer counts a change after it is in effect; a new writer counts one for
            every watch, because the previous one may have been killed between the two. Only the writer knows the free
            records and arena units, and rebuilds that from the reachable ones; so a writer that is killed at any
            instruction leaves each record as it was before or after, and nothing locked or lost.
            Blobs are appended; a full arena is compacted by moving each blob down, through the scratch area if the two
            places overlap, with the head changed after each copy. A reader that copied from an abandoned place sees that the
            head has changed, and reads again.
COST        find: 2 cache misses, 25 ns warm; current, changes: one load; used: one atomic add. put: 0.4 µs. 72 bytes per record
            of capacity, 16 to 31 per blob. Compaction: once per filled arena, about 1 ms per 3 MB of live blobs.
SOURCES     Lameter, Effective synchronization on Linux (seqlock reads); Harris 2001 (chains read while they change).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcmp, memcpy, memset

from fastgate._core.arguments cimport int_argument
from fastgate._core.shm.atomic cimport (
    atomic_add_relaxed, atomic_add_u64, atomic_cas, atomic_cas_u64, atomic_fence, atomic_load, atomic_load_relaxed, atomic_load_relaxed_u64, atomic_load_u64,
    atomic_store, atomic_store_relaxed, atomic_store_relaxed_u64, atomic_store_u64,
)
from fastgate._core.shm.directory_arena cimport (
    AT_CAPACITY, AT_COMPACTIONS, AT_ENTRIES, AT_GENERATION, AT_HIGH, AT_LAYOUT, AT_LIVE, AT_LOADED, AT_NAME, AT_SCRATCH, AT_STATE, AT_TAKEOVERS, AT_UNITS, AT_WRITER, HEADER_WORDS, MAX_UNITS, PLACE_BITS, UNIT, WATCHES,
    arena_compact, arena_rebuild, next_head, place_of, units_of,
)
from fastgate._core.shm.owners cimport owner_alive, owner_self
from fastgate._core.shm.shm cimport SharedMemory

import os
import time

__all__ = ["LARGEST_BLOB", "Directory", "DirectoryFull"]

cdef extern from *:
    """
    #include <stdint.h>
    #define DIRECTORY_MAGIC INT64_C(0x6661737464697231)
    static inline void directory_read_fence(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    """
    const int64_t DIRECTORY_MAGIC
    void directory_read_fence() noexcept nogil

cdef enum:
    LAYOUT = 2
    LENGTH_BYTES = 4
    LARGEST_CAPACITY = 1 << 27

LARGEST_BLOB = MAX_UNITS * UNIT - LENGTH_BYTES
"""Bytes; less in an arena of under 4 MB, of which a quarter is scratch."""

cdef object LARGEST_ARENA = UNIT << PLACE_BITS


class DirectoryFull(Exception):
    """No record or no space in the arena is left. Nothing was changed. Raised by Directory.put()."""


cdef inline uint64_t units_for(size_t n) noexcept nogil:
    return (n + LENGTH_BYTES + UNIT - 1) // UNIT


cdef const unsigned char* digest_argument(object digest) except NULL:
    if not PyBytes_CheckExact(digest):
        raise TypeError(f"digest: expected 32 bytes, got {type(digest).__name__}")
    if PyBytes_GET_SIZE(digest) != 32:
        raise ValueError(f"digest: expected 32 bytes, got {len(digest)}")
    return <const unsigned char*>PyBytes_AS_STRING(digest)


cdef class Directory:
    """Directory(capacity, arena_bytes, shared=None)\n--\n
    A map from digests to blobs that all processes of this host read, and one writes.

    capacity: number of entries (1 to 2**27). arena_bytes: for the blobs (4 KiB to 1 GiB). shared: memory of at least
    `Directory.size(...)` bytes, inherited over fork; without it the directory has private memory.
    ValueError: out of range, memory too small, or it already contains a directory of another shape.
    """

    def __cinit__(self, capacity, arena_bytes, SharedMemory shared=None):
        cdef int64_t entries = int_argument(capacity, "capacity", 1, LARGEST_CAPACITY)
        cdef int64_t bytes_wanted = int_argument(arena_bytes, "arena_bytes", 4096, LARGEST_ARENA)
        cdef directory_t* d = &self.d
        cdef size_t needed = size_of(entries, bytes_wanted)
        if shared is None:
            shared = SharedMemory(needed)
        elif shared.size < needed:
            raise ValueError(f"shared: expected at least {needed} bytes for {entries} entries, got {shared.size}")
        self.shared = shared
        self.capacity = entries
        self.arena_bytes = bytes_wanted
        d.capacity = entries
        d.mask = bucket_count(entries) - 1
        d.scratch = min(<uint64_t>MAX_UNITS, <uint64_t>bytes_wanted // UNIT // 4)
        d.units = <uint64_t>bytes_wanted // UNIT - d.scratch
        d.header = <uint64_t*>shared.address
        d.watches = d.header + HEADER_WORDS
        d.buckets = d.watches + 2 * WATCHES
        d.records = <record_t*>(d.buckets + d.mask + 1)
        d.arena = <char*>(d.records + entries)
        lay_out(d)

    def __dealloc__(self):
        free(self.d.free)

    @staticmethod
    def size(capacity, arena_bytes):
        """Bytes of shared memory for a directory of that shape; unused pages cost nothing."""
        return size_of(int_argument(capacity, "capacity", 1, LARGEST_CAPACITY),
                       int_argument(arena_bytes, "arena_bytes", 4096, LARGEST_ARENA))

    # --- readers

    cdef int64_t c_find(self, const unsigned char* digest, uint64_t* version) noexcept nogil:
        cdef directory_t* d = &self.d
        cdef uint64_t wanted[4]
        cdef uint64_t generation, at, head, difference, steps
        cdef record_t* record
        memcpy(wanted, digest, 32)
        while True:
            generation = atomic_load_u64(&d.header[AT_GENERATION])
            at = atomic_load_u64(&d.buckets[wanted[0] & d.mask])
            steps = 0
            while at != 0 and steps <= d.capacity:
                record = &d.records[at - 1]
                head = atomic_load_u64(&record.head)
                difference = (atomic_load_relaxed_u64(&record.digest[0]) ^ wanted[0]) \
                    | (atomic_load_relaxed_u64(&record.digest[1]) ^ wanted[1]) \
                    | (atomic_load_relaxed_u64(&record.digest[2]) ^ wanted[2]) \
                    | (atomic_load_relaxed_u64(&record.digest[3]) ^ wanted[3])
                if difference == 0 and units_of(head) != 0:
                    # The digest belongs to this record only while the head is unchanged: a record is dead before it is reused.
                    directory_read_fence()
                    if atomic_load_u64(&record.head) == head:
                        version[0] = head
                        return <int64_t>(at - 1)
                    break
                at = atomic_load_u64(&record.next)
                steps += 1
            directory_read_fence()
            if at == 0 and atomic_load_u64(&d.header[AT_GENERATION]) == generation:
                return -1

    cdef bint c_current(self, int64_t index, uint64_t version) noexcept nogil:
        return atomic_load_u64(&self.d.records[index].head) == version

    cdef uint64_t c_changes(self, int watch) noexcept nogil:
        return atomic_load_u64(&self.d.watches[2 * watch + 1])

    cdef int c_watch(self, const unsigned char* digest) except -1:
        cdef directory_t* d = &self.d
        cdef uint64_t wanted, found
        cdef int i
        cdef uint64_t* word
        memcpy(&wanted, digest, 8)
        for i in range(WATCHES):
            word = &d.watches[2 * ((wanted + <uint64_t>i) & (WATCHES - 1))]
            found = atomic_load_u64(word)
            if found == wanted or (found == 0 and (atomic_cas_u64(word, &found, wanted) or found == wanted)):
                # Pairs with the add in count_change(): either this process sees the change, or the writer sees the watch.
                atomic_fence()
                return <int>((wanted + <uint64_t>i) & (WATCHES - 1))
        raise DirectoryFull(f"all {WATCHES} watches are in use")

    cdef void c_used(self, int64_t index, int64_t realtime_ns) noexcept nogil:
        cdef record_t* record = &self.d.records[index]
        atomic_add_relaxed(&record.used, 1)
        if atomic_load_relaxed(&record.last_used_ns) < realtime_ns:
            atomic_store_relaxed(&record.last_used_ns, realtime_ns)

    cdef int c_loaded(self) noexcept nogil:
        return <int>atomic_load_u64(&self.d.header[AT_LOADED])

    cdef object c_read(self, int64_t index, uint64_t version):
        cdef directory_t* d = &self.d
        cdef const char* blob = d.arena + place_of(version) * UNIT
        cdef uint32_t length
        cdef bytes out
        memcpy(&length, blob, LENGTH_BYTES)
        directory_read_fence()
        # The length is valid only while the head is unchanged; the data read after that may still change concurrently.
        if not self.c_current(index, version) or length > units_of(version) * UNIT - LENGTH_BYTES:
            return None
        out = PyBytes_FromStringAndSize(blob + LENGTH_BYTES, length)
        directory_read_fence()
        return out if self.c_current(index, version) else None

    def get(self, digest):
        """(index, version, blob) of a digest, or None."""
        cdef const unsigned char* wanted = digest_argument(digest)
        cdef uint64_t version
        cdef int64_t index
        while True:
            index = self.c_find(wanted, &version)
            if index < 0:
                return None
            blob = self.c_read(index, version)
            if blob is not None:
                return index, version, blob

    def is_current(self, int64_t index, uint64_t version):
        """True while the record has the version that `get` returned."""
        if not 0 <= index < self.capacity:
            raise IndexError(f"index: expected 0 to {self.capacity - 1}, got {index}")
        return self.c_current(index, version)

    def watch(self, digest):
        """The number of the watch on this digest, for `changes`; the same in every process. DirectoryFull: 256 digests are watched."""
        return self.c_watch(digest_argument(digest))

    def changes(self, int watch):
        """The number of changes of the watched digest. Read it before the blob, so that a change in between is detected."""
        if not 0 <= watch < WATCHES:
            raise IndexError(f"watch: expected 0 to {WATCHES - 1}, got {watch}")
        return self.c_changes(watch)

    def use(self, int64_t index, int64_t realtime_ns):
        """Counts one use of a record; from any process."""
        if not 0 <= index < self.capacity:
            raise IndexError(f"index: expected 0 to {self.capacity - 1}, got {index}")
        self.c_used(index, realtime_ns)

    def usage(self, digest):
        """(uses, time of the last one in realtime ns, 0 = never) of a digest; (0, 0) if it is absent."""
        cdef uint64_t version
        cdef int64_t index = self.c_find(digest_argument(digest), &version)
        if index < 0:
            return 0, 0
        return atomic_load_relaxed(&self.d.records[index].used), atomic_load_relaxed(&self.d.records[index].last_used_ns)

    def usages(self, int64_t since_ns=0):
        """(digest, uses, last use) of every entry used at `since_ns` or later; walks all records."""
        cdef directory_t* d = &self.d
        cdef uint64_t i, head
        cdef int64_t last
        cdef bytes digest
        cdef list found = []
        for i in range(atomic_load_u64(&d.header[AT_HIGH])):
            last = atomic_load_relaxed(&d.records[i].last_used_ns)
            if last == 0 or last < since_ns:
                continue
            head = atomic_load_u64(&d.records[i].head)
            if units_of(head) == 0:
                continue
            digest = PyBytes_FromStringAndSize(<const char*>d.records[i].digest, 32)
            found.append((digest, atomic_load_relaxed(&d.records[i].used), last))
        return found

    def digests(self):
        """Every digest, in no order; reads all records. For the writer: other processes may see one twice or miss one."""
        cdef directory_t* d = &self.d
        cdef uint64_t i, version
        cdef bytes digest
        cdef list found = []
        for i in range(atomic_load_u64(&d.header[AT_HIGH])):
            if units_of(atomic_load_u64(&d.records[i].head)) == 0:
                continue
            digest = PyBytes_FromStringAndSize(<const char*>d.records[i].digest, 32)
            # A record that a killed writer had filled is absent until it is in its chain.
            if self.c_find(<const unsigned char*>PyBytes_AS_STRING(digest), &version) == <int64_t>i:
                found.append(digest)
        return found

    @property
    def generation(self):
        """A number that changes with every change."""
        return atomic_load_u64(&self.d.header[AT_GENERATION])

    @property
    def loaded(self):
        """0: not loaded yet; 1: loaded now or before; 2: cannot be loaded. Set by the writer."""
        return self.c_loaded()

    @loaded.setter
    def loaded(self, value):
        atomic_store_u64(&self.d.header[AT_LOADED], int_argument(value, "loaded", 0, 2))

    @property
    def name(self):
        """A random id of this directory: it differs if the memory is new."""
        return self.d.header[AT_NAME]

    def entries(self):
        """Number of digests."""
        return atomic_load_u64(&self.d.header[AT_ENTRIES])

    def statistics(self):
        """Entries and capacity, bytes of live blobs and of the arena, compactions, and the number of writer takeovers."""
        cdef uint64_t* header = self.d.header
        return {
            "entries": header[AT_ENTRIES],
            "capacity": self.d.capacity,
            "blob_bytes": header[AT_LIVE] * UNIT,
            "arena_bytes": self.d.units * UNIT,
            "compactions": header[AT_COMPACTIONS],
            "takeovers": header[AT_TAKEOVERS],
            "generation": header[AT_GENERATION],
        }

    # --- the writer

    def put(self, digest, blob, used=0, last_used_ns=0):
        """Adds an entry or replaces its blob; False, without a change, if it already has this blob.

        used, last_used_ns: initial values of a new entry; an existing entry keeps its own.
        ValueError: the blob is too large. DirectoryFull: no space. RuntimeError: another living process writes.
        """
        cdef const unsigned char* wanted = digest_argument(digest)
        cdef directory_t* d = &self.d
        cdef uint64_t version, bucket
        cdef int64_t index
        cdef record_t* record
        cdef bint is_new
        cdef int i
        if not PyBytes_CheckExact(blob):
            raise TypeError(f"blob: expected bytes, got {type(blob).__name__}")
        cdef bytes content = blob
        cdef int64_t uses = int_argument(used, "used", 0, (<int64_t>1 << 62))
        cdef int64_t last = int_argument(last_used_ns, "last_used_ns", 0, (<int64_t>1 << 62))
        if units_for(len(content)) > d.scratch:
            raise ValueError(f"blob: expected at most {d.scratch * UNIT - LENGTH_BYTES} bytes, got {len(content)}")
        self.become_writer()
        index = self.c_find(wanted, &version)
        is_new = index < 0
        if is_new:
            if d.free_count == 0:
                if d.header[AT_HIGH] == d.capacity:
                    raise DirectoryFull(f"all {d.capacity} entries are in use")
                d.free[0] = <uint32_t>d.header[AT_HIGH]
                d.free_count = 1
                atomic_store_u64(&d.header[AT_HIGH], d.header[AT_HIGH] + 1)
            index = d.free[d.free_count - 1]
        elif self.c_read(index, version) == content:
            return False
        record = &d.records[index]
        if is_new:
            # Readers that are still on this record from its former chain must retry.
            atomic_add_u64(&d.header[AT_GENERATION], 1)
            bucket = (<const uint64_t*>wanted)[0] & d.mask
            for i in range(4):
                atomic_store_relaxed_u64(&record.digest[i], (<const uint64_t*>wanted)[i])
            atomic_store_relaxed(&record.used, uses)
            atomic_store_relaxed(&record.last_used_ns, last)
            atomic_store_u64(&record.next, atomic_load_u64(&d.buckets[bucket]))
            d.generation = atomic_load_u64(&d.header[AT_GENERATION])
            self.store_blob(record, content)
            d.free_count -= 1
            atomic_store_u64(&d.buckets[bucket], <uint64_t>index + 1)
            atomic_add_u64(&d.header[AT_ENTRIES], 1)
        else:
            self.store_blob(record, content)
        d.generation = atomic_add_u64(&d.header[AT_GENERATION], 1) + 1
        self.count_change(wanted)
        return True

    def remove(self, digest):
        """True if the entry existed. On return no process finds it, and no holder considers it current."""
        cdef const unsigned char* wanted = digest_argument(digest)
        cdef directory_t* d = &self.d
        cdef uint64_t version
        cdef int64_t index
        cdef uint64_t* link
        cdef record_t* record
        self.become_writer()
        index = self.c_find(wanted, &version)
        if index < 0:
            return False
        record = &d.records[index]
        atomic_store_u64(&record.head, next_head(version, 0, 0))       # removed as of this store
        link = &d.buckets[(<const uint64_t*>wanted)[0] & d.mask]
        while link[0] != <uint64_t>index + 1:
            link = &d.records[link[0] - 1].next
        atomic_store_u64(link, atomic_load_u64(&record.next))
        d.free[d.free_count] = <uint32_t>index
        d.free_count += 1
        d.live -= units_of(version)
        d.header[AT_LIVE] = d.live
        atomic_add_u64(&d.header[AT_ENTRIES], <uint64_t>-1)
        d.generation = atomic_add_u64(&d.header[AT_GENERATION], 1) + 1
        self.count_change(wanted)
        return True

    def announce(self, digest):
        """Counts a change of this digest for its watchers, whether or not it has an entry: it may represent a group of entries."""
        cdef const unsigned char* wanted = digest_argument(digest)
        self.become_writer()
        atomic_fence()
        self.count_change(wanted)

    cdef void count_change(self, const unsigned char* digest) noexcept nogil:
        """Notifies the watchers. A fence or an atomic add must precede this call and follow the change."""
        cdef directory_t* d = &self.d
        cdef uint64_t wanted, found
        cdef int i
        memcpy(&wanted, digest, 8)
        for i in range(WATCHES):
            found = atomic_load_u64(&d.watches[2 * ((wanted + <uint64_t>i) & (WATCHES - 1))])
            if found == 0:
                return
            if found == wanted:
                atomic_add_u64(&d.watches[2 * ((wanted + <uint64_t>i) & (WATCHES - 1)) + 1], 1)
                return

    cdef int store_blob(self, record_t* record, bytes blob) except -1:
        """Appends the blob and assigns it to the record with one store."""
        cdef directory_t* d = &self.d
        cdef uint64_t units = units_for(PyBytes_GET_SIZE(blob))
        cdef uint64_t head
        cdef uint32_t length = <uint32_t>PyBytes_GET_SIZE(blob)
        cdef char* at
        if d.top + units > d.units:
            # The old blob of this record counts as live until the new one is in place.
            if d.live + units > d.units:
                raise DirectoryFull(f"the arena of {d.units * UNIT} bytes is full")
            arena_compact(d)
        at = d.arena + d.top * UNIT
        memcpy(at, &length, LENGTH_BYTES)
        memcpy(at + LENGTH_BYTES, PyBytes_AS_STRING(blob), length)
        head = record.head
        atomic_store_u64(&record.head, next_head(head, d.top, units))
        d.live += units - units_of(head)
        d.header[AT_LIVE] = d.live
        d.top += units
        return 0

    cdef int become_writer(self) except -1:
        """Takes the writer role if no living process has it, and rebuilds the free lists if another process has written since."""
        cdef directory_t* d = &self.d
        cdef int64_t* writer = <int64_t*>&d.header[AT_WRITER]
        cdef int64_t me = owner_self()
        cdef int64_t found = atomic_load(writer)
        while found != me:
            if found != 0 and owner_alive(found):
                raise RuntimeError(f"process {found & 0x3fffff} writes this directory; there can be only one writer")
            if atomic_cas(writer, &found, me):
                if found != 0:
                    atomic_add_u64(&d.header[AT_TAKEOVERS], 1)
                found = me
        if d.writer != me or d.generation != atomic_load_u64(&d.header[AT_GENERATION]):
            arena_rebuild(d)
            d.writer = me
            d.generation = atomic_load_u64(&d.header[AT_GENERATION])
        return 0

cdef uint64_t bucket_count(uint64_t capacity) noexcept nogil:
    cdef uint64_t count = 1
    while count < capacity:
        count <<= 1
    return count


cdef size_t size_of(uint64_t capacity, uint64_t arena_bytes) noexcept nogil:
    return (HEADER_WORDS + 2 * WATCHES + bucket_count(capacity)) * 8 + capacity * sizeof(record_t) + arena_bytes


cdef int lay_out(directory_t* d) except -1:
    """Writes the header of new memory, or checks that of an existing directory."""
    cdef int64_t* state = <int64_t*>&d.header[AT_STATE]
    cdef int64_t found
    cdef bytes drawn
    while True:
        found = atomic_load(state)
        if found == DIRECTORY_MAGIC:
            break
        if found == 0 or not owner_alive(found):
            if not atomic_cas(state, &found, owner_self()):
                continue
            drawn = os.urandom(8)
            memcpy(&d.header[AT_NAME], PyBytes_AS_STRING(drawn), 8)
            d.header[AT_LAYOUT] = LAYOUT
            d.header[AT_CAPACITY] = d.capacity
            d.header[AT_UNITS] = d.units
            d.header[AT_SCRATCH] = d.scratch
            atomic_store(state, DIRECTORY_MAGIC)
            return 0
        time.sleep(0.0005)              # another process is initializing it
    if d.header[AT_LAYOUT] != LAYOUT or d.header[AT_CAPACITY] != d.capacity or d.header[AT_UNITS] != d.units \
            or d.header[AT_SCRATCH] != d.scratch:
        raise ValueError(
            f"shared: expected a directory of layout {LAYOUT}, {d.capacity} entries, {d.units} units; "
            f"it holds one of layout {d.header[AT_LAYOUT]}, {d.header[AT_CAPACITY]} entries, {d.header[AT_UNITS]} units")
    return 0
