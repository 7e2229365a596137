"""Public C interface of fastgate._core.pipeline.plan."""

from libc.stdint cimport int64_t

from fastgate._core.pipeline.context cimport Answer, Reason, RequestContext
from fastgate._core.resilience.retry_policy cimport RetryPolicy
from fastgate._core.shm.counters cimport Counters, route_counts_t
from fastgate._core.http.edits cimport HeaderEdits, Rewrite, Template
from fastgate._core.pipeline.pipeline cimport Pipeline, Plugin
from fastgate._core.http.router cimport Route, Router

cdef class Destination:
    cdef readonly object upstream               # fastgate.upstream.pool.Upstream
    cdef readonly object cache                  # fastgate._core.cache.worker_cache.RouteCache, or None
    cdef readonly RetryPolicy retry             # None: only what is always safe, see proxy/attempt.pyx
    cdef readonly object timeouts
    cdef readonly int64_t connect_ns
    cdef readonly int64_t first_byte_ns
    cdef readonly int64_t between_bytes_ns
    cdef readonly int64_t total_ns
    cdef bytes deadline_header
    cdef tuple owned                            # lower-case names that clients may not set on the route, or None
    cdef readonly bint preserve_host

cdef class RoutePlan:
    cdef readonly str name
    cdef readonly bytes name_bytes
    cdef readonly bytes name_json
    cdef public tuple services                  # shared by its features with other routes
    cdef readonly object source                 # the config's bytes: equal bytes mean that the plan may be kept
    cdef readonly Pipeline pipeline
    cdef readonly Destination destination       # the destination of its requests; None for a local response
    cdef readonly int64_t max_body_bytes        # 0 = no limit
    cdef readonly int64_t request_buffering_bytes   # part of a body that is buffered before a connection is taken
    cdef readonly Rewrite rewrite
    cdef readonly HeaderEdits request_edits
    cdef readonly HeaderEdits response_edits
    cdef readonly bint allow_encoded_slashes    # its upstream treats them as data
    cdef bint any_method                        # no methods are listed: all HTTP methods except TRACE
    cdef unsigned int methods                   # bit per M_*
    cdef frozenset rare_methods
    cdef readonly tuple method_names
    cdef readonly bint accepts_preflight        # accepts CORS preflights for its requests
    cdef tuple header_tests
    cdef tuple query_tests
    cdef route_counts_t* counts
    cdef object _counters
    cdef bint takes_method(self, RequestContext ctx) except -1
    cdef bint takes_rest(self, RequestContext ctx) except -1

cdef class Plan:
    cdef readonly Router router
    cdef readonly list routes
    cdef readonly dict upstreams
    cdef readonly object config
    cdef readonly tuple plugins
    cdef readonly tuple fresh                   # those of plugins that no earlier plan has
    cdef public bint installed
    cdef object trusted                         # fastgate._core.http.cidr.CidrSet of the trusted proxies, or None
    cdef bint trusts_unix                       # clients on a Unix socket are trusted proxies
    cdef route_counts_t* unmatched
    cdef object _counters
    cdef readonly bint has_preflights           # any route has accepts_preflight
    cdef readonly dict redirects                # port: the RoutePlan that redirects to https on it
    cdef readonly bint merge_slashes
    cdef object make_destination                # (route, name of an upstream) → Destination, or None
    cdef dict made_destinations                 # by route and name: those of overrides, created on first use
    cdef frozenset named_methods                # every method that a route names
    cdef readonly int64_t requests              # in progress
    cdef object unused                          # a future, once another plan is active: done when no request is left
    cdef int tell_unused(self) except -1
    cdef Destination destination(self, RoutePlan route, str upstream)
    cdef RoutePlan match(self, RequestContext ctx)
    cdef bint is_ambiguous(self, RequestContext ctx, Route route) except -1
    cdef RoutePlan match_redirect(self, RequestContext ctx, int port)
    cdef RoutePlan match_preflight(self, RequestContext ctx)
    cdef bytes allowed(self, RequestContext ctx)

cdef class FixedResponse(Plugin):
    cdef Answer answer

cdef class Redirect(Plugin):
    cdef Template location
    cdef Reason refusal
    cdef int status
    cdef bint keep_query
