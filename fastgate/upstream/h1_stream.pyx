# cython: boundscheck=False, nonecheck=True
"""One HTTP/1.1 connection to an upstream: sends the parts of a request, receives the parts of its response.

WHAT     Writes requests (upstream/h1_request.pyx creates their heads) and frames their bodies. Parses responses with httptools
         and adds the checks that llhttp leaves to its user: version, status, Transfer-Encoding, the length of the head, the end
         of a close-delimited body, HEAD, and that no bytes follow a response. Reports events to a ResponseSink (the exchange); is
         independent of clients and retries.
STATE    IDLE → WAITING → BODY → DONE → IDLE, WAITING → TUNNEL, any → CLOSED.
WHO      The worker's loop.
COST     One httptools parse; no object per response except its header table.
SOURCES  RFC 9112 §7.1 (chunks), §6.3 (body length), §9.6 (close); RFC 9110 §15.2 (interim responses).
"""

import logging
import re

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcmp

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.pipeline.abstract cimport missing
from fastgate._core.pipeline.context cimport M_HEAD, Reason, RequestContext
from fastgate._core.http.headers cimport (
    WIRE_FIELDS,
    H_CONNECTION,
    H_CONTENT_LENGTH,
    H_TRANSFER_ENCODING,
    H_OTHER,
    Headers,
    HeadWriter,
    field_t,
    has_token,
    header_id,
    is_owned,
    name_equal,
    names_fold,
    trailer_allowed,
)

from fastgate._core.http.scan cimport decimal, scan_response_head, status_line_t
from fastgate._core.http.writing cimport put_text
from fastgate._core.http.sockets cimport peer_silent, receive_now, write_out
from fastgate._core.pipeline.plan cimport Destination
from fastgate.upstream.credential cimport Credential
from fastgate.upstream.h1_request cimport write_request_head
from fastgate.upstream.stream cimport BODY_UNKNOWN, ResponseSink, UpstreamStream

from fastgate.errors import REASONS

__all__ = ["H1UpstreamStream"]

log = logging.getLogger("fastgate")

cdef enum:
    COPIED_BYTES = 16384                  # a smaller piece of a body is copied and sent together with the bytes before it
    # A longer head of a response is refused. nginx allows 4-8 kB by default and its users raise it; Envoy 60 kB, Node 16 kB.
    MAX_HEAD_BYTES = 65536
    # nginx and HAProxy accept any number; an endless series of them would hold a request open forever.
    MAX_INTERIMS = 32
    # With more unsent bytes than this, the client is not read (asyncio's own default)
    WRITE_HIGH_BYTES = 65536

    # A longer beginning of a head goes to the parser immediately: up to this size, heads in pieces are parsed exactly as complete
    # ones.
    PARTIAL_BYTES = 16384
    # From a read of this size on, a connection is read into a buffer of BULK_BYTES. The loop reads up to 256 kB at once, and all
    # of it stays in memory for a client that does not take it.
    BULK_FROM_BYTES = 16384
    BULK_BYTES = 32768

cdef bytes OK = b"OK"
cdef object LAST_CHUNK = re.compile(rb"(?:\A|\n)0+[ \t]*(?:;[^\n]*)?\r\n")
cdef object LENGTH_LINE = re.compile(rb"\ncontent-length", re.IGNORECASE)

# The loop reads into it, and it is copied immediately afterwards: one for all connections of the process.
cdef object SCRATCH = memoryview(bytearray(BULK_BYTES))

cdef Reason BAD_RESPONSE = REASONS["bad_upstream_response"]
cdef Reason CLOSED_EARLY = REASONS["upstream_closed"]
cdef Reason TRUNCATED = REASONS["upstream_truncated"]
cdef Reason INTERNAL = REASONS["internal_error"]


cdef class ConnectionOwner:
    """The pool a connection belongs to."""

    cdef int connection_closed(self, H1UpstreamStream connection) except -1:
        """It is closed, by either side."""
        missing(self, "connection_closed")

    cdef int release(self, H1UpstreamStream connection, int64_t now_ns) except -1:
        """Its response is complete, and it may carry another request."""
        missing(self, "release")


