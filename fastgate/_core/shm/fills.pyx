"""Fills: which process of a host is fetching which key, so that the others wait instead of fetching it too.

STATE       8 words to a bucket, one cache line. A word:

              fingerprint 36 | mark 2 | slot 10 | time in 2**23 ns 16         0 = free

            The 36 bits of fingerprint and the bucket identify the key. Two keys that collide (1 in 10**13) share a wait, never a response.
            A new word is put in place marked pending, then the bucket is searched for a rival: a pending one is removed, a live one wins.
            So one process leads.
WHO WRITES  Any process, by CAS only. A process killed at any instruction leaves at most a fill that ends by its age, by the death of its
            owner, or when its slot is taken.
COST        fills_lead, fills_done: one cache line, two CAS, about 30 ns. 8 bytes a fill.
SOURCES     Varnish busy objects
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastgate._core.hashing cimport hash128_t
from fastgate._core.shm.atomic cimport atomic_add_relaxed, atomic_cas, atomic_cas_u64, atomic_load, atomic_load_u64
from fastgate._core.shm.owners cimport fork_generation, owner_alive, owner_self

__all__ = []

cdef extern from *:
    """
    #include <sched.h>
    #include <stdint.h>
    static inline void fills_yield(void) { sched_yield(); }
    static inline uint64_t fills_scale(uint64_t hash, uint64_t n) { return (uint64_t)(((unsigned __int128)hash * n) >> 64); }
    """
    void fills_yield() noexcept nogil
    uint64_t fills_scale(uint64_t hash, uint64_t n) noexcept nogil

cdef enum:
    TRIES = 64
    # the mark of a word
    FILL_LEADING = 0
    FILL_PENDING = 1
    FILL_SPENT = 2          # done, and not shareable
    TICK_SHIFT = 23         # 8.4 ms; 16 bits of it wrap around after 9 minutes

cdef int64_t SPENT_NS = 1_000_000_000
cdef int64_t MAX_AGE_NS = 300_000_000_000


cdef inline uint64_t fill_word(const hash128_t* key, uint64_t mark, int64_t slot, int64_t now_ns) noexcept nogil:
    cdef uint64_t print_ = key.high >> 28
    return (print_ << 28) | (mark << 26) | (<uint64_t>slot << 16) | ((<uint64_t>now_ns >> TICK_SHIFT) & 0xffff)


cdef inline uint64_t fill_mark(uint64_t word) noexcept nogil:
    return (word >> 26) & 3


cdef inline int64_t fill_slot(uint64_t word) noexcept nogil:
    return <int64_t>((word >> 16) & 0x3ff)


cdef inline int64_t fill_age_ns(uint64_t word, int64_t now_ns) noexcept nogil:
    cdef uint64_t ticks = ((<uint64_t>now_ns >> TICK_SHIFT) - word) & 0xffff
    # Another process may have read its clock after we read ours: up to 2 s from the future is now.
    return <int64_t>(ticks << TICK_SHIFT) if ticks < 0xff00 else 0


cdef inline bint fill_is(uint64_t word, const hash128_t* key) noexcept nogil:
    return word != 0 and word >> 28 == key.high >> 28


cdef bint ready(fills_t* fills) noexcept nogil:
    """True when this process has a slot. A dead process's slot is taken after its fills have been ended."""
    cdef int64_t me = owner_self()
    cdef int64_t holder, i
    cdef uint64_t word
    cdef int attempt
    cdef Py_ssize_t at
    if fills.generation == fork_generation():
        return fills.slot > 0
    fills.generation = fork_generation()
    fills.slot = 0
    for attempt in range(2):
        for i in range(1, FILL_SLOTS):
            holder = atomic_load(&fills.slots[i])
            if holder == me:
                fills.slot = i       # another object of this process over the same memory
                return True
            if holder != 0 and (attempt == 0 or owner_alive(holder)):
                continue
            if not atomic_cas(&fills.slots[i], &holder, me):
                continue
            if holder != 0:
                for at in range(fills.count):
                    word = atomic_load_u64(&fills.words[at])
                    if word != 0 and fill_slot(word) == i:
                        atomic_cas_u64(&fills.words[at], &word, 0)
            fills.slot = i
            return True
    return False


cdef bint is_over(fills_t* fills, uint64_t word, int64_t max_age_ns, int64_t now_ns) noexcept nogil:
    """True if the fill of that word has ended, or its process will not end it."""
    cdef int64_t age_ns = fill_age_ns(word, now_ns)
    cdef int64_t holder
    if fill_mark(word) == FILL_SPENT:
        return age_ns >= SPENT_NS
    if age_ns >= max_age_ns:
        return True
    # A look at /proc takes 10 µs; a fill that is over before that never pays for it.
    if age_ns < (<int64_t>2 << TICK_SHIFT):
        return False
    holder = atomic_load(&fills.slots[fill_slot(word)])
    return not owner_alive(holder)


