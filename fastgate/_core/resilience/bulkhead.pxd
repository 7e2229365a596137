"""C interface of the bulkhead. Public: other extensions may cimport it."""

from libc.stdint cimport int64_t


cdef class Bulkhead:
    cdef readonly Py_ssize_t max_concurrent
    cdef readonly Py_ssize_t max_queue
    cdef readonly int64_t queue_timeout_ns  # 0 = no limit
    cdef readonly Py_ssize_t running        # calls in progress
    cdef readonly int64_t refused_total     # refused because the queue was full
    cdef readonly int64_t timed_out_total   # refused after waiting for queue_timeout_s
    cdef readonly object name
    cdef object _queue                      # deque of _Waiter, all of them WAITING

    cpdef bint try_acquire(self) noexcept   # never waits, never bypasses the queue
    cdef int give_back(self) except -1      # release() for C