@cython.final
cdef class H1UpstreamStream(UpstreamStream):
    """An asyncio protocol over one connection to a target."""

    def __init__(self, ConnectionOwner owner, TimerWheel wheel, HeadWriter out not None):
        self.owner = owner
        self.wheel = wheel
        self.out = out
        self.state = U_IDLE
        self.writable = True

    # Called by the exchange

    cdef int begin(self, ResponseSink sink, bint head_only, bint upgrade_asked) except -1:
        """Serve one request: bytes that arrive from now on are its response."""
        if self.deadline_ns != 0:
            self.deadline_ns = 0
        self.sink = sink
        self.state = U_WAITING
        self.head_only = head_only
        self.upgrade_asked = upgrade_asked
        self.saw_bytes = False
        self.extra_bytes = False
        self.chunks = False
        self.ended = False
        self.interims = 0
        self.head_bytes = 0
        self.partial = None
        self.overhead = 0
        self.counted = False
        self.in_trailers = False
        self.wary = False
        self.reused = self.requests > 0
        self.requests += 1
        return 0

    cdef int send_head(self, ResponseSink sink, RequestContext ctx, Destination destination, Credential credential, bytes method,
                       bytes path, Headers fields, int64_t length, int64_t left_ns) except -1:
        self.begin(sink, ctx.method_id == M_HEAD, ctx.upgrade)
        self.out.size = 0                               # one for all connections: discard what a failed request left in it
        if length == BODY_UNKNOWN:
            self.chunks = True
            self.owned = destination.owned
            self.secret_name = None if credential is None else credential.field_name
        return write_request_head(self.out, ctx, destination, self.owner.authority, credential, method, path, fields, length, left_ns)

    cdef int send_chunk(self, bytes chunk) except -1:
        cdef HeadWriter w = self.out
        cdef Py_ssize_t n = PyBytes_GET_SIZE(chunk)
        if self.chunks:
            if n == 0:
                return 0                                # an empty chunk would end the body
            w.put_hex(n)
            put_text(w, b"\r\n", 2)
        if n < COPIED_BYTES:
            w.put_bytes(chunk)
        else:
            self.flush()
            self.write(PyBytes_AS_STRING(chunk), n, chunk)
        if self.chunks:
            put_text(w, b"\r\n", 2)
        return 0

    cdef int send_end(self, Headers trailers) except -1:
        cdef HeadWriter w = self.out
        cdef field_t* field
        cdef int i
        self.ended = True
        if self.chunks:
            put_text(w, b"0\r\n", 3)
            if trailers is not None:
                for i in range(trailers.count):
                    field = &trailers.fields[i]
                    if trailer_allowed(field) and not self._is_owned(field):
                        w.parsed_span(field)
            put_text(w, b"\r\n", 2)
        return 0

    cdef bint _is_owned(self, const field_t* field) except -1:
        """True for a trailer that only the gateway may send: one of the route's owned names, or the name of the credential."""
        cdef bytes name = self.secret_name
        return is_owned(self.owned, field.name, field.name_n) \
            or name is not None and field.name_n == PyBytes_GET_SIZE(name) \
            and names_fold(field.name, PyBytes_AS_STRING(name), field.name_n)

    cdef int flush(self) except -1:
        cdef HeadWriter w = self.out
        cdef Py_ssize_t n = w.size
        w.size = 0
        if n:
            self.write(w.data, n, None)
        return 0

    cdef int tunnel_write(self, bytes data) except -1:
        return self.write(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), data)

    cdef int tunnel_eof(self) except -1:
        if self.transport.can_write_eof():
            self.transport.write_eof()
        return 0

    cdef int release(self, int64_t now_ns) except -1:
        if self.state == U_DONE and self.ended and self.keep_alive and not self.extra_bytes:
            return self.owner.release(self, now_ns)
        return self.close()

    cdef int write(self, const char* data, Py_ssize_t n, bytes whole) except -1:
        """Send n bytes now, and give the transport those that the kernel does not accept. `whole`: the same bytes, if they are an
        object."""
        if self.state != U_CLOSED:
            self.buffered = write_out(self.transport, -1 if self.is_tls else self.fd, self.buffered, data, n, whole)
        return 0

    cdef int pause(self) except -1:
        if not self.reading_paused and self.state != U_CLOSED:
            self.reading_paused = True
            self.transport.pause_reading()
        return 0

    cdef int resume(self) except -1:
        if self.reading_paused:
            self.reading_paused = False
            if self.state != U_CLOSED:
                self.transport.resume_reading()
        return 0

    cdef int close(self) except -1:
        """Close after all written bytes are sent; the sink gets no more events."""
        self.sink = None
        if self.state != U_CLOSED:
            self.state = U_CLOSED
            self.transport.close()
        return 0

    cdef int abort(self) except -1:
        """Close immediately; the sink gets no more events."""
        self.sink = None
        self.out.size = 0
        if self.state != U_CLOSED:
            self.state = U_CLOSED
            if self.transport is not None:
                self.transport.abort()
        return 0

    cdef bint seems_alive(self):
        """False if the peer has closed an idle connection, or sent unsolicited bytes, and the loop has not noticed yet. One
        recv(MSG_PEEK), used before a request that must not be sent twice."""
        # TLS records (session tickets) may wait unread on a healthy connection
        return self.fd < 0 or peer_silent(self.fd, self.is_tls)

    # asyncio protocol

    def connection_made(self, transport):
        self.transport = transport
        self.opened_ns = monotonic_ns()
        sock = transport.get_extra_info("socket")
        self.fd = -1 if sock is None else sock.fileno()
        self.is_tls = transport.get_extra_info("ssl_object") is not None
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def data_received(self, bytes data):
        cdef int64_t now_ns = monotonic_ns()
        cdef ResponseSink sink = self.sink
        self.now_ns = now_ns
        if self.state == U_TUNNEL:
            if sink is not None:
                sink.on_tunnel_data(data)
            return
        if sink is None or self.state == U_IDLE or self.state == U_DONE:
            self.extra_bytes = True
            if self.state == U_IDLE:                    # unsolicited bytes: out of sync, whatever they are
                self.close()
            return
        try:
            self._digest(data, now_ns)
        except BaseException:                           # any exception of a plugin, including SystemExit, ends only this request
            log.exception("while relaying a response")
            self._fail(INTERNAL)
            return
        if PyBytes_GET_SIZE(data) >= BULK_FROM_BYTES and not self.bulk:
            self._read_in_bulk()

    cdef int _digest(self, bytes data, int64_t now_ns) except -1:
        """Process one read of a response."""
        cdef ResponseSink sink = self.sink
        cdef Py_ssize_t room
        cdef bint head_is_here = self.state == U_WAITING
        cdef int interims = self.interims
        if self.partial is not None:
            data = self.partial + data
            self.partial = None
        if self.state == U_WAITING and self.head_bytes == 0 and self._plain_answer(data):
            if sink is self.sink or self.state == U_CLOSED:
                sink.on_read_done(now_ns)
            return 0
        if self.counted:
            self._counted_body(data, 0)
            if sink is self.sink or self.state == U_CLOSED:
                sink.on_read_done(now_ns)
            return 0
        if self.state == U_WAITING and self.head_bytes == 0:
            self.saw_bytes = True
            data = self._whole_head(data)
            if data is None:
                return 0
        if self.state == U_WAITING:
            # All heads of a response, interim ones included, share one bound, regardless of how their bytes are split.
            room = MAX_HEAD_BYTES - self.head_bytes
            self.head_bytes += PyBytes_GET_SIZE(data)
            if self.head_bytes > MAX_HEAD_BYTES:
                self._parse(data[:room])
                if self.state == U_WAITING:
                    return self._fail(BAD_RESPONSE)
                if sink is self.sink:
                    if self.state == U_DONE:
                        self.extra_bytes = True
                    else:
                        self._parse(data[room:])
            else:
                self._parse(data)
        else:
            if self.chunked and self.state == U_BODY:
                self.overhead += PyBytes_GET_SIZE(data)
            self._parse(data)
            if self.overhead > MAX_HEAD_BYTES and self.state == U_BODY:
                return self._fail(BAD_RESPONSE)         # endless chunk extensions or trailers
        if self.state == U_DONE and not self.extra_bytes and data.endswith(b"\n"):
            # llhttp skips empty lines after a message.
            if self.chunked:
                self.extra_bytes = data.endswith(b"\r\n\r\n\r\n")
            elif head_is_here and self.content_length >= 0:
                self.extra_bytes = PyBytes_GET_SIZE(data) > self.head_size(data, interims) + self.content_length
        if sink is self.sink or self.state == U_CLOSED:
            sink.on_read_done(now_ns)
        return 0

    cdef bytes _whole_head(self, bytes data):
        """data, the beginning of a response; None if it was refused, or is held until its head is complete."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        cdef const char* p = PyBytes_AS_STRING(data)
        if memcmp(p, b"HTTP/1.1 ", min(n, 9)) != 0 and memcmp(p, b"HTTP/1.0 ", min(n, 9)) != 0:
            self._fail(BAD_RESPONSE)
            return None
        if n < PARTIAL_BYTES and b"\n\r\n" not in data and b"\n\n" not in data:
            self.partial = data
            return None
        self.version_minor = 1 if p[7] == c"1" else 0
        return data

    cdef int _read_in_bulk(self) except -1:
        """Read at most BULK_BYTES at a time from now on."""
        if self.state == U_CLOSED or self.is_tls or self.fd < 0:
            return 0
        self.bulk = True
        # The loop inspects the protocol's methods when it starts reading.
        if not self.reading_paused:
            self.transport.pause_reading()
        self.transport.set_protocol(BulkReader(self))
        if not self.reading_paused:
            self.transport.resume_reading()
        return 0

    cdef int _parse(self, bytes data) except -1:
        cdef ResponseSink sink = self.sink
        if self.parser is None:
            self.parser = HttpResponseParser(self)      # created on demand: most connections never need one
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self.state == U_TUNNEL:
                rest = data[upgrade.args[0]:]
                if rest and sink is self.sink:
                    sink.on_tunnel_data(rest)
            elif self.state != U_CLOSED:
                self._fail(BAD_RESPONSE)
        except HttpParserCallbackError as error:
            if isinstance(error.__context__, _HeadDone) and self.state == U_DONE:
                # Bytes after the head in this read are a body, which a HEAD response must not have (RFC 9110 §9.3.2).
                self.extra_bytes = not data.endswith(b"\r\n\r\n") or self.head_size(data, 0) != PyBytes_GET_SIZE(data)
            elif self.state == U_DONE:
                self.extra_bytes = True
            elif self.state != U_CLOSED:
                if not isinstance(error.__context__, _BadResponse):
                    log.error("while relaying an answer", exc_info=error.__context__)
                    self._fail(INTERNAL)
                else:
                    self._fail(BAD_RESPONSE)
        except HttpParserError:
            if self.state == U_DONE:
                self.extra_bytes = True
            elif self.state == U_BODY and self.in_trailers and length_in_trailers(self.trailer_bytes + data):
                # llhttp refuses Content-Length among the trailers, where it has no meaning (RFC 9110 §6.5.1): the body before it
                # is complete. The bytes that follow can no longer be framed.
                self.extra_bytes = True
                self.trailers = None
                self._end()
            elif self.state != U_CLOSED:
                self._fail(BAD_RESPONSE)
        if self.in_trailers:
            self.trailer_bytes = self.trailer_bytes + data if self.state == U_BODY else b""
        return 0

    def head_size(self, bytes data, int earlier):
        """Offset of the end of the final head in this read. `earlier`: interim responses that arrived before this read."""
        at = 0
        for _ in range(self.interims - earlier + 1):
            at = data.find(b"\r\n\r\n", at) + 4
            if at == 3:
                return PyBytes_GET_SIZE(data)           # it began in an earlier read
        return at

    def eof_received(self):
        cdef ResponseSink sink = self.sink
        if self.state == U_TUNNEL and sink is not None:
            sink.on_tunnel_eof()
            # The other half stays open if the transport supports that (TLS does not)
            return self.state == U_TUNNEL and self.transport.can_write_eof()
        if self.state == U_BODY and self.until_close and sink is not None:
            self.state = U_DONE
            self.keep_alive = False
            sink.on_end(None)
            sink.on_read_done(monotonic_ns())
        return False

    cdef int _read_rest(self) except -1:
        """A write failed. An upstream that refuses an upload responds, closes, and resets the rest: if its response was complete,
        it is in the kernel and counts."""
        cdef bytes data
        cdef Py_ssize_t n
        cdef int pieces
        cdef char[16384] piece
        for pieces in range(16):                        # more than a refusal needs; the reset discards the rest of a long body
            n = receive_now(self.fd, piece, 16384)
            if n <= 0 or self.sink is None:
                return 0
            data = PyBytes_FromStringAndSize(piece, n)
            self.data_received(data)
        return 0

    def connection_lost(self, exc):
        cdef int state
        cdef ResponseSink sink
        if exc is not None and self.sink is not None and self.fd >= 0 and not self.is_tls \
                and (self.state == U_WAITING or self.state == U_BODY):
            self._read_rest()
        state = self.state
        sink = self.sink
        self.state = U_CLOSED
        self.parser = None                              # holds bound methods of this object: a reference cycle
        self.wheel.cancel(self)
        if self.adopted:
            self.owner.connection_closed(self)
        self.sink = None
        if sink is None:
            return
        if state == U_WAITING:
            sink.on_failed(self, CLOSED_EARLY)
        elif state == U_BODY:
            sink.on_failed(self, TRUNCATED)
        elif state == U_TUNNEL:
            sink.on_failed(self, CLOSED_EARLY)

    def pause_writing(self):
        self.writable = False
        if self.sink is not None:
            self.sink.on_upstream_writable(False)

    def resume_writing(self):
        self.writable = True
        if self.sink is not None:
            self.sink.on_upstream_writable(True)

    cdef int expired(self, int64_t now_ns) except -1:
        """Idle for too long in the pool."""
        if self.state == U_IDLE:
            self.close()
        return 0

    cdef int _fail(self, Reason reason) except -1:
        """The response cannot be trusted any further: drop the connection and report the failure."""
        cdef ResponseSink sink = self.sink
        self.sink = None
        if self.state != U_CLOSED:
            self.state = U_CLOSED
            self.transport.abort()
        if sink is not None:
            sink.on_failed(self, reason)
        return 0

    # httptools callbacks

    def on_message_begin(self):
        if self.state != U_WAITING:
            self.extra_bytes = True
            raise _BadResponse()
        self.fields = Headers.__new__(Headers)
        self.phrase = b""
        self.until_close = False
        self.trailers = None

    def on_status(self, bytes phrase):
        self.phrase = phrase if not self.phrase else self.phrase + phrase

    def on_header(self, bytes name, bytes value):
        cdef int known
        cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
        cdef const char* v = PyBytes_AS_STRING(value)
        if n and (v[n - 1] == c" " or v[n - 1] == c"\t"):
            value = value.rstrip(b" \t")
            n = PyBytes_GET_SIZE(value)
            v = PyBytes_AS_STRING(value)
        known = header_id(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        if self.state == U_BODY:
            if self.trailers is None:
                self.trailers = Headers.__new__(Headers)
            if not self.trailers.append(name, value, known):
                raise _BadResponse()
            return
        if not self.fields.append(name, value, known):
            raise _BadResponse()

    def on_headers_complete(self):
        cdef bint bodyless
        self.status = self.parser.get_status_code()
        if not self._read_head():
            raise _BadResponse()
        if self.status < 200:
            if self.status == 101:
                if not self.upgrade_asked or not self.parser.should_upgrade():
                    raise _BadResponse()
                self.state = U_TUNNEL
                self.keep_alive = False
                self.sink.on_head(self)
                return
            self.interims += 1
            if self.interims > MAX_INTERIMS or self.chunked:
                raise _BadResponse()
            self.sink.on_interim(self)
            return
        bodyless = self.head_only or self.status == 204 or self.status == 304
        self.until_close = not bodyless and not self.chunked and self.content_length < 0
        self.wary = bodyless and (self.chunked or self.content_length > 0)
        self.state = U_BODY
        self.sink.on_head(self)
        if self.head_only and self.state == U_BODY:
            # llhttp cannot be told that this was HEAD and would wait for the body: it is not used further.
            self.state = U_DONE
            self.sink.on_end(None)
            self.parser = None
            raise _HeadDone()

    cdef bint _read_head(self) except -1:
        """Read framing and persistence from the header table. False if the head contradicts itself or cannot be trusted."""
        cdef Headers fields = self.fields
        cdef field_t* field
        cdef int i
        cdef bint listed = False
        cdef int64_t length
        self.chunked = False
        self.content_length = -1
        self.keep_alive = self.version_minor == 1
        if self.status < 100 or fields.count > WIRE_FIELDS:
            return False
        for i in range(fields.count):
            field = &fields.fields[i]
            if field.id == H_OTHER or field.id > H_CONTENT_LENGTH:
                continue
            if field.id == H_CONTENT_LENGTH:
                length = decimal(field.value, field.value_n)
                # The same length twice counts as one (RFC 9110 §8.6).
                if length < 0 or self.content_length >= 0 and self.content_length != length:
                    return False
                self.content_length = length
            elif field.id == H_TRANSFER_ENCODING:
                if self.chunked or field.value_n != 7 or not name_equal(field.value, b"chunked", 7):
                    return False
                self.chunked = True
            elif field.id == H_CONNECTION:
                if has_token(field.value, field.value_n, b"close", 5):
                    self.keep_alive = False
                elif self.version_minor == 0 and has_token(field.value, field.value_n, b"keep-alive", 10):
                    self.keep_alive = True
                if not (field.value_n == 5 and name_equal(field.value, b"close", 5)) \
                        and not (field.value_n == 10 and name_equal(field.value, b"keep-alive", 10)):
                    listed = True
        if listed:
            for i in range(fields.count):
                if fields.fields[i].id == H_CONNECTION:
                    fields.drop_listed(fields.fields[i].value, fields.fields[i].value_n)
        return not self.chunked or (self.content_length < 0 and self.version_minor == 1)

    cdef bint _plain_answer(self, bytes data) except -1:
        """Take a response whose head is complete and simple in this read and whose body has a Content-Length: the common kind,
        without the parser. False if it is of another kind; then nothing has changed."""
        cdef status_line_t line
        cdef Headers fields = Headers.__new__(Headers)
        cdef Py_ssize_t head_n = scan_response_head(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &line, fields)
        if head_n == 0 or line.status < 200 or head_n > MAX_HEAD_BYTES:
            return False
        self.fields = fields
        self.status = line.status
        self.version_minor = 1
        if not self._read_head() or self.chunked:
            return False
        if self.head_only or self.status == 204 or self.status == 304:
            self.body_left = 0
            self.wary = self.content_length > 0
        elif self.content_length >= 0:
            self.body_left = self.content_length
        else:
            return False
        fields.raw = data
        self.phrase = OK if line.phrase_n == 2 and memcmp(PyBytes_AS_STRING(data) + line.phrase_start, b"OK", 2) == 0 \
            else PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + line.phrase_start, line.phrase_n)
        self.trailers = None
        self.until_close = False
        self.counted = True
        self.saw_bytes = True
        self.state = U_BODY
        self.sink.on_head(self)
        self._counted_body(data, head_n)
        return True

    cdef int _counted_body(self, bytes data, Py_ssize_t start) except -1:
        """Pass on body bytes, from start, of a response taken by `_plain_answer`."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data) - start
        if n > self.body_left:
            self.extra_bytes = True
            n = self.body_left
        if n > 0 and self.state == U_BODY:
            self.body_left -= n
            self.sink.on_chunk(data if n == PyBytes_GET_SIZE(data)
                               else PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, n))
        if self.body_left == 0 and self.state == U_BODY:
            self.state = U_DONE
            self.counted = False
            self.sink.on_end(None)
        return 0

    cdef int _end(self) except -1:
        self.state = U_DONE
        return self.sink.on_end(self.trailers)

    def on_chunk_header(self):
        self.in_trailers = True                         # unless bytes follow: the chunk of size 0 is the last
        self.trailer_bytes = b""

    def on_body(self, bytes chunk):
        self.overhead = 0
        if self.in_trailers:
            self.in_trailers = False
            self.trailer_bytes = b""
        if self.state == U_BODY:
            self.sink.on_chunk(chunk)

    def on_message_complete(self):
        if self.state == U_BODY:                        # otherwise an interim response
            self._end()


cdef bint length_in_trailers(bytes data):
    """True if Content-Length follows a last chunk, with no empty line between them. data: from the read on in which the line of
    that chunk's size ended; it may have begun in an earlier one."""
    cdef bint is_first = True
    for block in data.split(b"\r\n\r\n"):
        last = LAST_CHUNK.search(block)
        start = last.end() - 1 if last is not None else block.find(b"\n") if is_first else -1
        if start >= 0 and LENGTH_LINE.search(block, start) is not None:
            return True
        is_first = False
    return False


class _BadResponse(Exception):
    """Raised inside a parser callback to stop the parse."""


class _HeadDone(Exception):
    """Raised inside a parser callback: the response to HEAD is complete, its parser is no longer usable."""


class BulkReader:
    """The protocol of a connection that carries large responses: provides the buffer for reads, and forwards everything else."""

    def __init__(self, connection):
        self.received = connection.data_received
        self.eof_received = connection.eof_received
        self.connection_lost = connection.connection_lost
        self.pause_writing = connection.pause_writing
        self.resume_writing = connection.resume_writing

    def get_buffer(self, _size):
        return SCRATCH

    def buffer_updated(self, n):
        self.received(bytes(SCRATCH[:n]))
