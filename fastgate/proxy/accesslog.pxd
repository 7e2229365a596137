"""C interface of fastgate.proxy.accesslog."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.log_throttle cimport log_throttle_t
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.shm.counters cimport Counters, worker_counts_t
from fastgate._core.http.headers cimport HeadWriter

cdef class AccessLog:
    cdef readonly str output
    cdef readonly str format
    cdef int fd
    cdef bint is_pipe
    cdef bint json
    cdef bint off
    cdef public frozenset secrets         # names of query parameters whose values are masked
    cdef HeadWriter lines
    cdef int64_t second
    cdef bytes second_text
    cdef object counters
    cdef worker_counts_t* counts
    cdef bint torn                        # the last write ended in the middle of a line
    cdef uint64_t dropped                 # lines dropped since the file was last written in full
    cdef log_throttle_t dropped_log
    cdef int _count_dropped(self, uint64_t lines, object reason) except -1
    cdef int record(self, RequestContext ctx) except -1
    cdef int _json(self, RequestContext ctx, int64_t now_ns) except -1
    cdef int _common(self, RequestContext ctx, int64_t now_ns) except -1
    cdef int _text(self, bytes value, Py_ssize_t most) except -1
    cdef int _span(self, const char* p, Py_ssize_t n, Py_ssize_t most) except -1
    cdef bytes _masked(self, bytes target)
    cdef int _milliseconds(self, int64_t ns) except -1
    cpdef int flush(self) except -1
    cdef int _drop(self, Py_ssize_t start) except -1
