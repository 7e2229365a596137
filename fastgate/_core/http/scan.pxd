"""Public C interface of fastgate._core.http.scan."""

from fastgate._core.http.headers cimport Headers

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif
    /* Each of the runs below is counted 16 bytes at a time where the processor has SSE2, then 8 at a time. The rest of up to 7 bytes
       at the end is not counted: the caller looks at those one by one. */

    /* How many bytes from p on are no control character (below 32, or 127). The word tests are those of Mycroft (haszero): a borrow
       can only mark a byte above a marked one, so the lowest mark is right. */
    static inline Py_ssize_t fastgate_plain_run_words(const char* p, Py_ssize_t i, Py_ssize_t n) {
        const uint64_t ones = 0x0101010101010101ULL, high = 0x8080808080808080ULL;
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
    static inline Py_ssize_t fastgate_plain_run(const char* p, Py_ssize_t n) {
        Py_ssize_t i = 0;
    #ifdef __SSE2__
        const __m128i last_control = _mm_set1_epi8(31), del = _mm_set1_epi8(127);
        while (i + 16 <= n) {
            const __m128i x = _mm_loadu_si128((const __m128i*)(p + i));
            const int marks = _mm_movemask_epi8(_mm_or_si128(_mm_cmpeq_epi8(_mm_min_epu8(x, last_control), x), _mm_cmpeq_epi8(x, del)));
            if (marks) return i + __builtin_ctz(marks);
            i += 16;
        }
    #endif
        return fastgate_plain_run_words(p, i, n);
    }

    /* How many letters and hyphens there are from p on: names consist of little else. */
    static inline Py_ssize_t fastgate_name_run_words(const char* p, Py_ssize_t i, Py_ssize_t n) {
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
    static inline Py_ssize_t fastgate_name_run(const char* p, Py_ssize_t n) {
        Py_ssize_t i = 0;
    #ifdef __SSE2__
        const __m128i bit = _mm_set1_epi8(32), a = _mm_set1_epi8('a'), last = _mm_set1_epi8('z' - 'a'), hyphen = _mm_set1_epi8('-');
        while (i + 16 <= n) {
            const __m128i x = _mm_loadu_si128((const __m128i*)(p + i));
            const __m128i from_a = _mm_sub_epi8(_mm_or_si128(x, bit), a);
            const __m128i letters = _mm_cmpeq_epi8(_mm_min_epu8(from_a, last), from_a);
            const int others = _mm_movemask_epi8(_mm_or_si128(letters, _mm_cmpeq_epi8(x, hyphen))) ^ 0xffff;
            if (others) return i + __builtin_ctz(others);
            i += 16;
        }
    #endif
        return fastgate_name_run_words(p, i, n);
    }
    """
    Py_ssize_t name_run "fastgate_name_run"(const char* p, Py_ssize_t n) noexcept nogil
    Py_ssize_t plain_run "fastgate_plain_run"(const char* p, Py_ssize_t n) noexcept nogil
    Py_ssize_t name_run_words "fastgate_name_run_words"(const char* p, Py_ssize_t i, Py_ssize_t n) noexcept nogil
    Py_ssize_t plain_run_words "fastgate_plain_run_words"(const char* p, Py_ssize_t i, Py_ssize_t n) noexcept nogil

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
