"""C interface of fastgate.proxy.plane."""

from libc.stdint cimport int64_t, uint64_t

from fastgate._core.http.headers cimport HeadWriter
from fastgate._core.pipeline.plan cimport Plan
from fastgate._core.pipeline.wheel cimport TimerWheel
from fastgate._core.shm.counters cimport Counters, worker_counts_t
from fastgate.proxy.accesslog cimport AccessLog
from fastgate.proxy.client_stream cimport ClientStream

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
    cdef HeadWriter out                   # the response bytes of out_owner that are not sent yet
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
    cdef int64_t look_ns                  # between two checks of a client that does not take its response
    cdef int64_t body_bytes               # bytes of request bodies in memory, over all requests
    cdef int64_t idle_timeout_ns
    cdef int64_t max_connections
    cdef int64_t max_of_listener          # share of max_connections
    cdef int64_t admitted                 # connections, without those that are being refused
    cdef dict of_listener                 # the same by the listener's address
    cdef int64_t max_requests
    cdef bint half_close_allowed
    cdef uint64_t id_high
    cdef uint64_t id_low
    cdef bytes date
    cdef int64_t date_until_ns
    cdef bytes new_request_id(self)
    cdef bytes date_value(self, int64_t now_ns)
