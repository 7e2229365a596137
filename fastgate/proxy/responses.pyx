# cython: boundscheck=False, nonecheck=True
"""Responses on an HTTP/1.1 connection: framing, tunnels, and closing of connections.

WHAT     `AnswerStream` is the half of a client connection that writes. It frames responses (RFC 9112 §6), decides whether the
         connection may carry another request, passes tunnels, and closes connections in a way that no response is lost (lingering
         close) and no truncated one looks complete.
STATE    The bytes of a response are collected in the worker's one buffer (`Plane.out`) and sent at once at the end of the event
         that produced them; meanwhile the buffer belongs to this connection (`Plane.out_owner`).
WHO      The worker's loop.
COST     One send per event. A piece of a body of 16 kB or more is sent without a copy.
SOURCES  RFC 9112 §6.3 (framing), §9.6 (lingering close); RFC 6455 §5.2 (WebSocket frames, tracked only to find where a close
         frame may be inserted), §7.4.1 (1001).
"""

import socket
import struct

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.pipeline.context cimport M_HEAD, Answer, Reason, RequestContext
from fastgate._core.http.headers cimport H_DATE, H_UPGRADE, Headers, HeadWriter, trailer_allowed
from fastgate._core.http.sockets cimport unsent_now, write_out
from fastgate._core.http.writing cimport put_text
from fastgate.proxy.client_stream cimport LENGTH_NONE, LENGTH_UNKNOWN, ClientStream
from fastgate.proxy.exchange cimport Exchange
from fastgate.proxy.plane cimport Plane
from fastgate.proxy.h1_heads cimport write_response_fields, write_status_line

from fastgate.errors import REASONS

__all__ = ["AnswerStream"]

cdef enum:
    # Bytes of a request body that are read and discarded after the response to keep the connection
    SMALL_REST_BYTES = 65536
    COPIED_BYTES = 16384                  # a smaller piece of a body is copied and sent together with the bytes before it

cdef Reason CLIENT_STALLED = REASONS["client_stalled"]
cdef Reason CLIENT_TOO_SLOW = REASONS["client_too_slow"]

cdef int64_t LINGER_NS = 2_000_000_000


