# cython: boundscheck=False, nonecheck=True
"""The stages of a response between the upstream and the client.

WHAT     A `ResponseStage` receives the head, each piece of the body and the end, and returns what is passed on in their place.
         The request that owns it calls the stages in order and does not depend on their kinds: stages that hold a response, that
         let plugins edit its pieces (here), and that fill the cache (cache_fill.pyx). A method that a class does not implement
         raises NotImplementedError with its name.
STATE    head → chunk … → end → whole, or `failed`; in the end `over`.
WHO      The worker's loop.
COST     One virtual call per stage and method. A response without stages costs nothing.
SOURCES  nginx's body filters; Envoy's encoder filters (a filter may hold the head until it has seen the body).
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.abstract cimport missing
from fastgate._core.pipeline.context cimport M_HEAD, RequestContext
from fastgate._core.pipeline.plan cimport RoutePlan
from fastgate.proxy.hooks cimport response_chunk_hooks
from fastgate.proxy.plane cimport Plane
from fastgate.proxy.request_body cimport add_piece

__all__ = ["HoldStage", "HookStage", "ResponseStage"]


cdef class ResponseStage:
    """One stage of one response."""

    cdef int ask(self, Headers fields) except -1:
        """Edit the fields of the head that is about to be sent upstream. Nothing by default."""
        return 0

    cdef int head(self, int status, bytes phrase, Headers fields, int64_t length) except -1:
        """The head of the response; its fields may be edited. S_PASS, S_HOLD or S_REPLACED. length: of the body, or LENGTH_*."""
        missing(self, "head")

    cdef bytes chunk(self, bytes chunk):
        """A piece of the body: returns the bytes passed on in its place, empty if there are none yet, None if the response must
        be aborted."""
        missing(self, "chunk")

    cdef bytes end(self):
        """The body is complete: returns the bytes passed on before the end; None if the response must be aborted."""
        missing(self, "end")

    cdef int whole(self) except -1:
        """The response is complete and everything that arrived with it has been read, so it can no longer become invalid. Nothing
        by default."""
        return 0

    cdef int failed(self) except -1:
        """The upstream failed, and no bytes have been passed on. S_REPLACED if the stage has another response. S_PASS by
        default."""
        return S_PASS

    cdef int over(self) except -1:
        """The request is over, with whatever result. Called once. Nothing by default."""
        return 0


@cython.final
cdef class HoldStage(ResponseStage):
    """Holds a response until its body is complete, or too long to be held: then it passes as a stream."""

    def __cinit__(self, int64_t most_bytes):
        self.most_bytes = most_bytes
        self.pieces = []

    cdef int head(self, int status, bytes phrase, Headers fields, int64_t length) except -1:
        self.holds = True
        self.status = status
        self.phrase = phrase
        self.fields = fields
        self.length = length
        return S_HOLD

    cdef bytes chunk(self, bytes chunk):
        add_piece(self.pieces, chunk, True)
        self.held_bytes += PyBytes_GET_SIZE(chunk)
        return b"" if self.held_bytes <= self.most_bytes else self.end()

    cdef bytes end(self):
        cdef bytes body = b"".join(self.pieces)
        self.holds = False
        self.pieces = None
        return body


@cython.final
cdef class HookStage(ResponseStage):
    """The response_chunk hooks of a route."""

    def __cinit__(self, Plane plane not None, RoutePlan route not None, RequestContext ctx not None):
        self.plane = plane
        self.route = route
        self.ctx = ctx
        self.resizes = True

    cdef int head(self, int status, bytes phrase, Headers fields, int64_t length) except -1:
        return S_PASS

    cdef bytes chunk(self, bytes chunk):
        return response_chunk_hooks(self.plane, self.route, self.ctx, chunk, False)

    cdef bytes end(self):
        return b"" if self.ctx.method_id == M_HEAD else response_chunk_hooks(self.plane, self.route, self.ctx, b"", True)
