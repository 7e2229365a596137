"""Public C interface of fastgate._core.cache.http_dates."""

from libc.stdint cimport int64_t

cdef int64_t NO_DATE                        # smaller than every date
cdef int64_t date_read(const char* p, Py_ssize_t n, int64_t now_s) noexcept nogil   # seconds since 1970, or NO_DATE
cdef bytes date_text(int64_t seconds)
