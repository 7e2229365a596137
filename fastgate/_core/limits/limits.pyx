"""TokenBucket, FixedWindow, SlidingWindow: limits on an amount per time.

WHAT        The three ways to count, each as pure functions over one or two words of state, and as objects over private or shared
            memory. Many keys with several limits each: keyed.pyx, over the same functions.
            Amounts are integers in the limit's own unit: requests, bytes, tokens of a model. Fractional amounts are counted in
            micro-units: a budget of 5 dollars a day is FixedWindow(5_000_000, 86_400), a call takes 137.
STATE       TokenBucket     [time the bucket is full again, in ticks]              GCRA: one number describes the bucket
            FixedWindow     [number of the window] [used in it]
            SlidingWindow   [number, high 24 bits | used 40] [number, low 24 bits | used in the previous window 40]

            A tick is a token / 2**shift with the shift chosen so that a tick lasts 1 to 2 ns: then one multiplication turns
            nanoseconds into ticks, any rate is exact to 2**-61, and `burst` tokens are exactly that many.
            A window's number is now // window: windows start at multiples of their length on the caller's clock.
WHO WRITES  A bucket: CAS on its word, from any process or thread. A window in shared memory: one table entry (table_slots.pyx),
            changed in one swap. Private windows: the GIL.
            A clock that goes back frees nothing: the bucket keeps its debt and the window its count. A state more than a minute
            ahead of any valid time (a clock set back by more) is moved to the new time, with its amounts, so that a limit
            recovers within one of its own periods.
COST        take from Python 40 to 60 ns with now_ns given, 20 more to read the clock.
ERRORS      TokenBucket: none; any span of t admits at most burst + rate·t, to the token. FixedWindow: none per aligned window;
            any span as long as the window at most 2 × limit. SlidingWindow: counts the previous window as if spread evenly,
            rounded up; even traffic is exact to one amount; any aligned window at most limit; the worst traffic (everything at a
            window's end, then everything at the next one's end) 2 × limit in a span; over many windows never more than limit per
            window.
SOURCES     ITU-T I.371 Annex A (GCRA, virtual scheduling); Cloudflare, How we built rate limiting capable of scaling to
            millions of domains (2017, sliding window counter)
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.shm.atomic cimport atomic_cas, atomic_load
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.shm.shm cimport SharedMemory
from fastgate._core.shm.table cimport (
    TABLE_KEEP, TABLE_STORED, LimiterTable, cursor_t, table_find, table_store,
)

from fractions import Fraction

__all__ = ["FixedWindow", "Limit", "SlidingWindow", "TokenBucket", "live_objects"]

cdef extern from *:
    """
    typedef unsigned __int128 limits_wide_t;
    #define LIMITS_NUMBER ((UINT64_C(1) << 40) - 1)
    /* a * b / c, exact; the result fits because one of a, b is at most c, or the caller has bounded it */
    static inline int64_t limits_floor(int64_t a, int64_t b, int64_t c) { return (int64_t)((limits_wide_t)a * (uint64_t)b / (uint64_t)c); }
    static inline int64_t limits_ceil(int64_t a, int64_t b, int64_t c) {
        uint64_t p;
        if (!__builtin_mul_overflow((uint64_t)a, (uint64_t)b, &p) && p <= UINT64_MAX - (uint64_t)c)
            return (int64_t)((p + (uint64_t)c - 1) / (uint64_t)c);
        return (int64_t)(((limits_wide_t)a * (uint64_t)b + (uint64_t)c - 1) / (uint64_t)c);
    }
    static inline int64_t limits_ticks(int64_t ns, uint64_t ratio) { return (int64_t)(((limits_wide_t)(uint64_t)ns * ratio) >> 62); }
    /* the smallest ns with limits_ticks(ns) >= ticks */
    static inline int64_t limits_ns(int64_t ticks, uint64_t ratio) {
        limits_wide_t ns = (((limits_wide_t)(uint64_t)ticks << 62) + ratio - 1) / ratio;
        return ns > INT64_MAX ? INT64_MAX : (int64_t)ns;
    }
    """
    int64_t limits_floor(int64_t a, int64_t b, int64_t c) noexcept nogil
    int64_t limits_ceil(int64_t a, int64_t b, int64_t c) noexcept nogil
    int64_t limits_ticks(int64_t ns, uint64_t ratio) noexcept nogil
    int64_t limits_ns(int64_t ticks, uint64_t ratio) noexcept nogil
    const uint64_t LIMITS_NUMBER

cdef int64_t SLACK_NS = 60_000_000_000      # a clock set back by more moves the state to the new time; by less, the state is kept
cdef double LONGEST_S = 1e9                 # 31 years to fill a bucket, or of one window
cdef double SHORTEST_S = 1e-3               # a window; below it the clock reading of another process is as old as the window


# --- token bucket

cdef inline int64_t bucket_debt(const limit_t* limit, int64_t full_at, int64_t now, bint* healed) noexcept nogil:
    """Ticks missing until the bucket is full at `now`; more than the burst after a charge, at most twice."""
    cdef int64_t debt = full_at - now
    cdef int64_t burst = limit.limit << limit.shift
    healed[0] = debt > 2 * burst + limit.slack
    if healed[0]:
        return burst
    return debt if debt > 0 else 0


cdef bint bucket_take(const limit_t* limit, int64_t* full_at, int64_t amount, int64_t now_ns,
                      outcome_t* outcome) noexcept nogil:
    cdef int64_t now = limits_ticks(now_ns, limit.ticks_per_ns)
    cdef bint healed
    cdef int64_t debt = bucket_debt(limit, full_at[0], now, &healed)
    cdef int64_t room = (limit.limit << limit.shift) - debt
    cdef int64_t need
    outcome.changed = False
    if amount <= limit.limit:
        need = amount << limit.shift
        if need <= room:
            full_at[0] = now + debt + need
            outcome.remaining = (room - need) >> limit.shift
            outcome.retry_after_ns = 0
            return True
        outcome.retry_after_ns = limits_ns(now + need - room, limit.ticks_per_ns) - now_ns
    else:
        outcome.retry_after_ns = NEVER
    outcome.remaining = room >> limit.shift if room > 0 else 0
    if healed:
        full_at[0] = now + debt
        outcome.changed = True
    return False


# --- windows

cdef inline bint fixed_roll(const limit_t* limit, int64_t* number, int64_t* used, int64_t now_ns) noexcept nogil:
    """Advances a fixed window to now_ns; True if the clock had been set back too far and the number was replaced."""
    cdef int64_t current = now_ns // limit.window_ns
    if number[0] < current:
        number[0] = current
        used[0] = 0
    elif number[0] > current and number[0] * limit.window_ns - now_ns > limit.window_ns + limit.slack:
        number[0] = current
        return True
    return False


cdef bint fixed_take(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns,
                     outcome_t* outcome) noexcept nogil:
    cdef int64_t number = state[0]
    cdef int64_t used = state[1]
    outcome.changed = fixed_roll(limit, &number, &used, now_ns)
    if amount <= limit.limit - used:
        state[0] = number
        state[1] = used + amount
        outcome.remaining = limit.limit - used - amount
        outcome.retry_after_ns = 0
        return True
    if outcome.changed:
        state[0] = number
    outcome.remaining = limit.limit - used if used < limit.limit else 0
    outcome.retry_after_ns = NEVER if amount > limit.limit else (number + 1) * limit.window_ns - now_ns
    return False


ctypedef struct sliding_t:
    int64_t number
    int64_t used
    int64_t before      # used in the previous window
    bint healed


cdef inline void sliding_load(const limit_t* limit, const int64_t* state, int64_t now_ns, sliding_t* s) noexcept nogil:
    """Unpacks a sliding window and advances it to now_ns."""
    cdef int64_t current = now_ns // limit.window_ns
    s.number = <int64_t>((<uint64_t>state[0] >> 40 << 24) | (<uint64_t>state[1] >> 40))
    s.used = <int64_t>(<uint64_t>state[0] & LIMITS_NUMBER)
    s.before = <int64_t>(<uint64_t>state[1] & LIMITS_NUMBER)
    s.healed = False
    if s.number < current:
        s.before = s.used if s.number + 1 == current else 0
        s.used = 0
        s.number = current
    elif s.number > current and s.number * limit.window_ns - now_ns > limit.window_ns + limit.slack:
        s.number = current
        s.healed = True


cdef inline void sliding_save(int64_t* state, const sliding_t* s) noexcept nogil:
    state[0] = <int64_t>((<uint64_t>s.number >> 24 << 40) | <uint64_t>s.used)
    state[1] = <int64_t>((<uint64_t>s.number << 40) | <uint64_t>s.before)


cdef inline int64_t sliding_weight(const limit_t* limit, const sliding_t* s, int64_t now_ns) noexcept nogil:
    """The part of the previous window that still counts: its share of the span that ends now, rounded up."""
    cdef int64_t elapsed = now_ns - s.number * limit.window_ns
    if s.before == 0:
        return 0
    if elapsed <= 0:        # the clock went back a little: no time has passed
        return s.before
    return limits_ceil(s.before, limit.window_ns - elapsed, limit.window_ns)


cdef int64_t sliding_wait(const limit_t* limit, const sliding_t* s, int64_t amount, int64_t now_ns) noexcept nogil:
    """Nanoseconds until `amount` (refused now, but at most the limit) would be granted if no other call takes anything."""
    cdef int64_t room = limit.limit - amount - s.used
    cdef int64_t start = s.number * limit.window_ns
    if room >= 0:           # the previous window has to fade: before * left / window <= room
        return start + limit.window_ns - limits_floor(room, limit.window_ns, s.before) - now_ns
    room = limit.limit - amount         # this window alone is too full: it has to become the previous one, and fade
    return start + 2 * limit.window_ns - limits_floor(room, limit.window_ns, s.used) - now_ns


cdef bint sliding_take(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns,
                       outcome_t* outcome) noexcept nogil:
    cdef sliding_t s
    cdef int64_t room
    sliding_load(limit, state, now_ns, &s)
    room = limit.limit - s.used - sliding_weight(limit, &s, now_ns)
    outcome.changed = s.healed
    if amount <= room:
        s.used += amount
        sliding_save(state, &s)
        outcome.remaining = room - amount
        outcome.retry_after_ns = 0
        return True
    if s.healed:
        sliding_save(state, &s)
    outcome.remaining = room if room > 0 else 0
    outcome.retry_after_ns = NEVER if amount > limit.limit else sliding_wait(limit, &s, amount, now_ns)
    return False


# --- all kinds

cdef bint limit_take(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns,
                     outcome_t* outcome) noexcept nogil:
    if limit.kind == BUCKET:
        return bucket_take(limit, state, amount, now_ns, outcome)
    if limit.kind == FIXED:
        return fixed_take(limit, state, amount, now_ns, outcome)
    return sliding_take(limit, state, amount, now_ns, outcome)


cdef int64_t limit_charge(const limit_t* limit, int64_t* state, int64_t amount, int64_t now_ns) noexcept nogil:
    cdef int64_t now, debt, room
    cdef bint healed
    cdef sliding_t s
    if limit.kind == BUCKET:
        now = limits_ticks(now_ns, limit.ticks_per_ns)
        debt = bucket_debt(limit, state[0], now, &healed)
        room = (2 * (limit.limit << limit.shift) - debt) >> limit.shift
        amount = min(amount, max(room, 0))
        state[0] = now + debt + (amount << limit.shift)
        return amount
    if limit.kind == FIXED:
        fixed_roll(limit, &state[0], &state[1], now_ns)
        amount = min(amount, max(2 * limit.limit - state[1], 0))
        state[1] += amount
        return amount
    sliding_load(limit, state, now_ns, &s)
    amount = min(amount, max(2 * limit.limit - s.used, 0))
    s.used += amount
    sliding_save(state, &s)
    return amount


cdef int64_t limit_refund(const limit_t* limit, int64_t* state, int64_t amount, int64_t taken_ns,
                          int64_t now_ns) noexcept nogil:
    cdef int64_t now, debt
    cdef bint healed
    cdef sliding_t s
    if limit.kind == BUCKET:
        now = limits_ticks(now_ns, limit.ticks_per_ns)
        debt = bucket_debt(limit, state[0], now, &healed)
        amount = min(amount, debt >> limit.shift)
        if amount > 0 or healed:
            state[0] = now + debt - (amount << limit.shift)
        return amount
    if limit.kind == FIXED:
        fixed_roll(limit, &state[0], &state[1], now_ns)
        if taken_ns // limit.window_ns != state[0]:
            return 0
        amount = min(amount, state[1])
        state[1] -= amount
        return amount
    sliding_load(limit, state, now_ns, &s)
    if taken_ns // limit.window_ns == s.number:
        amount = min(amount, s.used)
        s.used -= amount
    elif taken_ns // limit.window_ns == s.number - 1:
        amount = min(amount, s.before)
        s.before -= amount
    else:
        amount = 0
    sliding_save(state, &s)
    return amount


cdef int64_t limit_reset_ns(const limit_t* limit, const int64_t* state, int64_t now_ns) noexcept nogil:
    cdef int64_t number, used, wait
    cdef sliding_t s
    if limit.kind == BUCKET:
        wait = limits_ns(state[0], limit.ticks_per_ns) - now_ns
        return wait if wait > 0 else 0
    if limit.kind == FIXED:
        number = state[0]
        used = state[1]
        fixed_roll(limit, &number, &used, now_ns)
        return (number + 1) * limit.window_ns - now_ns if used != 0 else 0
    sliding_load(limit, state, now_ns, &s)
    if s.used != 0:
        return (s.number + 2) * limit.window_ns - now_ns
    return (s.number + 1) * limit.window_ns - now_ns if s.before != 0 else 0


cdef int64_t limit_idle_at_ns(const limit_t* limit, const int64_t* state, int64_t now_ns) noexcept nogil:
    """A time from which the state is unused again; for a bucket rounded up by at most a part in 2**50."""
    cdef double ticks
    if limit.kind == BUCKET:
        ticks = <double>(state[0] - limits_ticks(now_ns, limit.ticks_per_ns))
        return now_ns + <int64_t>(ticks * (4611686018427387904.0 / <double>limit.ticks_per_ns) * 1.000000000000001) + 2
    return now_ns + limit_reset_ns(limit, state, now_ns)


cdef int limit_state_words(const limit_t* limit) noexcept nogil:
    return 1 if limit.kind == BUCKET else 2


cdef int64_t now_argument(object now_ns) except -1:
    """now_ns as given (0 to 2**62 - 1), or the monotonic clock for None."""
    if now_ns is None:
        return monotonic_ns()
    return int_argument(now_ns, "now_ns", 0, LATEST_NS)


# --- objects

cdef class Limit:
    """The common base of TokenBucket, FixedWindow and SlidingWindow. Make one of those.

    Amounts are ints from 1 to 2**39 - 1. now_ns is an int from 0 to 2**62 - 1 on any clock, always the same one; the default is
    the monotonic clock. Invalid ones raise ValueError or TypeError, and no amount is taken. Safe for threads; with `shared`, for
    processes.
    """

    def __cinit__(self, *_, **__):
        debug_live_add(1)
        if type(self) is Limit:
            raise TypeError("Limit: make a TokenBucket, FixedWindow or SlidingWindow")

    def __dealloc__(self):
        debug_live_add(-1)

    cdef bint decide_at(self, int64_t amount, int64_t now_ns, bint commit, outcome_t* outcome, int64_t* reset_ns) noexcept nogil:
        cdef int64_t state[2]
        cdef int64_t old
        cdef cursor_t c
        cdef bint allowed
        if self.word == NULL:
            c.low = c.high = 1
            c.mark = 0
            while True:
                table_find(&self.table.handle, &c)
                allowed = limit_take(&self.spec, c.state, amount, now_ns, outcome)
                if reset_ns != NULL:
                    reset_ns[0] = limit_reset_ns(&self.spec, c.state, now_ns)
                if not commit or not (allowed or outcome.changed):
                    return allowed
                if table_store(&self.table.handle, &c, LATEST_NS, now_ns, TABLE_KEEP) == TABLE_STORED:
                    return allowed
        if self.spec.kind == BUCKET:
            old = atomic_load(self.word)
            while True:
                state[0] = old
                allowed = bucket_take(&self.spec, state, amount, now_ns, outcome)
                if not commit or not (allowed or outcome.changed) or atomic_cas(self.word, &old, state[0]):
                    break
        else:
            state[0] = self.own[0]
            state[1] = self.own[1]
            allowed = limit_take(&self.spec, state, amount, now_ns, outcome)
            if commit:
                self.own[0] = state[0]
                self.own[1] = state[1]
        if reset_ns != NULL:
            reset_ns[0] = limit_reset_ns(&self.spec, state, now_ns)
        return allowed

    cdef int64_t adjust_at(self, int64_t amount, int64_t taken_ns, int64_t now_ns) noexcept nogil:
        """Charges a positive amount, refunds a negative one taken at taken_ns; returns the amount charged or refunded."""
        cdef int64_t state[2]
        cdef int64_t old, done
        cdef cursor_t c
        while True:
            if self.word == NULL:
                c.low = c.high = 1
                c.mark = 0
                table_find(&self.table.handle, &c)
                done = self.adjust_state(c.state, amount, taken_ns, now_ns)
                if table_store(&self.table.handle, &c, LATEST_NS, now_ns, TABLE_KEEP) == TABLE_STORED:
                    return done
            elif self.spec.kind == BUCKET:
                old = atomic_load(self.word)
                state[0] = old
                done = self.adjust_state(state, amount, taken_ns, now_ns)
                if atomic_cas(self.word, &old, state[0]):
                    return done
            else:
                return self.adjust_state(self.own, amount, taken_ns, now_ns)

    cdef int64_t adjust_state(self, int64_t* state, int64_t amount, int64_t taken_ns, int64_t now_ns) noexcept nogil:
        if amount >= 0:
            return limit_charge(&self.spec, state, amount, now_ns)
        return limit_refund(&self.spec, state, -amount, taken_ns, now_ns)

    def take(self, amount=1, now_ns=None):
        """True if `amount` was taken, else False and nothing changed."""
        cdef outcome_t outcome
        cdef int64_t n = int_argument(amount, "amount", 1, LARGEST)
        cdef int64_t now = now_argument(now_ns)
        if self.table is not None:
            self.table.ready()
        return self.decide_at(n, now, True, &outcome, NULL)

    def decide(self, amount=1, now_ns=None):
        """Takes like take() and returns the complete Decision."""
        return self.decision(amount, now_ns, True)

    def peek(self, amount=1, now_ns=None):
        """The Decision that decide() would return; takes no amount."""
        return self.decision(amount, now_ns, False)

    cdef Decision decision(self, amount, now_ns, bint commit):
        cdef outcome_t outcome
        cdef int64_t reset_ns
        cdef int64_t n = int_argument(amount, "amount", 1, LARGEST)
        cdef int64_t now = now_argument(now_ns)
        cdef bint allowed
        if self.table is not None:
            self.table.ready()
        allowed = self.decide_at(n, now, commit, &outcome, &reset_ns)
        return new_decision(allowed, 0, outcome.remaining, outcome.retry_after_ns, reset_ns)

    def charge(self, amount, now_ns=None):
        """Debits unconditionally, for usage that has already happened; returns the amount debited.

        The debt ends one whole limit below zero, so that a limit recovers within two of its periods: the result may be less.
        """
        cdef int64_t n = int_argument(amount, "amount", 1, LARGEST)
        cdef int64_t now = now_argument(now_ns)
        if self.table is not None:
            self.table.ready()
        return self.adjust_at(n, now, now)

    def refund(self, amount, taken_ns=None, now_ns=None):
        """Refunds an amount that was taken at taken_ns (default: now_ns) and not used; returns the amount refunded.

        A bucket is refunded up to full; a window only while it is the one charged (a sliding one also as the previous window).
        """
        cdef int64_t n = int_argument(amount, "amount", 1, LARGEST)
        cdef int64_t now = now_argument(now_ns)
        cdef int64_t taken = now if taken_ns is None else int_argument(taken_ns, "taken_ns", 0, LATEST_NS)
        if self.table is not None:
            self.table.ready()
        return self.adjust_at(-n, taken, now)

    @property
    def limit(self):
        """The burst of a bucket, or the amount that a window admits."""
        return self.spec.limit

    cdef int attach_window(self, SharedMemory shared) except -1:
        if shared is None:
            self.word = self.own
            return 0
        self.table = LimiterTable(1, 2, shared)
        return 0


cdef int fill_window(limit_t* spec, int64_t kind, object limit, object window_s) except -1:
    cdef int64_t most = int_argument(limit, "limit", 1, LARGEST)
    cdef double seconds = float_argument(window_s, "window_s", SHORTEST_S, LONGEST_S)
    spec.limit = most
    spec.window_ns = round(Fraction(window_s) * 1_000_000_000) if isinstance(window_s, int) else <int64_t>(seconds * 1e9 + 0.5)
    spec.slack = SLACK_NS
    spec.kind = kind
    return 0


cdef class TokenBucket(Limit):
    """TokenBucket(rate_per_s, burst, shared=None, offset=0)\n--\n
    A bucket that holds `burst` tokens and gains rate_per_s tokens a second; starts full.

    rate_per_s: 1e-9 to 1e9. burst: 1 to 2**39 - 1 tokens; burst / rate_per_s at most 1e9 seconds. Any span of t seconds admits at
    most burst + rate_per_s·t. shared: SharedMemory with 16 bytes for the bucket at `offset` (a multiple of 8); all processes with
    the same place and the same numbers use one bucket. ValueError: out of range, or the place holds another bucket.
    """

    SHARED_BYTES = 16

    def __cinit__(self, rate_per_s, burst, SharedMemory shared=None, offset=0):
        cdef double rate = float_argument(rate_per_s, "rate_per_s", 1e-9, 1e9)
        cdef int64_t most = int_argument(burst, "burst", 1, LARGEST)
        cdef int64_t at = int_argument(offset, "offset", 0, LATEST_NS)
        cdef int64_t* place
        cdef int64_t name, found
        if most / rate > LONGEST_S:
            raise ValueError(f"burst: expected at most {LONGEST_S:g} s × rate_per_s = {int(rate * LONGEST_S)}, got {most}")
        exact = Fraction(rate_per_s) / 1_000_000_000
        shift = 0
        while exact * (1 << (shift + 1)) <= 1:
            shift += 1
        self.spec.limit = most
        self.spec.shift = shift
        self.spec.ticks_per_ns = int(exact * (1 << (shift + 62)))
        self.spec.slack = limits_ticks(SLACK_NS, self.spec.ticks_per_ns)
        self.spec.kind = BUCKET
        self.rate_per_s = rate
        self.word = self.own
        if shared is None:
            return
        if at % 8 or <size_t>at + 16 > shared.size:
            raise ValueError(f"offset: expected a multiple of 8 with 16 bytes behind it in {shared.size}, got {at}")
        place = <int64_t*>(<char*>shared.address + at)
        # The first word identifies the numbers, so that two processes with different ones detect it.
        name = <int64_t>(self.spec.ticks_per_ns ^ <uint64_t>most ^ (<uint64_t>shift << 56)) | 1
        found = 0
        if not atomic_cas(place, &found, name) and found != name:
            raise ValueError(f"shared: the memory at offset {at} holds another bucket (or something else)")
        self.shared = shared
        self.word = place + 1

    @property
    def burst(self):
        """Tokens the bucket holds when full."""
        return self.spec.limit

    def __repr__(self):
        return f"TokenBucket(rate_per_s={self.rate_per_s:g}, burst={self.spec.limit})"


cdef class FixedWindow(Limit):
    """FixedWindow(limit, window_s, shared=None)\n--\n
    At most `limit` in each window of window_s seconds; windows start at multiples of window_s on the clock of now_ns.

    limit: 1 to 2**39 - 1. window_s: 0.001 to 1e9. For calendar days pass realtime_ns() as now_ns. Any span of one window's length
    admits at most 2 × limit. shared: SharedMemory of at least SHARED_BYTES for this window alone.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    SHARED_BYTES = LimiterTable.size(1, 2)

    def __cinit__(self, limit, window_s, SharedMemory shared=None):
        fill_window(&self.spec, FIXED, limit, window_s)
        self.window_s = window_s
        self.attach_window(shared)

    def __repr__(self):
        return f"FixedWindow(limit={self.spec.limit}, window_s={self.window_s:g})"


cdef class SlidingWindow(Limit):
    """SlidingWindow(limit, window_s, shared=None)\n--\n
    About `limit` in any span of window_s seconds: this window's count plus the share of the previous window that is still inside.

    limit: 1 to 2**39 - 1. window_s: 0.001 to 1e9. Exact for even traffic; the worst traffic gets 2 × limit in one span and still no
    more than limit per window on average. shared: SharedMemory of at least SHARED_BYTES for this window alone.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    SHARED_BYTES = LimiterTable.size(1, 2)

    def __cinit__(self, limit, window_s, SharedMemory shared=None):
        fill_window(&self.spec, SLIDING, limit, window_s)
        self.window_s = window_s
        self.attach_window(shared)

    def __repr__(self):
        return f"SlidingWindow(limit={self.spec.limit}, window_s={self.window_s:g})"


def live_objects():
    """How many objects of this module are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
