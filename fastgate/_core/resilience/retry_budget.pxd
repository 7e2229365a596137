# C interface of the retry budget. Public: other extensions may cimport it. The layout of the word is in retry_budget.pyx.

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.shm.shm cimport SharedMemory

# A budget as numbers, filled once by retry_budget_configure. The functions below read nothing else. All processes that share a word
# must use equal ones. With other numbers the word is valid too, but its balance is any between 0 and burst.
ctypedef struct retry_budget_config_t:
    uint64_t ticks_per_ns   # as 62-bit fraction, 0..1; 0 = nothing is gained with time
    int64_t retry_ticks     # one retry
    int64_t deposit_ticks   # ratio of a retry
    int64_t burst_ticks     # burst retries
    int64_t slack_ticks     # a word further ahead than burst and this was written before a clock was set back

# ValueError or TypeError names the argument, its value and the allowed range.
cdef int retry_budget_configure(retry_budget_config_t* c, object ratio, object min_retries_per_s, object burst) except -1
# For each first attempt: adds ratio of a retry, up to burst.
cdef void retry_budget_deposit(uint64_t* word, const retry_budget_config_t* c, int64_t now_ns) noexcept nogil
# Before each retry: True if one whole retry was taken, else False.
cdef bint retry_budget_withdraw(uint64_t* word, const retry_budget_config_t* c, int64_t now_ns) noexcept nogil
# The retries saved up, 0..burst.
cdef double retry_budget_balance(const uint64_t* word, const retry_budget_config_t* c, int64_t now_ns) noexcept nogil


cdef class RetryBudget:
    cdef retry_budget_config_t config
    cdef uint64_t own               # the word of a private budget
    cdef uint64_t* word             # own, or in shared memory
    cdef SharedMemory shared        # keeps the word mapped
    cdef readonly double ratio
    cdef readonly double min_retries_per_s
    cdef readonly int64_t burst
