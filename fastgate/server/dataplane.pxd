"""C interface of fastgate.server.dataplane."""

from fastgate.server.exchange cimport Plane

cdef class DataPlane(Plane):
    cdef object ticker
    cdef int ticks
