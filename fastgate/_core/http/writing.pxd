"""Puts short texts and digits into a HeadWriter or a buffer: inlined, so that the copy is a few stores and no call."""

cimport cython
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from fastgate._core.http.headers cimport HeadWriter

@cython.nonecheck(False)
cdef inline int put_text(HeadWriter w, const char* text, Py_ssize_t n) except -1:
    if w.size + n > w.capacity:
        w.reserve(n)
    memcpy(w.data + w.size, text, n)
    w.size += n
    return 0

cdef extern from *:
    """
    #include <stdint.h>
    /* The 8 hexadecimal digits of value, all at once: each of its half-bytes is spread to a byte, then turned into a character. */
    static inline void fastgate_hex_digits(uint32_t value, char* out) {
        const uint64_t ones = 0x0101010101010101ULL;
        uint64_t x = value;
        int i;
        x = ((x << 16) | x) & 0x0000ffff0000ffffULL;
        x = ((x << 8) | x) & 0x00ff00ff00ff00ffULL;
        x = ((x << 4) | x) & 0x0f0f0f0f0f0f0f0fULL;
        x += ones * '0' + (((x + ones * 6) >> 4) & ones) * ('a' - '0' - 10);
        for (i = 0; i < 8; i++) out[i] = (char)(x >> (56 - 8 * i));
    }
    """
    void hex_digits "fastgate_hex_digits"(uint32_t value, char* out) noexcept nogil
