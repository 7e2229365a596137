# cython: boundscheck=False, nonecheck=True
"""An upstream inside the process: an async generator that handles requests.

WHAT     `LocalStream` drives a handler, `handler(LocalRequest)` → async generator. It yields `(status, headers)` once, after any
         number of interim responses (1xx), then the pieces of the body as bytes, and may end with a `Headers` of trailers. The
         handler sees the request as an HTTP/1.1 upstream would, with the body as an async iterator. `LocalTarget` creates such
         streams in place of a pool's connections.
STATE    send_head → (flush: the task starts) → head → pieces → end. `abort` cancels the task and closes the generator.
         active: streams in flight, at most max_connections of the upstream; beyond it a request is refused, there is no queue.
WHO      The worker's loop.
COST     A task a request (7 to 11 µs) and the head's bytes, written and read once.
SOURCES  ASGI 3.0 (what an application in the process needs); RFC 9110 §6.4.1 (which responses have no body), §15.2 (interim
         ones).
"""

import asyncio
import logging
from collections import deque

from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.http.headers cimport H_CONTENT_LENGTH, Headers, HeadWriter
from fastgate._core.pipeline.context cimport M_HEAD, Reason, RequestContext
from fastgate._core.pipeline.plan cimport Destination
from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate.upstream.credential cimport Credential
from fastgate.upstream.h1_request cimport write_request_head
from fastgate.upstream.pool cimport A_FULL, Target, Upstream
from fastgate.upstream.stream cimport BODY_NONE, ResponseSink, UpstreamStream

from fastgate.errors import REASONS

__all__ = ["LocalBody", "LocalRequest", "LocalStream", "LocalTarget"]

log = logging.getLogger("fastgate")

cdef enum:
    # Bytes of a request's body that the handler has not taken: above it the client is not read, below a quarter reading resumes.
    WAITING_BYTES = 65536

cdef Reason BAD_RESPONSE = REASONS["bad_upstream_response"]
cdef Reason TRUNCATED = REASONS["upstream_truncated"]
cdef Reason INTERNAL = REASONS["internal_error"]


cdef class LocalTarget(Target):
    """A target that is a handler in this process. Part of an `Upstream`, like any target."""

    def __init__(self, Upstream upstream, handler, str name):
        """name: for logs and as the authority of its requests."""
        Target.__init__(self, upstream, f"local:{name}", name, 0, None, None, None, name.encode())
        self.handler = handler

    cdef UpstreamStream take(self, ResponseSink sink, int64_t now_ns):
        cdef LocalStream stream
        if self.active >= self.upstream.max_connections:
            return None
        stream = LocalStream.__new__(LocalStream)
        stream.owner = self
        stream.writable = True
        self.active += 1
        return stream

    cdef int acquire(self, ResponseSink sink) except -1:
        atomic_add_relaxed_u64(&self.upstream.counts.upstream_limited_total, 1)
        return A_FULL                                   # nothing would wake a waiter


cdef class LocalRequest:
    """A request as a handler sees it.

    method, target: as an HTTP/1.1 upstream receives them. headers: without those that belong to one connection, and without
    Content-Length. body: async iterator of bytes; its `trailers` are set at its end, None if there are none.
    """


cdef class LocalBody:
    """The body of a LocalRequest, as it arrives: `async for piece in request.body`."""

    def __cinit__(self, LocalStream stream):
        self.stream = stream
        self.pieces = deque()

    def __aiter__(self):
        return self

    async def __anext__(self):
        while not self.pieces:
            if self.complete:
                raise StopAsyncIteration
            if self.stream is None:
                raise ConnectionResetError("the request is over, and its body is not complete")
            if self.waiter is not None:
                raise RuntimeError("two readers wait for the same request body")
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        piece = self.pieces.popleft()
        self.size -= len(piece)
        if self.stream is not None:
            self.stream._taken()
        return piece


