# cython: freethreading_compatible=True
"""The two clocks, in nanoseconds: read once per request and passed down as `now_ns`.

WHAT        monotonic_ns: time since boot, never set back, the same number in every process of the host, so a time stored in
            shared memory has the same meaning for all of them. realtime_ns: Unix time, may jump; for logs, dates and TTLs on
            disk only.
STATE       none.
WHO WRITES  no state.
COST        about 20 ns each (vDSO, no system call). Hot functions take `now_ns` as an argument instead.
SOURCES     clock_gettime(2): CLOCK_MONOTONIC, CLOCK_REALTIME
"""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

__all__ = ["monotonic_ns", "realtime_ns"]


cpdef int64_t monotonic_ns() noexcept nogil:
    """Nanoseconds since boot; equal to `time.monotonic_ns()`."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cpdef int64_t realtime_ns() noexcept nogil:
    """Nanoseconds since 1970 (UTC); equal to `time.time_ns()`."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec
