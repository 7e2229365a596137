# cython: boundscheck=False
"""The bytes of a response head for an HTTP/1.1 client.

WHAT     Pure functions over a HeadWriter. They remove the fields that belong to one connection (RFC 9110 §7.6.1) and make no
         decisions. The head of a request for an upstream is written by upstream/h1_request.pyx.
STATE    None.
COST     One pass over the fields and one memcpy each.
SOURCES  RFC 9112 §4, §6; RFC 9110 §7.6.
"""

from http import HTTPStatus

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.http.headers cimport H_CONTENT_LENGTH, H_TRAILER, H_X_REQUEST_ID, Headers, HeadWriter
from fastgate._core.http.writing cimport put_text

__all__ = []

cdef list STATUS_LINES = [None] * 1000       # three digits: upstreams may send codes that RFC 9110 does not define
cdef list PHRASES = [b""] * 1000

def _fill_status_lines():
    for status in range(100, 1000):
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        PHRASES[status] = phrase.encode()
        STATUS_LINES[status] = f"HTTP/1.1 {status} {phrase}\r\n".encode()

_fill_status_lines()


cdef int write_status_line(HeadWriter w, int status, bytes phrase) except -1:
    """The status line, with the upstream's phrase unless it has none or one that is not plain text."""
    cdef Py_ssize_t i, n
    cdef const char* p
    if phrase is not None and phrase != <bytes>PHRASES[status]:
        n = PyBytes_GET_SIZE(phrase)
        p = PyBytes_AS_STRING(phrase)
        for i in range(n):
            if not 32 <= <unsigned char>p[i] < 127:
                break
        else:
            put_text(w, b"HTTP/1.1 ", 9)
            w.put_decimal(status)
            put_text(w, b" ", 1)
            w.put_bytes(phrase)
            put_text(w, b"\r\n", 2)
            return 0
    w.put_bytes(<bytes>STATUS_LINES[status])
    return 0


cdef int write_response_fields(HeadWriter w, Headers fields, bint keep_trailer) except -1:
    """The fields of an upstream's response that are passed on: no connection fields, no framing, not its request id."""
    cdef int i, known
    for i in range(fields.count):
        known = fields.fields[i].id
        if known != 0 and (known <= H_CONTENT_LENGTH or known == H_X_REQUEST_ID or (known == H_TRAILER and not keep_trailer)):
            continue
        w.parsed_span(&fields.fields[i])
    return 0
