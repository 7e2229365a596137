"""C interface of fastgate.proxy.exchange."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.pipeline.context cimport Answer, Reason, RequestContext
from fastgate._core.shm.counters cimport Counters, route_counts_t, worker_counts_t
from fastgate._core.http.headers cimport Headers, HeadWriter
from fastgate._core.pipeline.pipeline cimport Plugin, ResponseHead
from fastgate._core.pipeline.plan cimport Destination, Plan, RoutePlan
from fastgate._core.pipeline.wheel cimport TimerWheel
from fastgate.proxy.accesslog cimport AccessLog
from fastgate.proxy.client_stream cimport ClientStream
from fastgate.upstream.pool cimport Target, Upstream
from fastgate.upstream.stream cimport ResponseSink, UpstreamStream

cdef enum:
    WHEEL_TICK_NS = 20000000

cdef class Plane:
    cdef readonly object loop
    cdef readonly object memory           # fastgate.state.memory.HostMemory
    cdef readonly Counters counters
    cdef readonly int slot
    cdef worker_counts_t* counts
    cdef readonly TimerWheel wheel
    cdef readonly Plan plan
    cdef readonly AccessLog log
    cdef readonly bint draining
    cdef readonly set connections         # every open client connection
    cdef HeadWriter out                   # the answer bytes of out_owner that are not sent yet
    cdef ClientStream out_owner
    # From the config's `server`
    cdef int64_t max_header_bytes
    cdef int max_headers
    cdef int64_t max_target_bytes
    cdef int64_t header_timeout_ns
    cdef int64_t body_timeout_ns
    cdef int64_t min_upload_rate          # bytes per second; 0: none
    cdef int64_t min_download_rate
    cdef int64_t rate_grace_ns
    cdef int64_t look_ns                  # between two looks at a client that does not take its response
    cdef int64_t collected_bytes          # of all bodies that are being collected
    cdef int64_t idle_timeout_ns
    cdef int64_t max_connections
    cdef int64_t max_of_listener          # of max_connections
    cdef int64_t admitted                 # connections that are not just being refused
    cdef dict of_listener                 # the same by the listener's address
    cdef int64_t max_requests
    cdef bint half_close_allowed
    cdef uint64_t id_high
    cdef uint64_t id_low
    cdef bytes date
    cdef int64_t date_until_ns
    cdef bytes new_request_id(self)
    cdef bytes date_value(self, int64_t now_ns)

cdef enum:
    X_NEW = 0
    X_SUSPENDED = 1           # a plugin is awaited
    X_WAITING = 2             # for an upstream connection
    X_SENDING = 3             # head is out, nothing back yet
    X_RELAYING = 4            # the answer's head is out
    X_TUNNEL = 5
    X_FINISHED = 6
    X_COLLECTING = 7          # the request body, before a connection is taken

@cython.final
cdef class Exchange(ResponseSink):
    cdef Plane plane
    cdef Plan plan
    cdef ClientStream client
    cdef readonly RequestContext ctx
    cdef RoutePlan route
    cdef Destination destination          # the route's own, or that of an override
    cdef route_counts_t* counts
    cdef readonly int state
    cdef Reason early                     # why it is refused before it could be decided on
    cdef int64_t body_timeout_ns
    # Request body
    cdef list pending                     # pieces not yet sent upstream
    cdef int64_t pending_bytes
    cdef int64_t body_bytes               # received so far
    cdef readonly bint body_complete
    cdef bint body_paused
    cdef int64_t body_paused_ns           # since when
    cdef int64_t body_clock_ns            # when the gateway began to wait for the body, less the time in which it did not read
    cdef int64_t body_clock_from          # body_bytes at that time
    cdef int64_t collected                # its part of Plane.collected_bytes
    cdef bint buffer_body                 # somebody wants it whole
    cdef int64_t buffer_bytes             # … and takes no more than this
    cdef object body_waiter
    cdef Headers request_trailers
    cdef int tunnel_ends                  # 1: the client closed its half, 2: the upstream
    cdef bint length_open                 # upstream is not told how long the body is
    cdef bint end_sent                    # the request is complete upstream
    # Attempt
    cdef Upstream upstream
    cdef Target target
    cdef UpstreamStream up
    cdef int attempts_left
    cdef bint keeps                       # it may be replayed: the body sent so far is in `kept`
    cdef list kept
    cdef int64_t kept_bytes
    cdef bint replayed
    cdef object task
    cdef object cached                    # a CachedRequest, on routes that cache
    cdef bint background                  # no client asked for it: not counted, not logged
    cdef int suspended_at
    # Answer
    cdef readonly bint response_started
    cdef bint response_complete
    cdef int64_t told_length              # Content-Length of an answer without body (HEAD, 304); -1 = say none
    cdef list held                        # body pieces of an answer a plugin wants whole
    cdef int64_t held_bytes
    cdef Headers held_fields
    cdef int held_status
    cdef bytes held_phrase
    # Deadlines
    cdef Reason deadline_reason
    cdef int64_t total_deadline_ns

    cdef int start(self) except -1
    cdef int begin(self) except -1
    cdef bint up_active(self)
    cdef int body_chunk(self, bytes chunk) except -1
    cdef int body_end(self, Headers trailers) except -1
    cdef int body_read_done(self) except -1
    cdef int client_gone(self) except -1
    cdef int client_drained(self, bint writable) except -1
    cdef int deadline_passed(self, int64_t now_ns) except -1
    cdef int refuse(self, Reason reason) except -1

    cdef int _decide(self, int start) except -1
    cdef int _after_decide(self, int verdict) except -1
    cdef bint _go_elsewhere(self, str upstream) except -1
    cdef int _forward(self) except -1
    cdef int _first_attempt(self) except -1
    cdef int _collect(self) except -1
    cdef int _end_collecting(self) except -1
    cdef int _await_body(self) except -1
    cdef int _pause_client(self) except -1
    cdef int _resume_client(self) except -1
    cdef int _attempt(self) except -1
    cdef int _send_head(self) except -1
    cdef int _send_pending(self) except -1
    cdef int _reply(self) except -1
    cdef int _challenge(self, bint has_one) except -1
    cdef int _fail(self, Reason reason) except -1
    cdef int _may_replay(self, UpstreamStream stream, Reason reason) except -1
    cdef int _finish(self) except -1
    cdef int _forget(self, ClientStream client) except -1
    cdef int _arm(self, int64_t after_ns, Reason reason) except -1
    cdef int _rearm(self) except -1
    cdef int _let_go(self) except -1
    cdef int _plugin_failed(self, object plugin, str phase) except -1
    cdef int _answer_head(self, int status, bytes phrase, Headers fields, int64_t length, bytes whole) except -1
    cdef Headers _switching_head(self, UpstreamStream stream)
    cdef int _response_hooks(self, ResponseHead head) except -1
    cdef bint _pass_over(self, Plugin plugin) except -1
    cdef list _hooked_request_chunks(self, list pieces, bint ends)
    cdef bytes _hooked_response_chunk(self, bytes chunk, bint last)
    cdef int _give_up_holding(self) except -1
    cdef int _relay_chunk(self, bytes chunk) except -1
    cdef int _replay(self) except -1
    cdef int _keep(self, bytes chunk) except -1
    cdef int tunnel_received(self, bytes data) except -1
    cdef int tunnel_client_eof(self) except -1

cdef int add_piece(list pieces, bytes piece) except -1

cdef class NoClient(ClientStream):
    cdef Exchange exchange
