# cython: boundscheck=False
"""The access log: one line per request, formatted in compiled code, written in batches.

WHAT     `AccessLog.record` appends a line to a buffer; `flush` writes it out. Files are written with O_APPEND in one call, so
         lines of several workers do not interleave. A pipe or terminal is written without blocking, in pieces of whole lines no
         longer than PIPE_BUF, which the kernel writes atomically; lines for which a slow reader leaves no room are dropped and
         counted. So that every line fits into a pipe, fields of client-controlled length are truncated there and end in `...`; a
         file gets them in full.
STATE    One buffer of at most 256 kB; beyond it lines are dropped and counted.
WHO      The worker's loop.
COST     About 0.4 us a line; one write per 64 kB or per tick.
SOURCES  RFC 8259 §7 (strings); the common log format of Apache (mod_log_config); pipe(7) on PIPE_BUF.
"""

import logging
import os
import stat
import time

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate._core.clock cimport monotonic_ns, realtime_ns
from fastgate._core.log_throttle cimport log_throttle_pass
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.shm.counters cimport Counters
from fastgate._core.http.headers cimport H_REFERER, H_USER_AGENT, HeadWriter, field_t

from urllib.parse import unquote_to_bytes

__all__ = ["AccessLog"]

log = logging.getLogger("fastgate")

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLOUT
    int poll(pollfd* fds, unsigned long n, int timeout_ms)

cdef enum:
    FLUSH_BYTES = 65536
    MOST_BYTES = 262144
    PIPE_PIECE = 4096
    # Bytes that one field may take of a line in a pipe; every line then fits into PIPE_PIECE unless a route's name has over 500
    # bytes.
    ANY = 1 << 30
    TARGET_BYTES = 1400
    AGENT_BYTES = 900
    HOST_BYTES = 270

cdef int64_t TELL_NS = 60_000_000_000   # between two reports of dropped lines


