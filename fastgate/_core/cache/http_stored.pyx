"""A stored response: whether it may be used for a request, the bytes of that response, and its record on disk and in Redis.

WHAT        RFC 9111 §4.2 (freshness), RFC 9110 §13 and §14 (conditions, ranges), RFC 5861 (stale responses), RFC 8246
            (immutable), RFC 9211 (Cache-Status).
STATE       `StoredResponse`: immutable. Its head is prebuilt: a status line and field lines, among them Date and
            Content-Length, without Age and without the empty line. A 304 is created on first use, and kept.
COST        c_judge of a plain request: 2 ns; c_tail: 15 ns.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

import os

from fastgate._core.cache.http_dates cimport NO_DATE, date_read
from fastgate._core.cache.http_fields cimport (
    CC_NO_CACHE,
    CC_ONLY_IF_CACHED,
    MAX_NAMES,
    are_tokens,
    etag_listed,
    etag_weak,
    seconds_read,
)
from fastgate._core.cache.http_ranges cimport ranges_read
from fastgate._core.cache.http_request cimport RequestRules
from fastgate._core.cache.http_settings cimport CacheSettings
from fastgate._core.hashing cimport siphash13
from fastgate._core.http.headers cimport (
    FIELD,
    TOKEN,
    H_CONNECTION,
    H_CONTENT_LENGTH,
    H_DATE,
    H_LAST_HOP_BY_HOP,
    H_OTHER,
    MAX_FIELDS,
    Headers,
    HeadWriter,
    field_t,
    header_id,
    name_equal,
    value_valid,
)
from fastgate._core.http.scan cimport name_run, plain_run

__all__ = ["StoredResponse"]

cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t AHEAD_NS = 5_000_000_000           # tolerated difference between the clocks of two machines of a fleet
cdef int64_t FOR_EVER = INT64_MAX // 4
# Mixed into checksums, so that a record of another format never passes by chance. Not a secret: it detects damage, not forgery.
cdef uint64_t[2] CHECK_KEY = [0x6661737467617465, 0x6361636865763031]
# Fields of a 304 that do not replace the stored ones, since the stored body depends on them (RFC 9111 §3.2).
cdef frozenset KEPT_ON_UPDATE = frozenset((b"content-encoding", b"content-length", b"content-md5", b"content-range", b"etag", b"digest",
                                           b"content-digest", b"repr-digest"))
# Fields of a 200 that a 304 does not carry (RFC 9110 §15.4.5).
cdef frozenset NOT_IN_304 = frozenset((b"content-encoding", b"content-language", b"content-length", b"content-md5", b"content-range",
                                       b"content-type", b"content-digest"))


@cython.final
cdef class StoredResponse:
    """One stored response. Immutable; `to_bytes` and `from_bytes` convert it for storage. Made by `Decision.finish`."""

    def __cinit__(self):
        self.head = self.body = b""
        self.tags = self.vary = ()
        self.date_s = self.modified_s = NO_DATE

    cdef int c_judge(self, RequestRules r, int64_t now_ns) noexcept:
        cdef int64_t age, left
        if now_ns < self.fresh_until_ns and r.plain and now_ns >= self.stored_ns - AHEAD_NS:
            return CACHE_FRESH
        if now_ns < self.stored_ns - AHEAD_NS:          # the clock was set back: the age is unknown
            return CACHE_ONLY_IF_CACHED if r.flags & CC_ONLY_IF_CACHED else CACHE_REVALIDATE
        age = now_ns - self.born_ns
        left = self.fresh_until_ns - now_ns
        if r.flags & CC_NO_CACHE:
            return CACHE_ONLY_IF_CACHED if r.flags & CC_ONLY_IF_CACHED else CACHE_REVALIDATE
        if left > 0:
            # RFC 8246 §2: a reload (max-age=0) of an immutable fresh response needs no request to the origin.
            if (r.max_age_ns < 0 or age <= r.max_age_ns or (self.flags & STORED_IMMUTABLE and r.max_age_ns == 0)) \
                    and left >= r.min_fresh_ns:
                return CACHE_FRESH
        elif not self.flags & STORED_NO_CACHE:
            if r.max_stale_ns >= 0 and -left <= r.max_stale_ns and not self.flags & STORED_NO_STALE \
                    and (r.max_age_ns < 0 or age <= r.max_age_ns):
                return CACHE_FRESH
            if now_ns < self.swr_until_ns and r.max_age_ns < 0 and r.min_fresh_ns == 0:
                return CACHE_STALE_WHILE_REVALIDATE
        return CACHE_ONLY_IF_CACHED if r.flags & CC_ONLY_IF_CACHED else CACHE_REVALIDATE

    cdef bint c_may_serve_on_error(self, RequestRules r, int64_t now_ns) noexcept:
        """True if this may be used although the origin failed (RFC 5861 §4), by the directives of the response, the route or the
        request."""
        if self.flags & STORED_NO_CACHE:
            return False
        if now_ns < self.sie_until_ns or now_ns < self.swr_until_ns:
            return True
        return r is not None and r.sie_ns >= 0 and not self.flags & STORED_NO_STALE and now_ns - self.fresh_until_ns <= r.sie_ns

    cdef int c_tail(self, CacheSettings rules, int64_t now_ns, char* out) noexcept:
        """Write `Age: n` and, unless it is off, `Cache-Status: …; hit; ttl=n`, each with CRLF; the bytes written, <= TAIL_ROOM."""
        cdef int64_t age = (now_ns - self.born_ns) // SECOND_NS
        cdef int64_t ttl
        cdef int n = 5
        memcpy(out, b"Age: ", 5)
        n += digits(out + n, age if age > 0 else 0)
        out[n] = c"\r"
        out[n + 1] = c"\n"
        n += 2
        if rules is not None and rules.status_n:
            memcpy(out + n, rules.status_head, rules.status_n)
            n += rules.status_n
            ttl = (self.fresh_until_ns if self.fresh_until_ns else self.born_ns) - now_ns
            if ttl < 0:
                out[n] = c"-"
                n += 1
                ttl = -ttl
            n += digits(out + n, ttl // SECOND_NS)
            out[n] = c"\r"
            out[n + 1] = c"\n"
            n += 2
        return n

    @property
    def keep_until_ns(self):
        """Time until which to store it. With a validator it outlives its freshness by the same time again, at most a day; without
        one by a minute, for clients that accept stale responses and for a HEAD that renews it."""
        cdef int64_t until = self.fresh_until_ns, more = 60 * SECOND_NS
        if self.swr_until_ns > until:
            until = self.swr_until_ns
        if self.sie_until_ns > until:
            until = self.sie_until_ns
        if self.etag is not None or self.modified_s != NO_DATE:
            if self.fresh_until_ns - self.stored_ns > more:
                more = self.fresh_until_ns - self.stored_ns
            if more > 86400 * SECOND_NS:
                more = 86400 * SECOND_NS
        elif self.flags & STORED_NO_STALE:
            more = 0
        if self.stored_ns + more > until:
            until = self.stored_ns + more
        if self.fresh_until_ns + more > until:
            until = self.fresh_until_ns + more
        return until

    @property
    def size(self):
        """Approximate bytes in memory."""
        cdef Py_ssize_t n = 256 + PyBytes_GET_SIZE(self.head) + PyBytes_GET_SIZE(self.body)
        for tag in self.tags:
            n += 40 + len(tag)
        return n

    def age_s(self, int64_t now_ns):
        """Its age in whole seconds."""
        return max(0, (now_ns - self.born_ns) // SECOND_NS)

    def tail(self, CacheSettings rules, int64_t now_ns):
        """The `Age` and `Cache-Status` lines of a hit."""
        cdef char out[TAIL_ROOM]
        cdef int n = self.c_tail(rules, now_ns, out)
        return out[:n]

    def may_serve_on_error(self, RequestRules request, int64_t now_ns):
        """True if this may be used although the origin failed."""
        return self.c_may_serve_on_error(request, now_ns)

    def field(self, bytes name not None):
        """The first value of a stored field, or None."""
        cdef Headers table = self.table()
        cdef bytes lower = name.lower()
        return table.find(lower, len(lower))

    def fields(self):
        """The stored fields as (name, value) text, in order."""
        return self.table().items()

    def conditions(self):
        """The fields that make a request conditional on this response: (name, value) pairs; [] without a validator."""
        cdef list out = []
        if self.etag is not None:
            out.append((b"If-None-Match", self.etag))
        if self.modified_s != NO_DATE:
            out.append((b"If-Modified-Since", self.field(b"last-modified")))
        return out

    cdef bytes reason(self):
        return self.head[13:self.head.index(b"\r\n")]

    cdef Headers table(self):
        """The fields of the head as a table."""
        cdef Headers out = Headers.__new__(Headers)
        cdef const char* p = PyBytes_AS_STRING(self.head)
        cdef const char* end = p + PyBytes_GET_SIZE(self.head)
        cdef const char* stop
        cdef const char* colon
        out.raw = self.head
        if p == end:                                # created without a head
            return out
        # Written by head_of, or read by stored_from, which has checked every line.
        p = <const char*>memchr(p, c"\n", end - p) + 1
        while p < end:
            stop = <const char*>memchr(p, c"\r", end - p)
            colon = <const char*>memchr(p, c":", stop - p)
            out.append_span(p, colon - p, colon + 2, stop - colon - 2, header_id(p, colon - p))
            p = stop + 2
        return out

    cdef Headers merged(self, Headers fresh):
        """The stored fields, updated with those of a newer response (RFC 9111 §3.2)."""
        cdef Headers out = self.table()
        cdef field_t* f
        cdef bytes lower
        cdef set replaced = set()
        cdef int i
        for i in range(fresh.count):
            f = &fresh.fields[i]
            if f.id == H_CONNECTION:
                fresh.drop_listed(f.value, f.value_n)
        for i in range(fresh.count):
            f = &fresh.fields[i]
            if f.id != H_OTHER and (f.id <= H_LAST_HOP_BY_HOP or f.id == H_CONTENT_LENGTH):
                continue
            lower = (<bytes>f.name[:f.name_n]).lower()
            if lower in KEPT_ON_UPDATE:
                continue
            if lower not in replaced:
                replaced.add(lower)
                out.drop(lower, len(lower))
            out.append(fresh.name_at(i), fresh.value_at(i), f.id)
        if b"date" not in replaced:             # the date of the newer response is its arrival
            out.drop(b"date", 4)
        if b"age" not in replaced:
            out.drop(b"age", 3)
        return out

    # --- the client's own conditions and ranges ---

    def answer(self, RequestRules request not None):
        """(status, head, body) for a request that may use this response, its conditions and ranges applied (RFC 9110 §13.2.2).

        The head lacks `Age`, `Cache-Status` and the empty line. The body is empty for HEAD and 304.
        """
        cdef field_t* f
        cdef int64_t since
        if self.status != 200:
            return self.status, self.head, b"" if request.head else self.body
        if request.if_none_match >= 0:
            f = &request.headers.fields[request.if_none_match]
            if f.value_n <= 8192 and etag_listed(f.value, f.value_n, self.etag):
                return 304, self.not_modified(), b""
        elif request.if_modified_since >= 0:
            f = &request.headers.fields[request.if_modified_since]
            since = date_read(f.value, f.value_n, self.stored_ns // SECOND_NS)
            if since != NO_DATE and (self.modified_s if self.modified_s != NO_DATE else self.date_s) <= since:
                return 304, self.not_modified(), b""
        if request.range >= 0 and not request.head and not request.post and self.range_applies(request):
            ranged = self.ranged(request.headers.value_at(request.range))
            if ranged is not None:
                return ranged
        return 200, self.head, b"" if request.head else self.body

    cdef bint range_applies(self, RequestRules request):
        """If-Range: by strong comparison (RFC 9110 §13.1.5)."""
        cdef bytes value
        if request.if_range < 0:
            return True
        value = request.headers.value_at(request.if_range)
        if value[:1] == b'"' or value[:2] == b"W/":
            return value == self.etag and not etag_weak(value)
        return self.flags & STORED_STRONG_DATE and value == self.field(b"last-modified")

    cdef bytes not_modified(self):
        cdef HeadWriter w
        cdef Headers table
        cdef int i
        if self.short_head is None:
            w = HeadWriter()
            table = self.table()
            w.put(b"HTTP/1.1 304 Not Modified\r\n", 27)
            for i in range(table.count):
                if table.name_at(i).lower() not in NOT_IN_304:
                    w.parsed_span(&table.fields[i])
            self.short_head = w.take()
        return self.short_head

    cdef bytes without(self, tuple names, bytes status_line):
        cdef HeadWriter w = HeadWriter()
        cdef Headers table = self.table()
        cdef int i
        w.put_bytes(status_line)
        for i in range(table.count):
            if table.name_at(i).lower() not in names:
                w.parsed_span(&table.fields[i])
        return w.take()

    cdef object ranged(self, bytes value):
        """(206 or 416, head, body), or None if the Range field is to be ignored."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.body), start, end
        cdef list ranges = ranges_read(value, size)
        if ranges is None:
            return None
        length = str(size).encode()
        if not ranges:
            return 416, (b"HTTP/1.1 416 Range Not Satisfiable\r\nDate: " + self.field(b"date") + b"\r\nContent-Range: bytes */"
                         + length + b"\r\nContent-Length: 0\r\n"), b""
        line = b"HTTP/1.1 206 Partial Content\r\n"
        if len(ranges) == 1:
            start, end = ranges[0]
            head = self.without((b"content-length",), line)
            head += b"Content-Range: bytes %d-%d/%b\r\nContent-Length: %d\r\n" % (start, end - 1, length, end - start)
            return 206, head, self.body[start:end]
        mark = os.urandom(12).hex().encode()
        kind = self.field(b"content-type")
        parts = []
        for start, end in ranges:
            parts.append(b"--" + mark + (b"\r\nContent-Type: " + kind if kind is not None else b"")
                         + b"\r\nContent-Range: bytes %d-%d/%b\r\n\r\n" % (start, end - 1, length) + self.body[start:end] + b"\r\n")
        parts.append(b"--" + mark + b"--\r\n")
        body = b"".join(parts)
        head = self.without((b"content-length", b"content-type"), line)
        head += b"Content-Type: multipart/byteranges; boundary=%b\r\nContent-Length: %d\r\n" % (mark, len(body))
        return 206, head, body

    # --- bytes ---

    def to_bytes(self):
        """The record that from_bytes reads: versioned, with a checksum over all of it."""
        return record_of(self)

    @staticmethod
    def from_bytes(data not None):
        """The response in a record (bytes or any buffer), or None if it is damaged or of another version."""
        cdef const unsigned char[::1] view
        if isinstance(data, bytes):
            return stored_from(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), False)
        view = data
        return stored_from(<const char*>&view[0], view.shape[0], False) if view.shape[0] else None

    def __repr__(self):
        return f"StoredResponse({self.status}, {len(self.body)} bytes)"


