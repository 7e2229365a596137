"""C interface of fastgate._core.resilience.retry_policy."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport Reason
from fastgate._core.resilience.backoff cimport backoff_config_t
from fastgate._core.resilience.health cimport Health
from fastgate._core.resilience.retry_budget cimport retry_budget_config_t
from fastgate._core.shm.metric cimport Metric

cdef class RetryPolicy:
    cdef readonly int attempts              # in all, the first included
    cdef readonly int64_t per_try_ns        # until the head of the response; 0 = no limit
    cdef readonly int64_t retry_after_ns    # longest Retry-After that is waited for
    cdef readonly int64_t body_bytes        # largest body that is kept for another attempt
    cdef readonly bytes attempt_header      # tells the upstream the number of the attempt; None: no field
    cdef uint64_t reasons[2]                # a bit for each Reason.index
    cdef uint64_t statuses[10]              # a bit for each status
    cdef backoff_config_t backoff
    cdef retry_budget_config_t budget
    cdef uint64_t random
    cdef Health row                         # its retry_budget, shared by all processes
    cdef Metric retried
    cdef Metric over_budget
    cdef bint names_reason(self, Reason reason) noexcept
    cdef bint names_status(self, int status) noexcept
    cdef void deposit(self, int64_t now_ns) noexcept
    cdef int64_t wait_ns(self, int retry, int64_t retry_after_ns, int64_t now_ns, int64_t deadline_ns) noexcept

cdef int64_t asked_wait_ns(Headers fields) except -1