cdef class AnswerStream(ClientStream):
    """The writing half of an HTTP/1.1 client connection."""

    cdef bint _keeps(self):
        """True if the connection may carry another request after this response."""
        cdef Exchange exchange = self.exchange
        cdef RequestContext ctx = exchange.ctx
        cdef int64_t rest
        self.requests += 1
        if not ctx.keep_alive or self.plane.draining or self.half_closed or (exchange.early is not None):
            return False
        if self.plane.max_requests and self.requests >= self.plane.max_requests:
            return False
        if not exchange.body_complete and not exchange.upstream_takes_body():
            # The response comes before the whole body. A small rest is read and discarded; for a larger one the connection is
            # closed.
            rest = ctx.content_length - exchange.body_bytes
            if ctx.expects_continue or rest < 0 or rest > SMALL_REST_BYTES:
                return False
        return True

    cdef int _write_common(self) except -1:
        """The end of every response head: request id, added fields, Date, connection."""
        cdef HeadWriter w = self._out()
        cdef RequestContext ctx = self.exchange.ctx
        put_text(w, b"X-Request-ID: ", 14)
        w.put_bytes(ctx.request_id_bytes)
        put_text(w, b"\r\n", 2)
        if ctx.gate_lines is not None:
            w.put_bytes(ctx.gate_lines)
        if ctx.extra_response is not None:
            for name, value in ctx.extra_response:
                w.parsed_field(name, value)
        if not self.keep:
            put_text(w, b"Connection: close\r\n", 19)
        elif ctx.version_minor == 0:
            put_text(w, b"Connection: keep-alive\r\n", 24)
        return put_text(w, b"\r\n", 2)

    cdef int respond_head(self, int status, bytes phrase, Headers fields, int64_t length) except -1:
        cdef HeadWriter w = self._out()
        cdef RequestContext ctx = self.exchange.ctx
        cdef bytes upgrade
        self.keep = self._keeps()
        write_status_line(w, status, phrase)
        if status == 101:
            upgrade = fields.find_known(H_UPGRADE)
            self.framing = F_NONE
            self.keep = True
            write_response_fields(w, fields, False)
            put_text(w, b"Connection: Upgrade\r\n", 21)
            if upgrade is not None:
                w.parsed_field(b"Upgrade", upgrade)
                self.websocket = upgrade.lower() == b"websocket"
            self._write_common()
            return 0
        if length == LENGTH_UNKNOWN:
            if ctx.version_minor == 1:
                self.framing = F_CHUNKED
            else:
                self.framing = F_CLOSE
                self.keep = False
        elif length == LENGTH_NONE:
            self.framing = F_NONE
        else:
            self.framing = F_LENGTH
        write_response_fields(w, fields, self.framing == F_CHUNKED)
        if self.framing == F_CHUNKED:
            put_text(w, b"Transfer-Encoding: chunked\r\n", 28)
        elif length >= 0 or self.exchange.told_length >= 0:
            put_text(w, b"Content-Length: ", 16)
            w.put_decimal(length if length >= 0 else self.exchange.told_length)
            put_text(w, b"\r\n", 2)
        if fields.find_id(H_DATE) == NULL:
            put_text(w, b"Date: ", 6)
            w.put_bytes(self.plane.date_value(ctx.now_ns))
            put_text(w, b"\r\n", 2)
        if ctx.upstream_status:
            put_text(w, b"Via: 1.1 fastgate\r\n", 19)
        self._write_common()
        return 0

    cdef HeadWriter _out(self):
        """The worker's one buffer for responses, reserved for this connection until the next flush."""
        cdef Plane plane = self.plane
        cdef ClientStream owner
        if plane.out_owner is not self:
            owner = plane.out_owner
            if owner is not None:
                owner.flush()
            plane.out_owner = self
        return plane.out

    cdef int respond_chunk(self, bytes chunk) except -1:
        cdef HeadWriter w
        cdef Py_ssize_t n = PyBytes_GET_SIZE(chunk)
        if self.closed or self.framing == F_NONE:
            return 0
        w = self._out()
        if self.framing == F_CHUNKED:
            w.put_hex(n)
            put_text(w, b"\r\n", 2)
        if n < COPIED_BYTES:
            w.put_bytes(chunk)
        else:
            self.flush()
            self.exchange.ctx.bytes_sent += n
            self._write(PyBytes_AS_STRING(chunk), n, chunk)
            w = self._out()
        if self.framing == F_CHUNKED:
            put_text(w, b"\r\n", 2)
        return 0

    cdef int respond_end(self, Headers trailers) except -1:
        cdef HeadWriter w
        cdef int i
        if self.framing == F_CHUNKED and not self.closed:
            w = self._out()
            put_text(w, b"0\r\n", 3)
            if trailers is not None:
                for i in range(trailers.count):
                    if trailer_allowed(&trailers.fields[i]):
                        w.parsed_span(&trailers.fields[i])
            put_text(w, b"\r\n", 2)
        return 0

    cdef int respond_interim(self, int status, bytes phrase, Headers fields) except -1:
        cdef HeadWriter w = self._out()
        if self.exchange.ctx.version_minor == 0:
            return 0                                    # HTTP/1.0 has no interim responses (RFC 9110 §15.2)
        write_status_line(w, status, phrase)
        write_response_fields(w, fields, False)
        put_text(w, b"\r\n", 2)
        return 0

    cdef int respond_answer(self, Answer answer) except -1:
        cdef HeadWriter w = self._out()
        cdef RequestContext ctx = self.exchange.ctx
        self.keep = self._keeps()
        self.framing = F_LENGTH
        write_status_line(w, answer.status, None)
        w.put_bytes(answer.lines)
        if answer.status != 204 and answer.status != 304:
            put_text(w, b"Content-Length: ", 16)
            w.put_decimal(PyBytes_GET_SIZE(answer.body))
            put_text(w, b"\r\n", 2)
        put_text(w, b"Date: ", 6)
        w.put_bytes(self.plane.date_value(ctx.now_ns))
        put_text(w, b"\r\n", 2)
        self._write_common()
        if ctx.method_id != M_HEAD:
            w.put_bytes(answer.body)
        return 0

    cdef int respond_refusal(self, Reason reason, bytes body) except -1:
        cdef HeadWriter w = self._out()
        cdef RequestContext ctx = self.exchange.ctx
        self.keep = self._keeps()
        self.framing = F_LENGTH
        write_status_line(w, reason.status, None)
        put_text(w, b"Content-Type: application/json\r\nContent-Length: ", 48)
        w.put_decimal(PyBytes_GET_SIZE(body))
        put_text(w, b"\r\nDate: ", 8)
        w.put_bytes(self.plane.date_value(ctx.now_ns))
        put_text(w, b"\r\n", 2)
        self._write_common()
        if ctx.method_id != M_HEAD:
            w.put_bytes(body)
        return 0

    cdef int respond_ready(self, bytes head, const char* tail, int tail_n, bytes body) except -1:
        """Write a response whose head is prebuilt, except for the part that changes between responses."""
        cdef HeadWriter w = self._out()
        cdef Py_ssize_t n = PyBytes_GET_SIZE(body)
        self.keep = self._keeps()
        self.framing = F_LENGTH
        w.put_bytes(head)
        w.put(tail, tail_n)
        self._write_common()
        if n < COPIED_BYTES:
            w.put_bytes(body)
        else:
            self.flush()
            self.exchange.ctx.bytes_sent += n
            self._write(PyBytes_AS_STRING(body), n, body)
        return 0

    cdef int send_continue(self) except -1:
        if not self.closed:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n", 25, None)
        return 0

    cdef int flush(self) except -1:
        cdef Plane plane = self.plane
        cdef HeadWriter w = plane.out
        cdef Py_ssize_t n = w.size
        if plane.out_owner is not self:
            return 0
        plane.out_owner = None
        w.size = 0
        if n == 0 or self.closed:
            return 0
        if self.exchange is not None:
            self.exchange.ctx.bytes_sent += n
        return self._write(w.data, n, None)

    cdef int _write(self, const char* data, Py_ssize_t n, bytes whole) except -1:
        self.written += n
        self.buffered = write_out(self.transport, self.fd, self.buffered, data, n, whole)
        return 0

    cdef int pause_body(self) except -1:
        return self._pause(PAUSED_BODY)

    cdef int resume_body(self) except -1:
        return self._resume(PAUSED_BODY)

    cdef int _pause(self, int why) except -1:
        if self.paused == 0 and not self.closed:
            self.transport.pause_reading()
        self.paused |= why
        return 0

    cdef int _resume(self, int why) except -1:
        if not self.paused & why:
            return 0
        self.paused &= ~why
        if self.paused == 0 and not self.closed:
            self.transport.resume_reading()
        return 0

    cdef int cut(self) except -1:
        """End the connection in a way that no client can mistake an unfinished response for a complete one."""
        if self.closed or self.transport is None:
            return 0
        self.close_after = True
        if self.framing == F_CLOSE or self.exchange is not None and (
                self.exchange.ctx.reason is CLIENT_STALLED or self.exchange.ctx.reason is CLIENT_TOO_SLOW):
            return self._reset()                        # not a regular close, and a client that took nothing gets no more time
        if self.framing == F_CHUNKED or self.framing == F_LENGTH:
            self.flush()
            self.lingering = True                       # further bytes are not parsed as requests
            return self._see_off(False)
        self.transport.abort()
        return 0

    cdef int _close(self) except -1:
        """Close after all written bytes are sent."""
        if not self.closed and self.transport is not None:
            self.lingering = True
            return self._see_off(False)
        return 0

    cdef int64_t _taken(self) except -1:
        """Number of bytes that the client's side has acknowledged since the connection was opened (approximate under TLS)."""
        sock = self.transport.get_extra_info("socket")
        return self.written - <int64_t>self.transport.get_write_buffer_size() - (unsent_now(sock.fileno()) if sock is not None else 0)

    cdef int _watch(self, int64_t now_ns) except -1:
        """Start measuring how fast the client takes the bytes."""
        if self.slow_since_ns == 0 and not self.closed:
            self.slow_since_ns = self.slow_progress_ns = now_ns
            self.slow_from = self.slow_taken = self._taken()
        return 0

    cdef Reason too_slow(self, int64_t now_ns):
        cdef Plane plane = self.plane
        cdef int64_t taken, over_ns
        if self.slow_since_ns == 0:
            return None
        taken = self._taken()
        if taken != self.slow_taken:
            self.slow_taken = taken
            self.slow_progress_ns = now_ns
        elif now_ns - self.slow_progress_ns >= plane.body_timeout_ns:
            return CLIENT_STALLED
        over_ns = now_ns - self.slow_since_ns - plane.rate_grace_ns
        if plane.min_download_rate and over_ns > 0 \
                and <double>(taken - self.slow_from) < 1e-9 * <double>over_ns * <double>plane.min_download_rate:
            return CLIENT_TOO_SLOW
        return None

    cdef int _reset(self) except -1:
        """Close the connection with a reset: unsent bytes are discarded, and the kernel keeps none of them."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
        return 0

    cdef int _see_off(self, bint late) except -1:
        """Close after the unsent bytes are sent, as long as the client takes them fast enough. late: on checks after the
        first."""
        cdef int64_t now_ns
        if self.closed:
            return 0
        if self.transport.get_write_buffer_size() == 0:
            self.transport.close()
            return 0
        now_ns = monotonic_ns()
        self._watch(now_ns)
        if late and self.too_slow(now_ns) is not None:
            return self._reset()
        self.transport.close()
        if not self.closed:
            self.plane.wheel.arm(self, now_ns + self.plane.look_ns)
        return 0

    cdef int _linger(self) except -1:
        """Close the gateway's half, then read and discard until the client has closed too: closing a socket with unread bytes
        sends a reset, which can destroy the response in flight (RFC 9112 §9.6)."""
        if self.closed:
            return 0
        if self.transport.get_extra_info("ssl_object") is not None or not self.transport.can_write_eof():
            # TLS cannot half-close here; the response has a length, which tells the client where it ends
            self.close_after = True
        else:
            self.transport.write_eof()
        self.lingering = True
        self._resume(PAUSED_BODY | PAUSED_QUEUE | PAUSED_UPGRADE)
        self.plane.wheel.arm(self, monotonic_ns() + LINGER_NS)
        return 0

    # Tunnels

    cdef int open_tunnel(self) except -1:
        cdef bytes rest = self.upgrade_rest
        self.tunnel = True
        self.parser = None
        self.upgrade_rest = None
        self._resume(PAUSED_UPGRADE)
        if rest is not None:
            self.exchange.tunnel_received(rest)
        return 0

    cdef int tunnel_write(self, bytes data) except -1:
        if self.closed:
            return 0
        if self.websocket:
            self._track_frames(data)
        self._write(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), data)
        if self.exchange is not None:
            self.exchange.ctx.bytes_sent += PyBytes_GET_SIZE(data)
        return 0

    cdef int tunnel_eof(self) except -1:
        if not self.closed and self.transport.can_write_eof():
            self.eof_sent = True
            self.transport.write_eof()
        return 0

    cdef int _track_frames(self, bytes data) except -1:
        """Track the frames passed to the client, to know where one ends."""
        cdef Py_ssize_t i = 0, n = PyBytes_GET_SIZE(data), need
        cdef const unsigned char* p
        cdef int64_t length
        if self.frame_head is not None:
            data = self.frame_head + data
            n = PyBytes_GET_SIZE(data)
            self.frame_head = None
        p = <const unsigned char*>PyBytes_AS_STRING(data)
        while i < n:
            if self.frame_left > 0:
                if self.frame_left >= n - i:
                    self.frame_left -= n - i
                    return 0
                i += self.frame_left
                self.frame_left = 0
                continue
            if n - i < 2:
                self.frame_head = data[i:]
                return 0
            length = p[i + 1] & 127
            need = 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if p[i + 1] & 128 else 0)
            if n - i < need:
                self.frame_head = data[i:]
                return 0
            if length == 126:
                length = (p[i + 2] << 8) | p[i + 3]
            elif length == 127:
                length = int.from_bytes(data[i + 2:i + 10], "big") & 0x7FFFFFFFFFFFFFFF
            i += need
            self.frame_left = length
        return 0

    cdef int _close_websocket(self) except -1:
        """Send a close frame to a WebSocket client (1001, going away, RFC 6455 §7.4.1), unless a frame is in progress."""
        if self.websocket and self.frame_left == 0 and self.frame_head is None and not self.closed \
                and not self.eof_sent:
            self._write(b"\x88\x02\x03\xe9", 4, None)
        return 0