# A record, little endian:
#   4 "FGC1" | 8 checksum of the rest | 2 status | 2 flags | 2 tags | 2 vary | 7 × 8 times | 4 etag (or none) | 4 head | 8 body
#   then per tag and per vary name 2 length and the text; then etag, head and body
cdef packed struct record_t:
    char magic[4]
    uint64_t checksum
    uint16_t status
    uint16_t flags
    uint16_t tags
    uint16_t vary
    int64_t times[7]
    uint32_t etag_n
    uint32_t head_n
    uint64_t body_n

cdef uint32_t NOTHING = 0xffffffff


cdef bytes record_of(StoredResponse s):
    cdef record_t r
    cdef Py_ssize_t n = sizeof(record_t) + PyBytes_GET_SIZE(s.head) + PyBytes_GET_SIZE(s.body)
    cdef bytes out, item
    cdef char* at
    cdef char* start
    cdef uint16_t item_n
    memcpy(r.magic, b"FGC1", 4)
    r.status = <uint16_t>s.status
    r.flags = <uint16_t>s.flags
    r.tags = <uint16_t>len(s.tags)
    r.vary = <uint16_t>len(s.vary)
    r.times[0] = s.born_ns
    r.times[1] = s.stored_ns
    r.times[2] = s.fresh_until_ns
    r.times[3] = s.swr_until_ns
    r.times[4] = s.sie_until_ns
    r.times[5] = s.date_s
    r.times[6] = s.modified_s
    r.etag_n = NOTHING if s.etag is None else <uint32_t>PyBytes_GET_SIZE(s.etag)
    r.head_n = <uint32_t>PyBytes_GET_SIZE(s.head)
    r.body_n = <uint64_t>PyBytes_GET_SIZE(s.body)
    n += 0 if s.etag is None else PyBytes_GET_SIZE(s.etag)
    for item in s.tags:
        n += 2 + PyBytes_GET_SIZE(item)
    for item in s.vary:
        n += 2 + PyBytes_GET_SIZE(item)
    out = PyBytes_FromStringAndSize(NULL, n)
    start = PyBytes_AS_STRING(out)
    at = start + sizeof(record_t)
    for item in s.tags + s.vary:
        item_n = <uint16_t>PyBytes_GET_SIZE(item)
        memcpy(at, &item_n, 2)
        memcpy(at + 2, PyBytes_AS_STRING(item), item_n)
        at += 2 + item_n
    if s.etag is not None:
        memcpy(at, PyBytes_AS_STRING(s.etag), r.etag_n)
        at += r.etag_n
    memcpy(at, PyBytes_AS_STRING(s.head), r.head_n)
    memcpy(at + r.head_n, PyBytes_AS_STRING(s.body), r.body_n)
    r.checksum = 0
    memcpy(start, &r, sizeof(record_t))
    r.checksum = siphash13(start + 12, n - 12, CHECK_KEY)
    memcpy(start, &r, sizeof(record_t))
    return out


