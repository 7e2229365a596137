"""C interface of the circuit breaker. Public: other extensions may cimport it. The structs are declared in breaker_slot.pxd."""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, int64_t, uint64_t

from fastgate._core.resilience.breaker_slot cimport (
    BREAKER_BUCKETS, BREAKER_CLOSED, BREAKER_CONSTANT, BREAKER_EXPONENTIAL, BREAKER_FIBONACCI, BREAKER_HALF_OPEN, BREAKER_LINEAR,
    BREAKER_OPEN, breaker_config_t, breaker_t,
)

# acquire returns a ticket and record takes it: 0 = refused. It names the period in which the call began, so that a call that
# outlives its period does not count in the next one. *moved is set to old << 2 | new when the state changed, else -1.
cdef uint64_t breaker_acquire(breaker_t* b, const breaker_config_t* c, int64_t now_ns, int32_t* moved) noexcept nogil
cdef void breaker_record(breaker_t* b, const breaker_config_t* c, uint64_t ticket, bint ok, int64_t latency_ns,
                         int64_t now_ns, int32_t* moved) noexcept nogil
cdef void breaker_forget(breaker_t* b, uint64_t ticket) noexcept nogil
cdef void breaker_trip(breaker_t* b, const breaker_config_t* c, int64_t now_ns, int32_t* moved) noexcept nogil
cdef void breaker_reset(breaker_t* b, int64_t now_ns, int32_t* moved) noexcept nogil
cdef int64_t breaker_retry_after_ns(const breaker_t* b, const breaker_config_t* c, int64_t now_ns) noexcept nogil


cdef class CircuitBreaker:
    cdef breaker_t* slot
    cdef breaker_config_t config
    cdef readonly object name
    cdef readonly object on_transition
    cdef readonly bint times_calls          # whether the latency given to record() matters
    cdef readonly tuple failures
    cdef readonly tuple ignore
    cdef Py_buffer _view
    cdef bint _has_view

    cdef void tell(self, int32_t moved) noexcept
