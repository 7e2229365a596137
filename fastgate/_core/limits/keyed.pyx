"""KeyedLimiter: several limits for each of millions of keys, checked and debited as one decision.

WHAT        take(key, amount) checks every limit; either all grant it and all are debited, or none is. reserve(key, amount) takes
            an amount now and settles later on the amount actually used.
STATE       per key one table entry (table.pyx): the words of each limit one after the other. Nothing else per key.
            The entry's hash is SipHash-1-3-128 of the key under the table's secret, the scope and the kinds, windows and
            rates of the limits: several limiters therefore share one table without collisions, and a limiter that is recreated
            after a reload, with other amounts but the same windows, finds its counts.
WHO WRITES  one swap of one index word per decision. All limits of a key lie in one record, so no undo is needed: a
            refusal writes nothing, and a process that dies has debited either all of them or none.
COST        three limits, 1 000 000 keys in shared memory: under 300 ns from Python, most of it two cache misses.
            126 bytes per key up to 5 words of state (a bucket is 1, a window 2), 238 up to 13.
SOURCES     those of limits.pyx and table_slots.pyx; SipHash: hashing.pyx
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.long cimport PyLong_CheckExact
cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastgate._core.arguments cimport int_argument
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.hashing cimport hash128, hash128_t
from fastgate._core.limits.limits cimport (
    LARGEST, LATEST_NS, NEVER, Decision, Limit, limit_charge, limit_idle_at_ns, limit_refund, limit_reset_ns,
    limit_state_words, limit_t, limit_take, new_decision, new_refusal, now_argument, outcome_t,
)
from fastgate._core.shm.shm cimport SharedMemory
from fastgate._core.shm.table cimport (
    TABLE_FULL, TABLE_KEEP, TABLE_STORED, LimiterTable, cursor_t, how_argument, key_argument, rule_mark, source_mark, table_find,
    table_forget, table_ready, table_store,
)

__all__ = ["KeyedLimiter", "Reservation", "live_objects"]


cdef class KeyedLimiter:
    """KeyedLimiter(limits, *, capacity=None, shared=None, table=None, scope="", when_full="refuse")\n--\n
    Limits per key, in one bounded table, private or shared by processes.

    limits: 1 to 16 of TokenBucket, FixedWindow, SlidingWindow; they serve as rules, their own state is not used. capacity: keys
    that fit into the table. shared: SharedMemory of KeyedLimiter.size(limits, capacity) bytes. table: a LimiterTable to use
    instead, shared with other limiters. scope: a name; limiters of one table with the same scope and the same kinds, windows and
    rates are the same limiter. when_full: "refuse" a new key that finds no idle entry (default: a flood of keys cannot displace
    the state of others; the Decision has limit -1), "share" (displace the least used entry of a limiter or source that has taken more than its share, else
    refuse) or "evict" (also the least used entry of this limiter). All are counted in statistics().
    A key is str or bytes; "a" and b"a" are the same key. Other errors: see Limit and LimiterTable.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, limits, *, capacity=None, SharedMemory shared=None, LimiterTable table=None, scope="", when_full="refuse"):
        cdef Limit limit
        cdef hash128_t derived
        cdef int words = 0
        if isinstance(limits, Limit):
            limits = (limits,)
        self.limits = tuple(limits)
        if not 1 <= len(self.limits) <= MOST_LIMITS:
            raise ValueError(f"limits: expected 1 to {MOST_LIMITS}, got {len(self.limits)}")
        for each in self.limits:
            if not isinstance(each, Limit):
                raise TypeError(f"limits: expected TokenBucket, FixedWindow or SlidingWindow, got {each!r}")
            limit = each
            self.specs[self.count] = limit.spec
            self.count += 1
            words += limit_state_words(&limit.spec)
        if not isinstance(scope, str):
            raise TypeError(f"scope: expected str, got {scope!r}")
        self.how = how_argument(when_full)
        self.scope = scope
        lives_with_others = table is not None
        if table is None:
            if capacity is None:
                raise TypeError("capacity: expected an int, or table")
            table = LimiterTable(capacity, fitting_words(words), shared)
        elif capacity is not None or shared is not None:
            raise TypeError("table: expected without capacity and shared, which are the table's own")
        elif fitting_words(words) > fitting_words(table.state_words):
            raise ValueError(f"table: expected state_words of at least {words}, got {table.state_words}")
        self.table = table
        name = repr((scope, [shape_of(each) for each in self.limits])).encode()
        hash128(PyBytes_AS_STRING(name), len(name), table.secret, &derived)
        self.key[0] = derived.low
        self.key[1] = derived.high
        self.mark = rule_mark(derived.low) if lives_with_others else 0

    # --- for C callers

    cdef void hash_key(self, const void* data, size_t n, hash128_t* out) noexcept nogil:
        hash128(data, n, self.key, out)

    cdef bint take_hashed(self, const hash128_t* key, const int64_t* amounts, int64_t now_ns, bint commit,
                          verdict_t* verdict) noexcept nogil:
        """True if every limit granted its amount at now_ns (and, with commit, was debited); verdict describes the tightest."""
        return self.take_marked(key, self.mark, amounts, now_ns, commit, verdict)

    cdef bint take_marked(self, const hash128_t* key, uint64_t mark, const int64_t* amounts, int64_t now_ns, bint commit,
                          verdict_t* verdict) noexcept nogil:
        cdef cursor_t c
        cdef outcome_t outcome
        cdef int64_t* state
        cdef int64_t* tightest = NULL
        cdef int64_t idle_at_ns, at_ns
        cdef int i, stored
        cdef bint changed
        c.low = key.low
        c.high = key.high
        c.mark = mark
        if not table_ready(&self.table.handle):
            verdict.allowed = False
            verdict.limit = NO_PLACE
            verdict.remaining = verdict.retry_after_ns = verdict.reset_ns = 0
            return False
        while True:
            table_find(&self.table.handle, &c)
            verdict.allowed = True
            verdict.limit = NO_PLACE
            verdict.remaining = verdict.retry_after_ns = 0
            idle_at_ns = 0
            changed = False
            state = c.state
            for i in range(self.count):
                if amounts[i] == 0:
                    pass
                elif limit_take(&self.specs[i], state, amounts[i], now_ns, &outcome):
                    if verdict.allowed and (verdict.limit < 0 or outcome.remaining < verdict.remaining):
                        verdict.limit = i
                        verdict.remaining = outcome.remaining
                        tightest = state
                else:
                    if verdict.allowed or outcome.retry_after_ns > verdict.retry_after_ns:
                        verdict.limit = i
                        verdict.remaining = outcome.remaining
                        verdict.retry_after_ns = outcome.retry_after_ns
                        tightest = state
                    verdict.allowed = False
                    changed = changed or outcome.changed
                at_ns = limit_idle_at_ns(&self.specs[i], state, now_ns)
                idle_at_ns = max(idle_at_ns, at_ns)
                state += limit_state_words(&self.specs[i])
            verdict.reset_ns = limit_reset_ns(&self.specs[verdict.limit], tightest, now_ns)
            if not commit or not verdict.allowed:
                # After a clock set back the stored times would keep refusing: store the updated state, with no amount taken.
                if commit and changed:
                    self.store_healed(&c, now_ns)
                return verdict.allowed
            stored = table_store(&self.table.handle, &c, idle_at_ns, now_ns, self.how)
            if stored == TABLE_STORED:
                return True
            if stored == TABLE_FULL:
                verdict.allowed = False
                verdict.limit = NO_PLACE
                verdict.remaining = 0
                verdict.retry_after_ns = verdict.reset_ns = max(c.idle_at_ns - now_ns, 1)
                return False

    cdef void store_healed(self, cursor_t* c, int64_t now_ns) noexcept nogil:
        """Stores each refusing limit's state as of now_ns. Losing a race here is harmless: the next refusal tries again."""
        cdef outcome_t outcome
        cdef cursor_t fresh
        cdef int64_t* state = fresh.state
        cdef int64_t idle_at_ns = 0
        cdef int i
        fresh.low = c.low
        fresh.high = c.high
        fresh.mark = c.mark
        if not table_find(&self.table.handle, &fresh):
            return
        for i in range(self.count):
            limit_take(&self.specs[i], state, 0, now_ns, &outcome)
            idle_at_ns = max(idle_at_ns, limit_idle_at_ns(&self.specs[i], state, now_ns))
            state += limit_state_words(&self.specs[i])
        table_store(&self.table.handle, &fresh, idle_at_ns, now_ns, TABLE_KEEP)

    cdef bint adjust_hashed(self, const hash128_t* key, const int64_t* amounts, int64_t taken_ns, int64_t now_ns) noexcept nogil:
        """Charges the positive and refunds the negative amounts, in one step; False if the table had no room."""
        cdef cursor_t c
        cdef int64_t* state
        cdef int64_t idle_at_ns
        cdef int i, stored
        c.low = key.low
        c.high = key.high
        c.mark = self.mark
        if not table_ready(&self.table.handle):
            return False
        while True:
            table_find(&self.table.handle, &c)
            idle_at_ns = 0
            state = c.state
            for i in range(self.count):
                if amounts[i] > 0:
                    limit_charge(&self.specs[i], state, amounts[i], now_ns)
                elif amounts[i] < 0:
                    limit_refund(&self.specs[i], state, -amounts[i], taken_ns, now_ns)
                idle_at_ns = max(idle_at_ns, limit_idle_at_ns(&self.specs[i], state, now_ns))
                state += limit_state_words(&self.specs[i])
            stored = table_store(&self.table.handle, &c, idle_at_ns, now_ns, self.how)
            if stored == TABLE_STORED:
                return True
            if stored == TABLE_FULL:
                return False

    # --- for Python

    cdef int read_amounts(self, object amount, int64_t* amounts) except -1:
        """One amount for every limit, or one each."""
        cdef int64_t n
        cdef int64_t total = 0
        cdef int i
        if PyLong_CheckExact(amount) or not isinstance(amount, (tuple, list)):
            n = int_argument(amount, "amount", 1, LARGEST)
            for i in range(self.count):
                amounts[i] = n
            return 0
        if len(amount) != self.count:
            raise ValueError(f"amount: expected one int or {self.count}, one per limit, got {len(amount)}")
        for i in range(self.count):
            amounts[i] = int_argument(amount[i], "amount", 0, LARGEST)
            total += amounts[i]
        if total == 0:
            raise ValueError("amount: expected at least one above 0, got all 0")
        return 0

    def take(self, key, amount=1, now_ns=None, source=None):
        """The Decision; if allowed, `amount` was taken from every limit of the key, else no amount was.

        amount: one int for all limits, or a tuple with one per limit (0 = not counted by this limit). source: the origin of the
        key, str or bytes; new keys of one source cannot take the room that those of others need (table_slots.pyx, Shares).
        """
        return self.decision(key, amount, now_ns, True, source)

    def peek(self, key, amount=1, now_ns=None):
        """The Decision that take() would return; takes no amount and creates no entry."""
        return self.decision(key, amount, now_ns, False, None)

    cdef Decision decision(self, key, amount, now_ns, bint commit, source):
        cdef hash128_t hashed, brought
        cdef uint64_t mark = self.mark
        cdef int64_t amounts[MOST_LIMITS]
        cdef int64_t now
        cdef verdict_t verdict
        key_argument(key, self.key, &hashed)
        self.read_amounts(amount, amounts)
        now = now_argument(now_ns)
        self.table.ready()
        if source is not None:
            key_argument(source, self.key, &brought)
            # If no entries are displaced, a source's share is one of the table, as if it were a separate rule.
            mark = rule_mark(brought.low) if self.how == TABLE_KEEP else mark | source_mark(brought.low)
        self.take_marked(&hashed, mark, amounts, now, commit, &verdict)
        return new_decision(verdict.allowed, verdict.limit, verdict.remaining, verdict.retry_after_ns, verdict.reset_ns)

    def reserve(self, key, amount=1, now_ns=None):
        """A Reservation, which is true, if `amount` was taken; else a Refusal, the Decision with the cause, which is false."""
        cdef Reservation made
        cdef hash128_t hashed
        cdef int64_t amounts[MOST_LIMITS]
        cdef int64_t now
        cdef int i
        cdef verdict_t verdict
        key_argument(key, self.key, &hashed)
        self.read_amounts(amount, amounts)
        now = now_argument(now_ns)
        self.table.ready()
        if not self.take_hashed(&hashed, amounts, now, True, &verdict):
            return new_refusal(verdict.limit, verdict.remaining, verdict.retry_after_ns, verdict.reset_ns)
        made = Reservation.__new__(Reservation)
        made.limiter = self
        made.key = hashed
        for i in range(self.count):
            made.reserved[i] = amounts[i]
        made.taken_ns = now
        made.is_open = True
        return made

    def charge(self, key, amount, now_ns=None):
        """Debits the key unconditionally, for usage that has already happened; True, or False if the table had no room.

        The debt of each limit ends one whole limit below zero.
        """
        cdef hash128_t hashed
        cdef int64_t amounts[MOST_LIMITS]
        cdef int64_t now
        key_argument(key, self.key, &hashed)
        self.read_amounts(amount, amounts)
        now = now_argument(now_ns)
        self.table.ready()
        return self.adjust_hashed(&hashed, amounts, now, now)

    def forget(self, key):
        """True if the key had an entry, which is reset; False if it had none."""
        cdef cursor_t c
        cdef hash128_t hashed
        key_argument(key, self.key, &hashed)
        self.table.ready()
        c.low = hashed.low
        c.high = hashed.high
        c.mark = 0
        return table_forget(&self.table.handle, &c)

    def statistics(self):
        """The table's counts: see LimiterTable.statistics."""
        return self.table.statistics()

    @staticmethod
    def size(limits, capacity):
        """Bytes of shared memory for these limits and that many keys."""
        cdef int words = 0
        cdef Limit limit
        for each in (limits,) if isinstance(limits, Limit) else limits:
            limit = each
            words += limit_state_words(&limit.spec)
        return LimiterTable.size(capacity, fitting_words(words))

    def __repr__(self):
        return f"KeyedLimiter({list(self.limits)!r}, capacity={self.table.capacity}, scope={self.scope!r})"


