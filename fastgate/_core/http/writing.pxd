"""Put a short constant text into a HeadWriter: inlined, so that the copy is a few stores and no call."""

cimport cython
from libc.string cimport memcpy

from fastgate._core.http.headers cimport HeadWriter

@cython.nonecheck(False)
cdef inline int put_text(HeadWriter w, const char* text, Py_ssize_t n) except -1:
    if w.size + n > w.capacity:
        w.reserve(n)
    memcpy(w.data + w.size, text, n)
    w.size += n
    return 0
