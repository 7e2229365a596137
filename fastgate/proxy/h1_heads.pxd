"""C interface of fastgate.proxy.h1_heads."""

from fastgate._core.http.headers cimport Headers, HeadWriter

cdef int write_status_line(HeadWriter w, int status, bytes phrase) except -1
cdef int write_response_fields(HeadWriter w, Headers fields, bint keep_trailer) except -1
