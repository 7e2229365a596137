"""Public C interface of fastgate._core.pipeline.wheel."""

from libc.stdint cimport int64_t

cdef class Timed:
    cdef readonly int64_t deadline_ns        # 0 = none
    cdef int64_t looked_at_ns                # tick at which the wheel checks it; 0 = not on the wheel
    cdef Timed before
    cdef Timed after
    cdef int expired(self, int64_t now_ns) except -1

cdef class TimerWheel:
    cdef readonly int64_t tick_ns
    cdef int64_t turned_to                   # the last tick processed
    cdef list slots
    cdef readonly int64_t armed
    cdef int arm(self, Timed timed, int64_t deadline_ns) except -1
    cdef int cancel(self, Timed timed) except -1
    cdef int _unlink(self, Timed timed) except -1
    cpdef int turn(self, int64_t now_ns) except -1
