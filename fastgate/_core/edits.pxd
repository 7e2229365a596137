"""Public C interface of fastgate._core.edits."""

from fastgate._core.context cimport RequestContext
from fastgate._core.headers cimport Headers

cdef class Template:
    cdef tuple parts
    cdef bytes fixed
    cdef bytes render(self, RequestContext ctx)

cdef class Rewrite:
    cdef int kind
    cdef bytes prefix
    cdef bytes replacement
    cdef Template template
    cdef object regex
    cdef bytes apply(self, RequestContext ctx)

cdef class HeaderEdits:
    cdef tuple renames, removals, sets, adds
    cdef bint owns
    cdef int apply(self, RequestContext ctx, Headers headers) except -1
    cdef int _drop(self, Headers headers, bytes lower) except -1
    cdef int _add(self, Headers headers, bytes name, bytes value) except -1
