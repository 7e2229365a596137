"""LimiterTable: a bounded hash table in shared memory whose every change is one compare-and-swap.

WHAT        Entries of a few words of state under a keyed 128-bit hash; millions of them, used by several processes at once.
            It knows nothing of limits: keyed.pyx and penalty.pyx decide what the state means.
STATE       header 32 words | owners 8 words each | index 1 word per slot, 8 slots to a bucket | records

              index word   version 31 | pending 1 | tag 8 | record 24        tag 0 = empty; record 0 = the slot's first, slot + 1
              record       hash low | hash high 40, mark 24 | owner 10, idle-at 54 | state ...      whole cache lines
              mark         rule 10 | source 10 | uses 4         whose key it is, who brought it, how often it was written (at most 15)

            A record is never changed where others read it. Every handle owns one spare record; it copies the current record,
            changes the copy in its spare, and swings the index word from the old record to the spare with one CAS. The old
            record becomes its spare. So several limits of one key change together or not at all, readers never see half of
            a decision, and a process killed at any instruction leaves the entry as it was before or after. Version 31 bits:
            a stale CAS can only succeed after exactly 2**31 further changes of that slot while its process was stopped.

            A key lives in one of two buckets (16 slots). New key: the word is put in place marked pending, then both
            buckets are searched for the same key; a pending rival is removed, a live one wins, and only then is the mark
            taken off (a CAS that fails if a rival removed us). So a key is never live twice.

            Zero bytes are a valid empty table. An entry past its idle-at equals an absent one: a new key takes its slot, and
            no sweeper runs. A new key that finds 16 busy slots is refused, or takes the place of another; counted.
            With 1.75 slots per key of capacity, two choices and 8 per bucket it does not happen below capacity (none in
            a million keys, simulated and tested).

            Shares. Many rules use one table, and clients that can invent keys of one rule must not take the room of the
            others. The entries of a rule are not counted; instead, every insertion reads the 16 slots that its key may have:
            * The last RESERVE of them are for rules that have fewer than FEW entries there. So one rule fills at most 7/8 of the
              table (3 in 100 000 keys of a rule that has a table at capacity to itself are refused for it).
            * FAIR: a rule with fewer than FEW there that finds none free displaces an entry of a rule with more than FEW. If
              many rules are there, one with fewer than CROWDED_FEW displaces from the largest with more than CROWDED_MANY,
              and one with none from the largest with more than two. Within a rule the first two apply to sources, too (the
              network or the consumer that sent the key). The entry with the largest crowd / uses is chosen: the crowd is the
              number of entries there with its rule and source, so a flood is a large crowd of entries used once. Each
              displacement evens out the numbers, so it ends until entries become idle: it cannot be repeated to make
              one key lose its count again and again. (Only the last step, with five rules flooded at once, continues for one
              in thirty new keys.)
            * KEEP: only idle entries are displaced (nonces). EVICT: as FAIR, and otherwise an entry of the same rule.
            Rule 0 does not participate: a table with one user.
WHO WRITES  index words: CAS only. A record: its owner only, before the swing. An owner line: its process only. The spare of a
            process that died is recovered by the process that takes its place: if it died between swing and bookkeeping, the
            head it was about to write determines the spare (table_recover).
            One handle is one writer: Python calls are serialized by the GIL; C callers use one handle per thread.
COST        find and store one key: two cache misses, two CAS (own line and index), about 40 ns warm.
            Memory: 1.75 × (8 + record) bytes per key: 126 for up to 5 words of state, 238 for up to 13.
SOURCES     Mitzenmacher, The power of two choices (2001); Kung & Lehman 1980 and Michael 2004 (copy, swing, reuse);
            Lameter, Effective synchronization on Linux (seqlock reads).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from fastgate._core.arguments cimport int_argument
from fastgate._core.shm.atomic cimport (
    atomic_add_relaxed_u64, atomic_cas, atomic_cas_u64, atomic_load, atomic_load_relaxed, atomic_load_u64, atomic_store,
    atomic_store_relaxed, atomic_store_u64,
)
from fastgate._core.debug cimport debug_assert, debug_live_add, debug_live_count
from fastgate._core.hashing cimport hash128, hash128_t, hash_key_random, siphash
from fastgate._core.shm.owners cimport fork_generation, owner_alive, owner_self
from fastgate._core.shm.shm cimport SharedMemory

import time

__all__ = ["LimiterTable", "live_objects"]

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/mman.h>
    #define TABLE_MAGIC INT64_C(0x6661737467617465)
    #define TABLE_RECORD UINT64_C(0xffffff)
    #define TABLE_PENDING (UINT64_C(1) << 32)
    #define TABLE_VERSION (UINT64_C(1) << 33)
    #define TABLE_IDLE ((INT64_C(1) << 54) - 1)
    #define TABLE_MARK UINT64_C(0xffffff)
    #define TABLE_FOREVER (INT64_C(1) << 52)        /* idle-at of LATEST_NS */
    static inline uint64_t table_scale(uint64_t hash, uint64_t n) { return (uint64_t)(((unsigned __int128)hash * n) >> 64); }
    static inline void table_prefetch(const void *p) { __builtin_prefetch(p, 1); }
    static inline void table_read_fence(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    """
    const int64_t TABLE_MAGIC
    const uint64_t TABLE_RECORD
    const uint64_t TABLE_PENDING
    const uint64_t TABLE_VERSION
    const int64_t TABLE_IDLE
    const uint64_t TABLE_MARK
    const int64_t TABLE_FOREVER
    uint64_t table_scale(uint64_t hash, uint64_t n) noexcept nogil
    void table_prefetch(const void* p) noexcept nogil
    void table_read_fence() noexcept nogil
    int madvise(void* address, size_t length, int advice) noexcept nogil
    const int MADV_HUGEPAGE

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:
    LAYOUT = 2              # raised with every change of what lies in the memory
    HEADER_WORDS = 32
    RECORD_WORDS = 3        # before the state
    BUCKET = 8              # slots: one cache line of index words
    CHOICES = 2 * BUCKET    # slots that a key may have
    RESERVE = 2             # of them for rules with few entries there
    FEW = 6                 # entries of a rule there that it cannot lose: three eighths
    CROWDED_FEW = 2         # with many rules: one with fewer may displace ...
    CROWDED_MANY = 4        # ... from one with more
    MOST_USES = 15
    LARGEST_OWNERS = 1000   # the record names its owner in 10 bits
    LARGEST_CAPACITY = 9_000_000        # 1.75 slots each, counted in 24 bits
    # words of the header
    AT_STATE = 0            # 0 new, TABLE_MAGIC ready, else the owner that is initializing it
    AT_LAYOUT = 1
    AT_SLOTS = 2
    AT_WORDS = 3
    AT_OWNERS = 4
    AT_SECRET = 5           # 2 words
    AT_BOOT = 7             # stored times are invalid after a reboot
    AT_INSERTED = 8         # counters, on their own line
    AT_REUSED = 9
    AT_EVICTED = 10
    AT_REFUSED = 11
    AT_RECOVERED = 12
    AT_DISPLACED = 13       # made room for a rule or a source with few entries
    AT_OVER_SHARE = 14      # of the refused: there was room, kept for others


