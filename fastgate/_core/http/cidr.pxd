from libc.stdint cimport uint32_t, uint64_t

ctypedef struct range4_t:
    uint32_t first
    uint32_t last

ctypedef struct range6_t:
    uint64_t first_high
    uint64_t first_low
    uint64_t last_high
    uint64_t last_low

cdef class CidrSet:
    cdef range4_t* v4
    cdef range6_t* v6
    cdef Py_ssize_t v4_count
    cdef Py_ssize_t v6_count

    # n is 4 or 16; anything else is in no set.
    cdef bint contains_packed(self, const unsigned char* ip, int n) noexcept nogil
    # 1, 0, or -1 if the text is not an address. Need not be NUL-terminated.
    cdef int contains_text(self, const char* text, Py_ssize_t n) noexcept nogil
    cdef bint contains4(self, uint32_t ip) noexcept nogil
    cdef bint contains6(self, uint64_t ip_high, uint64_t ip_low) noexcept nogil

# Bytes written to out (4 or 16), or -1 if the text is not an address. A v4-mapped address gives 4.
cdef int address_parse(const char* text, Py_ssize_t n, unsigned char* out) noexcept nogil
