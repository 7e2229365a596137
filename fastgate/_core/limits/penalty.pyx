"""PenaltyBox: a key that repeatedly violates limits is banned for increasing periods.

WHAT        strike(key) counts a violation; `strikes` of them within within_s start a ban of bans_s[0], the next time of
            bans_s[1], and so on; the last step repeats. A key without violations for forget_s after its last ban starts again at
            the first step.
STATE       per key one table entry: [banned until, ns] [first strike of this count, ns] [strikes 32 | set by hand 1 | step 31]
            [last ban's end or strike, ns]
WHO WRITES  one swap per strike (table_slots.pyx); banned() only reads. Strikes during a ban are not counted, so every ban ends. A
            clock set back cannot make a ban longer than the longest step.
COST        banned about 60 ns, strike about 100 ns from Python; 126 bytes per key of capacity.
SOURCES     fail2ban (bantime.increment); HAProxy stick tables
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.hashing cimport hash128, hash128_t
from fastgate._core.limits.limits cimport now_argument
from fastgate._core.shm.shm cimport SharedMemory
from fastgate._core.shm.table cimport (
    TABLE_FULL, TABLE_KEEP, TABLE_RETRY, TABLE_STORED, LimiterTable, cursor_t, how_argument, key_argument, rule_mark, source_mark,
    table_find, table_forget, table_ready, table_store,
)

__all__ = ["PenaltyBox"]

cdef enum:
    MOST_STEPS = 16
    # words of the state
    UNTIL = 0
    FIRST = 1
    COUNTS = 2
    LAST = 3


cdef int64_t BY_HAND = 0x80000000     # in COUNTS: a ban that ban() set, which may be longer than the longest step


cdef class PenaltyBox:
    """PenaltyBox(strikes=10, within_s=60, bans_s=(60, 600, 3600, 86400), forget_s=86400, *, capacity=None, shared=None,
        table=None, scope="", when_full="refuse")\n--\n
    Bans by key, with increasing durations, in one bounded table, private or shared by processes.

    strikes: 1 to 1 000 000 violations that start a ban. within_s: the span that contains them. bans_s: 1 to 16 durations, none
    shorter than the previous one. forget_s: time without violations that clears the record. All spans 0.001 to 1e9 seconds. capacity, shared, table,
    scope, when_full: as KeyedLimiter; a strike without room in the table is not recorded, but counted in statistics()["refused"].
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, strikes=10, within_s=60, bans_s=(60, 600, 3600, 86_400), forget_s=86_400, *, capacity=None,
                  SharedMemory shared=None, LimiterTable table=None, scope="", when_full="refuse"):
        cdef hash128_t derived
        cdef double shortest = 0.001
        self.strikes = int_argument(strikes, "strikes", 1, 1_000_000)
        self.within_ns = <int64_t>(float_argument(within_s, "within_s", 0.001, 1e9) * 1e9)
        self.forget_ns = <int64_t>(float_argument(forget_s, "forget_s", 0.001, 1e9) * 1e9)
        steps = tuple(bans_s)
        if not 1 <= len(steps) <= MOST_STEPS:
            raise ValueError(f"bans_s: expected 1 to {MOST_STEPS} lengths, got {len(steps)}")
        for each in steps:
            shortest = float_argument(each, "bans_s", shortest, 1e9)
            self.bans_ns[self.steps] = <int64_t>(shortest * 1e9)
            self.steps += 1
        if not isinstance(scope, str):
            raise TypeError(f"scope: expected str, got {scope!r}")
        self.how = how_argument(when_full)
        lives_with_others = table is not None
        if table is None:
            if capacity is None:
                raise TypeError("capacity: expected an int, or table")
            table = LimiterTable(capacity, 5, shared)
        elif capacity is not None or shared is not None:
            raise TypeError("table: expected without capacity and shared, which are the table's own")
        self.table = table
        name = repr(("penalty", scope)).encode()
        hash128(PyBytes_AS_STRING(name), len(name), table.secret, &derived)
        self.key[0] = derived.low
        self.key[1] = derived.high
        self.mark = rule_mark(derived.low) if lives_with_others else 0

    cdef int64_t ban_left(self, const cursor_t* c, int64_t now_ns) noexcept nogil:
        cdef int64_t left = c.state[UNTIL] - now_ns
        if c.state[COUNTS] & BY_HAND:
            return max(left, 0)
        return max(min(left, self.bans_ns[self.steps - 1]), 0)

    cdef int64_t banned_hashed(self, const hash128_t* key, int64_t now_ns) noexcept nogil:
        """Nanoseconds of ban left for the key; 0 if it is not banned."""
        cdef cursor_t c
        c.low = key.low
        c.high = key.high
        c.mark = self.mark
        if not table_ready(&self.table.handle) or not table_find(&self.table.handle, &c):
            return 0
        if c.state[UNTIL] - now_ns > self.bans_ns[self.steps - 1] and not c.state[COUNTS] & BY_HAND:
            # The clock was set back: without this the ban would last until it has caught up.
            c.state[UNTIL] = now_ns + self.bans_ns[self.steps - 1]
            c.state[LAST] = c.state[UNTIL]
            table_store(&self.table.handle, &c, c.state[LAST] + self.forget_ns, now_ns, TABLE_KEEP)
        return self.ban_left(&c, now_ns)

    cdef int64_t strike_hashed(self, const hash128_t* key, uint64_t source, int64_t now_ns) noexcept nogil:
        """Counts one violation; nanoseconds that the key is banned for now, 0 if it is not. source: the hash of the key's origin,
        0: unknown."""
        cdef cursor_t c
        cdef int64_t strikes, step, idle_at_ns
        cdef int stored
        c.low = key.low
        c.high = key.high
        c.mark = self.mark | source_mark(source)
        if not table_ready(&self.table.handle):
            return 0
        while True:
            if table_find(&self.table.handle, &c) and self.ban_left(&c, now_ns) > 0:
                return self.banned_hashed(key, now_ns)
            strikes = c.state[COUNTS] >> 32
            step = c.state[COUNTS] & 0x7fffffff
            if now_ns - c.state[LAST] >= self.forget_ns:
                strikes = step = 0
            if now_ns - c.state[FIRST] >= self.within_ns or strikes == 0:
                strikes = 0
                c.state[FIRST] = now_ns
            strikes += 1
            c.state[LAST] = now_ns
            if strikes >= self.strikes:
                c.state[UNTIL] = c.state[LAST] = now_ns + self.bans_ns[min(step, self.steps - 1)]
                step = min(step + 1, self.steps)
                strikes = 0
            c.state[COUNTS] = strikes << 32 | step
            # Before its first ban a key is forgotten with its strikes; after one, with its step.
            idle_at_ns = c.state[LAST] + self.forget_ns if step != 0 else c.state[FIRST] + self.within_ns
            stored = table_store(&self.table.handle, &c, idle_at_ns, now_ns, self.how)
            if stored == TABLE_STORED:
                return self.ban_left(&c, now_ns)
            if stored == TABLE_FULL:
                return 0

    def strike(self, key, now_ns=None):
        """Counts one violation; nanoseconds that the key is banned for now, 0 if it is not (yet)."""
        cdef hash128_t hashed
        cdef int64_t now
        key_argument(key, self.key, &hashed)
        now = now_argument(now_ns)
        self.table.ready()
        return self.strike_hashed(&hashed, 0, now)

    def banned(self, key, now_ns=None):
        """Nanoseconds of ban left for the key; 0 if it is not banned."""
        cdef hash128_t hashed
        cdef int64_t now
        key_argument(key, self.key, &hashed)
        now = now_argument(now_ns)
        self.table.ready()
        return self.banned_hashed(&hashed, now)

    def ban(self, key, for_s, now_ns=None):
        """Bans the key for for_s seconds from now, regardless of the steps; False if there was no room to record it."""
        cdef hash128_t hashed
        cdef cursor_t c
        cdef int64_t now
        cdef int64_t length = <int64_t>(float_argument(for_s, "for_s", 0.001, 1e9) * 1e9)
        cdef int stored
        key_argument(key, self.key, &hashed)
        now = now_argument(now_ns)
        self.table.ready()
        c.low = hashed.low
        c.high = hashed.high
        c.mark = self.mark
        while True:
            table_find(&self.table.handle, &c)
            c.state[UNTIL] = c.state[LAST] = now + length
            c.state[COUNTS] = max(c.state[COUNTS] & 0x7fffffff, 1) | BY_HAND
            stored = table_store(&self.table.handle, &c, c.state[LAST] + self.forget_ns, now, self.how)
            if stored != TABLE_RETRY:
                return stored == TABLE_STORED

    def pardon(self, key):
        """True if the key had a record, which is deleted with its ban; False if it had none."""
        cdef hash128_t hashed
        cdef cursor_t c
        key_argument(key, self.key, &hashed)
        self.table.ready()
        c.low = hashed.low
        c.high = hashed.high
        c.mark = self.mark
        return table_forget(&self.table.handle, &c)

    def statistics(self):
        """The table's counts: see LimiterTable.statistics."""
        return self.table.statistics()

    @staticmethod
    def size(capacity):
        """Bytes of shared memory for that many keys."""
        return LimiterTable.size(capacity, 5)

    def __repr__(self):
        return f"PenaltyBox(strikes={self.strikes}, within_s={self.within_ns / 1e9:g}, capacity={self.table.capacity})"
