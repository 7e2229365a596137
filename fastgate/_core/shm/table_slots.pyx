"""A bounded hash table in shared memory whose every change is one compare-and-swap: the algorithm, over a table_t.

WHAT        Entries of a few words of state under a keyed 128-bit hash; millions of them, used by several processes at once.
            It knows nothing of limits: the users decide what the state means. table.pyx has the object that owns the memory.
STATE       header 32 words | owners 8 words each | index 1 word per slot, 8 slots to a bucket | records

              index word   version 31 | pending 1 | tag 8 | record 24        tag 0 = empty; record 0 = the slot's first, slot + 1
              record       hash low | hash high 40, mark 24 | owner 10, idle-at 54 | state ...      whole cache lines
              mark         rule 10 | source 10 | uses 4         rule and source of the key, how often it was written (at most 15)

            A record is never changed while it can be read. Every handle owns one spare record; it copies the current record,
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

            Shares. Many rules share one table, and a client that can invent keys of one rule must not take the space of the
            others. A rule's entries are not counted; every insertion looks at the 16 slots its key may have instead:
            * The last RESERVE of them are for rules that have fewer than FEW entries there. So one rule fills at most 7/8 of the
              table (3 in 100 000 keys of a rule that has a table at capacity to itself are refused for it).
            * FAIR: a rule with fewer than FEW there that finds none free displaces an entry of a rule with more than FEW; where
              many rules are there, one with fewer than CROWDED_FEW from the largest with more than CROWDED_MANY, and one with none from the largest
              with more than two. Within a rule the first two hold for sources, too (the network or the consumer that brought
              the key). Chosen is the entry with the largest
              crowd / uses: the crowd is how many there have its rule and source, so a flood is a large crowd of entries used
              once. Each displacing evens the numbers out, so it ends until entries become idle: it cannot be repeated to make
              one key forget again and again. (Only the last step, with five rules flooded at once, goes on for one in
              thirty new keys.)
            * KEEP: nothing that is not idle is ever given away (nonces). EVICT: as FAIR, and otherwise an entry of the own rule.
            Rule 0 takes no part: a table with one user.
WHO WRITES  index words: CAS only. A record: its owner only, before the swing. An owner line: its process only. The spare of a
            dead process is recovered by the process that takes its place: if it died between swing and bookkeeping, the
            head that it meant to write decides (table_recover).
            One handle is one writer: Python calls are serialised by the GIL; C callers use one handle per thread.
COST        find and store one key: two cache misses, two CAS (own line and index), about 40 ns warm.
            Memory: 1.75 × (8 + record) bytes per key: 126 for up to 5 words of state, 238 for up to 13.
SOURCES     Mitzenmacher, The power of two choices (2001); Kung & Lehman 1980 and Michael 2004 (copy, swing, reuse);
            Lameter, Effective synchronization on Linux (seqlock reads).
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastgate._core.debug cimport debug_assert
from fastgate._core.shm.atomic cimport (
    atomic_add_relaxed_u64, atomic_cas, atomic_cas_u64, atomic_load, atomic_load_relaxed, atomic_load_u64, atomic_store_relaxed,
    atomic_store_u64,
)
from fastgate._core.shm.owners cimport fork_generation, owner_alive, owner_self

__all__ = []

cdef extern from *:
    """
    #include <stdint.h>
    #define TABLE_VERSION (UINT64_C(1) << 33)
    #define TABLE_MARK UINT64_C(0xffffff)
    #define TABLE_IDLE ((INT64_C(1) << 54) - 1)
    #define TABLE_FOREVER (INT64_C(1) << 52)        /* idle-at of LATEST_NS */
    static inline uint64_t table_scale(uint64_t hash, uint64_t n) { return (uint64_t)(((unsigned __int128)hash * n) >> 64); }
    static inline void table_prefetch(const void *p) { __builtin_prefetch(p, 1); }
    static inline void table_read_fence(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    """
    const uint64_t TABLE_VERSION
    const int64_t TABLE_IDLE
    const uint64_t TABLE_MARK
    const int64_t TABLE_FOREVER
    uint64_t table_scale(uint64_t hash, uint64_t n) noexcept nogil
    void table_prefetch(const void* p) noexcept nogil
    void table_read_fence() noexcept nogil

cdef enum:
    CHOICES = 2 * BUCKET    # slots that a key may have
    RESERVE = 2             # of them for rules with few entries there
    FEW = 6                 # entries there that a rule keeps against others: three eighths
    CROWDED_FEW = 2         # where many rules are: one with fewer may displace ...
    CROWDED_MANY = 4        # ... from one with more
    MOST_USES = 15


# --- one slot

cdef inline uint64_t tag_bits(uint64_t low) noexcept nogil:
    cdef uint64_t tag = low & 0xff
    return (tag if tag != 0 else 1) << 24


cdef inline uint64_t next_version(uint64_t head) noexcept nogil:
    return (head & ~(TABLE_VERSION - 1)) + TABLE_VERSION


cdef bint swing(table_t* t, uint64_t slot, uint64_t old, uint64_t new) noexcept nogil:
    """True if the slot's word went from old to new, and the record of old is now our spare; else False, nothing changed."""
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
                    continue            # rewritten while we read: read this slot again
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
    """TABLE_STORED if c.state is now the entry's, in one step; TABLE_RETRY or TABLE_FULL and nothing changed.

    idle_at_ns: from this time the entry equals an absent one; LATEST_NS: it is never evicted. how: what a new key may
    take when there is no room: TABLE_KEEP nothing, TABLE_FAIR from a rule or source with many entries there, TABLE_EVICT
    from its own rule, too. After a TABLE_FULL c.idle_at_ns is the earliest time at which there may be room.
    """
    cdef uint64_t new
    if c.head == 0:
        return insert(t, c, idle_at_ns, now_ns, how)
    write_spare(t, c, idle_at_ns)
    new = next_version(c.head) | tag_of(c.head) | t.owners[t.owner].spare
    return TABLE_STORED if swing(t, c.slot, c.head, new) else TABLE_RETRY


# What an insertion sees of the slots that its key may have.
ctypedef struct survey_t:
    uint64_t slots[16]
    uint64_t heads[16]
    uint64_t marks[16]
    int64_t idle_at[16]     # as in the record
    int rule_n[16]          # of busy entries: how many have the same rule; filled in by count_crowds
    int source_n[16]        # and the same source
    int busy                # entries before this index are busy; the slots behind are empty or idle
    int n


cdef inline int crowd(const survey_t* s, uint64_t mark, uint64_t mask) noexcept nogil:
    """How many busy entries have the same rule (RULE_MASK), or the same rule and source (SOURCE_MASK)."""
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

    # Where: an empty slot, in the first bucket while it has a few, so that most finds read one bucket; else an idle entry; else
    # what `how` allows. Only where room is short are the records looked at.
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

    # Put it there, not yet valid.
    write_spare(t, c, idle_at_ns)
    mine = next_version(old) | TABLE_PENDING | tag | t.owners[t.owner].spare
    if not swing(t, place, old, mine):
        return TABLE_RETRY

    # Was the key put elsewhere meanwhile? The second to look sees the first (both CAS precede both looks).
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
    """Repairs owners[place].spare after its process died; may itself be killed and repeated.

    Only a death between the CAS of a swing and the store of `spare` leaves a doubt: did the CAS happen? It did if the slot holds
    `new`; or a process swings away from `new`; or an idle process has its record as spare; or the record was
    written by another process since. Otherwise it did not. Checked in this order, because the record can only move that way.
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
                continue                # it lives and moves: look again
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


cdef bint table_join(table_t* t) noexcept nogil:
    """True if this handle has a place among the owners, a free one or a dead process's; False if all are taken and alive."""
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
    """True if this process may use the handle; a fork's first call takes a place of its own. False: all places are taken."""
    if not t.is_shared or t.generation == fork_generation():
        return True
    return table_join(t)
