"""Public C interface of fastgate._core.http.scan."""

from fastgate._core.http.headers cimport Headers

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* How many bytes from p on hold no control character (below 32, or 127), but for a rest of up to 7 at the end. The word tests are
       those of Mycroft (haszero): a borrow can only mark a byte above a marked one, so the lowest mark is right. */
    static inline Py_ssize_t fastgate_plain_run(const char* p, Py_ssize_t n) {
        const uint64_t ones = 0x0101010101010101ULL, high = 0x8080808080808080ULL;
        Py_ssize_t i = 0;
        while (i + 8 <= n) {
            uint64_t word, del, marks;
            memcpy(&word, p + i, 8);
            del = word ^ (ones * 127);
            marks = (((word - ones * 32) & ~word) | ((del - ones) & ~del)) & high;
            if (marks) {
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
                i += __builtin_ctzll(marks) >> 3;
    #endif
                break;
            }
            i += 8;
        }
        return i;
    }
    /* How many letters and hyphens there are from p on, but for a rest of up to 7 at the end: names consist of little else. */
    static inline Py_ssize_t fastgate_name_run(const char* p, Py_ssize_t n) {
        Py_ssize_t i = 0;
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        const uint64_t ones = 0x0101010101010101ULL, high = 0x8080808080808080ULL, low = 0x7f7f7f7f7f7f7f7fULL;
        while (i + 8 <= n) {
            uint64_t word, lower, letters, hyphens, others;
            memcpy(&word, p + i, 8);
            lower = (word & low) | (ones * 32);                         /* no sum below reaches the next byte */
            letters = (lower + ones * (128 - 'a')) & ~(lower + ones * (127 - 'z'));
            hyphens = ~(((word & low) ^ (ones * '-')) + low);
            others = (~(letters | hyphens) | word) & high;
            if (others) return i + (__builtin_ctzll(others) >> 3);
            i += 8;
        }
    #endif
        return i;
    }
    """
    Py_ssize_t name_run "fastgate_name_run"(const char* p, Py_ssize_t n) noexcept nogil
    Py_ssize_t plain_run "fastgate_plain_run"(const char* p, Py_ssize_t n) noexcept nogil

ctypedef struct request_line_t:
    int method_n                # the method begins where the head begins
    int target_start
    int target_n

ctypedef struct status_line_t:
    int status
    int phrase_start
    int phrase_n

cdef Py_ssize_t scan_request_head(const char* p, Py_ssize_t n, request_line_t* line, Headers out, int most_fields) except -1
cdef Py_ssize_t scan_response_head(const char* p, Py_ssize_t n, status_line_t* line, Headers out) except -1
cdef long long decimal(const char* p, Py_ssize_t n) noexcept nogil