cdef class AccessLog:
    """The access log of one worker. output: `off`, `stdout`, or a path; format: `json` or `common`."""

    def __init__(self, str output="off", str format="json", Counters counters=None, int slot=0):
        self.output = output
        self.format = format
        self.json = format == "json"
        self.off = output == "off"
        self.lines = HeadWriter()
        self.second = -1
        self.counters = counters
        self.counts = counters.worker(slot) if counters is not None else NULL
        self.fd = -1
        self.reopen()

    def reopen(self):
        """Reopen the file after log rotation moved it. Raises OSError on failure and keeps the old file open."""
        cdef int fd
        if self.off:
            return
        self.flush()
        if self.output == "stdout":
            fd = os.dup(1)
        else:
            fd = os.open(self.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd
        self.is_pipe = not stat.S_ISREG(os.fstat(fd).st_mode)

    def close(self):
        """Write out the buffer and close the file."""
        self.flush()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.off = True

    cdef int record(self, RequestContext ctx) except -1:
        """Append the line of a finished request."""
        cdef int64_t now_ns
        if self.off:
            return 0
        if self.lines.size > MOST_BYTES:
            return self._drop(self.lines.size)
        now_ns = realtime_ns()
        if now_ns // 1_000_000_000 != self.second:
            self.second = now_ns // 1_000_000_000
            self.second_text = time.strftime("%Y-%m-%dT%H:%M:%S" if self.json else "%d/%b/%Y:%H:%M:%S +0000",
                                             time.gmtime(self.second)).encode()
        if self.json:
            self._json(ctx, now_ns)
        else:
            self._common(ctx, now_ns)
        if self.lines.size >= FLUSH_BYTES:
            self.flush()
        return 0

    cdef int _json(self, RequestContext ctx, int64_t now_ns) except -1:
        cdef HeadWriter w = self.lines
        cdef field_t* agent
        cdef int ms = <int>(now_ns // 1_000_000 % 1000)
        w.put(b'{"time":"', 9)
        w.put_bytes(self.second_text)
        w.put(b".", 1)
        if ms < 100:
            w.put(b"0", 1)
        if ms < 10:
            w.put(b"0", 1)
        w.put_decimal(ms)
        w.put(b'Z","request_id":', 16)
        self._text(ctx.request_id_bytes, ANY)
        w.put(b',"client":', 10)
        self._text(ctx.client, ANY)
        w.put(b',"method":', 10)
        self._text(ctx.method_bytes, HOST_BYTES)
        w.put(b',"host":', 8)
        self._text(ctx.authority, HOST_BYTES)
        w.put(b',"target":', 10)
        self._text(self._masked(ctx.target), TARGET_BYTES)
        w.put(b',"protocol":"HTTP/1.', 20)
        w.put_decimal(1 if ctx.version_minor else 0)
        w.put(b'","status":', 11)
        w.put_decimal(ctx.status)
        w.put(b',"route":', 9)
        if ctx.route is not None:
            w.put_bytes(ctx.route.name_json)
        else:
            w.put(b"null", 4)
        w.put(b',"consumer":', 12)
        self._text(ctx.identity.consumer_bytes if ctx.identity is not None else None, ANY)
        w.put(b',"cache":', 9)
        self._text(ctx.cache_word, ANY)
        w.put(b',"upstream":', 12)
        self._text(ctx.upstream_address, ANY)
        w.put(b',"upstream_status":', 19)
        if ctx.upstream_status:
            w.put_decimal(ctx.upstream_status)
        else:
            w.put(b"null", 4)
        w.put(b',"attempts":', 12)
        w.put_decimal(ctx.attempts)
        w.put(b',"duration_ms":', 15)
        self._milliseconds(ctx.finished_ns - ctx.started_ns)
        w.put(b',"upstream_ms":', 15)
        if ctx.first_byte_ns and ctx.upstream_started_ns:
            self._milliseconds(ctx.first_byte_ns - ctx.upstream_started_ns)
        else:
            w.put(b"null", 4)
        w.put(b',"bytes_received":', 18)
        w.put_decimal(ctx.bytes_received)
        w.put(b',"bytes_sent":', 14)
        w.put_decimal(ctx.bytes_sent)
        w.put(b',"reason":', 10)
        self._text(ctx.reason.label_bytes if ctx.reason is not None else None, ANY)
        w.put(b',"user_agent":', 14)
        agent = ctx.headers.find_id(H_USER_AGENT)
        if agent == NULL:
            w.put(b"null", 4)
        else:
            self._span(agent.value, agent.value_n, AGENT_BYTES)
        return w.put(b"}\n", 2)

    cdef int _common(self, RequestContext ctx, int64_t now_ns) except -1:
        """Apache's combined format: common, then referer and user agent."""
        cdef HeadWriter w = self.lines
        cdef bytes value
        w.put_bytes(ctx.client or b"-")
        w.put(b" - - [", 6)
        w.put_bytes(self.second_text)
        w.put(b"] ", 2)
        self._text((ctx.method_bytes or b"-") + b" " + (self._masked(ctx.target) or b"-") + (b" HTTP/1.1" if ctx.version_minor else b" HTTP/1.0"),
                   TARGET_BYTES)
        w.put(b" ", 1)
        w.put_decimal(ctx.status)
        w.put(b" ", 1)
        w.put_decimal(ctx.bytes_sent)
        w.put(b" ", 1)
        value = ctx.headers.find_known(H_REFERER)
        self._text(value if value is not None else b"-", AGENT_BYTES)
        w.put(b" ", 1)
        value = ctx.headers.find_known(H_USER_AGENT)
        self._text(value if value is not None else b"-", AGENT_BYTES)
        return w.put(b"\n", 1)

    cdef bytes _masked(self, bytes target):
        """The target with the values of `secrets` in its query masked: some clients must put credentials there."""
        cdef bytes path, query
        if not self.secrets or target is None or b"?" not in target:
            return target
        path, _, query = target.partition(b"?")
        parts = []
        for part in query.split(b"&"):
            name, equals, _ = part.partition(b"=")
            known = unquote_to_bytes(name.replace(b"+", b" ")) in self.secrets
            parts.append(name + b"=***" if known and equals else part)
        return path + b"?" + b"&".join(parts)

    cdef int _milliseconds(self, int64_t ns) except -1:
        """ns as milliseconds with three decimals."""
        cdef HeadWriter w = self.lines
        cdef int64_t us = ns // 1000 if ns > 0 else 0
        cdef int rest = <int>(us % 1000)
        w.put_decimal(us // 1000)
        w.put(b".", 1)
        if rest < 100:
            w.put(b"0", 1)
        if rest < 10:
            w.put(b"0", 1)
        return w.put_decimal(rest)

    cdef int _text(self, bytes value, Py_ssize_t most) except -1:
        if value is None:
            return self.lines.put(b"null", 4)
        return self._span(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), most)

    cdef int _span(self, const char* p, Py_ssize_t n, Py_ssize_t most) except -1:
        """A JSON string of latin-1 bytes (RFC 8259 §7), in a pipe of at most `most` bytes. The escaping also prevents clients
        from forging log lines."""
        cdef HeadWriter w = self.lines
        cdef Py_ssize_t i
        cdef unsigned char c
        cdef char* at
        cdef char* end
        w.reserve(6 * n + 5)
        at = w.data + w.size
        end = at + (most - 11 if self.is_pipe else 6 * n + 2)      # room for one more escape, `...` and the quotes
        at[0] = c'"'
        at += 1
        for i in range(n):
            if at > end:
                at[0] = at[1] = at[2] = c"."
                at += 3
                break
            c = <unsigned char>p[i]
            if c == c'"' or c == c"\\":
                at[0] = c"\\"
                at[1] = c
                at += 2
            elif 32 <= c < 127:
                at[0] = c
                at += 1
            else:
                at[0] = c"\\"
                at[1] = c"u"
                at[2] = c"0"
                at[3] = c"0"
                at[4] = b"0123456789abcdef"[c >> 4]
                at[5] = b"0123456789abcdef"[c & 15]
                at += 6
        at[0] = c'"'
        w.size = at + 1 - w.data
        return 0

    cpdef int flush(self) except -1:
        """Write out the buffer."""
        cdef HeadWriter w = self.lines
        cdef Py_ssize_t start = 0, end, last
        cdef pollfd watched
        cdef bytes data
        if self.fd < 0 or w.size == 0:
            return 0
        if not self.is_pipe:
            data = b"\n" + w.take() if self.torn else w.take()
            reason = None
            try:
                written = os.write(self.fd, data)
            except OSError as error:                    # disk full: the lines are lost, the request is unaffected
                written = 0
                reason = (error.strerror or str(error)).lower()
            if written:
                self.torn = data[written - 1] != c"\n"
            if written < len(data):
                # Lines that did not fit; a truncated line counts as well.
                return self._count_dropped(data.count(b"\n", max(written, 1 if data[0] == c"\n" else 0)),
                                           reason or "no space left on device")
            if self.dropped:
                log.warning("access log %s: it is written again; %d lines are missing", self.output, self.dropped)
                self.dropped = 0
                self.dropped_log.logged_ns = 0
            return 0
        while start < w.size:
            end = start
            last = start
            while end < w.size and end - start < PIPE_PIECE:
                if w.data[end] == c"\n":
                    last = end + 1
                end += 1
            if last == start:                           # one line longer than PIPE_BUF: its write could block or be split
                while w.data[end] != c"\n":
                    end += 1
                start = end + 1
                self._count_dropped(1, "a line is longer than a pipe takes at once")
                continue
            watched.fd = self.fd
            watched.events = POLLOUT
            watched.revents = 0
            if poll(&watched, 1, 0) != 1 or not watched.revents & POLLOUT:
                return self._drop(start)
            data = w.data[start:last]
            try:
                os.write(self.fd, data)
            except OSError:
                return self._drop(start)
            start = last
        w.size = 0
        return 0

    cdef int _drop(self, Py_ssize_t start) except -1:
        """Count and discard the lines from start on; with start at the end, count the one for which there was no room."""
        cdef Py_ssize_t i
        cdef uint64_t lines = 1 if start == self.lines.size else 0
        for i in range(start, self.lines.size):
            if self.lines.data[i] == c"\n":
                lines += 1
        self._count_dropped(lines, "its reader does not keep up" if self.is_pipe else "it cannot be written")
        if start < self.lines.size:
            self.lines.size = 0
        return 0

    cdef int _count_dropped(self, uint64_t lines, object reason) except -1:
        """Count dropped lines, and report them immediately and then once a minute."""
        cdef int64_t now_ns = monotonic_ns()
        if self.counts != NULL:
            atomic_add_relaxed_u64(&self.counts.log_lines_dropped, lines)
        self.dropped += lines
        if log_throttle_pass(&self.dropped_log, now_ns, TELL_NS):
            log.error("access log %s: %s; %d lines are lost so far", self.output, reason, self.dropped)
        return 0
