"""C interface of fastgate._core.gates.policy."""

from libc.stdint cimport uint64_t

from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.shm.directory cimport Directory
from fastgate._core.pipeline.pipeline cimport Plugin

cdef class WatchingGate(Plugin):
    cdef Directory directory
    cdef int watch
    cdef uint64_t seen
    cdef public bint idle