cdef tuple texts(const char** at, const char* end, int count):
    """count texts, each preceded by its length; None if they extend beyond the end."""
    cdef tuple out
    cdef bytes text
    cdef uint16_t n
    cdef int i
    if count == 0:
        return ()
    out = PyTuple_New(count)
    for i in range(count):
        if end - at[0] < 2:
            return None
        memcpy(&n, at[0], 2)
        at[0] += 2
        if end - at[0] < n:
            return None
        text = PyBytes_FromStringAndSize(at[0], n)
        Py_INCREF(text)                                 # PyTuple_SET_ITEM steals a reference
        PyTuple_SET_ITEM(out, i, text)
        at[0] += n
    return out


cdef bint head_whole(const char* p, const char* end, int status, Py_ssize_t body_n, bint* modified) noexcept:
    """True for a head as `head_of` and `c_finish` write it: a status line of that status, then lines of a name, `: ` and a value,
    among them one Date and the body's length, and no connection fields. modified: a Last-Modified is among them."""
    cdef const char* stop
    cdef const char* colon
    cdef int known, count = 0, dates = 0, lengths = 0
    modified[0] = False
    stop = <const char*>memchr(p, c"\r", end - p)
    if stop == NULL or stop + 1 == end or stop[1] != c"\n" or stop - p < 13 or memcmp(p, b"HTTP/1.1 ", 9) != 0 or p[12] != c" ":
        return False
    if (p[9] - 48) * 100 + (p[10] - 48) * 10 + (p[11] - 48) != status or not value_valid(p + 13, stop - p - 13):
        return False
    p = stop + 2
    while p < end:
        colon = p + name_run(p, end - p)
        while colon < end and TOKEN[<unsigned char>colon[0]]:
            colon += 1
        if colon == p or end - colon < 4 or colon[0] != c":" or colon[1] != c" ":
            return False
        stop = colon + 2 + plain_run(colon + 2, end - colon - 2)
        while stop < end and FIELD[<unsigned char>stop[0]]:
            stop += 1
        if end - stop < 2 or stop[0] != c"\r" or stop[1] != c"\n":
            return False
        known = header_id(p, colon - p)
        count += 1
        if count > MAX_FIELDS or (known != H_OTHER and known <= H_LAST_HOP_BY_HOP):
            return False
        if known == H_DATE:
            dates += 1
        elif known == H_CONTENT_LENGTH:
            lengths += 1
            if seconds_read(colon + 2, stop - colon - 2) != body_n:
                return False
        elif known == H_OTHER and colon - p == 13 and name_equal(p, b"last-modified", 13):
            modified[0] = True
        p = stop + 2
    return dates == 1 and (lengths == 1 if status != 204 else lengths == 0 and body_n == 0)


