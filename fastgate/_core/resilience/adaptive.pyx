"""AdaptiveLimit: a concurrency limit that adjusts itself between two bounds, from latency or from failures.

WHAT        acquire() as ConcurrencyLimit; release(lease, latency_ns, ok) releases the lease and adjusts the limit.
            "gradient": latency above its long-term mean indicates a queue: shrink in proportion; else grow by `headroom`.
            "aimd": grow by one per limit successes, times backoff_ratio on a failure or a slow response.
STATE       in the header of the leases: [limit] [estimate: a double] [usual latency, ns] [last moved at, ns] [recent latency, ns]
WHO WRITES  each word by its own CAS from any process. Two words may be one sample apart when processes race, which moves the
            estimate by one sample; the bounds hold at every store, and the in-flight count is the leases themselves.
COST        acquire as ConcurrencyLimit; release about 60 ns plus one pass over `highest` words.
            A failure lowers, and the gradient moves, at most once per usual latency: requests in flight together were slow or
            failed together, and counting them sample by sample would halve the limit many times for one event.
SOURCES     Netflix concurrency-limits: Gradient2Limit.java, AIMDLimit.java; Jain, Chiu: congestion avoidance (1989)
"""

from libc.stdint cimport int64_t

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.shm.atomic cimport atomic_cas, atomic_load, atomic_store
from fastgate._core.limits.leases cimport ConcurrencyLimit, Lease, lease_count
from fastgate._core.limits.limits cimport LATEST_NS, now_argument
from fastgate._core.shm.shm cimport SharedMemory

__all__ = ["AdaptiveLimit"]

cdef enum:
    LIMIT = 2               # words of the leases' header
    ESTIMATE = 3
    USUAL = 4
    MOVED = 5
    RECENT = 6

cdef double USUAL_SAMPLES = 600.0       # the memory of the long-term latency; Gradient2's default
cdef double RECENT_SAMPLES = 10.0       # of the short-term one, in place of Gradient2's sample windows of a second


cdef union bits_t:
    double number
    int64_t word


cdef inline bint swap_number(double* place, double old, double new) noexcept nogil:
    cdef bits_t before, after
    before.number = old
    after.number = new
    return atomic_cas(<int64_t*>place, &before.word, after.word)


cdef inline double load_number(double* place) noexcept nogil:
    cdef bits_t bits
    bits.word = atomic_load(<int64_t*>place)
    return bits.number


