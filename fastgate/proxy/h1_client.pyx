# cython: boundscheck=False, nonecheck=True
"""HTTP/1.1 with clients: parsing of requests, in order.

WHAT     `ClientConnection` is the asyncio protocol of one client connection. httptools parses; this file adds the checks that
         llhttp leaves to its user (Host, Transfer-Encoding, version, sizes, white space around values), and keeps pipelined
         requests in order. The writing half is in responses.pyx.
STATE    parsing: the request whose bytes arrive; queue: requests parsed after the current one (at most one read's worth, because
         the client is not read meanwhile); exchange: the current one.
WHO      The worker's loop.
COST     An idle connection holds this object, its parser and its transport: about 2 kB, and no buffer.
SOURCES  RFC 9112 (messages), §9.3.2 (pipelining), §9.6 (lingering close); RFC 9110 §7.2 (Host), §10.1.1 (Expect);
         RFC 6455 §5.2 (WebSocket frames, tracked only to find where a close frame may be inserted).
"""

import logging
import socket

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
)

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcmp

from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.pipeline.context cimport (
    M_CONNECT,
    M_UNKNOWN,
    Answer,
    Reason,
    RequestContext,
    method_number,
)
from fastgate._core.http.headers cimport (
    TOKEN,
    H_CONNECTION,
    H_CONTENT_LENGTH,
    H_DROPPED,
    H_EXPECT,
    H_FIRST_OWNED,
    H_FORWARDED,
    H_HOST,
    H_OTHER,
    H_TRANSFER_ENCODING,
    H_UPGRADE,
    H_X_FORWARDED_OTHER,
    H_X_FORWARDED_PORT,
    H_X_REAL_IP,
    H_X_REQUEST_ID,
    Headers,
    field_t,
    has_token,
    header_id,
    name_equal,
    trimmed_by_some,
)
from fastgate._core.pipeline.plan cimport Plan
from fastgate._core.http.sockets cimport waits_unread
from fastgate._core.http.scan cimport decimal, request_line_t, scan_request_head
from fastgate._core.http.urlpath cimport host_of, normal_authority
from fastgate.proxy.responses cimport PAUSED_BODY, PAUSED_QUEUE, PAUSED_UPGRADE, AnswerStream
from fastgate.proxy.exchange cimport Exchange
from fastgate.proxy.plane cimport Plane
from fastgate.proxy.upstream_request cimport X_FINISHED
from fastgate.proxy.forwarding cimport believe, forwarding_lines
from fastgate.proxy.request_target cimport T_ASTERISK, T_OK, parse_target

from fastgate.errors import REASONS
from fastgate.proxy.h1_faults import fault_of
from fastgate.proxy.forwarding import canonical_address
from fastgate.proxy.proxy_protocol import parse as parse_proxy_header

__all__ = ["ClientConnection"]

log = logging.getLogger("fastgate")

cdef enum:
    # With more unsent bytes, the upstream is not read. With one more read, the gateway holds at most 64 kB for a client that
    # stalls.
    WRITE_HIGH_BYTES = 32768
    # Unsent bytes that the kernel accepts for one client. Linux would grow its send buffer to 4 MB for a slow reader, all of it
    # read ahead of the client; 128 kB keeps a 10 Gbit/s client with 100 us of latency busy.
    NOTSENT_LOWAT_BYTES = 131072
    SMALL_REST_BYTES = 65536              # bytes of a request body read and discarded after the response to keep the connection
    # The same before a close, so that the client can read the response before a reset can reach it (RFC 9112 §9.6)
    LINGER_BYTES = 1048576
    KEPT_PLACES = 8                       # capacity of the queue kept by an idle connection
    METHOD_BYTES = 32                     # the longest registered one has 17
    CHUNK_OVERHEAD_BYTES = 16384          # chunk extensions and trailers without a body byte in between

# An idle connection is closed this long after the drain began. Closing it at once would lose a request that is in flight, on a
# new connection the first one; requests that arrive within this time get a response with Connection: close, so a busy client
# never sees a reset.
cdef int64_t DRAIN_IDLE_NS = 500_000_000
cdef int64_t UNREAD_NS = 20_000_000     # until an idle connection whose next request has arrived is checked again

cdef Reason BAD_REQUEST_LINE = REASONS["bad_request_line"]
cdef Reason BAD_HEADER = REASONS["bad_header"]
cdef Reason BAD_FRAMING = REASONS["bad_framing"]
cdef Reason BAD_HOST = REASONS["bad_host"]
cdef Reason BAD_TARGET = REASONS["bad_target"]
cdef Reason BAD_PROXY_HEADER = REASONS["bad_proxy_header"]
cdef Reason UNKNOWN_METHOD = REASONS["unknown_method"]
cdef Reason METHOD_NOT_ALLOWED = REASONS["method_not_allowed"]
cdef Reason VERSION_NOT_SUPPORTED = REASONS["version_not_supported"]
cdef Reason TARGET_TOO_LONG = REASONS["target_too_long"]
cdef Reason HEADER_TOO_LARGE = REASONS["header_too_large"]
cdef Reason EXPECTATION_FAILED = REASONS["expectation_failed"]
cdef Reason HEADER_TIMEOUT = REASONS["header_timeout"]
cdef Reason OVERLOADED = REASONS["overloaded"]

