"""Public C interface of fastgate._core.pipeline.pipeline."""

from libc.stdint cimport int64_t

from fastgate._core.log_throttle cimport log_throttle_t
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.http.headers cimport Headers

cdef enum:
    MAX_STEPS = 64

cdef enum:
    V_CONTINUE = 0
    V_RESPOND = 1
    V_SUSPEND = 2

cdef class Plugin

cdef enum:
    BLOCKED_NS = 100000000      # a synchronous hook that runs longer has blocked its worker: reported
    BLOCKED_LOG_NS = 1000000000     # between two log lines about the same plugin

cdef int verdict_of(object returned, RequestContext ctx, str phase) except -1
cdef int hook_done(Plugin plugin, RequestContext ctx, int64_t began_ns, str phase) except -1

cdef class RequestHead:
    cdef public object method
    cdef public object target
    cdef readonly Headers headers
    cdef public object body

cdef class ResponseHead:
    cdef public int status
    cdef readonly Headers headers
    cdef public object body

cdef class Plugin:
    cdef public str name
    cdef public bint enforce
    cdef public int place
    cdef public object key                     # its settings: equal keys mean that it may be kept
    cdef dict __dict__
    cdef public int64_t request_body_bytes
    cdef public int64_t response_body_bytes
    cdef log_throttle_t blocked                # calls that blocked the worker
    cdef bint compiled_decide
    cdef bint compiled_finish
    cdef bint compiled_begin
    cdef bint compiled_answer
    cdef bytes challenge_lines                 # ready WWW-Authenticate lines: how one authenticates here; None: it does not say
    cdef int c_decide(self, RequestContext ctx) except -1
    cdef int c_finish(self, RequestContext ctx) except -1
    cdef int c_begin(self, RequestContext ctx) except -1
    cdef int c_answer(self, RequestContext ctx, Headers fields) except -1

cdef class Pipeline:
    cdef readonly tuple plugins
    cdef readonly tuple steps                   # decide and request, in listed order
    cdef readonly tuple upstream_request
    cdef readonly tuple upstream_response
    cdef readonly tuple response
    cdef readonly tuple request_chunk
    cdef readonly tuple response_chunk
    cdef readonly tuple log
    cdef readonly tuple begin                   # compiled gates that add header lines to every response
    cdef readonly tuple answer                  # compiled gates that edit the head of an upstream response
    cdef readonly tuple finish                  # compiled gates that release resources at the end
    cdef readonly int64_t request_body_bytes
    cdef readonly int64_t response_body_bytes
    cdef bytes challenge_lines                  # of the last plugin that has some
    cdef int steps_n
    cdef unsigned char waits[MAX_STEPS]
    cdef int decide(self, RequestContext ctx, int start, int* stopped_at) except -1
