# histogram_t is the gateway's layout in shared memory: nanoseconds from 1 024 to 2**37 - 1 (137 s), 8 sub-buckets per octave, all
# words 64 bits wide, zero = empty. For the rest see histogram.pyx.

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    HISTOGRAM_SUB_BITS = 3                      # 8 sub-buckets per octave
    HISTOGRAM_LOWEST_BIT = 10                   # 1 024 ns
    HISTOGRAM_HIGHEST_BIT = 37                  # 137 s
    HISTOGRAM_BUCKETS = 218                     # (37 - 10) * 8, plus "below lowest" and "above highest"

ctypedef struct histogram_t:
    uint64_t count
    uint64_t sum
    uint64_t buckets[218]

ctypedef struct histogram_layout_t:
    int sub_bits                                # 2 ** sub_bits sub-buckets per octave
    int64_t first                               # number of the bucket that holds the lowest value
    int64_t buckets                             # their number, including the two outer ones

cdef void histogram_record(histogram_t* h, int64_t value) noexcept nogil
cdef double histogram_quantile(const histogram_t* h, double q) noexcept nogil
cdef void histogram_merge(histogram_t* into, const histogram_t* other) noexcept nogil
cdef uint64_t histogram_bucket_upper(int index) noexcept nogil

cdef class Histogram:
    cdef uint64_t* words                        # count, sum, buckets[…]: histogram_t with a variable tail
    cdef histogram_layout_t layout
    cdef bint shared
    cdef Py_buffer view
    cdef readonly int64_t lowest
    cdef readonly int64_t highest
    cdef readonly double error_ratio

    cdef void record_value(self, int64_t value) noexcept nogil
    cdef double quantile_value(self, double q) noexcept nogil
    cdef void add(self, int64_t index, uint64_t count, uint64_t amount) noexcept nogil
    cdef int take(self, int64_t value, int64_t count) except -1