# --- one slot

cdef inline uint64_t record_of(uint64_t head, uint64_t slot) noexcept nogil:
    cdef uint64_t record = head & TABLE_RECORD
    return record if record != 0 else slot + 1


cdef inline uint64_t tag_bits(uint64_t low) noexcept nogil:
    cdef uint64_t tag = low & 0xff
    return (tag if tag != 0 else 1) << 24


cdef inline uint64_t tag_of(uint64_t head) noexcept nogil:
    return head & (<uint64_t>0xff << 24)


cdef inline uint64_t next_version(uint64_t head) noexcept nogil:
    return (head & ~(TABLE_VERSION - 1)) + TABLE_VERSION


cdef inline int64_t* record_at(table_t* t, uint64_t record) noexcept nogil:
    debug_assert(0 < record <= t.slots + t.owner_count)
    return t.records + record * t.words


cdef bint swing(table_t* t, uint64_t slot, uint64_t old, uint64_t new) noexcept nogil:
    """True if the slot's word went from old to new, and the record of old is now the spare; else False, without a change."""
    cdef owner_t* own = &t.owners[t.owner]
    cdef uint64_t expected = old
    cdef bint done
    debug_assert(slot < t.slots and own.flight == 0 and record_of(new, slot) == own.spare)
    # The order of these stores is what table_recover relies on.
    atomic_store_u64(&own.old, old)
    atomic_store_u64(&own.new, new)
    atomic_store_u64(&own.flight, slot + 1)
    done = atomic_cas_u64(&t.index[slot], &expected, new)
    if done:
        atomic_store_u64(&own.spare, record_of(old, slot))
    atomic_store_u64(&own.flight, 0)
    return done


