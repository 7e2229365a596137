"""Exponentially weighted averages: Ewma, and PeakEwma for latency-aware balancing.

WHAT        Ewma: the mean of all values, each weighted by its age: half the weight per half-life. It is unbiased from the
            first value on, and values at the same instant count alike (a plain a*old + (1-a)*new does neither).
            PeakEwma: follows a rise at once and falls slowly, so a target that has just become slow is avoided at once and
            tried again later; without new values it decays towards 0.
STATE       ewma_t: sum, weight, time. peak_ewma_t: cost, time. All zero = empty. Time never moves backwards: an update with
            an earlier now_ns counts as if no time had passed.
WHO WRITES  One writer at a time: the GIL, or the caller's own rule for the C functions. Not for shared memory.
COST        update: one exp(), about 15 ns. 24 and 16 bytes.
SOURCES     Finagle, loadbalancer/p2c PeakEwma.scala; tower, load/peak_ewma.rs.
"""

cimport cython
from libc.math cimport exp
from libc.stdint cimport int64_t

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.clock cimport monotonic_ns

__all__ = ["Ewma", "PeakEwma"]

cdef double LN2 = 0.6931471805599453
cdef double VALUE_MAX = 1e150                   # 10**150 of these still sum to a finite double
cdef int64_t NOW_MAX = 1 << 62                  # 146 years


cdef inline double decay(int64_t from_ns, int64_t now_ns, double tau_ns) noexcept nogil:
    """The remainder at now_ns of a weight of 1 at from_ns; 1 if the clock went backwards."""
    if now_ns <= from_ns:
        return 1.0
    return exp(-<double>(now_ns - from_ns) / tau_ns)


cdef void ewma_update(ewma_t* e, double value, int64_t now_ns, double tau_ns) noexcept nogil:
    """Count value at now_ns. tau_ns = half-life / ln 2."""
    cdef double kept = decay(e.at_ns, now_ns, tau_ns) if e.weight > 0 else 0.0
    e.sum = e.sum * kept + value
    e.weight = e.weight * kept + 1.0
    if now_ns > e.at_ns:
        e.at_ns = now_ns


cdef double ewma_value(const ewma_t* e) noexcept nogil:
    """The weighted mean; 0 if empty. It does not depend on now: all weights decay at the same rate."""
    return e.sum / e.weight if e.weight > 0 else 0.0


cdef double ewma_weight(const ewma_t* e, int64_t now_ns, double tau_ns) noexcept nogil:
    """The number of fresh values that the mean is equivalent to at now_ns."""
    return e.weight * decay(e.at_ns, now_ns, tau_ns)


cdef void peak_ewma_update(peak_ewma_t* e, double value, int64_t now_ns, double tau_ns) noexcept nogil:
    """Records a value >= 0 at now_ns."""
    cdef double kept
    if value > e.cost:
        e.cost = value
    else:
        kept = decay(e.at_ns, now_ns, tau_ns)
        e.cost = e.cost * kept + value * (1.0 - kept)
    if now_ns > e.at_ns:
        e.at_ns = now_ns


cdef double peak_ewma_value(const peak_ewma_t* e, int64_t now_ns, double tau_ns) noexcept nogil:
    """The cost at now_ns; changes nothing."""
    return e.cost * decay(e.at_ns, now_ns, tau_ns)


cdef int64_t now_argument(object now_ns) except? -1:
    return monotonic_ns() if now_ns is None else int_argument(now_ns, "now_ns", 0, NOW_MAX)


@cython.final
cdef class Ewma:
    """Ewma(half_life_s=10.0)\n--\n
    Mean of the values seen, each counting half as much for every `half_life_s` seconds of age (1e-6 to 1e9).
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, half_life_s=10.0):
        self.half_life_s = float_argument(half_life_s, "half_life_s", 1e-6, 1e9)
        self.tau_ns = self.half_life_s * 1e9 / LN2

    def update(self, value, *, now_ns=None):
        """Count one value, -1e150 to 1e150, at now_ns (default: the monotonic clock)."""
        cdef double number = float_argument(value, "value", -VALUE_MAX, VALUE_MAX)
        ewma_update(&self.state, number, now_argument(now_ns), self.tau_ns)

    @property
    def value(self):
        """The mean; 0.0 without values."""
        return ewma_value(&self.state)

    def weight(self, *, now_ns=None):
        """The number of fresh values that the mean is equivalent to: near 0 means that it is outdated."""
        return ewma_weight(&self.state, now_argument(now_ns), self.tau_ns)

    def clear(self):
        """Clears the average."""
        self.state = ewma_t(0, 0, 0)

    def __repr__(self):
        return f"Ewma({self.half_life_s}: value={self.value:.6g})"


@cython.final
cdef class PeakEwma:
    """PeakEwma(half_life_s=10.0)\n--\n
    A cost, usually a latency in ns, that jumps to every new peak and falls by half per `half_life_s` (1e-6 to 1e9).
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, half_life_s=10.0):
        self.half_life_s = float_argument(half_life_s, "half_life_s", 1e-6, 1e9)
        self.tau_ns = self.half_life_s * 1e9 / LN2

    def update(self, value, *, now_ns=None):
        """Record one value, 0 to 1e150, at now_ns (default: the monotonic clock)."""
        cdef double number = float_argument(value, "value", 0.0, VALUE_MAX)
        peak_ewma_update(&self.state, number, now_argument(now_ns), self.tau_ns)

    def value(self, *, now_ns=None):
        """The cost at now_ns; 0.0 without values."""
        return peak_ewma_value(&self.state, now_argument(now_ns), self.tau_ns)

    def load(self, pending, *, now_ns=None):
        """The cost of one more request on a target with `pending` in flight: value * (pending + 1).

        A target of cost 0 (one that never responded) with requests in flight costs 1e150 * (pending + 1): it is tried last, not
        first.
        """
        cdef int64_t n = int_argument(pending, "pending", 0, 1 << 31)
        cdef double cost = peak_ewma_value(&self.state, now_argument(now_ns), self.tau_ns)
        if cost == 0.0 and n > 0:
            return VALUE_MAX * (n + 1)
        return cost * (n + 1)

    def clear(self):
        """Clears the average."""
        self.state = peak_ewma_t(0, 0)

    def __repr__(self):
        return f"PeakEwma({self.half_life_s}: cost={self.state.cost:.6g})"
