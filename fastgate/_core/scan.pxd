"""Public C interface of fastgate._core.scan."""

from fastgate._core.headers cimport Headers

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