cdef class AdaptiveLimit:
    """AdaptiveLimit(initial=20, lowest=1, highest=1000, *, algorithm="gradient", tolerance_ratio=1.5, headroom=4,
        smoothing_ratio=0.2, backoff_ratio=0.9, slow_s=None, shared=None)\n--\n
    A ConcurrencyLimit between `lowest` and `highest` that starts at `initial` and adjusts itself with every release.

    algorithm: "gradient" (default) or "aimd". tolerance_ratio (gradient, 1 to 10): how far latency may rise above usual
    before the limit falls; 1.5 ignores ordinary noise. headroom (gradient, 1 to 1000): the amount added while latency is usual; 4.
    smoothing_ratio (gradient, above 0 to 1): weight of each new estimate; 0.2. backoff_ratio (0.1 to 0.99): the factor on a failure; 0.9.
    slow_s (aimd): a response slower than this counts as failed; default none. shared: SharedMemory of AdaptiveLimit.size(highest) bytes.
    The limit only moves while at least half of it is in use: an idle service provides no information.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, initial=20, lowest=1, highest=1000, *, algorithm="gradient", tolerance_ratio=1.5, headroom=4,
                  smoothing_ratio=0.2, backoff_ratio=0.9, slow_s=None, SharedMemory shared=None):
        cdef int64_t top = int_argument(highest, "highest", 1, 1_000_000)
        cdef int64_t bottom = int_argument(lowest, "lowest", 1, top)
        cdef int64_t first = int_argument(initial, "initial", bottom, top)
        cdef int64_t* header
        if algorithm not in ("gradient", "aimd"):
            raise ValueError(f"algorithm: expected 'gradient' or 'aimd', got {algorithm!r}")
        self.is_gradient = algorithm == "gradient"
        self.tolerance_ratio = float_argument(tolerance_ratio, "tolerance_ratio", 1.0, 10.0)
        self.headroom = int_argument(headroom, "headroom", 1, 1000)
        self.smoothing_ratio = float_argument(smoothing_ratio, "smoothing_ratio", 0.001, 1.0)
        self.backoff_ratio = float_argument(backoff_ratio, "backoff_ratio", 0.1, 0.99)
        self.slow_ns = LATEST_NS if slow_s is None else <int64_t>(float_argument(slow_s, "slow_s", 1e-6, 1e6) * 1e9)
        self.lowest = bottom
        self.highest = top
        # The leases cover the whole range; the limit word moves within it, and another process may have moved it already.
        self.leases = ConcurrencyLimit(top, shared, None)
        header = self.leases.leases.header
        self.estimate = <double*>&header[ESTIMATE]
        self.usual_ns = &header[USUAL]
        self.moved_at_ns = &header[MOVED]
        self.recent_ns = &header[RECENT]
        swap_number(self.estimate, 0.0, <double>first)
        atomic_store(&header[LIMIT], <int64_t>load_number(self.estimate))

    cdef void learn(self, int64_t latency_ns, bint ok, int64_t in_flight, int64_t now_ns) noexcept nogil:
        """Adjusts the limit by one sample. in_flight: the number in use while the request ran, including itself."""
        cdef double estimate, wanted, gradient
        cdef int64_t usual, recent, moved, mean
        cdef bint failed = not ok or latency_ns > self.slow_ns
        usual = atomic_load(self.usual_ns)
        recent = atomic_load(self.recent_ns)
        if ok:
            mean = usual + <int64_t>((<double>latency_ns - <double>usual) / USUAL_SAMPLES) if usual != 0 else latency_ns
            if self.is_gradient and mean > 2 * latency_ns:
                mean -= mean // 20               # latency was high for long and has recovered: forget faster
            atomic_cas(self.usual_ns, &usual, max(mean, 1))
            usual = max(mean, 1)
            mean = recent + <int64_t>((<double>latency_ns - <double>recent) / RECENT_SAMPLES) if recent != 0 else latency_ns
            atomic_cas(self.recent_ns, &recent, max(mean, 1))
            recent = max(mean, 1)
        estimate = load_number(self.estimate)
        if not failed and <double>in_flight * 2.0 < estimate:
            return
        if failed or self.is_gradient:
            moved = atomic_load(self.moved_at_ns)
            if moved != 0 and 0 <= now_ns + 1 - moved <= usual:
                return
            # + 1: a word of 0 means never
            if not atomic_cas(self.moved_at_ns, &moved, now_ns + 1):
                return
        if failed:
            wanted = estimate * self.backoff_ratio
        elif self.is_gradient:
            gradient = min(max(self.tolerance_ratio * <double>usual / <double>recent, 0.5), 1.0)
            wanted = estimate * (1.0 - self.smoothing_ratio) + self.smoothing_ratio * (estimate * gradient + <double>self.headroom)
        else:
            wanted = estimate + 1.0 / estimate
        wanted = min(max(wanted, <double>self.lowest), <double>self.highest)
        if swap_number(self.estimate, estimate, wanted):
            atomic_store(&self.leases.leases.header[LIMIT], <int64_t>wanted)

    def acquire(self):
        """A Lease, or None if the limit is reached."""
        return self.leases.acquire()

    def release(self, Lease lease not None, latency_ns, ok=True, now_ns=None):
        """True if the lease was released and its outcome counted; False if it had been released before: not counted.

        latency_ns: 0 to 2**62 - 1. ok: whether the response was good; a refusal by the other side or a timeout is not.
        lease.release() releases it without counting, for outcomes that carry no information about the other side.
        """
        cdef int64_t latency = int_argument(latency_ns, "latency_ns", 0, LATEST_NS)
        cdef int64_t now = now_argument(now_ns)
        cdef int64_t in_flight
        if lease.owner is not self.leases:
            raise ValueError("lease: expected one of this limit's own")
        in_flight = lease_count(&self.leases.leases)
        if not lease.give_back():
            return False
        self.learn(latency, bool(ok), in_flight, now)
        return True

    @property
    def limit(self):
        """The current limit."""
        return self.leases.limit

    @property
    def in_use(self):
        """Leases held now."""
        return self.leases.in_use

    @property
    def usual_latency_ns(self):
        """The long-term mean of good responses; 0 before the first."""
        return atomic_load(self.usual_ns)

    @staticmethod
    def size(highest):
        """Bytes of shared memory for that highest limit."""
        return ConcurrencyLimit.size(highest)

    def __repr__(self):
        return f"AdaptiveLimit(limit={self.limit}, lowest={self.lowest}, highest={self.highest})"