cdef void write_spare(table_t* t, const cursor_t* c, int64_t idle_at_ns) noexcept nogil:
    cdef int64_t* record = record_at(t, t.owners[t.owner].spare)
    cdef uint64_t i
    atomic_store_relaxed(record, <int64_t>c.low)
    atomic_store_relaxed(record + 1, <int64_t>((c.high & ~TABLE_MARK) | (c.mark + (c.mark & MOST_USES != MOST_USES))))
    atomic_store_relaxed(record + 2, (<int64_t>(t.owner + 1) << 54) | ((idle_at_ns >> 10) + 1))
    for i in range(t.words - RECORD_WORDS):
        atomic_store_relaxed(record + RECORD_WORDS + i, c.state[i])


cdef int holds(table_t* t, uint64_t slot, uint64_t head, const cursor_t* c) noexcept nogil:
    """1 if the slot holds the cursor's key, 0 if another, -1 if the slot changed meanwhile."""
    cdef int64_t* record = record_at(t, record_of(head, slot))
    cdef bint same = (atomic_load_relaxed(record) == <int64_t>c.low
                      and (<uint64_t>atomic_load_relaxed(record + 1) ^ c.high) <= TABLE_MARK)
    table_read_fence()
    return -1 if atomic_load_u64(&t.index[slot]) != head else same


cdef inline void both_buckets(table_t* t, const cursor_t* c, uint64_t* first) noexcept nogil:
    first[0] = table_scale(c.low, t.buckets) * BUCKET
    first[1] = table_scale(c.high, t.buckets) * BUCKET
    if first[1] == first[0]:
        first[1] = first[0] + BUCKET if first[0] + BUCKET < t.slots else 0


# --- one key

cdef bint table_find(table_t* t, cursor_t* c) noexcept nogil:
    """True and c.head, c.slot, c.mark, c.state are the entry's; or False, c.head 0 and c.state zeros."""
    cdef uint64_t first[2]
    cdef uint64_t high
    cdef uint64_t tag = tag_bits(c.low)
    cdef uint64_t slot, head, i
    cdef int side
    cdef int64_t* record
    both_buckets(t, c, first)
    table_prefetch(&t.index[first[0]])
    table_prefetch(&t.index[first[1]])
    for side in range(2):
        slot = first[side]
        while slot < first[side] + BUCKET:
            head = atomic_load_u64(&t.index[slot])
            if tag_of(head) != tag or head & TABLE_PENDING:
                slot += 1
                continue
            record = record_at(t, record_of(head, slot))
            high = <uint64_t>atomic_load_relaxed(record + 1)
            if atomic_load_relaxed(record) == <int64_t>c.low and high ^ c.high <= TABLE_MARK:
                for i in range(t.words - RECORD_WORDS):
                    c.state[i] = atomic_load_relaxed(record + RECORD_WORDS + i)
                table_read_fence()
                if atomic_load_u64(&t.index[slot]) != head:
                    continue            # rewritten during the read: read this slot again
                c.slot = slot
                c.head = head
                c.mark = high & TABLE_MARK
                return True
            table_read_fence()
            if atomic_load_u64(&t.index[slot]) == head:
                slot += 1
    c.head = 0
    memset(c.state, 0, (t.words - RECORD_WORDS) * 8)
    return False


cdef int table_store(table_t* t, cursor_t* c, int64_t idle_at_ns, int64_t now_ns, int how) noexcept nogil:
    """TABLE_STORED if c.state is now the entry's, in one step; TABLE_RETRY or TABLE_FULL without a change.

    idle_at_ns: time from which the entry equals an absent one; LATEST_NS: it is never displaced. how: what a new key may take if
    it finds no room: TABLE_KEEP nothing, TABLE_FAIR from a rule or source with many entries there, TABLE_EVICT from its own rule,
    too. After a TABLE_FULL c.idle_at_ns is the earliest time at which there may be room.
    """
    cdef uint64_t new
    if c.head == 0:
        return insert(t, c, idle_at_ns, now_ns, how)
    write_spare(t, c, idle_at_ns)
    new = next_version(c.head) | tag_of(c.head) | t.owners[t.owner].spare
    return TABLE_STORED if swing(t, c.slot, c.head, new) else TABLE_RETRY


