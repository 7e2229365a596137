"""C interface of the router, with that of its routes. Public: other extensions may cimport it."""

from cpython.object cimport PyObject
from libc.stdint cimport int32_t

from fastgate._core.http.route cimport ROUTER_MAX_PARAMS, ROUTER_MAX_SEGMENTS, Route
from fastgate._core.shm.texttable cimport table_t

ctypedef struct span_t:
    int32_t start       # offset into the path
    int32_t length      # bytes

ctypedef struct match_t:
    int32_t count       # number of params set; their names are route.param_names, same order
    span_t params[ROUTER_MAX_PARAMS]

ctypedef struct leaf_t:
    int32_t first       # into Router._order
    int32_t count

ctypedef struct node_t:
    int32_t param_child     # node, or -1
    int32_t terminal        # leaf of the patterns that end here, or -1
    int32_t tail            # leaf of the patterns whose /* or {rest...} starts here, or -1
    int32_t has_edges

ctypedef struct bucket_t:
    int32_t root            # node, or -1: no patterns with parameters or tails for this host
    int32_t regexes         # index into Router._regexes, or -1
    int32_t has_literals

ctypedef bint (*accept_t)(void* arg, Route route) noexcept


cdef class Match:
    cdef readonly Route route
    cdef object _path               # str or bytes, as given to match()
    cdef match_t _spans
    cdef Route matched(self)


cdef class Router:
    cdef readonly bint frozen
    cdef bint _sealed               # freezing() has begun: add() raises
    cdef list _routes               # every Route, in the order added
    cdef list _order                # the same, grouped by leaf: keeps _leaf_routes alive
    cdef PyObject** _leaf_routes
    cdef list _regexes              # per bucket: [(compiled, leaf), …]
    cdef leaf_t* _leaves
    cdef node_t* _nodes
    cdef bucket_t* _buckets
    cdef table_t _hosts             # owner 0: exact hosts; owner 1: wildcard suffixes (reversed hash)
    cdef table_t _literals          # owner: bucket
    cdef table_t _edges             # owner: node
    cdef char* _arena
    cdef int32_t _any_bucket
    cdef int32_t _wildcard_labels   # the most dots in any wildcard suffix; 0 = none

    cdef Route find(self, const char* host, Py_ssize_t host_n, const char* path, Py_ssize_t path_n,
                    accept_t accept, void* arg, match_t* out)
