"""C interface of fastgate.proxy.dataplane."""

from libc.stdint cimport int64_t

from fastgate.proxy.plane cimport Plane

cdef class DataPlane(Plane):
    cdef object ticker
    cdef int ticks
    cdef int64_t turned_ns      # when the wheel was looked at last
    cdef bint skipped           # that was a turn left out after a pause
    cdef list replaced          # plans that are not in force any more and still carry out requests
