"""Public C interface of fastgate._core.http.edits."""

from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.http.headers cimport Headers

cdef class Template:
    cdef tuple parts
    cdef bytes fixed
    cdef bint in_path
    cdef bint anchored                    # the request cannot choose the host of a redirect to it
    cdef bytes render(self, RequestContext ctx)
    cdef bytes render_location(self, RequestContext ctx)
    cdef list values(self, RequestContext ctx)

cdef class Rewrite:
    cdef int kind
    cdef bytes prefix
    cdef bytes replacement
    cdef Template template
    cdef object regex
    cdef bint stays(self, RequestContext ctx) except -1
    cdef bytes apply(self, RequestContext ctx)

cdef class HeaderEdits:
    cdef tuple renames, removals, sets, adds
    cdef bint owns
    cdef int apply(self, RequestContext ctx, Headers headers) except -1
    cdef int _drop(self, Headers headers, bytes lower) except -1
    cdef int _add(self, Headers headers, bytes name, bytes value) except -1
