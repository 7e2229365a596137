"""InflightTable: number of concurrent requests of each key, over all worker processes, with a limit.

WHAT        acquire(key, limit) counts one more request of the key and returns its entry, or refuses; release(entry) undoes it.
            clear_seat releases what a process held when it died.
STATE       header 16 words | buckets, one cache line each | entries, 16 to a bucket, whole cache lines

              bucket   lock | 16 tags of 16 bits (0 = never used)
              entry    version | hash low | hash high 38, rule 10, hash 16 | one 16-bit lane for each process slot

            The number of requests in flight of a key is the sum of its lanes; there is no second count that could disagree
            with it. An entry whose lanes are all 0 holds no information and is reused for a new key of its bucket when no
            unused one is left. The last two free entries of a bucket are for rules with fewer than six keys in flight in it,
            so that a flood of keys of one rule leaves room for the others.
WHO WRITES  a lane: only the process in that slot, so its counts can be found without help from others. acquire writes its lane
            first and sums then, both sequentially consistent: of those that would together exceed the limit, the one that
            wrote last sees all others and backs out. More than `limit` are therefore never granted; two processes that
            compete for the last one may both back out, and retry a few times.
            A key is added to a bucket under the bucket's lock, whose word names the slot. A process that reuses an entry sets
            its version to 1 mod 4 (the key is still complete) and reads the lanes again, then to 2 (the key is being written),
            then to the next multiple of 4. A process that wrote a lane meanwhile sees the new version and backs out: either
            side sees the other. clear_seat uses the version to undo what a dead process left unfinished.
COST        acquire and release 20 ns each in cache, with 16 slots. A lane counts up to 65 535.
            Memory: 64 bytes per key with up to 20 slots, 4 bytes of buckets. clear_seat reads the buckets (0.1 ms for
            65 536 keys) and the entries in use.
SOURCES     Dekker's flags, as in Dijkstra, Cooperating sequential processes (1965); per-CPU counters of the Linux kernel
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from fastgate._core.arguments cimport int_argument
from fastgate._core.shm.atomic cimport (
    atomic_add_relaxed, atomic_cas, atomic_fence, atomic_load, atomic_load_relaxed_u64, atomic_load_u64, atomic_store,
    atomic_store_u64,
)
from fastgate._core.hashing cimport hash128_t, hash_key_random
from fastgate._core.shm.shm cimport SharedMemory
from fastgate._core.shm.table cimport key_argument

import time

__all__ = ["InflightTable"]

cdef extern from *:
    """
    #include <sched.h>
    #include <stdint.h>
    #if defined(__x86_64__)
    #define inflight_pause() __builtin_ia32_pause()
    #define inflight_fence() __atomic_signal_fence(__ATOMIC_SEQ_CST)      /* the xchg of lane_store is a whole barrier */
    #else
    #define inflight_pause() ((void)0)
    #define inflight_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #endif
    #define INFLIGHT_RULE (UINT64_C(0x3ff) << 16)
    #define INFLIGHT_EVEN UINT64_C(0x0000ffff0000ffff)
    static inline uint16_t lane_load(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void lane_store(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    #define inflight_prefetch(p) __builtin_prefetch(p, 0)
    static inline uint64_t inflight_scale(uint64_t hash, uint64_t n) { return (uint64_t)(((unsigned __int128)hash * n) >> 64); }
    """
    void inflight_pause() noexcept nogil
    void inflight_fence() noexcept nogil
    const uint64_t INFLIGHT_EVEN
    const uint64_t INFLIGHT_RULE
    void inflight_prefetch(const void* p) noexcept nogil
    int sched_yield() noexcept nogil
    uint16_t lane_load(const uint16_t* p) noexcept nogil
    void lane_store(uint16_t* p, uint16_t v) noexcept nogil
    uint64_t inflight_scale(uint64_t hash, uint64_t n) noexcept nogil

cdef enum:
    MAGIC = 0x696e666c
    LAYOUT = 1
    HEADER_WORDS = 16
    HEAD_BYTES = 24             # version and key, before the lanes
    BUCKET = 16
    RESERVE = 2                 # entries of a bucket that a rule with FEW or more in it leaves to others
    FEW = 6
    RULE_SHIFT = 2              # from bits 14 to 23, as in a mark of table_slots.pyx, to bits 16 to 25: the tag lies below
    LARGEST_CAPACITY = 8_000_000
    LARGEST_SEATS = 4096        # 1024 workers, four generations
    LANE_MOST = 65_535
    AGAIN = 8                   # retries when others are seen to back out, too
    LOCK_SPINS = 200            # adding a key to a bucket takes about 100 ns
    LOCK_YIELDS = 200           # its owner may have been taken off the CPU: let it run
    # words of the header
    AT_STATE = 0                # 0 new, 1 being laid out, MAGIC
    AT_LAYOUT = 1
    AT_BUCKETS = 2
    AT_SEATS = 3
    AT_SECRET = 4               # 2 words
    AT_FULL = 8                 # counters
    AT_BUSY = 9
    AT_CLEARED = 10
    AT_OVER_SHARE = 11


# --- one entry

cdef inline place_t* place_at(inflight_t* t, int64_t entry) noexcept nogil:
    return <place_t*>(t.entries + <uint64_t>entry * t.entry_bytes)


cdef inline uint16_t* lanes_of(place_t* place) noexcept nogil:
    return <uint16_t*>(<char*>place + HEAD_BYTES)


cdef inline uint16_t tag_of(const hash128_t* key) noexcept nogil:
    cdef uint16_t tag = <uint16_t>(key.high & 0xffff)
    return tag if tag != 0 else 1


cdef inline int64_t lanes_sum(const inflight_t* t, place_t* place) noexcept nogil:
    """Sum of all lanes: four to a load."""
    cdef uint64_t* words = <uint64_t*>lanes_of(place)
    cdef uint64_t even = 0, odd = 0, word
    cdef int64_t i
    for i in range(t.lane_words):
        word = atomic_load_relaxed_u64(&words[i])
        even += word & INFLIGHT_EVEN
        odd += (word >> 16) & INFLIGHT_EVEN
    even += odd                 # 32-bit sums: 4096 lanes of 65 535 need 28 bits
    return <int64_t>(even >> 32) + <int64_t><uint32_t>even


cdef int64_t find(inflight_t* t, const hash128_t* key, uint64_t bucket, uint64_t* version) noexcept nogil:
    """The entry of the key and its version, or -1."""
    cdef bucket_t* b = &t.buckets[bucket]
    cdef uint16_t tag = tag_of(key)
    cdef place_t* place
    cdef int i
    for i in range(BUCKET):
        if lane_load(&b.tags[i]) != tag:
            continue
        place = place_at(t, bucket * BUCKET + i)
        version[0] = atomic_load_u64(&place.version)
        # The caller checks the version again, after it has written its lane.
        if version[0] & 3 == 0 and atomic_load_relaxed_u64(&place.low) == key.low \
                and (atomic_load_relaxed_u64(&place.high) ^ key.high) & ~INFLIGHT_RULE == 0:
            return bucket * BUCKET + i
    return -1


cdef bint lock(inflight_t* t, bucket_t* b) noexcept nogil:
    cdef int64_t free
    cdef int i
    for i in range(LOCK_SPINS + LOCK_YIELDS):
        free = 0
        if atomic_cas(&b.lock, &free, t.seat + 1):
            return True
        if i < LOCK_SPINS:
            inflight_pause()
        else:
            sched_yield()
    return False


cdef bint is_crowded(inflight_t* t, uint64_t bucket, uint64_t rule) noexcept nogil:
    """True if the remaining free entries are reserved for rules that have fewer keys in this bucket."""
    cdef place_t* place
    cdef int i
    cdef int free = 0
    cdef int own = 0
    for i in range(BUCKET):
        place = place_at(t, bucket * BUCKET + i)
        if lanes_sum(t, place) == 0:
            free += 1
            if free > RESERVE:
                return False
        else:
            own += (atomic_load_relaxed_u64(&place.high) ^ rule) & INFLIGHT_RULE == 0
    return own >= FEW


cdef int64_t insert(inflight_t* t, const hash128_t* key, uint64_t rule, uint64_t bucket, uint64_t* version) noexcept nogil:
    """Adds the key to its bucket. Returns its entry and version, -1 if all entries are in use, -2 if the bucket stayed locked."""
    cdef bucket_t* b = &t.buckets[bucket]
    cdef place_t* place
    cdef int64_t entry
    cdef int i, unused
    if not lock(t, b):
        atomic_add_relaxed(&t.header[AT_BUSY], 1)
        return -2
    entry = find(t, key, bucket, version)
    if entry < 0 and rule != 0 and is_crowded(t, bucket, rule):
        atomic_add_relaxed(&t.header[AT_OVER_SHARE], 1)
    elif entry < 0:
        for unused in range(1, -1, -1):         # first those never used, then idle ones
            for i in range(BUCKET):
                if (b.tags[i] == 0) != unused:
                    continue
                place = place_at(t, bucket * BUCKET + i)
                if lanes_sum(t, place) != 0:
                    continue
                version[0] = atomic_load_u64(&place.version)
                atomic_store_u64(&place.version, version[0] + 1)
                atomic_fence()
                if lanes_sum(t, place) != 0:    # a request for the old key arrived: it stays
                    atomic_store_u64(&place.version, version[0] + 4)
                    continue
                atomic_store_u64(&place.version, version[0] + 2)
                atomic_fence()
                atomic_store_u64(&place.low, key.low)
                atomic_store_u64(&place.high, (key.high & ~INFLIGHT_RULE) | rule)
                lane_store(&b.tags[i], tag_of(key))
                version[0] += 4
                atomic_store_u64(&place.version, version[0])
                entry = bucket * BUCKET + i
                break
            if entry >= 0:
                break
    atomic_store(&b.lock, 0)
    if entry < 0:
        atomic_add_relaxed(&t.header[AT_FULL], 1)
    return entry


cdef int64_t clear(inflight_t* t, int64_t seat) noexcept nogil:
    """Releases the counts of the slot and undoes its unfinished changes; returns how many it held."""
    cdef bucket_t* b
    cdef place_t* place
    cdef uint16_t* lanes
    cdef uint64_t bucket
    cdef uint64_t version
    cdef int64_t held = 0
    cdef int i
    cdef bint locked
    for bucket in range(t.bucket_count):
        b = &t.buckets[bucket]
        locked = atomic_load(&b.lock) == seat + 1
        for i in range(BUCKET):
            if lane_load(&b.tags[i]) == 0 and not locked:
                continue
            place = place_at(t, bucket * BUCKET + i)
            lanes = lanes_of(place)
            if lane_load(&lanes[seat]) != 0:
                held += lane_load(&lanes[seat])
                lane_store(&lanes[seat], 0)
            version = atomic_load_u64(&place.version)
            if locked and version & 3 != 0:
                if version & 3 == 2:            # the key may be half written: discard it
                    atomic_store_u64(&place.low, 0)
                    atomic_store_u64(&place.high, 0)
                atomic_store_u64(&place.version, (version | 3) + 1)
        if locked:
            atomic_store(&b.lock, 0)
    if held:
        atomic_add_relaxed(&t.header[AT_CLEARED], held)
    return held


# --- the object

cdef size_t entry_size(int64_t seats) noexcept nogil:
    return <size_t>((HEAD_BYTES + (seats + 3) // 4 * 8 + 63) // 64 * 64)


cdef size_t table_size(int64_t capacity, int64_t seats) noexcept nogil:
    cdef size_t buckets = <size_t>((capacity + BUCKET - 1) // BUCKET)
    return HEADER_WORDS * 8 + buckets * sizeof(bucket_t) + buckets * BUCKET * entry_size(seats)


cdef class InflightTable:
    """InflightTable(capacity, seats, shared=None)\n--\n
    Concurrency by key in one bounded table, private or shared by processes.

    capacity: keys that may be in flight at once (1 to 8 000 000; a sixteenth of them share a bucket's 16 entries, so expect
    half). `seats`: processes (1 to 4096). shared: SharedMemory of `InflightTable.size(capacity, seats)` bytes. A process calls
    for_seat(n) and uses what it returns; no two living processes may have the same slot. A key is str or bytes.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, capacity, seats, SharedMemory shared=None):
        cdef int64_t keys = int_argument(capacity, "capacity", 1, LARGEST_CAPACITY)
        cdef int64_t places = int_argument(seats, "seats", 1, LARGEST_SEATS)
        cdef size_t needed = table_size(keys, places)
        cdef inflight_t* t = &self.handle
        if shared is None:
            shared = SharedMemory(needed)
        elif shared.size < needed:
            raise ValueError(f"shared: expected at least {needed} bytes for {keys} keys and {places} seats, got {shared.size}")
        self.shared = shared
        self.capacity = keys
        t.header = <int64_t*>shared.address
        t.bucket_count = <uint64_t>((keys + BUCKET - 1) // BUCKET)
        t.buckets = <bucket_t*>(t.header + HEADER_WORDS)
        t.entries = <char*>(t.buckets + t.bucket_count)
        t.entry_bytes = entry_size(places)
        t.seats = places
        t.lane_words = (places + 3) // 4
        t.seat = -1
        self.lay_out()
        self.secret[0] = <uint64_t>t.header[AT_SECRET]
        self.secret[1] = <uint64_t>t.header[AT_SECRET + 1]

    cdef int lay_out(self) except -1:
        """Writes the header of new memory, or checks that of a table created by another process."""
        cdef inflight_t* t = &self.handle
        cdef int64_t found = 0
        if atomic_cas(&t.header[AT_STATE], &found, 1):
            t.header[AT_LAYOUT] = LAYOUT
            t.header[AT_BUCKETS] = <int64_t>t.bucket_count
            t.header[AT_SEATS] = t.seats
            hash_key_random(<uint64_t*>&t.header[AT_SECRET])
            atomic_store(&t.header[AT_STATE], MAGIC)
            return 0
        for _ in range(1000):
            if atomic_load(&t.header[AT_STATE]) == MAGIC:
                break
            time.sleep(0.001)
        if t.header[AT_STATE] != MAGIC or t.header[AT_LAYOUT] != LAYOUT or t.header[AT_BUCKETS] != <int64_t>t.bucket_count \
                or t.header[AT_SEATS] != t.seats:
            raise ValueError(f"shared: expected a table of {t.bucket_count} buckets and {t.seats} seats, "
                             f"it holds one of {t.header[AT_BUCKETS]} and {t.header[AT_SEATS]}, or something else")

    cdef int64_t c_acquire(self, const hash128_t* key, uint64_t rule, int64_t limit, int64_t* in_use) noexcept nogil:
        cdef inflight_t* t = &self.handle
        cdef uint64_t bucket = inflight_scale(key.low, t.bucket_count)
        cdef uint64_t version = 0
        cdef place_t* place
        cdef uint16_t* lane
        cdef int64_t entry, i
        cdef int tries = 0
        cdef int moved = 0
        in_use[0] = -1
        if t.seat < 0:
            return -1
        while True:
            entry = find(t, key, bucket, &version)
            if entry < 0:
                entry = insert(t, key, rule << RULE_SHIFT, bucket, &version)
                if entry < 0:
                    return -1
            place = place_at(t, entry)
            lane = &lanes_of(place)[t.seat]
            if lane_load(lane) == LANE_MOST:
                in_use[0] = lanes_sum(t, place)
                return -1
            lane_store(lane, lane_load(lane) + 1)
            inflight_fence()
            if atomic_load_u64(&place.version) != version:
                lane_store(lane, lane_load(lane) - 1)   # the entry is being reused: its key may be another one now
                moved += 1
                if moved > LOCK_SPINS:
                    atomic_add_relaxed(&t.header[AT_BUSY], 1)
                    return -1
                continue
            in_use[0] = lanes_sum(t, place)
            if in_use[0] <= limit:
                return entry
            lane_store(lane, lane_load(lane) - 1)
            in_use[0] = lanes_sum(t, place)
            tries += 1
            if in_use[0] >= limit or tries == AGAIN:
                return -1
            # Others backed out, too. Each waits for a different time, so that one of them comes first.
            for i in range((t.seat + 1) * 8 * tries % 257):
                inflight_pause()

    cdef void c_prefetch(self, const hash128_t* key) noexcept nogil:
        inflight_prefetch(&self.handle.buckets[inflight_scale(key.low, self.handle.bucket_count)])

    cdef void c_release(self, int64_t entry) noexcept nogil:
        cdef uint16_t* lane
        if entry < 0:
            return
        lane = &lanes_of(place_at(&self.handle, entry))[self.handle.seat]
        if lane_load(lane) != 0:
            lane_store(lane, lane_load(lane) - 1)

    cdef int64_t c_count(self, const hash128_t* key) noexcept nogil:
        cdef uint64_t version = 0
        cdef int64_t entry = find(&self.handle, key, inflight_scale(key.low, self.handle.bucket_count), &version)
        return lanes_sum(&self.handle, place_at(&self.handle, entry)) if entry >= 0 else 0

    def for_seat(self, seat):
        """A handle of the same table for the process in this slot."""
        cdef InflightTable view = InflightTable(self.capacity, self.handle.seats, self.shared)
        view.handle.seat = int_argument(seat, "seat", 0, self.handle.seats - 1)
        return view

    def acquire(self, key, limit):
        """An entry to give to release(), or None: `limit` of the key are in flight, or the table has no room."""
        cdef hash128_t hashed
        cdef int64_t in_use, entry
        cdef int64_t most = int_argument(limit, "limit", 1, 1 << 40)
        if self.handle.seat < 0:
            raise ValueError("seat: this handle has none; use for_seat()")
        key_argument(key, self.secret, &hashed)
        entry = self.c_acquire(&hashed, 0, most, &in_use)
        return None if entry < 0 else entry

    def release(self, entry):
        """Releases an entry that acquire() returned."""
        cdef int64_t at = int_argument(entry, "entry", 0, <int64_t>(self.handle.bucket_count * BUCKET) - 1)
        if self.handle.seat < 0:
            raise ValueError("seat: this handle has none; use for_seat()")
        self.c_release(at)

    def count(self, key):
        """How many of the key are in flight now, over all slots."""
        cdef hash128_t hashed
        key_argument(key, self.secret, &hashed)
        return self.c_count(&hashed)

    def clear_seat(self, seat):
        """Releases everything that the process in this slot held; returns how many. Only when that process is dead."""
        return clear(&self.handle, int_argument(seat, "seat", 0, self.handle.seats - 1))

    @property
    def in_use(self):
        """Number in flight, over all keys. Walks the table."""
        cdef inflight_t* t = &self.handle
        cdef int64_t total = 0
        cdef uint64_t bucket
        cdef int i
        with nogil:
            for bucket in range(t.bucket_count):
                for i in range(BUCKET):
                    if lane_load(&t.buckets[bucket].tags[i]) != 0:
                        total += lanes_sum(t, place_at(t, bucket * BUCKET + i))
        return total

    @property
    def seats(self):
        """Number of processes that it has lanes for."""
        return self.handle.seats

    @property
    def seat(self):
        """The slot whose lanes this handle writes; -1: none."""
        return self.handle.seat

    def statistics(self):
        """Counts since the table was created: full (no entry for a new key), over_share (of those: the free ones were reserved
        for other rules), busy (a bucket stayed locked), cleared (left by dead processes)."""
        cdef inflight_t* t = &self.handle
        return {"full": t.header[AT_FULL], "over_share": t.header[AT_OVER_SHARE], "busy": t.header[AT_BUSY], "cleared": t.header[AT_CLEARED]}

    @staticmethod
    def size(capacity, seats):
        """Bytes of shared memory for this capacity and number of processes."""
        return table_size(int_argument(capacity, "capacity", 1, LARGEST_CAPACITY), int_argument(seats, "seats", 1, LARGEST_SEATS))

    def __repr__(self):
        return f"InflightTable(capacity={self.capacity}, seats={self.handle.seats}, seat={self.handle.seat})"
