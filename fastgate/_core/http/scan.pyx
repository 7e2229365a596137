# cython: boundscheck=False
"""A scanner for complete, strictly correct message heads: the usual ones.

WHAT     One pass over the bytes fills a header table that points into them. It accepts a head only if it is complete in the buffer,
         is HTTP/1.1, and follows the grammar strictly; otherwise it returns 0, and the caller passes the bytes to httptools,
         which alone decides what is malformed. It never accepts what llhttp would reject, nor interprets it
         differently: tests/core/test_scan.py compares the two on generated and mutated heads.
STATE    None.
COST     About 1 ns a byte and nothing per field; httptools creates two bytes objects and makes a call for each.
         Measured in benchmarks/core/bench_scan.py.
SOURCES  RFC 9112 §2.2 to §5.1; RFC 9110 §5.6.2 (token), §5.5 (field-content).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcmp

from fastgate._core.http.headers cimport FIELD, MAX_FIELDS, TOKEN, Headers, field_t, header_id, trimmed_by_some

__all__ = ["runs", "scan_request", "scan_response"]


cdef inline Py_ssize_t scan_fields(const char* p, Py_ssize_t i, Py_ssize_t n, Headers out, int most_fields) except -2:
    """Parses field lines from i to the empty line. Returns the offset after it; -1 if the head is incomplete or not strictly
    correct."""
    cdef Py_ssize_t name, name_end, value, end
    cdef field_t* field
    while True:
        if i + 1 >= n:
            return -1
        if p[i] == c"\r":
            return i + 2 if p[i + 1] == c"\n" else -1
        name = i
        i += name_run(p + i, n - i)
        while i < n and TOKEN[<unsigned char>p[i]]:
            i += 1
        if i == name or i >= n or p[i] != c":":
            return -1
        name_end = i
        i += 1
        while i < n and (p[i] == c" " or p[i] == c"\t"):
            i += 1
        value = i
        i += plain_run(p + i, n - i)
        while i < n and FIELD[<unsigned char>p[i]]:
            i += 1
        if i + 2 >= n or p[i] != c"\r" or p[i + 1] != c"\n":    # another line must follow, even if empty
            return -1
        end = i
        while end > value and (p[end - 1] == c" " or p[end - 1] == c"\t"):
            end -= 1
        if end > value and (trimmed_by_some(<unsigned char>p[value]) or trimmed_by_some(<unsigned char>p[end - 1])):
            return -1                                           # the caller decides
        if out.count >= most_fields or out.count >= MAX_FIELDS:
            return -1
        if out.count == out.room:
            out.grow()
        field = &out.fields[out.count]
        field.name = p + name
        field.value = p + value
        field.name_n = <int>(name_end - name)
        field.value_n = <int>(end - value)
        field.id = header_id(p + name, name_end - name)
        out.count += 1
        i += 2


cdef inline Py_ssize_t usual_method(const char* p, Py_ssize_t n) noexcept nogil:
    """The length of the method at p if it is one of RFC 9110 §9.3 or PATCH (RFC 5789) and a space follows; else 0."""
    if n < 8:
        return 0
    if memcmp(p, b"GET ", 4) == 0 or memcmp(p, b"PUT ", 4) == 0:
        return 3
    if memcmp(p, b"POST ", 5) == 0 or memcmp(p, b"HEAD ", 5) == 0:
        return 4
    if memcmp(p, b"PATCH ", 6) == 0:
        return 5
    if memcmp(p, b"DELETE ", 7) == 0:
        return 6
    if memcmp(p, b"OPTIONS ", 8) == 0:
        return 7
    return 0


cdef Py_ssize_t scan_request_head(const char* p, Py_ssize_t n, request_line_t* line, Headers out, int most_fields) except -1:
    """The length of the request head at p, with its line and fields parsed; 0 if this scanner does not accept it."""
    cdef Py_ssize_t i = 0
    i = usual_method(p, n)
    if i == 0:
        return 0
    line.method_n = <int>i
    i += 1
    line.target_start = <int>i
    while i < n and 33 <= <unsigned char>p[i] <= 126:
        i += 1
    line.target_n = <int>i - line.target_start
    if line.target_n == 0 or i + 11 > n or memcmp(p + i, b" HTTP/1.1\r\n", 11) != 0:
        return 0
    if p[line.target_start] != c"/":
        return 0                                # absolute-form and others: llhttp has its own grammar for those
    i = scan_fields(p, i + 11, n, out, most_fields)
    return 0 if i < 0 else i


cdef Py_ssize_t scan_response_head(const char* p, Py_ssize_t n, status_line_t* line, Headers out) except -1:
    """The length of the response head at p, with its line and fields parsed; 0 if this scanner does not accept it."""
    cdef Py_ssize_t i
    if n < 15 or memcmp(p, b"HTTP/1.1 ", 9) != 0:
        return 0
    for i in range(9, 12):
        if not 48 <= <unsigned char>p[i] <= 57:
            return 0
    if p[12] != c" ":
        return 0
    line.status = (p[9] - 48) * 100 + (p[10] - 48) * 10 + (p[11] - 48)
    line.phrase_start = 13
    i = 13
    while i < n and 32 <= <unsigned char>p[i] <= 126:
        i += 1
    line.phrase_n = <int>i - 13
    if i + 2 > n or p[i] != c"\r" or p[i + 1] != c"\n":
        return 0
    i = scan_fields(p, i + 2, n, out, 1 << 30)
    return 0 if i < 0 else i


cdef long long decimal(const char* p, Py_ssize_t n) noexcept nogil:
    """The value of 1 to 18 digits, -1 for anything else. 18 digits cannot overflow, and no body has more bytes."""
    cdef Py_ssize_t i
    cdef long long value = 0
    if n < 1 or n > 18:
        return -1
    for i in range(n):
        if not 48 <= <unsigned char>p[i] <= 57:
            return -1
        value = value * 10 + (p[i] - 48)
    return value


def scan_request(bytes data not None, int most_fields=256):
    """For tests: (length, method, target, [(name, value), …]) of the head at the start of data, or None."""
    cdef request_line_t line
    cdef Headers fields = Headers.__new__(Headers)
    cdef Py_ssize_t n = scan_request_head(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &line, fields, most_fields)
    if n == 0:
        return None
    return (n, data[:line.method_n], data[line.target_start:line.target_start + line.target_n],
            [(fields.name_at(i), fields.value_at(i)) for i in range(fields.count)])


def scan_response(bytes data not None):
    """For tests: (length, status, phrase, [(name, value), …]) of the head at the start of data, or None."""
    cdef status_line_t line
    cdef Headers fields = Headers.__new__(Headers)
    cdef Py_ssize_t n = scan_response_head(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &line, fields)
    if n == 0:
        return None
    return (n, line.status, data[line.phrase_start:line.phrase_start + line.phrase_n],
            [(fields.name_at(i), fields.value_at(i)) for i in range(fields.count)])


def runs(bytes data not None):
    """For tests: the lengths of the runs at the start of data, each counted in both ways: ((plain, plain), (name, name))."""
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    return (plain_run(p, n), plain_run_words(p, 0, n)), (name_run(p, n), name_run_words(p, 0, n))
