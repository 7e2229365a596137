"""C interface of fastgate.upstream.pool."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.balance.targets cimport TargetSet, ticket_t
from fastgate._core.http.headers cimport HeadWriter
from fastgate._core.log_throttle cimport log_throttle_t
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.pipeline.wheel cimport TimerWheel
from fastgate._core.shm.counters cimport worker_counts_t
from fastgate.upstream.balance_key cimport BalanceKey
from fastgate.upstream.credential cimport Credential
from fastgate.upstream.h1_stream cimport ConnectionOwner, H1UpstreamStream
from fastgate.upstream.stream cimport ResponseSink, UpstreamStream

cdef enum:
    A_OPENING = 0
    A_QUEUED = 1
    A_FULL = 2

cdef class Target(ConnectionOwner):
    cdef readonly str url
    cdef readonly str host
    cdef readonly int port
    cdef readonly object unix_path
    cdef readonly object ssl
    cdef readonly object server_name
    cdef readonly bytes address              # for logs
    cdef Upstream upstream
    cdef readonly Py_ssize_t place           # in the upstream's targets
    cdef list open                           # every connection, by its index
    cdef list idle                           # most recently used last
    cdef object waiters                      # deque of ResponseSink
    cdef readonly int total                  # open and being opened
    cdef readonly int opening
    cdef set tasks
    cdef log_throttle_t failed_log           # failures to connect
    cdef log_throttle_t limited_log          # requests that exceeded the limit of the pool
    cdef UpstreamStream take(self, ResponseSink sink, int64_t now_ns)
    cdef int acquire(self, ResponseSink sink) except -1
    cdef int forget(self, ResponseSink sink) except -1
    cdef bint _may_open(self)
    cdef int _over_share(self, ResponseSink sink) except -1
    cdef bint _has_queue_place(self, ResponseSink sink)
    cdef ResponseSink _next_waiter(self)
    cdef int _say_limited(self) except -1
    cdef int _hand_over(self, H1UpstreamStream connection, int64_t now_ns) except -1
    cdef int _open_for_queue(self) except -1
    cdef int _open(self, ResponseSink sink) except -1
    cdef bint _is_too_old(self, H1UpstreamStream connection, int64_t now_ns) noexcept

cdef class Upstream:
    cdef readonly str name
    cdef readonly object config
    cdef public Credential credential         # authenticates its requests; None: no authentication
    cdef readonly list targets
    cdef readonly TargetSet balance
    cdef BalanceKey key                       # None: targets are not chosen by key
    cdef uint64_t failures[10]                # statuses that count as a failure of the target: a bit each
    cdef readonly bint retired
    cdef object loop
    cdef TimerWheel wheel
    cdef HeadWriter out                      # the bytes that one of its connections writes in one event
    cdef worker_counts_t* counts
    cdef object _counters                    # owns the memory that `counts` points into
    cdef readonly int max_connections
    cdef readonly int most_of_one             # share of max_connections that one route, listener or client may hold
    cdef readonly int budget                  # connections of this process to all upstreams
    cdef public int shares                    # SAME_* bits that are distinguished here
    cdef readonly int max_idle
    cdef readonly int max_queue
    cdef readonly int64_t max_requests
    cdef readonly int64_t idle_timeout_ns
    cdef readonly int64_t max_lifetime_ns
    cdef readonly int64_t queue_timeout_ns
    cdef readonly int64_t connect_timeout_ns
    cdef Py_ssize_t pick(self, RequestContext ctx, list tried, bint is_new, ticket_t* ticket) except? -3
    cdef bint is_failure(self, int status) noexcept