# The slots that a key may have, as seen by an insertion.
ctypedef struct survey_t:
    uint64_t slots[16]
    uint64_t heads[16]
    uint64_t marks[16]
    int64_t idle_at[16]     # as in the record
    int rule_n[16]          # of busy entries: how many have the same rule; filled in by count_crowds
    int source_n[16]        # and the same source
    int busy                # entries before this index are busy; the slots after it are empty or idle
    int n


cdef inline int crowd(const survey_t* s, uint64_t mark, uint64_t mask) noexcept nogil:
    """The number of busy entries with the same rule (RULE_MASK), or the same rule and source (SOURCE_MASK)."""
    cdef int i
    cdef int found = 0
    for i in range(s.busy):
        found += (s.marks[i] ^ mark) & mask == 0
    return found


cdef void count_crowds(survey_t* s) noexcept nogil:
    cdef int i
    for i in range(s.busy):
        s.rule_n[i] = crowd(s, s.marks[i], RULE_MASK)
        s.source_n[i] = crowd(s, s.marks[i], SOURCE_MASK)


cdef int dispensable(const survey_t* s, uint64_t mark, uint64_t mask, const int* number_of, int few) noexcept nogil:
    """The busy entry with the largest crowd / uses, of those the one that is idle first; -1 if there is none.

    Only entries that agree with mark in the bits of mask, and whose number_of is above few; below FEW only those with the largest.
    """
    cdef int i, number, uses
    cdef int least = few + 1
    if few != 0 and few < FEW:
        for i in range(s.busy):
            if (s.marks[i] ^ mark) & mask == 0 and s.idle_at[i] < TABLE_FOREVER:
                least = max(least, number_of[i])
    cdef int best = -1
    cdef int best_number = 0
    cdef int best_uses = 1
    for i in range(s.busy):
        if (s.marks[i] ^ mark) & mask != 0 or s.idle_at[i] >= TABLE_FOREVER:
            continue
        if number_of[i] < least:
            continue
        number = s.source_n[i]
        uses = <int>(s.marks[i] & MOST_USES)
        if best < 0 or number * best_uses > best_number * uses \
                or (number * best_uses == best_number * uses and s.idle_at[i] < s.idle_at[best]):
            best = i
            best_number = number
            best_uses = uses
    return best


cdef bint survey(table_t* t, const uint64_t* first, int64_t now_ns, survey_t* s) noexcept nogil:
    """False if a slot changed meanwhile."""
    cdef uint64_t slot, head, mark
    cdef int64_t idle_at
    cdef int64_t* record
    cdef int side
    cdef int behind = CHOICES
    s.busy = 0
    for side in range(2):
        for slot in range(first[side], first[side] + BUCKET):
            head = atomic_load_u64(&t.index[slot])
            mark = 0
            idle_at = 0
            if tag_of(head) != 0:
                record = record_at(t, record_of(head, slot))
                mark = <uint64_t>atomic_load_relaxed(record + 1) & TABLE_MARK
                idle_at = atomic_load_relaxed(record + 2) & TABLE_IDLE
                table_read_fence()
                if atomic_load_u64(&t.index[slot]) != head:
                    return False
            if idle_at > now_ns >> 10:
                put_seen(s, s.busy, slot, head, mark, idle_at)
                s.busy += 1
            else:
                behind -= 1
                put_seen(s, behind, slot, head, mark, idle_at)
    return True


cdef inline void put_seen(survey_t* s, int i, uint64_t slot, uint64_t head, uint64_t mark, int64_t idle_at) noexcept nogil:
    s.slots[i] = slot
    s.heads[i] = head
    s.marks[i] = mark
    s.idle_at[i] = idle_at


