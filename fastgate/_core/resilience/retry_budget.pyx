"""RetryBudget: a bound on retries as a share of the requests, so that retries cannot multiply the load of a failing upstream.

WHAT        deposit() for every first attempt adds `ratio` of a retry, withdraw() before every retry takes a whole one or refuses.
            min_retries_per_s more are gained with time, so that a service with few requests can retry. At most `burst` are saved
            up; a fresh budget has that many. Between any two moments t apart, with d deposits:

                retries <= burst + ratio·d + min_retries_per_s·t

            Nothing is returned for a retry that succeeds: the budget bounds the load, not the failures.
STATE       one word: the time at which the budget is full again, in ticks (GCRA). Zero-filled memory is a full budget.

                  now                 word            now + burst
                   |--- missing -------|                  |          withdraw    word = max(word, now) + one retry, at most now + burst
                   |                   |---- balance -----|          deposit     word = max(word - ratio of a retry, now)

            A tick is 1/retry_ticks of a retry: as short as possible, but not below 1 ns, and with at most 2**53 ticks in `burst`, so
            that a balance is exact as a double. retry_ticks is a multiple of the denominator of ratio: five deposits of 0.2 are
            exactly one retry.
            min_retries_per_s = 0: the clock of the ticks stands still at 0, so the word is the number of missing ticks. It takes no
            other code.
WHO WRITES  any process, by one CAS; a process killed at any instruction leaves the old word or the new one. A deposit into a
            full budget writes nothing, so workers share the cache line without contention while there are no retries.
            A process whose now_ns is older sees a smaller balance. The bound above holds for t from the oldest now_ns to the newest.
            A clock that goes back gains nothing. A word more than a minute ahead of any valid one (a clock set back by more, or
            other numbers) counts as an empty budget and is replaced at the next deposit or withdrawal.
COST        From C 5 ns for a deposit into a full budget and for a refusal, 20 with the CAS. From Python 30 ns with now_ns given, 25
            more to read the clock. benchmarks/core/bench_retry_budget.py.
ERRORS      ratio and min_retries_per_s are the nearest fractions with a denominator up to 10**9. For a ratio that is also the number
            of ticks of a retry, 10**5 at the highest rate. Time counts to a tick: a retry may pass 2 ns early, or a billionth of
            the time that brings one if that is longer.
SOURCES     Finagle RetryBudget.scala (deposit, withdraw, a floor per second; its saved retries expire after 10 s, here burst bounds
            them); gRPC A6, retry throttling; Envoy RetryBudget (20 % and at least 3, in flight); ITU-T I.371 Annex A (GCRA)
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.limits.limits cimport LATEST_NS, now_argument
from fastgate._core.resilience.backoff cimport splitmix64
from fastgate._core.shm.atomic cimport atomic_cas_u64, atomic_load_u64
from fastgate._core.shm.shm cimport SharedMemory

from fractions import Fraction

__all__ = ["RetryBudget", "live_objects"]

cdef extern from *:
    """
    static inline uint64_t retry_budget_product(uint64_t ns, uint64_t ratio) {
        return (uint64_t)(((unsigned __int128)ns * ratio) >> 62);
    }
    """
    uint64_t retry_budget_product(uint64_t ns, uint64_t ratio) noexcept nogil

cdef enum:
    MOST_BURST = 1_000_000
    SHARED_BYTES = 16

cdef int64_t SLACK_NS = 60_000_000_000      # as in limits.pyx
cdef double LEAST_RATIO = 1e-4              # 10**4 retries/s leave 10**5 ticks per retry
cdef double LEAST_PER_S = 1e-6              # one retry in 11 days
cdef double MOST_PER_S = 1e4


cdef inline uint64_t ticks_of(const retry_budget_config_t* c, int64_t now_ns) noexcept nogil:
    """now_ns in ticks, at most 2**62. A time outside of 0..2**62-1 counts as the nearest one inside."""
    if now_ns < 0:
        now_ns = 0
    elif now_ns > LATEST_NS:
        now_ns = LATEST_NS
    return retry_budget_product(<uint64_t>now_ns, c.ticks_per_ns)


cdef inline uint64_t missing_ticks(const retry_budget_config_t* c, uint64_t word, uint64_t now) noexcept nogil:
    """Ticks until the budget is full: more than the burst if the clock went back a little, the burst if it went back far."""
    if word <= now:
        return 0
    if word - now > <uint64_t>(c.burst_ticks + c.slack_ticks):
        return <uint64_t>c.burst_ticks
    return word - now


cdef void retry_budget_deposit(uint64_t* word, const retry_budget_config_t* c, int64_t now_ns) noexcept nogil:
    """Adds the deposit of one first attempt, up to burst."""
    cdef uint64_t now = ticks_of(c, now_ns)
    cdef uint64_t old = atomic_load_u64(word)
    cdef uint64_t missing, deposit = <uint64_t>c.deposit_ticks
    while True:
        missing = missing_ticks(c, old, now)
        if missing == 0:
            return
        if atomic_cas_u64(word, &old, now + missing - deposit if missing > deposit else now):
            return


cdef bint retry_budget_withdraw(uint64_t* word, const retry_budget_config_t* c, int64_t now_ns) noexcept nogil:
    """True if one whole retry was taken. False: the balance is below one, and unchanged."""
    cdef uint64_t now = ticks_of(c, now_ns)
    cdef uint64_t old = atomic_load_u64(word)
    cdef uint64_t missing
    while True:
        missing = missing_ticks(c, old, now)
        if missing + <uint64_t>c.retry_ticks > <uint64_t>c.burst_ticks:
            # A word from before the clock was set back is replaced here too, so that the budget recovers without deposits.
            if old > now and old - now != missing and not atomic_cas_u64(word, &old, now + missing):
                continue
            return False
        if atomic_cas_u64(word, &old, now + missing + <uint64_t>c.retry_ticks):
            return True


cdef double retry_budget_balance(const uint64_t* word, const retry_budget_config_t* c, int64_t now_ns) noexcept nogil:
    """The retries saved up, 0..burst."""
    cdef uint64_t missing = missing_ticks(c, atomic_load_u64(word), ticks_of(c, now_ns))
    if missing >= <uint64_t>c.burst_ticks:
        return 0.0
    return <double>(<uint64_t>c.burst_ticks - missing) / <double>c.retry_ticks


cdef int retry_budget_configure(retry_budget_config_t* c, object ratio, object min_retries_per_s, object burst) except -1:
    """Fills c with the numbers of a budget."""
    cdef double share = float_argument(ratio, "ratio", 0, 1)
    cdef double per_s = float_argument(min_retries_per_s, "min_retries_per_s", 0, MOST_PER_S)
    cdef int64_t most = int_argument(burst, "burst", 1, MOST_BURST)
    if 0 < share < LEAST_RATIO:
        raise ValueError(f"ratio: expected 0 or {LEAST_RATIO:g} to 1, got {ratio!r}")
    if 0 < per_s < LEAST_PER_S:
        raise ValueError(f"min_retries_per_s: expected 0 or {LEAST_PER_S:g} to {MOST_PER_S:g}, got {min_retries_per_s!r}")
    if share == 0 and per_s == 0:
        raise ValueError("ratio, min_retries_per_s: expected at least one above 0, got 0 and 0: a used budget would stay empty")
    # 0.1 and 0.3 are meant as 1/10 and 3/10, not as the binary numbers next to them.
    gained = Fraction(per_s).limit_denominator(10**9) / 10**9       # retries per ns
    finest = 2**53 // most
    if gained:
        finest = min(finest, int(1 / gained))
    deposit = Fraction(share).limit_denominator(min(finest, 10**9))
    ticks = finest // deposit.denominator * deposit.denominator
    c.retry_ticks = ticks
    c.deposit_ticks = int(deposit * ticks)
    c.burst_ticks = most * ticks
    # Rounded up: rounded down, a retry that takes a whole number of ns would arrive 1 ns later.
    c.ticks_per_ns = -int(-gained * ticks * 2**62 // 1)
    c.slack_ticks = <int64_t>retry_budget_product(<uint64_t>SLACK_NS, c.ticks_per_ns)
    return 0


@cython.final
cdef class RetryBudget:
    """RetryBudget(ratio=0.2, *, min_retries_per_s=3.0, burst=100, shared=None)\n--\n
    Retries for at most a share of the requests: call deposit() for each first attempt, and withdraw() before each retry.

    ratio              retries that one first attempt pays for: 0, or 0.0001..1. Default 0.2 (Finagle, Envoy): one for five requests.
    min_retries_per_s  gained with time in addition, so that a service with few requests can retry: 0, or 0.000001..10 000.
                       Default 3. One of ratio and min_retries_per_s must be above 0.
    burst              retries saved up at most, 1..1 000 000. Default 100. A new budget starts with this many.
    shared             SharedMemory of RetryBudget.size() bytes: all processes with this memory and the same numbers use one
                       budget. Zero-filled memory is a new budget. Without it the budget is private; a forked child has a copy.
    now_ns of the methods is an int from 0 to 2**62 - 1 on any clock, always the same one; the default is the monotonic clock.
    ValueError or TypeError names the argument, its value and the allowed range; ValueError also if the memory holds another budget.
    Safe for threads.
    """

    def __cinit__(self, ratio=0.2, *, min_retries_per_s=3.0, burst=100, SharedMemory shared=None):
        cdef retry_budget_config_t* c = &self.config
        cdef uint64_t* place
        cdef uint64_t name, found = 0
        debug_live_add(1)
        retry_budget_configure(c, ratio, min_retries_per_s, burst)
        self.ratio = ratio
        self.min_retries_per_s = min_retries_per_s
        self.burst = burst
        self.word = &self.own
        if shared is None:
            return
        if shared.size < SHARED_BYTES:
            raise ValueError(f"shared: expected at least {SHARED_BYTES} bytes, got {shared.size}")
        place = <uint64_t*>shared.address
        # The first word identifies the numbers, so that two processes with different ones detect it.
        name = splitmix64(<uint64_t>c.retry_ticks ^ splitmix64(<uint64_t>c.deposit_ticks ^ splitmix64(
            <uint64_t>c.burst_ticks ^ splitmix64(c.ticks_per_ns)))) | 1
        if not atomic_cas_u64(place, &found, name) and found != name:
            raise ValueError("shared: the memory holds another budget (or something else)")
        self.shared = shared
        self.word = place + 1

    def __dealloc__(self):
        debug_live_add(-1)

    def deposit(self, now_ns=None):
        """Adds `ratio` of a retry, up to `burst`. Call it once per request, not for its retries."""
        retry_budget_deposit(self.word, &self.config, now_argument(now_ns))

    def withdraw(self, now_ns=None):
        """True if one retry was taken; False if less than a whole one is saved up, and nothing changed."""
        return retry_budget_withdraw(self.word, &self.config, now_argument(now_ns))

    def balance(self, now_ns=None):
        """The retries saved up, a float from 0 to burst."""
        return retry_budget_balance(self.word, &self.config, now_argument(now_ns))

    @staticmethod
    def size():
        """Bytes of shared memory for one budget."""
        return SHARED_BYTES

    def __repr__(self):
        return f"RetryBudget({self.ratio:g}, min_retries_per_s={self.min_retries_per_s:g}, burst={self.burst})"


def live_objects():
    """How many objects of this module are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
