"""Public C interface of fastgate._core.shm.metric."""

from libc.stdint cimport int64_t

from fastgate._core.shm.shm cimport SharedMemory

cdef enum:
    NAME_BYTES = 176

# One series. `state` is 0 (free), 1 (its name is being written), 2 (ready); `kind` 0 a counter, 1 a gauge.
ctypedef struct metric_t:
    int64_t state
    int64_t value
    int64_t kind
    unsigned char name_n
    unsigned char name[175]

cdef class Metric:
    cdef int64_t* value_at
    cdef int64_t own                # its value until MetricTable assigns it a place
    cdef readonly str series
    cdef object _memory

cdef class MetricTable:
    cdef readonly SharedMemory memory
    cdef readonly int capacity
    cdef metric_t* rows
    cdef Metric series(self, str name, dict labels, int kind)

cdef void metric_add(Metric metric, int64_t n) noexcept