cdef int insert(table_t* t, cursor_t* c, int64_t idle_at_ns, int64_t now_ns, int how) noexcept nogil:
    cdef uint64_t first[2]
    cdef uint64_t tag = tag_bits(c.low)
    cdef uint64_t slot, head, mine, i
    cdef uint64_t place = 0
    cdef uint64_t old = 0
    cdef survey_t seen
    cdef int empty[2]
    cdef int side, same, own, brought, chosen
    cdef int counter = AT_INSERTED
    cdef int64_t soonest = TABLE_IDLE
    cdef bint is_small, found = False
    both_buckets(t, c, first)

    # Choice of a slot: an empty one, in the first bucket while it has a few, so that most finds read one bucket; else an idle
    # entry; else what `how` allows. The records are read only if room is short.
    empty[0] = empty[1] = 0
    for side in range(2):
        for slot in range(first[side], first[side] + BUCKET):
            if tag_of(atomic_load_u64(&t.index[slot])) == 0:
                empty[side] += 1
    if empty[0] + empty[1] > (0 if c.mark & RULE_MASK == 0 else RESERVE):
        side = 0 if empty[0] >= min(empty[1], 4) else 1
        for slot in range(first[side], first[side] + BUCKET):
            head = atomic_load_u64(&t.index[slot])
            if tag_of(head) == 0:
                place, old, found = slot, head, True
                break
        if not found:
            return TABLE_RETRY
    else:
        if not survey(t, first, now_ns, &seen):
            return TABLE_RETRY
        own = crowd(&seen, c.mark, RULE_MASK)
        is_small = own < FEW or c.mark & RULE_MASK == 0
        chosen = -1
        if CHOICES - seen.busy > (0 if is_small else RESERVE):
            chosen = seen.busy
            for side in range(seen.busy, CHOICES):      # the one idle for longest; an empty slot has 0
                if seen.idle_at[side] < seen.idle_at[chosen]:
                    chosen = side
            if tag_of(seen.heads[chosen]) != 0:
                counter = AT_REUSED
        elif how != TABLE_KEEP:
            counter = AT_DISPLACED
            count_crowds(&seen)
            brought = crowd(&seen, c.mark, SOURCE_MASK)
            if own < FEW:
                chosen = dispensable(&seen, 0, 0, seen.rule_n, FEW)
            if chosen < 0 and brought < FEW:
                chosen = dispensable(&seen, c.mark, RULE_MASK, seen.source_n, FEW)
            if chosen < 0 and own < CROWDED_FEW:
                chosen = dispensable(&seen, 0, 0, seen.rule_n, CROWDED_MANY)
            if chosen < 0 and brought < CROWDED_FEW:
                chosen = dispensable(&seen, c.mark, RULE_MASK, seen.source_n, CROWDED_MANY)
            if chosen < 0 and own == 0:
                chosen = dispensable(&seen, 0, 0, seen.rule_n, CROWDED_MANY // 2)
            if chosen < 0 and how == TABLE_EVICT:
                counter = AT_EVICTED
                chosen = dispensable(&seen, c.mark, RULE_MASK, seen.rule_n, 0)
                if chosen < 0:
                    chosen = dispensable(&seen, 0, 0, seen.rule_n, 0)
        if chosen < 0:
            for side in range(seen.busy):
                if is_small or (seen.marks[side] ^ c.mark) & RULE_MASK == 0:
                    soonest = min(soonest, seen.idle_at[side])
            atomic_add_relaxed_u64(&t.header[AT_REFUSED], 1)
            if seen.busy < CHOICES:
                atomic_add_relaxed_u64(&t.header[AT_OVER_SHARE], 1)
            c.idle_at_ns = soonest << 10
            return TABLE_FULL
        place = seen.slots[chosen]
        old = seen.heads[chosen]

    # Insert it, not yet valid.
    write_spare(t, c, idle_at_ns)
    mine = next_version(old) | TABLE_PENDING | tag | t.owners[t.owner].spare
    if not swing(t, place, old, mine):
        return TABLE_RETRY

    # Was the key inserted elsewhere meanwhile? The one that searches second sees the first (both CAS precede both searches).
    for side in range(2):
        slot = first[side]
        while slot < first[side] + BUCKET:
            head = atomic_load_u64(&t.index[slot])
            if slot == place or tag_of(head) != tag:
                slot += 1
                continue
            same = holds(t, slot, head, c)
            if same < 0:
                continue
            if same:
                if not head & TABLE_PENDING:
                    old = mine
                    atomic_cas_u64(&t.index[place], &old, next_version(mine) | (mine & TABLE_RECORD))
                    return TABLE_RETRY
                old = head
                if not atomic_cas_u64(&t.index[slot], &old, next_version(head) | record_of(head, slot)):
                    continue
            slot += 1

    old = mine
    if not atomic_cas_u64(&t.index[place], &old, next_version(mine) | tag | (mine & TABLE_RECORD)):
        return TABLE_RETRY
    atomic_add_relaxed_u64(&t.header[counter], 1)
    return TABLE_STORED


cdef bint table_forget(table_t* t, cursor_t* c) noexcept nogil:
    """True if the key was there and its entry was removed, False if it was absent."""
    while table_find(t, c):
        if atomic_cas_u64(&t.index[c.slot], &c.head, next_version(c.head) | record_of(c.head, c.slot)):
            return True
    return False


# --- owners

cdef void table_recover(table_t* t, uint64_t place) noexcept nogil:
    """Restores owners[place].spare after its process died; may itself be killed and repeated.

    Only a death between the CAS of a swing and the store of `spare` leaves a doubt: did the CAS happen? It did if the slot holds
    `new`; or another process swings away from `new`; or an idle process has its record as spare; or the record was written by
    another process since. It did not otherwise. Checked in this order, because the record can only move that way.
    """
    cdef owner_t* dead = &t.owners[place]
    cdef owner_t* other
    cdef uint64_t flight = atomic_load_u64(&dead.flight)
    cdef uint64_t slot, old, new, record, spare, i, other_flight, other_old, other_spare
    cdef bint done = False
    if flight == 0:
        return
    slot = flight - 1
    old = atomic_load_u64(&dead.old)
    new = atomic_load_u64(&dead.new)
    spare = atomic_load_u64(&dead.spare)
    record = new & TABLE_RECORD
    if spare == record:
        done = atomic_load_u64(&t.index[slot]) == new
        i = 0
        while i < t.owner_count and not done:
            other = &t.owners[i]
            if i == place:
                i += 1
                continue
            other_flight = atomic_load_u64(&other.flight)
            other_old = atomic_load_u64(&other.old)
            other_spare = atomic_load_u64(&other.spare)
            if atomic_load_u64(&other.flight) != other_flight or atomic_load_u64(&other.old) != other_old:
                continue                # it lives and moves: check again
            if other_flight != 0:
                done = other_flight == flight and other_old == new
            else:
                done = other_spare == record
            i += 1
        if not done:
            done = (<uint64_t>atomic_load(record_at(t, record) + 2) >> 54) != place + 1
        if done:
            atomic_store_u64(&dead.spare, record_of(old, slot))
    atomic_store_u64(&dead.flight, 0)
    atomic_add_relaxed_u64(&t.header[AT_RECOVERED], 1)


cdef bint join(table_t* t) noexcept nogil:
    """True if this handle has a place among the owners, a free one or a dead process's; False if all are in use by living
    processes."""
    cdef int64_t me = owner_self()
    cdef int64_t ident
    cdef int attempt
    cdef uint64_t i
    for attempt in range(2):
        for i in range(t.owner_count):
            ident = atomic_load(&t.owners[i].ident)
            if ident != 0 and (attempt == 0 or owner_alive(ident)):
                continue
            if atomic_cas(&t.owners[i].ident, &ident, me):
                table_recover(t, i)
                if atomic_load_u64(&t.owners[i].spare) == 0:
                    atomic_store_u64(&t.owners[i].spare, t.slots + 1 + i)
                t.owner = i
                t.generation = fork_generation()
                return True
    return False


cdef bint table_ready(table_t* t) noexcept nogil:
    """True if this process may use the handle; the first call after a fork takes its own place. False: all places are in use."""
    if not t.is_shared or t.generation == fork_generation():
        return True
    return join(t)


# --- the object

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
    """A number that identifies this boot of the host; 1 if it is unknown."""
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
        if not join(t):
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
                if found != 0:          # the host restarted: the times in the file are invalid
                    memset(t.owners, 0, <size_t>(<char*>(t.records + (t.slots + t.owner_count + 1) * t.words) - <char*>t.owners))
                t.header[AT_LAYOUT] = LAYOUT
                t.header[AT_SLOTS] = t.slots
                t.header[AT_WORDS] = t.words
                t.header[AT_OWNERS] = t.owner_count
                hash_key_random(&t.header[AT_SECRET])
                t.header[AT_BOOT] = boot
                atomic_store(state, TABLE_MAGIC)
                return 0
            time.sleep(0.0005)          # another process is initializing it
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
        """The errors of the table, as a list of sentences; empty if there are none. Only while no other process uses it.

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
