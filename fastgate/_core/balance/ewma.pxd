from libc.stdint cimport int64_t

# Both are zero when empty.
ctypedef struct ewma_t:
    double sum                                  # of value * weight
    double weight                               # of all values, at at_ns
    int64_t at_ns

ctypedef struct peak_ewma_t:
    double cost                                 # at at_ns
    int64_t at_ns

cdef void ewma_update(ewma_t* e, double value, int64_t now_ns, double tau_ns) noexcept nogil
cdef double ewma_value(const ewma_t* e) noexcept nogil
cdef double ewma_weight(const ewma_t* e, int64_t now_ns, double tau_ns) noexcept nogil
cdef void peak_ewma_update(peak_ewma_t* e, double value, int64_t now_ns, double tau_ns) noexcept nogil
cdef double peak_ewma_value(const peak_ewma_t* e, int64_t now_ns, double tau_ns) noexcept nogil

cdef class Ewma:
    cdef ewma_t state
    cdef double tau_ns
    cdef readonly double half_life_s

cdef class PeakEwma:
    cdef peak_ewma_t state
    cdef double tau_ns
    cdef readonly double half_life_s