cdef object TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
cdef str ALLOW = "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS"
cdef Answer ASTERISK_ANSWER = Answer(200, b"", [("Allow", ALLOW)])


# Methods that llhttp parses as HTTP (llhttp 9, HTTP_METHOD_MAP)
cdef frozenset LLHTTP_METHODS = frozenset((
    b"DELETE", b"GET", b"HEAD", b"POST", b"PUT", b"CONNECT", b"OPTIONS", b"TRACE", b"COPY", b"LOCK", b"MKCOL", b"MOVE", b"PROPFIND",
    b"PROPPATCH", b"SEARCH", b"UNLOCK", b"BIND", b"REBIND", b"UNBIND", b"ACL", b"REPORT", b"MKACTIVITY", b"CHECKOUT", b"MERGE",
    b"M-SEARCH", b"NOTIFY", b"SUBSCRIBE", b"UNSUBSCRIBE", b"PATCH", b"PURGE", b"MKCALENDAR", b"LINK", b"UNLINK"))

cdef bytes GET = b"GET"
cdef bytes POST = b"POST"


cdef inline bytes method_bytes(const char* p, Py_ssize_t n):
    """The method as bytes; no new object for the two most frequent ones."""
    if n == 3 and memcmp(p, b"GET", 3) == 0:
        return GET
    if n == 4 and memcmp(p, b"POST", 4) == 0:
        return POST
    return p[:n]


class _Refused(Exception):
    """Raised inside a parser callback to stop the parse: the request is refused."""


