"""A parser of server-sent events that accepts chunks of any size.

WHAT        Turns the chunks of a text/event-stream into events. Bytes in, bytes out: nothing is decoded, so invalid UTF-8
            passes through. It does not reconnect and does not write.
STATE       `line`: the start of an unfinished line. `data`, `name`, `id_pending`, `retry_pending`: the fields of the
            unfinished event. A single data line that is complete in the chunk is not copied before it becomes the event.
            line ──CR, LF, CRLF──► field ──empty line──► event (if it has data), fields cleared, last event id kept
WHO WRITES  One caller at a time; calling feed() from inside feed() (a destructor run by the collector) is a RuntimeError.
COST        Two memchr passes over the bytes and one bytes object per event. Memory: at most twice max_event_bytes.
SOURCES     WHATWG HTML §9.2.5, §9.2.6 (parsing and interpreting an event stream).
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp, memcpy

from fastgate._core.arguments cimport int_argument
from fastgate._core.debug cimport debug_assert, debug_live_add, debug_live_count

__all__ = ["SseEvent", "SseEventTooLarge", "SseParser"]

cdef enum:
    KEPT_BYTES = 65536                          # a larger buffer is released after the event
    RETRY_DIGITS = 18                           # more digits of milliseconds are not a valid time

cdef const char* BOM = b"\xef\xbb\xbf"
cdef bytes MESSAGE = b"message"


class SseEventTooLarge(ValueError):
    """An event is larger than max_event_bytes. `events`: those that ended before it in the same chunk.

    message: the bound that was exceeded. Raised by SseParser.feed(). The parser accepts no more bytes until reset().
    """

    def __init__(self, message, events):
        super().__init__(message)
        self.events = events


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class SseEvent:
    """One event, immutable. Created by SseParser.feed().

    event   its type; b"message" if the stream does not name one data    the data lines joined by LF, without the last one's line
    end id      the last event id of the stream so far; b"" without one retry   the reconnection time in milliseconds sent with
    this event, or None
    """

    def __repr__(self):
        return f"SseEvent(event={self.event!r}, data={self.data!r}, id={self.id!r}, retry={self.retry!r})"


@cython.final
cdef class SseParser:
    """SseParser(max_event_bytes=1048576)\n--\n
    Parser of one stream: `for event in parser.feed(chunk): …`.

    max_event_bytes   bound on each line and on data plus name of one event, 16 to 2**40; the verdict does not depend on
                      where the chunks are cut. 1 MiB by default, 16 times the largest event seen from a model provider.
    last_event_id     id to resume from: the Last-Event-ID of a reconnection
    retry             the last reconnection time the stream asked for, in milliseconds, or None

    What is unfinished when the stream ends is no event (§9.2.6) and is simply never returned; `pending` tells.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, max_event_bytes=1 << 20):
        self.max_event_bytes = int_argument(max_event_bytes, "max_event_bytes", 16, 1 << 40)
        debug_live_add(1)
        self.last_event_id = b""
        self.id_pending = b""
        self.event_last = MESSAGE

    def __dealloc__(self):
        debug_live_add(-1)
        free(self.line.at)
        free(self.data.at)
        free(self.name.at)

    def feed(self, chunk):
        """The list of events that end in chunk, any bytes-like object. SseEventTooLarge, see there."""
        cdef Py_buffer view
        if type(chunk) is bytes:
            return self.feed_bytes(PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk))
        PyObject_GetBuffer(chunk, &view, PyBUF_SIMPLE)
        try:
            return self.feed_bytes(<const char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def reset(self):
        """Starts a new stream. last_event_id and retry are kept, as a reconnection needs them."""
        if self.busy:
            raise RuntimeError("reset() inside feed()")
        self.forget_event()
        self.line.n = 0
        self.id_pending = self.last_event_id
        self.skip_lf = False
        self.bom = 0
        self.failed = False

    @property
    def pending(self):
        """True if part of an event is held."""
        return self.line.n > 0 or self.has_data or self.name.n > 0 or 0 < self.bom < 3

    def __repr__(self):
        return f"SseParser({self.max_event_bytes}: last_event_id={self.last_event_id!r}, pending={self.pending})"

    cdef list feed_bytes(self, const char* chunk, Py_ssize_t n):
        cdef list events
        if self.busy:
            raise RuntimeError("feed() inside feed()")
        events = []
        if self.failed:
            raise SseEventTooLarge(f"an event was larger than {self.max_event_bytes} bytes; reset() first", events)
        self.busy = True
        try:
            self.parse(chunk, n, events)
            # The chunk is released; data that points into it must be copied.
            self.keep_data()
        except BaseException as error:
            self.forget_event()
            self.line.n = 0
            self.failed = True
            if isinstance(error, SseEventTooLarge):
                error.events = events
            raise
        finally:
            self.busy = False
        return events

    cdef int parse(self, const char* at, Py_ssize_t n, list events) except -1:
        cdef const char* end = at + n
        cdef const char* lf = NULL              # the next LF at or after `at`; end if there is none
        cdef const char* cr
        cdef const char* stop
        while self.bom < 3:
            if at == end:
                return 0
            if at[0] != BOM[self.bom]:
                if self.bom:                    # not a byte order mark: those bytes are text
                    self.append(&self.line, BOM, self.bom)
                self.bom = 3
                break
            self.bom += 1
            at += 1
        if self.skip_lf and at < end:
            self.skip_lf = False
            if at[0] == c"\n":
                at += 1
        while at < end:
            # LF is searched once per LF and CR only up to it, so each byte is looked at twice whatever the line ends are.
            if lf < at:
                lf = <const char*>memchr(at, c"\n", end - at)
                if lf == NULL:
                    lf = end
            cr = <const char*>memchr(at, c"\r", lf - at)
            stop = cr if cr != NULL else lf
            if stop == end:
                return self.append(&self.line, at, end - at)
            if self.line.n:
                self.append(&self.line, at, stop - at)
                n = self.line.n
                self.line.n = 0
                self.take_line(self.line.at, n, events)
                # A data line must not point into self.line, which the next unfinished line overwrites.
                self.keep_data()
            else:
                self.take_line(at, stop - at, events)
            at = stop + 1
            if cr != NULL:
                if at == end:
                    self.skip_lf = True
                elif at[0] == c"\n":
                    at += 1
        return 0

    cdef int take_line(self, const char* at, Py_ssize_t n, list events) except -1:
        cdef const char* colon
        cdef const char* value
        cdef Py_ssize_t name_n, value_n, i
        if n == 0:
            return self.dispatch(events)
        if n > self.max_event_bytes:
            self.too_large()
        if n >= 6 and memcmp(at, b"data: ", 6) == 0:
            return self.take_data(at + 6, n - 6)
        if at[0] == c":":                       # comment
            return 0
        colon = <const char*>memchr(at, c":", n)
        if colon == NULL:
            name_n = n
            value = at + n
            value_n = 0
        else:
            name_n = colon - at
            value = colon + 1
            value_n = n - name_n - 1
            if value_n and value[0] == c" ":
                value += 1
                value_n -= 1
        if name_n == 4 and memcmp(at, b"data", 4) == 0:
            return self.take_data(value, value_n)
        if name_n == 5 and memcmp(at, b"event", 5) == 0:
            self.name.n = 0
            if self.held() + value_n > self.max_event_bytes:
                self.too_large()
            return self.append(&self.name, value, value_n)
        if name_n == 2 and memcmp(at, b"id", 2) == 0:
            if memchr(value, 0, value_n) == NULL:
                self.id_pending = PyBytes_FromStringAndSize(value, value_n)
            return 0
        if name_n == 5 and memcmp(at, b"retry", 5) == 0:
            if value_n == 0 or value_n > RETRY_DIGITS:
                return 0
            for i in range(value_n):
                if not c"0" <= value[i] <= c"9":
                    return 0
            self.retry = self.retry_pending = int(value[:value_n])
        return 0

    cdef int take_data(self, const char* at, Py_ssize_t n) except -1:
        if self.held() + n + self.has_data > self.max_event_bytes:
            self.too_large()
        if not self.has_data:
            self.has_data = True
            self.data_at = at
            self.data_n = n
            return 0
        self.keep_data()
        self.append(&self.data, b"\n", 1)
        return self.append(&self.data, at, n)

    cdef int keep_data(self) except -1:
        """Copies a data line that is still in the chunk."""
        if self.data_at != NULL:
            debug_assert(self.data.n == 0)
            self.append(&self.data, self.data_at, self.data_n)
            self.data_at = NULL
        return 0

    cdef int dispatch(self, list events) except -1:
        cdef SseEvent event
        cdef const char* at
        cdef Py_ssize_t n
        self.last_event_id = self.id_pending
        if not self.has_data:
            self.forget_event()
            return 0
        at, n = self.data_at, self.data_n
        if at == NULL:
            at, n = self.data.at, self.data.n
        event = SseEvent.__new__(SseEvent)
        event.data = PyBytes_FromStringAndSize(at, n)
        event.id = self.last_event_id
        event.retry = self.retry_pending
        if self.name.n == 0:
            event.event = MESSAGE
        else:
            if PyBytes_GET_SIZE(self.event_last) != self.name.n or memcmp(
                    PyBytes_AS_STRING(self.event_last), self.name.at, self.name.n) != 0:
                self.event_last = PyBytes_FromStringAndSize(self.name.at, self.name.n)
            event.event = self.event_last
        events.append(event)
        self.forget_event()
        return 0

    cdef void forget_event(self) noexcept:
        self.has_data = False
        self.data_at = NULL
        self.data.n = 0
        self.name.n = 0
        self.retry_pending = None
        if self.data.room > KEPT_BYTES:
            free(self.data.at)
            self.data.at = NULL
            self.data.room = 0
        if self.line.room > KEPT_BYTES and self.line.n == 0:
            free(self.line.at)
            self.line.at = NULL
            self.line.room = 0

    cdef int append(self, run_t* run, const char* at, Py_ssize_t n) except -1:
        cdef Py_ssize_t room
        cdef char* grown
        if run.n + n > self.max_event_bytes:
            self.too_large()
        if run.n + n > run.room:
            room = run.room if run.room else 256
            while room < run.n + n:
                room *= 2
            grown = <char*>realloc(run.at, room)
            if grown == NULL:
                raise MemoryError
            run.at = grown
            run.room = room
        if n:
            memcpy(run.at + run.n, at, n)
            run.n += n
        return 0

    cdef Py_ssize_t held(self) noexcept:
        """Bytes of data and name of the unfinished event."""
        return self.data.n + (self.data_n if self.data_at != NULL else 0) + self.name.n

    cdef int too_large(self) except -1:
        raise SseEventTooLarge(f"an event is larger than {self.max_event_bytes} bytes", [])


def live_objects():
    """How many parsers are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