cdef int64_t fills_lead(fills_t* fills, const hash128_t* key, int64_t max_age_ns, int64_t now_ns) noexcept nogil:
    cdef uint64_t first = fills_scale(key.low, fills.count // FILL_BUCKET) * FILL_BUCKET
    cdef uint64_t* words = fills.words + first
    cdef uint64_t word, mine, old
    cdef int place, i, attempt
    cdef bint beaten
    if max_age_ns > MAX_AGE_NS:
        max_age_ns = MAX_AGE_NS
    if not ready(fills):
        return FILL_ALONE
    for attempt in range(TRIES):
        # Does a process make it already?
        place = -1
        old = 0
        for i in range(FILL_BUCKET):
            word = atomic_load_u64(&words[i])
            if fill_is(word, key):
                if fill_mark(word) == FILL_PENDING and not is_over(fills, word, max_age_ns, now_ns):
                    continue        # not yet decided: the search below decides it
                if not is_over(fills, word, max_age_ns, now_ns):
                    return FILL_ALONE if fill_mark(word) == FILL_SPENT else FILL_BUSY
                if fill_mark(word) != FILL_SPENT:
                    atomic_add_relaxed(&fills.counters[FILLS_TAKEN_OVER], 1)
                place, old = i, word
                break
            if word == 0:
                if place < 0 or old != 0:
                    place, old = i, 0
            elif place < 0 and is_over(fills, word, MAX_AGE_NS, now_ns):
                place, old = i, word
        if place < 0:
            atomic_add_relaxed(&fills.counters[FILLS_CROWDED], 1)
            return FILL_ALONE
        mine = fill_word(key, FILL_PENDING, fills.slot, now_ns)
        if not atomic_cas_u64(&words[place], &old, mine):
            continue
        # Concurrent rivals: the second to look sees the first.
        beaten = False
        for i in range(FILL_BUCKET):
            word = atomic_load_u64(&words[i])
            # A rival that cannot be removed any more has just become live: then it has won.
            while i != place and fill_is(word, key) and fill_mark(word) == FILL_PENDING:
                if atomic_cas_u64(&words[i], &word, 0):
                    word = 0
            if i != place and fill_is(word, key) and not is_over(fills, word, max_age_ns, now_ns):
                beaten = True
        old = mine
        if beaten:
            atomic_cas_u64(&words[place], &old, 0)
            continue
        word = fill_word(key, FILL_LEADING, fills.slot, now_ns)
        if atomic_cas_u64(&words[place], &old, word):
            atomic_add_relaxed(&fills.counters[FILLS_LED], 1)
            # With its time, so that a fill that was given up cannot end that of a successor in the same process.
            return (<int64_t>first + place) | <int64_t>((word & 0xffff) << 32)
        fills_yield()
    return FILL_ALONE


cdef int64_t fills_state(fills_t* fills, const hash128_t* key, int64_t max_age_ns, int64_t now_ns) noexcept nogil:
    cdef uint64_t* words = fills.words + fills_scale(key.low, fills.count // FILL_BUCKET) * FILL_BUCKET
    cdef uint64_t word
    cdef int i
    for i in range(FILL_BUCKET):
        word = atomic_load_u64(&words[i])
        if fill_is(word, key) and not is_over(fills, word, min(max_age_ns, MAX_AGE_NS), now_ns):
            return FILL_ALONE if fill_mark(word) == FILL_SPENT else FILL_BUSY
    return FILL_NONE


cdef bint fills_done(fills_t* fills, const hash128_t* key, int64_t place, bint alone, int64_t now_ns) noexcept nogil:
    """True if the fill was still ours: it had not been given up."""
    cdef uint64_t new = fill_word(key, FILL_SPENT, fills.slot, now_ns) if alone else 0
    cdef uint64_t word = fill_word(key, FILL_LEADING, fills.slot, 0) | <uint64_t>(place >> 32)
    cdef int64_t at = <int64_t>(<uint32_t>place)
    if place < 0 or at >= fills.count or fills.generation != fork_generation():
        return False
    return atomic_cas_u64(&fills.words[at], &word, new)


cdef int64_t fills_under_way(fills_t* fills) noexcept nogil:
    """How many keys are being fetched now. Walks all words."""
    cdef int64_t found = 0
    cdef Py_ssize_t i
    for i in range(fills.count):
        found += fills.words[i] != 0 and fill_mark(fills.words[i]) != FILL_SPENT
    return found
