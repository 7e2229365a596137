"""C interface of fastgate._core.gate_policy."""

from libc.stdint cimport uint64_t

from fastgate._core.context cimport RequestContext
from fastgate._core.directory cimport Directory
from fastgate._core.pipeline cimport Plugin

cdef class WatchingGate(Plugin):
    cdef Directory directory
    cdef uint64_t seen
    cdef public bint idle