cdef class LocalStream(UpstreamStream):
    """One request to a handler."""

    cdef int send_head(self, ResponseSink sink, RequestContext ctx, Destination destination, Credential credential, bytes method,
                       bytes path, Headers fields, int64_t length, int64_t left_ns) except -1:
        cdef HeadWriter w = HeadWriter()
        cdef LocalRequest request = LocalRequest.__new__(LocalRequest)
        cdef bytes line
        # Built from the bytes that another upstream would receive, so that only one place defines them.
        write_request_head(w, ctx, destination, self.owner.authority, credential, method, path, fields,
                           BODY_NONE, left_ns)
        lines = w.take().split(b"\r\n")
        request.method = method.decode("latin-1")
        request.target = (<bytes>lines[0])[len(method) + 1:].rpartition(b" ")[0].decode("latin-1")
        request.headers = Headers()
        for line in lines[1:]:
            if line:
                name, _, value = line.partition(b": ")
                request.headers.add(name, value)
        request.body = LocalBody(self)
        self.request = request
        self.sink = sink
        self.head_only = ctx.method_id == M_HEAD
        return 0

    cdef int send_chunk(self, bytes chunk) except -1:
        cdef LocalBody body = self.request.body
        if PyBytes_GET_SIZE(chunk) == 0 or self.sink is None:
            return 0
        body.pieces.append(chunk)
        body.size += PyBytes_GET_SIZE(chunk)
        if body.size > WAITING_BYTES:
            self.writable = False
        return wake(body.waiter)

    cdef int send_end(self, Headers trailers) except -1:
        cdef LocalBody body = self.request.body
        body.complete = True
        body.trailers = trailers
        return wake(body.waiter)

    cdef int flush(self) except -1:
        if self.task is None and self.sink is not None:
            self.task = self.owner.upstream.loop.create_task(self._run())
        return 0

    cdef int _taken(self) except -1:
        """The handler took a piece of the body."""
        if not self.writable and self.request.body.size <= WAITING_BYTES // 4:
            self.writable = True
            if self.sink is not None:
                self.sink.on_upstream_writable(True)
        return 0

    cdef int pause(self) except -1:
        self.paused = True
        return 0

    cdef int resume(self) except -1:
        self.paused = False
        return wake(self.room)

    cdef int release(self, int64_t now_ns) except -1:
        return self._let_go()

    cdef int abort(self) except -1:
        return self._let_go()

    cdef int _let_go(self) except -1:
        """The request is over: the handler is cancelled if it still runs."""
        cdef LocalTarget owner = self.owner
        if owner is None:
            return 0
        self.owner = None
        self.sink = None
        owner.active -= 1
        if self.request is not None:
            self.request.body.stream = None
            wake(self.request.body.waiter)
        if self.task is not None and not self.task.done() and asyncio.current_task() is not self.task:
            self.task.cancel()
        return 0

    async def _run(self):
        """Drive the handler to its end."""
        generator = None
        try:
            generator = self.owner.handler(self.request)
            async for part in generator:
                if self.sink is None:
                    break
                self.now_ns = monotonic_ns()
                if isinstance(part, bytes):
                    self._chunk(part)
                elif isinstance(part, Headers) and self.answered:
                    self.trailers = part
                    break
                else:
                    status, headers = part
                    self._head(status, headers if isinstance(headers, Headers) else Headers(headers))
                if self.sink is None:
                    break
                self.sink.on_read_done(self.now_ns)
                while self.paused and self.sink is not None:
                    self.room = asyncio.get_running_loop().create_future()
                    await self.room
                    self.room = None
            self._tell_done()
        except asyncio.CancelledError:
            if self.sink is None:
                raise                                   # the request is over, and its task ends
            log.error("the handler of %s cancelled itself", self.owner.url)
            self._tell_failed(TRUNCATED if self.answered else INTERNAL)
        except Exception:
            if self.sink is not None:
                log.exception("the handler of %s failed", self.owner.url)
                self._tell_failed(TRUNCATED if self.answered else INTERNAL)
            else:
                log.exception("a handler failed after its request was over")
        finally:
            closing = getattr(generator, "aclose", None)
            if closing is not None:
                await closing()

    cdef int _head(self, int status, Headers headers) except -1:
        """Pass on a head, interim or final. Raises ValueError for one that is out of order or malformed."""
        cdef object length
        if self.answered:
            raise ValueError(f"a second head, with status {status}, in the body of a response")
        if not 102 <= status <= 599:
            raise ValueError(f"status: expected 102 to 599, got {status}")
        self.status = status
        self.phrase = None
        self.fields = headers
        self.saw_bytes = True
        if status < 200:
            return self.sink.on_interim(self)
        self.content_length = -1
        length = headers.find_known(H_CONTENT_LENGTH)
        if length is not None:
            if not length.isdigit():
                raise ValueError(f"Content-Length: expected digits, got {length!r}")
            self.content_length = int(length)
        self.answered = True
        self.body_left = self.content_length
        if self.head_only or status == 204 or status == 304:
            self.body_left = 0
        return self.sink.on_head(self)

    cdef int _chunk(self, bytes chunk) except -1:
        """Pass on a piece of the body. Raises ValueError for one before the head, or beyond the declared length."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(chunk)
        if not self.answered:
            raise ValueError("a piece of a body before the head of the response")
        if n == 0 or self.head_only:
            return 0
        if self.body_left >= 0:
            if n > self.body_left:
                raise ValueError(f"a body longer than its Content-Length, {self.content_length}, or where there can be none")
            self.body_left -= n
        return self.sink.on_chunk(chunk)

    cdef int _tell_done(self) except -1:
        """The handler has ended, and so has the response, if it is complete."""
        cdef ResponseSink sink = self.sink
        if sink is None:
            return 0
        if not self.answered:
            raise ValueError("no response")
        if self.body_left > 0:
            raise ValueError(f"{self.body_left} bytes short of its Content-Length, {self.content_length}")
        self.now_ns = monotonic_ns()
        sink.on_end(self.trailers)
        if self.sink is not None:
            sink.on_read_done(self.now_ns)
        return 0

    cdef int _tell_failed(self, Reason reason) except -1:
        cdef ResponseSink sink = self.sink
        self._let_go()
        if sink is not None:
            sink.on_failed(self, reason)
        return 0


cdef int wake(object waiter) except -1:
    """Complete a future, if there is a pending one."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
    return 0