@cython.final
cdef class Reservation:
    """An amount taken before its use. Settle it once; an unsettled one stays taken, which can only admit less.

    Made by KeyedLimiter.reserve. is_open: neither settled nor refunded yet. taken_ns: the time of the reservation.
    """

    def __cinit__(self):
        debug_live_add(1)

    def __dealloc__(self):
        debug_live_add(-1)

    def settle(self, amount, now_ns=None):
        """True if this call closed the reservation on `amount` used: the difference is refunded or charged; False if it was
        closed.

        amount: an int or one per limit, 0 or more. A limit that was reserved with 0 is not charged.
        """
        cdef int64_t used[MOST_LIMITS]
        cdef int64_t now = now_argument(now_ns)
        cdef int i
        cdef KeyedLimiter limiter = self.limiter
        if limiter is None:
            raise TypeError("Reservation: made by KeyedLimiter.reserve")
        if isinstance(amount, (tuple, list)):
            if len(amount) != limiter.count:
                raise ValueError(f"amount: expected one int or {limiter.count}, one per limit, got {len(amount)}")
            for i in range(limiter.count):
                used[i] = int_argument(amount[i], "amount", 0, LARGEST)
        else:
            used[0] = int_argument(amount, "amount", 0, LARGEST)
            for i in range(1, limiter.count):
                used[i] = used[0]
        limiter.table.ready()
        if not self.is_open:
            return False
        self.is_open = False
        for i in range(limiter.count):
            used[i] = used[i] - self.reserved[i] if self.reserved[i] != 0 else 0
        limiter.adjust_hashed(&self.key, used, self.taken_ns, now)
        return True

    def refund(self, now_ns=None):
        """True if this call refunded everything; False if the reservation was closed already."""
        return self.settle(0, now_ns)

    def __bool__(self):
        return True


cdef int fitting_words(int state_words) noexcept:
    """The state words of the smallest whole-line record that holds so many."""
    return (state_words + 3 + 7) // 8 * 8 - 3


cdef object shape_of(Limit limit):
    """The properties that two limits must share to use the same state: a window's amount may differ, a bucket's rate may not."""
    if limit.spec.kind == 1:
        return (1, limit.spec.ticks_per_ns, limit.spec.shift)
    return (limit.spec.kind, limit.spec.window_ns)


def live_objects():
    """How many objects of this module are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
