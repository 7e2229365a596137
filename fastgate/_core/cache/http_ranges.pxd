"""Public C interface of fastgate._core.cache.http_ranges."""

cdef list ranges_read(bytes value, Py_ssize_t size)
