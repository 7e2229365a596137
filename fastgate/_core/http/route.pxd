"""Public C interface of fastgate._core.http.route."""

from libc.stdint cimport int32_t, uint8_t

cdef enum:
    ROUTER_MAX_PARAMS = 16
    ROUTER_MAX_SEGMENTS = 63

cdef class Route:
    cdef public object value            # the caller's, for example a plan of the route
    cdef public object pattern          # the path pattern as given
    cdef public int predicates          # how many further conditions accept() will check
    cdef readonly object host           # as given, lower-cased; None = any
    cdef readonly tuple param_names     # bytes, in the order of match_t.params
    cdef readonly object kind           # "literal", "params", "regex" or "prefix"
    cdef readonly Py_ssize_t order      # position in which it was added
    cdef object _regex
    cdef tuple _segments
    cdef tuple _groups
    cdef int32_t _tail                  # segment at which the tail starts, or -1
    cdef bint _tail_named
    cdef int32_t _param_count           # without the tail
    cdef uint8_t _param_segments[ROUTER_MAX_PARAMS]

cdef int plant(Route route, dict buckets, dict literals, dict edges, list nodes, list bucket_rows) except -1
cdef int32_t leaf_of(list leaves, list order, list routes) except -2
