"""CircuitBreaker: stops calls to a failing target, and detects its recovery.

WHAT
    CLOSED     all calls pass; each result is counted                -> OPEN       failure_threshold failures in a row, or the
                                                                                   failure or slow-call ratio of the window
    OPEN       all calls are refused                                 -> HALF_OPEN  at the first call after the open time
    HALF_OPEN  at most half_open_permits calls at a time pass        -> CLOSED     success_threshold good ones
                                                                     -> OPEN       one bad one; the next open time is longer
    A bad probe is a failed one, or a slow one if slow calls count. adaptive: the target's own failure ratio and latency are
    learned while closed; the limits become a multiple of them, between a floor and the configured limits.

STATE  (breaker_t in breaker.pxd: 24 words of 64 bits, fixed layout, no pointers; all zero = closed)
    state        | 56 bits: time in units of 128 ns | 6 bits: trips | 2 bits: CLOSED, OPEN, HALF_OPEN |
                 time = time of the next probe (OPEN), start of the period (CLOSED, HALF_OPEN)
    probes       | 40-bit tag | 12 outstanding | 12 successes |      consecutive  | 40-bit tag | 24 failures |
    window[10]   | 16-bit round | 16 calls | 16 failures | 16 slow |   a full bucket is halved: ratios stay within 1/32768

WHO WRITES
    Any process, with CAS; there is no lock. A transition is one CAS of `state`; words that belong to a period carry its tag (the
    low bits of its time), so the unfinished writes of a killed process are void. Every order of writes below was
    chosen so that a crash between two of them leaves a breaker that the next caller can use. Permits that are not returned
    expire permit_timeout after the latest grant. Processes that close it concurrently may drop a few results of the first
    microseconds.

COST
    acquire when closed: one load. record: two or three loads and a CAS, plus ten loads with a window. 192 bytes.
    benchmarks/core/bench_breaker.py.

SOURCES
    Nygard, Release It! (2007); Hystrix and resilience4j CircuitBreaker for the terms and defaults; splitmix64 for the jitter.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.contextvars cimport PyContextVar_Get, PyContextVar_Set
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.shm.atomic cimport (
    atomic_add_relaxed_u64, atomic_cas_u64, atomic_load, atomic_load_u64, atomic_store, atomic_store_u64,
)
from fastgate._core.resilience.breaker_window cimport count_in_window, learn, limits, sum_window
from fastgate._core.resilience.breaker_word cimport LATEST_NS, is_over, later, open_time_ns, tag_of, word_of
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.debug cimport debug_live_add, debug_live_count

import os

from contextvars import ContextVar

from fastgate._core.resilience.protect import exception_classes, protected

__all__ = ["CircuitBreaker", "CircuitOpen"]

cdef enum:
    MAX_TRIPS = 63
    COUNT_12 = 4095
    COUNT_24 = 16777215


# --- the slot ---------------------------------------------------------------------------------------------------------------

cdef inline void said(int32_t* moved, uint64_t old, uint64_t new) noexcept nogil:
    if moved != NULL:
        moved[0] = <int32_t>((old & 3) << 2 | new & 3)


cdef bint open_from(breaker_t* b, const breaker_config_t* c, uint64_t word, int64_t now_ns, int32_t* moved) noexcept nogil:
    """word -> OPEN, if no other process moved first."""
    cdef uint64_t trips = (word >> 2 & MAX_TRIPS) + 1, new
    if trips > MAX_TRIPS:
        trips = MAX_TRIPS
    new = word_of(BREAKER_OPEN, trips, later(now_ns, open_time_ns(c, trips, now_ns)))
    cdef uint64_t expected = word
    if not atomic_cas_u64(&b.state, &expected, new):
        return False
    atomic_add_relaxed_u64(&b.opened_total, 1)
    said(moved, word, new)
    return True


cdef bint close_from(breaker_t* b, uint64_t word, int64_t now_ns, int32_t* moved) noexcept nogil:
    """word -> CLOSED with an empty window. The window is cleared first: a crash in between leaves it half-open, and clear."""
    cdef uint64_t new = word_of(BREAKER_CLOSED, 0, now_ns if now_ns <= LATEST_NS - 127 else LATEST_NS - 127)
    cdef uint64_t expected = word
    cdef int index
    for index in range(BREAKER_BUCKETS):
        atomic_store_u64(&b.window[index], 0)
    atomic_store_u64(&b.consecutive, 0)
    if not atomic_cas_u64(&b.state, &expected, new):
        return False
    said(moved, word, new)
    return True


cdef uint64_t breaker_acquire(breaker_t* b, const breaker_config_t* c, int64_t now_ns,
                              int32_t* moved) noexcept nogil:
    """A ticket for one call at now_ns, or 0: refused."""
    cdef uint64_t word, expected, new, probes, outstanding, successes
    cdef int64_t until_ns, longest_ns
    if moved != NULL:
        moved[0] = -1
    while True:
        word = atomic_load_u64(&b.state)
        if word & 3 == BREAKER_CLOSED:
            return ~word
        if word & 3 == BREAKER_OPEN:
            until_ns = <int64_t>(word >> 8 << 7)
            longest_ns = <int64_t>(<double>c.max_recovery_ns * (1.0 + c.jitter_ratio))
            if not is_over(until_ns, now_ns, longest_ns):
                atomic_add_relaxed_u64(&b.refused_total, 1)
                return 0
            new = word_of(BREAKER_HALF_OPEN, word >> 2 & MAX_TRIPS, now_ns if now_ns <= LATEST_NS - 127 else LATEST_NS - 127)
            expected = word
            if not atomic_cas_u64(&b.state, &expected, new):
                continue
            said(moved, word, new)
            word = new
        probes = atomic_load_u64(&b.probes)
        outstanding = successes = 0
        if probes >> 24 == tag_of(word):
            outstanding = probes >> 12 & COUNT_12
            successes = probes & COUNT_12
        if outstanding >= <uint64_t>c.permits:
            if not is_over(atomic_load(&b.probes_expire_ns), now_ns, c.permit_timeout_ns):
                atomic_add_relaxed_u64(&b.refused_total, 1)
                return 0
            outstanding = 0
        # The expiry first: if the permit were counted first, another process would see it with the expiry of an older one.
        atomic_store(&b.probes_expire_ns, later(now_ns, c.permit_timeout_ns))
        if atomic_cas_u64(&b.probes, &probes, tag_of(word) << 24 | (outstanding + 1) << 12 | successes):
            return ~word


cdef void breaker_record(breaker_t* b, const breaker_config_t* c, uint64_t ticket, bint ok, int64_t latency_ns,
                         int64_t now_ns, int32_t* moved) noexcept nogil:
    """Counts the result of one permitted call, and changes the state if the result requires it.

    ticket 0: the current period, whichever it is; when half-open it counts only while a permit is outstanding.
    """
    cdef uint64_t word = atomic_load_u64(&b.state)
    if moved != NULL:
        moved[0] = -1
    if (ticket != 0 and ticket != ~word) or word & 3 == BREAKER_OPEN:
        return
    if word & 3 == BREAKER_CLOSED:
        record_closed(b, c, word, ok, latency_ns, now_ns, moved)
    else:
        record_probe(b, c, word, ticket, ok, latency_ns, now_ns, moved)


cdef void record_probe(breaker_t* b, const breaker_config_t* c, uint64_t word, uint64_t ticket, bint ok, int64_t latency_ns,
                       int64_t now_ns, int32_t* moved) noexcept nogil:
    cdef uint64_t probes = atomic_load_u64(&b.probes), outstanding, successes
    cdef double failure_ratio
    cdef int64_t slow_ns
    limits(b, c, &failure_ratio, &slow_ns)
    while True:
        outstanding = successes = 0
        if probes >> 24 == tag_of(word):
            outstanding = probes >> 12 & COUNT_12
            successes = probes & COUNT_12
        if outstanding == 0 and ticket == 0:
            return      # no call was permitted in this period: a late result of an older one
        if not ok or (c.slow_ratio > 0 and latency_ns > slow_ns):
            open_from(b, c, word, now_ns, moved)
            return
        if outstanding > 0:
            outstanding -= 1
        if successes < COUNT_12:
            successes += 1
        if atomic_cas_u64(&b.probes, &probes, tag_of(word) << 24 | outstanding << 12 | successes):
            if successes >= <uint64_t>c.success_threshold:
                close_from(b, word, now_ns, moved)
            return


cdef void record_closed(breaker_t* b, const breaker_config_t* c, uint64_t word, bint ok, int64_t latency_ns, int64_t now_ns,
                        int32_t* moved) noexcept nogil:
    cdef uint64_t seen, count, calls, failures, slow
    cdef double failure_ratio
    cdef int64_t slow_ns
    cdef bint trip = False
    if c.failure_threshold > 0:
        seen = atomic_load_u64(&b.consecutive)
        if ok:
            if seen != 0:
                atomic_store_u64(&b.consecutive, 0)
        else:
            while True:
                count = (seen & COUNT_24) + 1 if seen >> 24 == tag_of(word) else 1
                if count > COUNT_24:
                    count = COUNT_24
                if atomic_cas_u64(&b.consecutive, &seen, tag_of(word) << 24 | count):
                    break
            trip = count >= <uint64_t>c.failure_threshold
    if c.bucket_ns > 0:
        limits(b, c, &failure_ratio, &slow_ns)
        count_in_window(b, c, ok, latency_ns > slow_ns, now_ns)
        sum_window(b, c, now_ns, &calls, &failures, &slow)
        if calls >= <uint64_t>c.min_calls:
            if failure_ratio > 0 and <double>failures >= failure_ratio * <double>calls:
                trip = True
            if c.slow_ratio > 0 and <double>slow >= c.slow_ratio * <double>calls:
                trip = True
        if c.adaptive_calls > 0:
            learn(b, c, ok, latency_ns)
    if trip:
        open_from(b, c, word, now_ns, moved)


cdef void breaker_forget(breaker_t* b, uint64_t ticket) noexcept nogil:
    """Returns a permit without a result: the call was canceled before it had one."""
    cdef uint64_t word = atomic_load_u64(&b.state), probes
    if (ticket != 0 and ticket != ~word) or word & 3 != BREAKER_HALF_OPEN:
        return
    probes = atomic_load_u64(&b.probes)
    while probes >> 24 == tag_of(word) and probes >> 12 & COUNT_12 != 0:
        if atomic_cas_u64(&b.probes, &probes, probes - (1 << 12)):
            return


cdef void breaker_trip(breaker_t* b, const breaker_config_t* c, int64_t now_ns, int32_t* moved) noexcept nogil:
    """Opens it manually, from any state."""
    if moved != NULL:
        moved[0] = -1
    while not open_from(b, c, atomic_load_u64(&b.state), now_ns, moved):
        pass


cdef void breaker_reset(breaker_t* b, int64_t now_ns, int32_t* moved) noexcept nogil:
    """Closes it manually, from any state, with empty counts."""
    if moved != NULL:
        moved[0] = -1
    while not close_from(b, atomic_load_u64(&b.state), now_ns, moved):
        pass


cdef int64_t breaker_retry_after_ns(const breaker_t* b, const breaker_config_t* c, int64_t now_ns) noexcept nogil:
    """Time until a call may pass again; 0 if one may pass now."""
    cdef uint64_t word = atomic_load_u64(&b.state), probes
    cdef int64_t until_ns
    if word & 3 == BREAKER_CLOSED:
        return 0
    if word & 3 == BREAKER_OPEN:
        until_ns = <int64_t>(word >> 8 << 7)
        if is_over(until_ns, now_ns, <int64_t>(<double>c.max_recovery_ns * (1.0 + c.jitter_ratio))):
            return 0
        return until_ns - now_ns
    probes = atomic_load_u64(&b.probes)
    if probes >> 24 != tag_of(word) or probes >> 12 & COUNT_12 < <uint64_t>c.permits:
        return 0
    until_ns = atomic_load(&b.probes_expire_ns)
    return 0 if is_over(until_ns, now_ns, c.permit_timeout_ns) else until_ns - now_ns


# --- the class --------------------------------------------------------------------------------------------------------------

_STATES = ("closed", "open", "half_open", "half_open")     # the fourth: damaged memory, treated as half-open
_BACKOFFS = ("constant", "linear", "exponential", "fibonacci")
cdef object _HELD = ContextVar("fastgate_breakers_held", default=None)


@cython.final
@cython.freelist(64)
cdef class _Held:
    """The outcome that one `with` will report."""
    cdef uint64_t ticket
    cdef int64_t began_ns
    cdef object outer


class CircuitOpen(Exception):
    """The breaker `name` refused the call. retry_after_ns: estimated time until calls may pass again.

    Raised by a CircuitBreaker.
    """

    def __init__(self, name, retry_after_ns):
        super().__init__(f"circuit breaker {name!r} is open, retry after {retry_after_ns / 1e9:.3f} s")
        self.name = name
        self.retry_after_ns = retry_after_ns


@cython.final
cdef class CircuitBreaker:
    """CircuitBreaker(*, failure_threshold=5, recovery_timeout_s=30.0, success_threshold=1, half_open_permits=1,
        permit_timeout_s=None, backoff="constant", max_recovery_timeout_s=None, jitter_ratio=0.0, failure_ratio=None,
        slow_call_s=None, slow_ratio=None, window_s=10.0, min_calls=20, adaptive=False, adaptive_calls=1000,
        adaptive_factor=3.0, adaptive_floor_ratio=0.2, failures=None, ignore=(), on_transition=None, name="",
        memory=None, offset=0, seed=None)\n--\n
    Refuses calls to a failing target, and detects its recovery. See the top of this module.

    failure_threshold    failures in a row that open it, 1..1 000 000; None = not counted. Default 5 (pybreaker, Envoy).
    recovery_timeout_s   open time before probes, 0.001..1 000 000 s. Default 30.
    success_threshold    good probes that close it, 1..4000. Default 1.
    half_open_permits    probes at a time, 1..4000. Default 1.
    permit_timeout_s     a permit whose caller never reported expires after this time. Default: the recovery timeout.
    backoff              how the open time grows while probes keep failing: "constant", "linear" (1 2 3 …), "exponential"
                         (1 2 4 …), "fibonacci" (1 1 2 3 5 …), times recovery_timeout_s, at most
    max_recovery_timeout_s   default: 300 s, or recovery_timeout_s if that is longer.
    jitter_ratio         0..1: an open time is up to this share longer, at random, so that a fleet does not probe simultaneously. Default 0.
    failure_ratio        0..1 (above 0): share of failures in the window that opens it; None = not counted
    slow_call_s, slow_ratio  a call longer than slow_call_s is slow; the share of slow calls in the window that opens it
    window_s             of the last 0.01..86 400 s, in steps of a tenth. Default 10.
    min_calls            the window is not evaluated below this many calls, 1..500 000. Default 20 (Hystrix).
    adaptive             learn the target's usual failure ratio and latency over adaptive_calls (default 1000) calls; from then on the
                         limits are adaptive_factor (default 3) times the usual values, never above the configured ones and the
                         failure limit never below adaptive_floor_ratio (default 0.2).
    failures, ignore     exception classes (`with`, decorator): `failures` (None, the default: Exception) count as failures unless they are in
                         `ignore`, which count as successes. Others (cancellation) are not counted.
    on_transition        called as on_transition(breaker, old, new) in the process that changed the state, afterwards. Its exceptions go to
                         sys.unraisablehook.
    memory, offset       a writable buffer and the offset in bytes (a multiple of 8) of this breaker's SIZE bytes in it: processes
                         that map the same memory share the breaker. Zero-filled memory is a closed breaker.
    name                 of the target, for CircuitOpen and repr().
    seed                 of the jitter, 0..2**63-1; default random.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    SIZE = sizeof(breaker_t)

    def __cinit__(self, *, failure_threshold=5, recovery_timeout_s=30.0, success_threshold=1, half_open_permits=1,
                  permit_timeout_s=None, backoff="constant", max_recovery_timeout_s=None, jitter_ratio=0.0,
                  failure_ratio=None, slow_call_s=None, slow_ratio=None, window_s=10.0, min_calls=20,
                  adaptive=False, adaptive_calls=1000, adaptive_factor=3.0, adaptive_floor_ratio=0.2,
                  failures=None, ignore=(), on_transition=None, name="", memory=None, offset=0, seed=None):
        cdef breaker_config_t* c = &self.config
        debug_live_add(1)
        if failure_threshold is not None:
            c.failure_threshold = int_argument(failure_threshold, "failure_threshold", 1, 1_000_000)
        c.success_threshold = int_argument(success_threshold, "success_threshold", 1, 4000)
        c.permits = int_argument(half_open_permits, "half_open_permits", 1, 4000)
        c.recovery_ns = nanoseconds(recovery_timeout_s, "recovery_timeout_s", 0.001, 1e6)
        c.permit_timeout_ns = c.recovery_ns
        if permit_timeout_s is not None:
            c.permit_timeout_ns = nanoseconds(permit_timeout_s, "permit_timeout_s", 0.001, 1e6)
        c.max_recovery_ns = max(300_000_000_000, c.recovery_ns)
        if max_recovery_timeout_s is not None:
            c.max_recovery_ns = nanoseconds(max_recovery_timeout_s, "max_recovery_timeout_s", c.recovery_ns / 1e9, 1e6)
        if backoff not in _BACKOFFS:
            raise ValueError(f"backoff: expected one of {', '.join(_BACKOFFS)}, got {backoff!r}")
        c.backoff = _BACKOFFS.index(backoff)
        c.jitter_ratio = float_argument(jitter_ratio, "jitter_ratio", 0, 1)
        if not isinstance(adaptive, bool):
            raise TypeError(f"adaptive: expected bool, got {type(adaptive).__name__}")
        if adaptive:
            failure_ratio = 0.5 if failure_ratio is None else failure_ratio
            slow_ratio = 0.5 if slow_ratio is None else slow_ratio
            c.adaptive_calls = int_argument(adaptive_calls, "adaptive_calls", 10, 1_000_000_000)
            c.adaptive_factor = float_argument(adaptive_factor, "adaptive_factor", 1, 1000)
            c.adaptive_floor_ratio = float_argument(adaptive_floor_ratio, "adaptive_floor_ratio", 0, 1)
        elif (slow_call_s is None) != (slow_ratio is None):
            raise ValueError("slow_call_s, slow_ratio: expected both or neither")
        if failure_ratio is not None:
            c.failure_ratio = float_argument(failure_ratio, "failure_ratio", 1e-6, 1)
        if slow_ratio is not None:
            c.slow_ratio = float_argument(slow_ratio, "slow_ratio", 1e-6, 1)
        if slow_call_s is not None:
            c.slow_ns = nanoseconds(slow_call_s, "slow_call_s", 1e-6, 1e6)
        self.times_calls = c.slow_ratio > 0
        c.min_calls = int_argument(min_calls, "min_calls", 1, 500_000)
        window_ns = nanoseconds(window_s, "window_s", 0.01, 86_400)
        if c.failure_ratio > 0 or c.slow_ratio > 0:
            c.bucket_ns = window_ns // BREAKER_BUCKETS
        if c.failure_threshold == 0 and c.bucket_ns == 0:
            raise ValueError("failure_threshold: expected 1..1000000 when neither failure_ratio nor slow_ratio is set, got None")
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little") >> 1
        c.seed = int_argument(seed, "seed", 0, 0x7FFFFFFFFFFFFFFF)
        self.failures = exception_classes("failures", Exception if failures is None else failures)
        self.ignore = exception_classes("ignore", ignore)
        if on_transition is not None and not callable(on_transition):
            raise TypeError(f"on_transition: expected a callable or None, got {type(on_transition).__name__}")
        self.on_transition = on_transition
        if not isinstance(name, str):
            raise TypeError(f"name: expected str, got {type(name).__name__}")
        self.name = name
        if memory is None:
            self.slot = <breaker_t*>calloc(1, sizeof(breaker_t))
            if self.slot == NULL:
                raise MemoryError()
            return
        PyObject_GetBuffer(memory, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self._has_view = True
        int_argument(offset, "offset", 0, max(0, self._view.len - <Py_ssize_t>sizeof(breaker_t)))
        if self._view.len < <Py_ssize_t>sizeof(breaker_t):
            raise ValueError(f"memory: expected at least {sizeof(breaker_t)} bytes, got {self._view.len}")
        if (<uintptr_t>self._view.buf + <uintptr_t>offset) % 8 != 0:
            raise ValueError(f"offset: expected an address that is a multiple of 8, got offset {offset}")
        self.slot = <breaker_t*>(<char*>self._view.buf + <Py_ssize_t>offset)

    def __dealloc__(self):
        debug_live_add(-1)
        if self._has_view:
            PyBuffer_Release(&self._view)
        else:
            free(self.slot)

    def allow(self, now_ns=None):
        """True if a call may pass now; then record() its result. now_ns: monotonic time, read if omitted."""
        return acquire_at(self, now_ns) != 0

    def acquire(self, now_ns=None):
        """allow(), as a ticket for record(): an int that is true, or 0. Results with a ticket count only in the period in which
        their call began, so that calls which outlive an outage cannot reopen a half-open breaker."""
        return acquire_at(self, now_ns)

    def record(self, ok, latency_ns=0, *, ticket=0, now_ns=None):
        """Reports the result of a permitted call. ok: whether it was good. latency_ns: its duration, >= 0."""
        cdef int64_t latency = 0
        cdef uint64_t issued = 0
        if latency_ns is not 0:
            latency = int_argument(latency_ns, "latency_ns", 0, LATEST_NS)
        if ticket is not 0:
            issued = ticket_of(ticket)
        record_at(self, issued, ok, latency, now_ns)

    def forget(self, ticket=0):
        """Returns the permit of a call that ended without a result (canceled, never sent)."""
        breaker_forget(self.slot, ticket_of(ticket))

    def trip(self, now_ns=None):
        """Opens the breaker manually."""
        cdef int32_t moved
        breaker_trip(self.slot, &self.config, monotonic_ns() if now_ns is None else time_of(now_ns), &moved)
        self.tell(moved)

    def reset(self, now_ns=None):
        """Closes the breaker manually and clears its counts; the values learned by adaptive stay."""
        cdef int32_t moved
        breaker_reset(self.slot, monotonic_ns() if now_ns is None else time_of(now_ns), &moved)
        self.tell(moved)

    def retry_after_ns(self, now_ns=None):
        """Time until a call may pass; 0 if one may pass now."""
        return breaker_retry_after_ns(self.slot, &self.config, monotonic_ns() if now_ns is None else time_of(now_ns))

    def window(self, now_ns=None):
        """(calls, failures, slow calls) in the sliding window; zeros when no ratio is configured."""
        cdef uint64_t calls, failures, slow
        cdef int64_t now = monotonic_ns() if now_ns is None else time_of(now_ns)
        if self.config.bucket_ns == 0:
            return (0, 0, 0)
        sum_window(self.slot, &self.config, now, &calls, &failures, &slow)
        return (calls, failures, slow)

    @property
    def state(self):
        """"closed", "open" or "half_open". An open breaker whose time is over stays open until the next call."""
        return _STATES[atomic_load_u64(&self.slot.state) & 3]

    @property
    def trips(self):
        """Number of consecutive openings without closing in between, at most 63: the step of the back-off."""
        return atomic_load_u64(&self.slot.state) >> 2 & MAX_TRIPS

    @property
    def opened_total(self):
        """Number of openings."""
        return atomic_load_u64(&self.slot.opened_total)

    @property
    def refused_total(self):
        """Number of refused calls."""
        return atomic_load_u64(&self.slot.refused_total)

    @property
    def limits(self):
        """(failure ratio, slow call in ns) in effect now, None where there is no limit; with adaptive they move."""
        cdef double failure_ratio
        cdef int64_t slow_ns
        limits(self.slot, &self.config, &failure_ratio, &slow_ns)
        return (failure_ratio or None, None if slow_ns == LATEST_NS else slow_ns)

    def admit(self):
        """acquire(), but a refusal raises CircuitOpen. Then settle() the outcome of the call."""
        cdef uint64_t ticket = acquire_at(self, None)
        if ticket == 0:
            raise CircuitOpen(self.name, self.retry_after_ns())
        return ticket

    def __enter__(self):
        cdef uint64_t ticket = acquire_at(self, None)
        if ticket == 0:
            raise CircuitOpen(self.name, self.retry_after_ns())
        # Threads and tasks share the breaker, so the state of this `with` is kept in their context, innermost first.
        cdef _Held held = _Held.__new__(_Held)
        held.ticket = ticket
        if self.times_calls:
            held.began_ns = monotonic_ns()
        held.outer = held_now()
        PyContextVar_Set(_HELD, held)
        return self

    def __exit__(self, kind, error, traceback):
        cdef _Held held = held_now()
        if held is None:
            raise RuntimeError("the `with` of a circuit breaker ended in another context than it began")
        PyContextVar_Set(_HELD, held.outer)
        settle(self, held.ticket, monotonic_ns() - held.began_ns if self.times_calls else 0, error)
        return False

    async def __aenter__(self):
        return self.__enter__()

    async def __aexit__(self, kind, error, traceback):
        return self.__exit__(kind, error, traceback)

    def settle(self, ticket, latency_ns, error=None):
        """Records the outcome of a call: error is the exception it ended with, or None. See `failures` and `ignore`."""
        settle(self, ticket_of(ticket), int_argument(latency_ns, "latency_ns", 0, LATEST_NS), error)

    def __call__(self, function):
        """Decorates a function or a coroutine function: each call passes the breaker, or raises CircuitOpen."""
        return protected(self, function)

    def __repr__(self):
        return f"<CircuitBreaker {self.name!r} {self.state} trips={self.trips}>"

    cdef void tell(self, int32_t moved) noexcept:
        """Calls the hook, outside of any decision."""
        if self.on_transition is not None:
            self.on_transition(self, _STATES[moved >> 2], _STATES[moved & 3])


cdef inline uint64_t acquire_at(CircuitBreaker self, object now_ns) except? 1:
    cdef int32_t moved
    cdef uint64_t word
    if now_ns is None:
        word = atomic_load_u64(&self.slot.state)
        if word & 3 == BREAKER_CLOSED:
            return ~word        # no clock reading while the breaker is closed
        word = breaker_acquire(self.slot, &self.config, monotonic_ns(), &moved)
    else:
        word = breaker_acquire(self.slot, &self.config, time_of(now_ns), &moved)
    if moved >= 0:
        self.tell(moved)
    return word


cdef inline int record_at(CircuitBreaker self, uint64_t ticket, bint ok, int64_t latency_ns, object now_ns) except -1:
    cdef int32_t moved
    cdef int64_t now
    if now_ns is not None:
        now = time_of(now_ns)
    elif ok and self.config.bucket_ns == 0 and atomic_load_u64(&self.slot.state) & 3 == BREAKER_CLOSED:
        now = 0     # a good result in a closed breaker without a window changes no timestamp
    else:
        now = monotonic_ns()
    breaker_record(self.slot, &self.config, ticket, ok, latency_ns, now, &moved)
    if moved >= 0:
        self.tell(moved)
    return 0


cdef int settle(CircuitBreaker self, uint64_t ticket, int64_t latency_ns, object error) except -1:
    if error is None or isinstance(error, self.ignore):
        return record_at(self, ticket, True, latency_ns, None)
    if isinstance(error, self.failures):
        return record_at(self, ticket, False, latency_ns, None)
    breaker_forget(self.slot, ticket)
    return 0


cdef inline object held_now():
    cdef PyObject* value = NULL
    PyContextVar_Get(_HELD, NULL, &value)
    held = <object>value
    Py_DECREF(held)
    return held


cdef inline int64_t time_of(object now_ns) except -1:
    return int_argument(now_ns, "now_ns", 0, LATEST_NS)


cdef inline uint64_t ticket_of(object ticket) except? 1:
    if type(ticket) is not int:
        raise TypeError(f"ticket: expected what acquire() returned, got {ticket!r}")
    if not 0 <= ticket <= 0xFFFFFFFFFFFFFFFF:
        raise ValueError("ticket: expected what acquire() returned, 0..2**64-1")
    return ticket


cdef int64_t nanoseconds(object value, str name, double low_s, double high_s) except -1:
    """A number of seconds within low_s..high_s, as nanoseconds."""
    return <int64_t>(float_argument(value, name, low_s, high_s) * 1e9 + 0.5)


def live_objects():
    """How many breakers are alive, in a FASTGATE_DEBUG=1 build; else -1."""
    return debug_live_count()
