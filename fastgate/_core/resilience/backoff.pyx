"""Backoff: the wait before an attempt, growing from one attempt to the next, with jitter.

WHAT        delay_ns(attempt), over the inline functions of backoff.pxd, which has the shapes and the kinds of jitter.
STATE       the configuration and 64 bits of random state.
WHO WRITES  delay_ns, under the GIL. An object without a given seed draws a new one in a forked child: workers that retried in step
            would defeat the jitter.
COST        40 ns from Python. benchmarks/core/bench_retry_budget.py.
SOURCES     see backoff.pxd.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.shm.owners cimport fork_generation

import os

__all__ = ["Backoff"]

cdef enum:
    LAST_ATTEMPT = 2147483647

_SHAPES = ("constant", "linear", "exponential", "fibonacci")    # in the order of BACKOFF_CONSTANT …
_JITTERS = ("none", "full", "equal")                            # in the order of BACKOFF_JITTER_NONE …


@cython.final
cdef class Backoff:
    """Backoff(base_s, max_s, *, shape="exponential", jitter="full", seed=None)\n--\n
    How long to wait before each attempt: base_s before the first, then longer, at most max_s, with jitter.

    base_s   wait before attempt 1, without jitter: 0.000001..1 000 000 s.
    max_s    the longest wait, base_s..1 000 000 s.
    shape    how the wait grows: "constant", "linear" (1 2 3 …), "exponential" (1 2 4 …, the default), "fibonacci" (1 1 2 3 5 …),
             times base_s.
    jitter   "full" (default): uniform between 0 and that wait, so that clients that failed together do not retry together;
             "equal": uniform between half of it and all of it; "none".
    seed     of the jitter, 0..2**63-1: the same waits in every run, and in forked children. Default: random in each process.
    ValueError or TypeError names the argument, its value and the allowed range. Safe for threads.
    """

    def __cinit__(self, base_s, max_s, *, shape="exponential", jitter="full", seed=None):
        cdef backoff_config_t* c = &self.config
        c.base_ns = <int64_t>(float_argument(base_s, "base_s", 1e-6, 1e6) * 1e9 + 0.5)
        c.max_ns = <int64_t>(float_argument(max_s, "max_s", base_s, 1e6) * 1e9 + 0.5)
        if shape not in _SHAPES:
            raise ValueError(f"shape: expected one of {', '.join(_SHAPES)}, got {shape!r}")
        c.shape = _SHAPES.index(shape)
        if jitter not in _JITTERS:
            raise ValueError(f"jitter: expected one of {', '.join(_JITTERS)}, got {jitter!r}")
        c.jitter = _JITTERS.index(jitter)
        if seed is None:
            draw_seed(self)
        else:
            self.random = int_argument(seed, "seed", 0, 0x7FFFFFFFFFFFFFFF)

    def delay_ns(self, attempt):
        """The wait before an attempt in ns, 0 to max_s. attempt: 1 = the first retry, up to 2**31-1."""
        cdef int number = <int>int_argument(attempt, "attempt", 1, LAST_ATTEMPT)
        if self.generation != 0 and self.generation != fork_generation():
            draw_seed(self)
        return backoff_ns(&self.config, number, &self.random)

    def __repr__(self):
        cdef backoff_config_t* c = &self.config
        return (f"Backoff({c.base_ns / 1e9:g}, {c.max_ns / 1e9:g}, shape={_SHAPES[c.shape]!r}, "
                f"jitter={_JITTERS[c.jitter]!r})")


cdef int draw_seed(Backoff self) except -1:
    self.random = int.from_bytes(os.urandom(8), "little")
    self.generation = fork_generation()
    return 0
