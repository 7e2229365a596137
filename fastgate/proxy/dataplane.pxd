"""C interface of fastgate.proxy.dataplane."""

from libc.stdint cimport int64_t

from fastgate.proxy.plane cimport Plane

cdef class DataPlane(Plane):
    cdef object ticker
    cdef int ticks
    cdef int64_t turned_ns      # of the last tick
    cdef bint turn_pending      # the wheel is turned after a few rounds of the loop
    cdef list replaced          # plans that are no longer in effect and still carry out requests