@cython.final
cdef class ClientConnection(AnswerStream):
    """One HTTP/1.1 client connection. Created by DataPlane.connection."""

    # asyncio protocol

    def connection_made(self, transport):
        cdef Plane plane = self.plane
        self.transport = transport
        self.client_writable = True
        atomic_add_relaxed_u64(&plane.counts.connections_total, 1)
        atomic_add_relaxed_u64(&plane.counts.connections_open, 1)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
        secured = transport.get_extra_info("ssl_object")
        self.fd = sock.fileno() if sock is not None and secured is None else -1
        if secured is not None:
            self.certificate = secured.getpeercert(True)
        name = transport.get_extra_info("peername")
        self.is_unix = sock is not None and sock.family == socket.AF_UNIX
        self._set_peer(name[0] if isinstance(name, tuple) and name else "")
        plane.connections.add(self)
        of_listener = plane.of_listener.get(self.listener, 0)
        if plane.admitted >= plane.max_connections or of_listener >= plane.max_of_listener:
            atomic_add_relaxed_u64(&plane.counts.connections_refused, 1)
            if len(plane.connections) > plane.max_connections + plane.max_connections // 8 + 8:
                transport.abort()                       # connection flood: no response either
                return
            request_id = plane.new_request_id()
            body = OVERLOADED.body_start + b',"request_id":"' + request_id + b'"}'
            transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                            b"X-Request-ID: %s\r\nConnection: close\r\nRetry-After: 1\r\n\r\n%s" % (len(body), request_id, body))
            self._linger()
            return
        self.admitted = True
        plane.admitted += 1
        plane.of_listener[self.listener] = of_listener + 1
        plane.wheel.arm(self, monotonic_ns() + plane.idle_timeout_ns)

    def _set_peer(self, str address):
        cdef bytes raw = address.partition("%")[0].encode("latin-1")    # an IPv6 zone has no meaning outside this host
        self.peer = canonical_address(raw) or raw
        self.trusted_by = None
        self.last_forwarding = None

    cdef int _judge_peer(self, Plan plan) except -1:
        """Determine whether the peer is one of the trusted proxies of this plan."""
        self.trusted_by = plan
        if self.is_unix:
            self.trusted = plan.trusts_unix
        else:
            self.trusted = plan.trusted is not None and canonical_address(self.peer) is not None \
                and self.peer.decode("latin-1") in plan.trusted

    def data_received(self, bytes data):
        cdef int64_t now_ns = monotonic_ns()
        cdef Exchange exchange
        try:
            if self.tunnel:
                self.exchange.tunnel_received(data)
                return
            if self.lingering:
                self.linger_bytes += PyBytes_GET_SIZE(data)
                if self.linger_bytes > LINGER_BYTES:
                    self.cut()
                return
            if self.takes_proxy_header:
                data = self._proxy_header(data, now_ns)
                if not data:
                    return
            if self.paused & PAUSED_UPGRADE:
                self.upgrade_rest = data if self.upgrade_rest is None else self.upgrade_rest + data
                return
            self._feed(data, now_ns)
        except BaseException:
            log.exception("while reading from client %s", self.peer.decode("latin-1"))
            self.cut()

    cdef bytes _proxy_header(self, bytes data, int64_t now_ns):
        """The bytes after the PROXY protocol header, which gives the peer's address; None while it is incomplete or if it is
        invalid."""
        if self.proxy_bytes is not None:
            self.proxy_bytes += data
            data = bytes(self.proxy_bytes)
        try:
            parsed = parse_proxy_header(data)
        except ValueError:
            self.takes_proxy_header = False
            self.proxy_bytes = None
            self.on_message_begin()
            self.parsing.ctx.now_ns = self.parsing.ctx.started_ns = now_ns
            self._refuse_early(BAD_PROXY_HEADER)
            self._advance()
            return None
        if parsed is None:
            if self.proxy_bytes is None:
                self.proxy_bytes = bytearray(data)
                self.plane.wheel.arm(self, now_ns + self.plane.header_timeout_ns)
            return None
        self.takes_proxy_header = False
        self.proxy_bytes = None
        size, address = parsed
        if address is not None:
            self.is_unix = False
            self._set_peer(address.source_ip)
        return data[size:]

    cdef int _feed(self, bytes data, int64_t now_ns) except -1:
        """Parse one read, then advance the exchanges; repeat with the bytes that llhttp leaves after a request with Upgrade. A
        loop, because one read may contain thousands of them."""
        while True:
            data = self._feed_until_upgrade(data, now_ns)
            if not data or self.closed or self.lingering:
                return 0
            if self.tunnel:
                return self.exchange.tunnel_received(data)
            if self.paused & PAUSED_UPGRADE:
                self.upgrade_rest = data if self.upgrade_rest is None else self.upgrade_rest + data
                return 0

    cdef bytes _feed_until_upgrade(self, bytes data, int64_t now_ns):
        """The bytes left after a request with Upgrade, or None."""
        cdef bytes rest = None
        cdef const char* newline
        cdef const char* start = PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        cdef Exchange receiving = self.parsing
        cdef Py_ssize_t taken
        if self.body_left > 0:
            taken = self._counted_body(data, 0)
            if taken == n:
                receiving.ctx.now_ns = now_ns
                if receiving is self.exchange:
                    receiving.body_read_done()
                if self.exchange is None:
                    self._advance()
                return None
            data = data[taken:]
            start = PyBytes_AS_STRING(data)
            n -= taken
            if self.paused & PAUSED_UPGRADE:
                self.upgrade_rest = data
                data = b""
                n = 0
        if self.parsing is None and not self.close_after:
            taken = self._plain_requests(data, now_ns)
            if taken == n:
                if receiving is not None and receiving is self.exchange:
                    receiving.body_read_done()
                if self.exchange is None or self.queue_n:
                    self._advance()
                return None
            if taken:
                data = data[taken:]
                start = PyBytes_AS_STRING(data)
                n -= taken
        if self.parsing is None and self.close_after:
            # After the last request: read and discarded, so that closing does not reset the connection before its response is
            # read.
            self.excess = True
            self.linger_bytes += n
            if self.linger_bytes > LINGER_BYTES:
                self._pause(PAUSED_QUEUE)
            if receiving is not None and receiving is self.exchange:
                receiving.body_read_done()
            if self.exchange is None or self.queue_n:
                self._advance()
            return None
        self.begun = 0
        if self.held is not None:
            data = self.held + data
            self.held = None
        if (self.parsing is None or self.begun_early) and not self.close_after:
            data = self._known_method(data)
        start = PyBytes_AS_STRING(data)
        n = PyBytes_GET_SIZE(data)
        if self.parsing is None or self.begun_early:
            # At the start of a request the version is read directly from the line: asking the parser creates a string.
            newline = <const char*>memchr(start, c"\n", n)
            self.line_is_http11 = newline != NULL and newline - start > 13 and memcmp(newline - 10, b" HTTP/1.1\r", 10) == 0
        elif receiving is not None:
            receiving.ctx.now_ns = now_ns
        if self.parsing is None or self.begun_early:
            self.head = data
        elif self.head is not None:
            self.head += data
        if self.in_head:
            self.head_bytes += n
        self.chunk_overhead += n
        if self.parser is None:
            self.parser = HttpRequestParser(self)       # created on demand: most connections never need one
        try:
            if n:
                self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            rest = self._upgraded(data[upgrade.args[0]:])
        except HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Refused):
                raise
        except HttpParserError as error:
            self._parser_error(error)
        if self.closed:
            return None
        if rest and not self.paused & PAUSED_UPGRADE and (receiving is None or receiving is not self.exchange):
            return rest                                 # no exchange waits for what was parsed so far: advance after the rest
        if self.in_head and not self.close_after:
            if self.head_bytes == 0:
                # After other messages in this read, the start of the head is unknown: its size counts from the next read on.
                self.head_bytes = n if receiving is None and self.begun == 1 else 1
                self.parsing.ctx.started_ns = now_ns
                if self.exchange is None:
                    self.plane.wheel.arm(self, now_ns + self.plane.header_timeout_ns)
            if self.target is not None and PyBytes_GET_SIZE(self.target) > self.plane.max_target_bytes:
                self._refuse_early(TARGET_TOO_LONG)
            elif self.head_bytes > self.plane.max_header_bytes + self.plane.max_target_bytes:
                self._refuse_early(HEADER_TOO_LARGE if self.parsing.ctx.headers.count else TARGET_TOO_LONG)
        elif self.in_body and self.chunk_overhead > CHUNK_OVERHEAD_BYTES and self.parsing.ctx.content_length < 0 \
                and not self.close_after:
            self.close_after = True
            if self.parsing is self.exchange:
                self.exchange.fail(BAD_FRAMING)
            else:
                self.parsing.early = BAD_FRAMING
        if self.in_head and receiving is self.parsing and self.exchange is None and self.queue_n == 0:
            return rest                                 # more of the same head: its deadline is unchanged
        if receiving is not None and receiving is self.exchange:
            receiving.body_read_done()
        if self.exchange is None or self.queue_n:
            self._advance()
        elif self.exchange is not None and receiving is not self.exchange and self.exchange is self.parsing:
            self.exchange.body_read_done()
        return rest

    cdef bytes _known_method(self, bytes data):
        """The first bytes of a request in a form that llhttp can parse: it knows a fixed list of methods, but RFC 9110 §16.1
        allows any. An unknown method is remembered and replaced by POST, which has the same framing. Empty while the method is
        incomplete: its bytes are held."""
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), start = 0, end
        while start < n and (p[start] == c"\r" or p[start] == c"\n"):
            start += 1                                  # empty lines before a request line (RFC 9112 §2.2)
        end = start
        while end < n and end - start <= METHOD_BYTES and TOKEN[<unsigned char>p[end]]:
            end += 1
        if end == start or end - start > METHOD_BYTES:
            return data                                 # let the parser report the error
        if end == n:
            if not self.begun_early:
                self.on_message_begin()
                self.begun_early = True
            self.held = data
            return b""
        if p[end] != c" " or data[start:end] in LLHTTP_METHODS:
            return data
        self.extension = data[start:end]
        return b"POST" + data[end:]

    cdef Py_ssize_t _plain_requests(self, bytes data, int64_t now_ns) except -1:
        """Take requests whose heads are complete and simple in this read and whose bodies have a Content-Length: the common ones,
        without the parser. Returns how many bytes they took; the rest goes to the parser."""
        cdef request_line_t line
        cdef Headers headers
        cdef Exchange exchange
        cdef RequestContext ctx
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t offset = 0, head_n
        cdef field_t* field
        cdef Reason reason
        cdef int i
        while offset < n and not self.close_after:
            exchange = self._new_exchange()
            ctx = exchange.ctx
            headers = ctx.headers
            head_n = scan_request_head(p + offset, n - offset, &line, headers, self.plane.max_headers)
            if head_n == 0 or head_n > self.plane.max_header_bytes or line.target_n > self.plane.max_target_bytes:
                break
            for i in range(headers.count):
                field = &headers.fields[i]
                if field.id == H_TRANSFER_ENCODING or field.id == H_UPGRADE:
                    head_n = 0
                    break
            if head_n == 0:
                break
            headers.raw = data
            ctx.version_minor = 1
            ctx.now_ns = now_ns
            ctx.started_ns = now_ns
            ctx.method_bytes = method_bytes(p + offset, line.method_n)
            self.target = p[offset + line.target_start:offset + line.target_start + line.target_n]
            self.parsing = exchange
            reason = self._check_head(ctx)
            if reason is not None:
                self._refuse_early(reason)
                return n
            self._enqueue(exchange)
            offset += head_n
            if ctx.content_length > 0:
                self.in_body = True
                self.body_left = ctx.content_length
                offset += self._counted_body(data, offset)
                if self.body_left > 0:
                    return n
            else:
                self._message_complete()
        return offset

    cdef Py_ssize_t _counted_body(self, bytes data, Py_ssize_t start) except -1:
        """Take body bytes, from start, of a request taken by `_plain_requests`. Returns how many."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data) - start
        if n > self.body_left:
            n = self.body_left
        if n > 0:
            self.body_left -= n
            self.parsing.body_chunk(data if n == PyBytes_GET_SIZE(data)
                                    else PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, n))
        if self.body_left == 0:
            self._message_complete()
        return n

    cdef Exchange _new_exchange(self):
        cdef Exchange exchange = Exchange.__new__(Exchange)
        cdef RequestContext ctx = RequestContext.__new__(RequestContext)
        exchange.plane = self.plane
        exchange.client = self
        exchange.ctx = ctx
        ctx.scheme = self.scheme
        ctx.peer = self.peer
        ctx.client_certificate = self.certificate
        return exchange

    cdef int _parser_error(self, object error) except -1:
        """Malformed bytes: refuse the request that they belong to."""
        cdef Reason reason
        cdef Exchange parsing = self.parsing
        if parsing is None or self.close_after:
            # Bytes after a request with `Connection: close` are not a request (RFC 9112 §9.6).
            self.close_after = True
            self.excess = True
            return 0
        if isinstance(error, HttpParserInvalidMethodError):
            reason = BAD_REQUEST_LINE                   # not a token: only this code knows which methods are valid
        elif isinstance(error, HttpParserInvalidURLError):
            reason = BAD_TARGET
        elif not self.in_head:
            reason = BAD_FRAMING
        elif self.target is None:
            reason = BAD_REQUEST_LINE
        elif self.head is not None:
            reason = REASONS[fault_of(self.head[:self.plane.max_header_bytes + self.plane.max_target_bytes])]
        elif parsing.ctx.headers.find_known(H_CONTENT_LENGTH) is not None \
                or parsing.ctx.headers.find_known(H_TRANSFER_ENCODING) is not None:
            reason = BAD_FRAMING
        elif parsing.ctx.headers.count:
            reason = BAD_HEADER
        else:
            reason = BAD_REQUEST_LINE if self.parser.get_http_version() in ("1.1", "1.0", "0.9") else VERSION_NOT_SUPPORTED
        if self.in_body:
            self.close_after = True
            if parsing is self.exchange:
                parsing.fail(reason)
            else:
                parsing.early = reason
            return 0
        return self._refuse_early(reason)

    cdef int _refuse_early(self, Reason reason) except -1:
        """Refuse the request being parsed, in order, and accept no further ones."""
        cdef Exchange parsing = self.parsing
        cdef RequestContext ctx = parsing.ctx
        self.close_after = True
        self.in_head = False
        self.head = None
        parsing.early = reason
        if ctx.now_ns == 0:
            ctx.now_ns = monotonic_ns()
        if ctx.started_ns == 0:                         # refused in the same read in which it began
            ctx.started_ns = ctx.now_ns
        if ctx.method_bytes is None:
            ctx.method_bytes = b"-"
        if ctx.target is None:
            ctx.target = self.target if self.target is not None else b"-"
        if ctx.host_received is None:
            ctx.host_received = b""
        if ctx.authority is None:
            ctx.authority = ctx.host_received.lower()
        if ctx.path_bytes is None:
            ctx.path_bytes = b""
        ctx.host_bytes = b""
        ctx.keep_alive = False
        if parsing is not self.exchange and (self.queue_n == 0 or self.queue[self.queue_at + self.queue_n - 1] is not parsing):
            self._enqueue(parsing)
        return 0

    cdef int _enqueue(self, Exchange exchange) except -1:
        cdef Py_ssize_t end
        if self.queue is None:
            self.queue = []
        if self.queue_n == 0:
            self.queue_at = 0
        end = self.queue_at + self.queue_n
        if end < len(self.queue):
            self.queue[end] = exchange
        else:
            self.queue.append(exchange)
        self.queue_n += 1
        return 0

    cdef bytes _upgraded(self, bytes rest):
        """llhttp stopped after a request with Upgrade (or CONNECT). Returns the bytes that are still to be parsed."""
        cdef Exchange parsing = self.parsing
        cdef RequestContext ctx
        cdef Py_ssize_t taken
        self.parser = None
        if self.close_after or self.closed:
            return None
        if parsing is not None:
            # httptools skips the body of a request with Upgrade, so it is parsed here.
            ctx = parsing.ctx
            if ctx.content_length > 0:
                self.body_left = ctx.content_length
                taken = self._counted_body(rest, 0)
                rest = rest[taken:]
                if self.body_left > 0:
                    return None
            else:
                # A new parser that receives only the framing.
                self.parsing = None
                self.in_body = False                    # until the synthetic head is parsed
                self.skipping = parsing
                self.parser = HttpRequestParser(self)
                self.parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        return rest

    cdef int _advance(self) except -1:
        """Start the queued requests, one after the other, as long as they finish immediately."""
        cdef Exchange exchange
        if self.advancing or self.closed:
            return 0
        self.advancing = True
        try:
            while self.exchange is None and self.queue_n and not self.closed and not self.lingering:
                exchange = <Exchange>self.queue[self.queue_at]
                self.queue[self.queue_at] = None
                self.queue_at += 1
                self.queue_n -= 1
                if self.queue_n == 0 and len(self.queue) > KEPT_PLACES:
                    self.queue = None                   # grown for a burst of pipelined requests: released
                self.exchange = exchange
                exchange.plan = self.plane.plan
                self._set_client(exchange.ctx, exchange.plan)
                exchange.body_timeout_ns = self.plane.body_timeout_ns
                if exchange.ctx.now_ns < exchange.ctx.started_ns:
                    exchange.ctx.now_ns = exchange.ctx.started_ns
                if exchange.ctx.now_ns < self.advance_ns:
                    exchange.ctx.now_ns = self.advance_ns       # it was parsed earlier, and has waited
                try:
                    if exchange.early is not None:
                        exchange.counts = self.plane.plan.unmatched
                        exchange.begin()
                        exchange.refuse(exchange.early)
                    elif exchange.ctx.path_bytes == b"*":
                        exchange.counts = self.plane.plan.unmatched
                        exchange.begin()
                        exchange.ctx.answer = ASTERISK_ANSWER
                        exchange.reply()
                    else:
                        exchange.start()
                        if exchange.state != X_FINISHED:
                            exchange.body_read_done()
                except BaseException:
                    log.exception("while handling request %s", exchange.ctx.request_id)
                    if exchange.state != X_FINISHED:
                        exchange.fail(REASONS["internal_error"])
        finally:
            self.advancing = False
        if self.closed or self.lingering:
            return 0
        if self.exchange is not None:
            if self.queue_n:
                self._pause(PAUSED_QUEUE)
            else:
                self._resume(PAUSED_QUEUE)              # the rest of its body may not have been read
            return 0
        self._resume(PAUSED_QUEUE)
        if self.close_after or self.half_closed:
            return self._linger() if self._has_unread() else self._close()
        return self._idle(monotonic_ns())

    cdef int _idle(self, int64_t now_ns) except -1:
        """No request is in flight: wait for the next one, or for the rest of one."""
        if self.parsing is not None:
            if self.in_head:
                self.plane.wheel.arm(self, now_ns + self.plane.header_timeout_ns)
            else:
                self.plane.wheel.arm(self, now_ns + self.plane.body_timeout_ns)     # rest of the body after the response
        elif self.plane.draining:
            self.plane.wheel.arm(self, now_ns + min(DRAIN_IDLE_NS, self.plane.idle_timeout_ns))
        elif self.buffered and self.transport.get_write_buffer_size():
            self._watch(now_ns)
            self.plane.wheel.arm(self, now_ns + self.plane.look_ns)
        else:
            self.slow_since_ns = 0
            self.plane.wheel.arm(self, now_ns + self.plane.idle_timeout_ns)
        return 0

    def eof_received(self):
        if self.tunnel:
            self.exchange.tunnel_client_eof()
            return self.tunnel and self.transport.can_write_eof()
        if self.lingering:
            return False
        self.half_closed = True
        if self.exchange is None and self.queue_n == 0:
            return False
        if self.plane.half_close_allowed and (self.parsing is None or self.close_after) and self.transport.can_write_eof():
            return True
        return False

    def connection_lost(self, exc):
        cdef Plane plane = self.plane
        cdef Exchange exchange = self.exchange
        self.closed = True
        self.parser = None                              # holds bound methods of this object: a reference cycle
        self.queue = None
        self.queue_n = 0
        self.parsing = None
        self.skipping = None
        if plane.out_owner is self:
            plane.out_owner = None
            plane.out.size = 0
        plane.wheel.cancel(self)
        plane.connections.discard(self)
        if self.admitted:
            plane.admitted -= 1
            plane.of_listener[self.listener] -= 1
        atomic_add_relaxed_u64(&plane.counts.connections_open, <uint64_t>-1)
        if exchange is not None:
            try:
                exchange.client_gone()
            except BaseException:
                log.exception("while giving up request %s", exchange.ctx.request_id)
        self.exchange = None
        self.transport = None

    def pause_writing(self):
        self.client_writable = False
        self._watch(monotonic_ns())
        if self.exchange is not None:
            self.exchange.ctx.now_ns = monotonic_ns()
            self.exchange.client_drained(False)

    def resume_writing(self):
        self.client_writable = True
        self.slow_since_ns = 0
        if self.exchange is not None:
            self.exchange.ctx.now_ns = monotonic_ns()
            self.exchange.client_drained(True)

    cdef int expired(self, int64_t now_ns) except -1:
        """The deadline on the wheel has passed."""
        if self.closed:
            return 0
        try:
            if self.exchange is not None:
                self.exchange.deadline_passed(now_ns)
            elif self.lingering:
                self._see_off(True)
            elif self.in_head and self.parsing is not None:
                self.parsing.ctx.now_ns = now_ns
                self._refuse_early(HEADER_TIMEOUT)
                self._advance()
            elif self.parsing is not None:
                self.cut()
            elif self.slow_since_ns:                    # the client has not taken the last response yet
                if self.too_slow(now_ns) is not None:
                    self._reset()
                else:
                    self._idle(now_ns)
            elif self._has_unread():                    # the next request has arrived, but has not been read yet
                self.plane.wheel.arm(self, now_ns + UNREAD_NS)
            else:
                self._close()
        except BaseException:
            log.exception("while a deadline of client %s passed", self.peer.decode("latin-1"))
            self.cut()
        return 0

    # httptools callbacks

    def on_message_begin(self):
        cdef Exchange exchange
        cdef RequestContext ctx
        if self.skipping is not None:
            return
        if self.close_after:
            self.excess = True
            raise _Refused()
        if self.begun_early:                            # its first bytes were held
            self.begun_early = False
            self.parsing.ctx.version_minor = 1 if self.line_is_http11 else -1
            self.line_is_http11 = False
            return
        exchange = self._new_exchange()
        ctx = exchange.ctx
        ctx.version_minor = 1 if self.line_is_http11 else -1
        self.line_is_http11 = False
        self.parsing = exchange
        self.begun += 1
        self.in_head = True
        self.in_body = False
        self.head_bytes = 0
        self.target = None
        self.trailers = None

    def on_url(self, bytes url):
        if self.skipping is not None:
            return
        self.target = url if self.target is None else self.target + url
        if PyBytes_GET_SIZE(self.target) > self.plane.max_target_bytes:
            self._refuse_early(TARGET_TOO_LONG)
            raise _Refused()

    def on_header(self, bytes name, bytes value):
        cdef RequestContext ctx
        cdef Headers headers
        cdef int known
        cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
        cdef const char* v = PyBytes_AS_STRING(value)
        cdef Reason reason = None
        if self.skipping is not None and not self.in_body:
            return
        ctx = self.parsing.ctx
        if n:
            if v[n - 1] == c" " or v[n - 1] == c"\t":
                value = value.rstrip(b" \t")
                n = PyBytes_GET_SIZE(value)
                v = PyBytes_AS_STRING(value)
            # Some parsers trim these as white space and would see a different value than the gateway.
            if n and (trimmed_by_some(<unsigned char>v[0]) or trimmed_by_some(<unsigned char>v[n - 1])):
                reason = BAD_HEADER
        known = header_id(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        if self.in_body:
            if reason is None and known <= H_HOST and known != H_OTHER:
                reason = BAD_FRAMING                    # framing or routing in a trailer (RFC 9110 §6.5.1)
            if self.trailers is None:
                self.trailers = Headers.__new__(Headers)
            self.trailers.append(name, value, known)
            if reason is not None or self.trailers.count > self.plane.max_headers:
                self.close_after = True
                if self.parsing is self.exchange:
                    self.exchange.fail(reason if reason is not None else HEADER_TOO_LARGE)
                else:
                    self.parsing.early = reason if reason is not None else HEADER_TOO_LARGE
                raise _Refused()
            return
        headers = ctx.headers
        if reason is None and (headers.count >= self.plane.max_headers or not headers.append(name, value, known)):
            reason = HEADER_TOO_LARGE
        if reason is not None:
            self._refuse_early(reason)
            raise _Refused()

    def on_headers_complete(self):
        cdef Exchange exchange
        cdef RequestContext ctx
        cdef Reason reason
        if self.skipping is not None:
            self.parsing = self.skipping
            self.in_body = True
            return
        exchange = self.parsing
        ctx = exchange.ctx
        self.head = None
        self.in_head = False
        self.in_body = True
        self.chunk_overhead = 0
        if ctx.now_ns == 0:
            ctx.now_ns = monotonic_ns()
        if ctx.started_ns == 0:
            ctx.started_ns = ctx.now_ns
        ctx.method_bytes = self.parser.get_method() if self.extension is None else self.extension
        self.extension = None
        reason = None
        if ctx.version_minor < 0:
            version = self.parser.get_http_version()
            ctx.version_minor = 0 if version == "1.0" else 1
            if version != "1.1" and version != "1.0":
                reason = VERSION_NOT_SUPPORTED
        if reason is None:
            reason = self._check_head(ctx)
        if reason is not None:
            self.in_body = False
            self._refuse_early(reason)
            raise _Refused()
        self._enqueue(exchange)

    def on_body(self, bytes chunk):
        self.chunk_overhead = 0
        self.parsing.body_chunk(chunk)

    def on_message_complete(self):
        if self.parsing is not None and self.parsing.ctx.has_body and self.skipping is None and self.parser.should_upgrade():
            return                                      # only the head is complete; see _upgraded
        self._message_complete()

    cdef int _message_complete(self) except -1:
        cdef Exchange exchange = self.parsing
        self.parsing = None
        self.skipping = None
        self.in_body = False
        if exchange is None:
            return 0
        exchange.body_end(self.trailers)
        self.trailers = None
        if exchange.ctx.upgrade:
            self._pause(PAUSED_UPGRADE)                 # the bytes that follow are not HTTP if the upstream accepts the upgrade
        if not exchange.ctx.keep_alive:
            self.close_after = True
        return 0

    cdef Reason _check_head(self, RequestContext ctx):
        """Check everything that a head must satisfy. Returns the reason to refuse it, or None."""
        cdef Headers headers = ctx.headers
        cdef bytes host
        cdef field_t* field
        cdef int i, outcome
        cdef bint listed = False
        cdef bint chunked = False
        cdef bint expects = False
        cdef bytes given
        cdef bint wants_upgrade = False
        cdef int64_t size = 0
        ctx.method_id = method_number(PyBytes_AS_STRING(ctx.method_bytes), PyBytes_GET_SIZE(ctx.method_bytes))
        ctx.keep_alive = ctx.version_minor == 1
        if ctx.method_id >= M_CONNECT:
            if ctx.method_id == M_CONNECT:
                ctx.add_response_header("Allow", ALLOW)
                return METHOD_NOT_ALLOWED
            if ctx.method_id == M_UNKNOWN and ctx.method_bytes not in self.plane.plan.named_methods:
                return UNKNOWN_METHOD
        for i in range(headers.count):
            field = &headers.fields[i]
            size += field.name_n + field.value_n + 4
            if field.id == H_OTHER:
                continue
            if field.id > H_EXPECT:
                if H_FORWARDED <= field.id <= H_X_FORWARDED_PORT or field.id == H_X_REAL_IP or field.id == H_X_FORWARDED_OTHER:
                    ctx.claims = True                   # _set_client decides with the plan whether to trust it
                elif field.id >= H_FIRST_OWNED:
                    field.id = H_DROPPED                # only the gateway may set this field
                continue
            if field.id == H_HOST:
                if ctx.host_received is not None:
                    return BAD_HOST
                if self.last_received is not None and PyBytes_GET_SIZE(self.last_received) == field.value_n \
                        and memcmp(PyBytes_AS_STRING(self.last_received), field.value, field.value_n) == 0:
                    ctx.host_received = self.last_received
                else:
                    ctx.host_received = field.value[:field.value_n]
            elif field.id == H_CONTENT_LENGTH:
                if ctx.content_length >= 0 or chunked:
                    return BAD_FRAMING
                ctx.content_length = decimal(field.value, field.value_n)
                if ctx.content_length < 0:
                    return BAD_FRAMING
                ctx.has_body = ctx.content_length > 0
            elif field.id == H_TRANSFER_ENCODING:
                if chunked or ctx.content_length >= 0 or field.value_n != 7 or not name_equal(field.value, b"chunked", 7):
                    return BAD_FRAMING
                chunked = True
                ctx.has_body = True
            elif field.id == H_CONNECTION:
                if field.value_n == 10 and name_equal(field.value, b"keep-alive", 10):
                    ctx.keep_alive = True
                    continue
                if has_token(field.value, field.value_n, b"close", 5):
                    ctx.keep_alive = False
                elif ctx.version_minor == 0 and has_token(field.value, field.value_n, b"keep-alive", 10):
                    ctx.keep_alive = True
                if has_token(field.value, field.value_n, b"upgrade", 7):
                    wants_upgrade = True
                listed = True
            elif field.id == H_EXPECT:
                if field.value_n != 12 or not name_equal(field.value, b"100-continue", 12):
                    return EXPECTATION_FAILED
                expects = True
        if size > self.plane.max_header_bytes:
            return HEADER_TOO_LARGE
        if chunked and ctx.version_minor == 0:
            return BAD_FRAMING
        ctx.expects_continue = expects and ctx.version_minor == 1 and ctx.has_body
        given = ctx.host_received
        outcome = parse_target(ctx, self.target if self.target is not None else b"", self.plane.plan.merge_slashes)
        if outcome != T_OK and outcome != T_ASTERISK:
            return BAD_TARGET
        if given is None and ctx.version_minor == 1:
            return BAD_HOST                             # the absolute-form does not make Host optional (RFC 9112 §3.2.2)
        if ctx.host_received is None:
            ctx.host_received = ctx.authority = ctx.host_bytes = b""
        elif ctx.host_received is self.last_received:
            ctx.host_bytes = self.last_host
            ctx.authority = self.last_authority
        else:
            host = host_of(ctx.host_received)
            if host is None:
                return BAD_HOST
            ctx.host_bytes = host
            ctx.authority = normal_authority(ctx.host_received, host, self.scheme == "https")
            self.last_received = ctx.host_received
            self.last_host = host
            self.last_authority = ctx.authority
        if given is not ctx.host_received and given is not None:
            # The absolute-form replaces the Host for all later code (RFC 9112 §3.2.2).
            if host_of(given) is None:
                return BAD_HOST
            headers.replace_value(headers.find_id(H_HOST), ctx.host_received)
        if wants_upgrade and ctx.version_minor == 1 and not chunked:
            field = headers.find_id(H_UPGRADE)
            # h2c by Upgrade is obsolete (RFC 9113 §3.1), and its requests would bypass every check of the gateway
            if field != NULL and not has_token(field.value, field.value_n, b"h2c", 3):
                ctx.upgrade = True
        if listed:
            for i in range(headers.count):
                if headers.fields[i].id == H_CONNECTION:
                    headers.drop_listed(headers.fields[i].value, headers.fields[i].value_n)
        return None

    cdef int _set_client(self, RequestContext ctx, Plan plan) except -1:
        """Set the client (the peer, or the one that a trusted proxy reports), the request id and the forwarding fields. Uses the
        plan that carries out the request: a connection may outlive the trust in its peer."""
        cdef bytes value
        if self.trusted_by is not plan:
            self._judge_peer(plan)
        ctx.trusted = self.trusted
        ctx.client = self.peer
        if not self.trusted:
            if ctx.claims:
                ctx.headers.drop_claims()
            if self.last_forwarding is None or ctx.authority is not self.forwarding_for:
                self.last_forwarding = forwarding_lines(self.peer, self.scheme, ctx.authority)
                self.forwarding_for = ctx.authority
            ctx.forwarding = self.last_forwarding
            ctx.request_id_bytes = self.plane.new_request_id()
            return 0
        believe(ctx, plan.trusted)
        value = ctx.headers.find_known(H_X_REQUEST_ID)
        if value is not None and 0 < len(value) <= 128 and value.replace(b"-", b"").replace(b"_", b"").replace(b".", b"").isalnum():
            ctx.request_id_bytes = value
        else:
            ctx.request_id_bytes = self.plane.new_request_id()
        return 0

    cdef bint _has_unread(self):
        """True if the client sent, or is sending, more than will be read: closing would reset the connection, and the client
        could lose the last response."""
        return not self.half_closed and (self.excess or self.fd >= 0 and waits_unread(self.fd))

    cdef int exchange_finished(self) except -1:
        """The response was sent, or given up. Continue with another request, or end the connection."""
        cdef Exchange exchange = self.exchange
        cdef bytes rest
        cdef int64_t left
        if self.closed:
            self.exchange = None
            return 0
        if self.tunnel:
            self.tunnel = False
            self.exchange = None
            return self._close()
        self.exchange = None
        if self.lingering:                              # by `cut`
            return self._close()
        self._resume(PAUSED_BODY)
        if not exchange.body_complete:
            left = exchange.ctx.content_length - exchange.body_bytes
            if left < 0 or left > SMALL_REST_BYTES:
                return self._linger()
        if not self.keep or self.close_after and self.queue_n == 0:
            if exchange.body_complete and self.parsing is None and not self._has_unread():
                return self._close()
            return self._linger()
        if self.paused & PAUSED_UPGRADE:                # the upgrade was declined: continue with HTTP
            rest = self.upgrade_rest
            self.upgrade_rest = None
            self._resume(PAUSED_UPGRADE)
            if rest is not None:
                self._feed(rest, monotonic_ns())
                return 0
        if self.queue_n and not self.advancing:
            self.advance_ns = monotonic_ns()
        return self._advance()

    cdef int _begin_drain(self, bint close_tunnels) except -1:
        if self.tunnel:
            if close_tunnels:
                self._close_websocket()
                self.exchange.finish()
            return 0
        if self.exchange is None and self.queue_n == 0 and self.parsing is None and not self.lingering:
            self._idle(monotonic_ns())
        return 0