cdef bint time_whole(int64_t ns) noexcept nogil:
    """True for a time that can be added to and subtracted from without overflow."""
    return -FOR_EVER <= ns <= FOR_EVER


cdef StoredResponse stored_from(const char* p, Py_ssize_t n, bint intact):
    """The response in a record, or None. The bytes are copied: p may be in a memory map that changes later.

    A checksum detects damage, but a writer with access to the store can compute it, too. Everything that later code relies on is
    therefore checked here, once: lengths, names, every line of the head, times. intact: the envelope around it has a valid
    checksum of the same bytes.
    """
    cdef record_t r
    cdef StoredResponse s
    cdef const char* at
    cdef const char* end = p + n
    cdef bint modified
    cdef int i
    if n < <Py_ssize_t>sizeof(record_t):
        return None
    memcpy(&r, p, sizeof(record_t))
    if memcmp(r.magic, b"FGC1", 4) != 0 or (not intact and r.checksum != siphash13(p + 12, n - 12, CHECK_KEY)):
        return None
    if not 200 <= r.status <= 999 or r.status == 206 or r.status == 304 or r.tags > MOST_TAGS or r.vary > MAX_NAMES:
        return None
    at = p + sizeof(record_t)
    s = StoredResponse.__new__(StoredResponse)
    s.tags = texts(&at, end, r.tags)
    s.vary = texts(&at, end, r.vary) if s.tags is not None else None
    if s.vary is None or not are_tokens(s.vary):
        return None
    for tag in s.tags:
        if len(tag) > MAX_TAG:
            return None
    if r.etag_n != NOTHING:
        if r.etag_n > 1024 or end - at < <Py_ssize_t>r.etag_n or not value_valid(at, r.etag_n):
            return None
        s.etag = at[:r.etag_n]
        at += r.etag_n
    if <uint64_t>(end - at) < r.head_n or <uint64_t>(end - at) - r.head_n != r.body_n:
        return None
    if not head_whole(at, at + r.head_n, r.status, r.body_n, &modified) or (r.times[6] != NO_DATE and not modified):
        return None
    for i in range(5):
        if not time_whole(r.times[i]):
            return None
    for i in range(5, 7):
        if r.times[i] != NO_DATE and not time_whole(r.times[i]):
            return None
    s.head = at[:r.head_n]
    s.body = PyBytes_FromStringAndSize(at + r.head_n, r.body_n)
    s.status = r.status
    s.flags = r.flags
    s.born_ns = r.times[0]
    s.stored_ns = r.times[1]
    s.fresh_until_ns = r.times[2]
    s.swr_until_ns = r.times[3]
    s.sie_until_ns = r.times[4]
    s.date_s = r.times[5]
    s.modified_s = r.times[6]
    return s


cdef inline int digits(char* out, int64_t value) noexcept:
    """Writes the decimal digits of value >= 0; returns how many."""
    cdef char[20] back
    cdef int i = 20
    while True:
        i -= 1
        back[i] = 48 + value % 10
        value //= 10
        if value == 0:
            break
    memcpy(out, &back[i], 20 - i)
    return 20 - i
