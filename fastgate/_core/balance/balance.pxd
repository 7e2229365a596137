"""C interface of the balancers. Public: other extensions may cimport it.

Every pick returns an index into the weights given to the constructor, or -1 if no target may be picked. `usable` is NULL (all may
be picked) or one byte per target, 0 = excluded. finished() undoes what a pick adds to a target's requests in flight.
"""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.balance.ewma cimport peak_ewma_t


cdef class SmoothWeighted:
    cdef readonly Py_ssize_t size
    cdef int64_t* _weights
    cdef int64_t* _current

    cpdef Py_ssize_t pick(self) noexcept
    cdef Py_ssize_t pick_usable(self, const unsigned char* usable) noexcept


cdef class LeastRequests:
    cdef readonly Py_ssize_t size
    cdef int64_t* _weights
    cdef int64_t* _current
    cdef int64_t* _in_flight

    cdef Py_ssize_t pick_usable(self, const unsigned char* usable) noexcept
    cdef void finish(self, Py_ssize_t index) noexcept


cdef class P2C:
    cdef readonly Py_ssize_t size
    cdef int64_t* _weights
    cdef int64_t* _ends             # running sums of the weights
    cdef int64_t* _in_flight
    cdef peak_ewma_t* _latency      # NULL: only requests in flight are considered
    cdef double _tau_ns
    cdef uint64_t _random

    cdef Py_ssize_t pick_usable(self, const unsigned char* usable, int64_t now_ns) noexcept
    # latency_ns < 0: the request yielded no latency (cancelled, refused)
    cdef void finish(self, Py_ssize_t index, int64_t latency_ns, int64_t now_ns) noexcept


# For other modules: weights validated and copied; a sequence of flags validated and copied. The caller frees both.
cdef int64_t* weights_of(object weights, Py_ssize_t* size) except NULL
cdef unsigned char* usable_of(object usable, Py_ssize_t size) except NULL
