"""Whether a response may be stored by a shared cache, and for how long (RFC 9111 §3, §4.2).

WHAT        RFC 9111 with RFC 5861 (stale-while-revalidate, stale-if-error), RFC 8246 (immutable), RFC 9213 (targeted
            Cache-Control).
STATE       `Decision`: one per response of the origin, from a freelist.
TIMES       int64 ns of CLOCK_REALTIME.

Choices, where the RFCs leave one: an `Age` that begins with digits counts as these digits, any other invalid `Age` is ignored; two
different `max-age` make the response stale; partial responses (206) are not stored; a response without explicit freshness is not stored
for a request with cookies that are not in the key.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.cache.http_dates cimport NO_DATE, date_read, date_text
from fastgate._core.cache.http_fields cimport (
    CC_IMMUTABLE,
    CC_MALFORMED,
    CC_MUST_REVALIDATE,
    CC_MUST_UNDERSTAND,
    CC_NO_CACHE,
    CC_NO_STORE,
    CC_PRIVATE,
    CC_PROXY_REVALIDATE,
    CC_PUBLIC,
    SECONDS_UNSET,
    are_tokens,
    directives_clear,
    directives_read,
    directives_structured,
    directives_t,
    seconds_read,
)
from fastgate._core.cache.http_keys cimport combined
from fastgate._core.cache.http_request cimport RequestRules
from fastgate._core.cache.http_settings cimport (
    CONSUMER_SHARED,
    COOKIES_NEVER,
    COOKIES_STRIP,
    PRIVATE_CONSUMER,
    PRIVATE_SHARE,
    CacheSettings,
)
from fastgate._core.cache.http_stored cimport (
    MAX_TAG,
    MAX_TAGS,
    MOST_TAGS,
    STORED_HEURISTIC,
    STORED_IMMUTABLE,
    STORED_NO_CACHE,
    STORED_NO_STALE,
    STORED_STRONG_DATE,
    StoredResponse,
)
from fastgate._core.http.headers cimport (
    H_CONNECTION,
    H_CONTENT_LENGTH,
    H_DATE,
    H_DROPPED,
    H_LAST_HOP_BY_HOP,
    H_OTHER,
    H_TRAILER,
    H_X_REQUEST_ID,
    Headers,
    HeadWriter,
    field_is,
    field_t,
    name_equal,
)

from fastgate._core.cache.http_keys import url_tag

__all__ = ["Decision"]

cdef int64_t SECOND_NS = 1_000_000_000

# RFC 9110 §15.1: cacheable by default.
cdef frozenset HEURISTIC_STATUSES = frozenset((200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501))
# For `must-understand`: statuses whose caching requirements are implemented (RFC 9111 §5.2.2.3).
cdef frozenset UNDERSTOOD = frozenset((200, 203, 204, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 406, 407, 408, 409, 410, 411,
                                       412, 413, 414, 415, 416, 417, 421, 422, 426, 428, 429, 431, 451, 500, 501, 502, 503, 504, 505,
                                       511))


@cython.final
@cython.freelist(16)
cdef class Decision:
    """Whether one response may be stored. `finish` creates the stored response once the body is complete.

    Made by `Rules.store`.
    """

    cdef StoredResponse c_finish(self, bytes body):
        cdef StoredResponse s = StoredResponse.__new__(StoredResponse)
        s.status = self.status
        s.flags = self.flags
        s.body = body
        s.etag = self.etag
        s.tags = self.tags
        s.vary = self.vary
        s.born_ns = self.born_ns
        s.stored_ns = self.stored_ns
        s.fresh_until_ns = self.fresh_until_ns
        s.swr_until_ns = self.swr_until_ns
        s.sie_until_ns = self.sie_until_ns
        s.date_s = self.date_s
        s.modified_s = self.modified_s
        if self.status == 204:
            s.head = self.head
        else:
            s.head = self.head + b"Content-Length: " + str(PyBytes_GET_SIZE(body)).encode() + b"\r\n"
        return s

    def finish(self, bytes body not None):
        """The StoredResponse. ValueError if the response is not storable."""
        if self.head is None:
            raise ValueError(f"not storable: {self.why}")
        return self.c_finish(body)

    cdef int c_live(self, int64_t lifetime_ns) noexcept:
        """Replace the lifetime that the rules determined; the times of stale use move with it."""
        cdef int64_t longer = lifetime_ns - self.lifetime_ns
        if self.fresh_until_ns:
            self.lifetime_ns = lifetime_ns
            self.fresh_until_ns += longer
            self.swr_until_ns += longer
            self.sie_until_ns += longer
        return 0

    def fits(self, uint64_t size):
        """True if a body of this size is within the route's bounds."""
        return self.min_size <= size <= self.max_size

    def __repr__(self):
        return f"Decision({'stored' if self.storable else self.why}, lifetime={self.lifetime_ns / 1e9}s)"


cdef inline int64_t seconds_ns(int64_t seconds) noexcept nogil:
    return seconds * SECOND_NS


cdef Decision decide(CacheSettings settings, RequestRules request, int status, bytes reason, Headers headers, int64_t request_ns,
                     int64_t response_ns, bint merged):
    """The decision. merged: headers are the stored ones updated by a 304, so that a response can be created even if it may not be
    stored."""
    cdef Decision d = Decision.__new__(Decision)
    cdef directives_t cc, special
    cdef field_t* f
    cdef int i, n, ages = 0, expiries = 0, dates = 0
    cdef int64_t now_s = response_ns // SECOND_NS, expires = NO_DATE, age = 0, lifetime, apparent, age_ns, swr, sie
    cdef bint cookie = False, star = False, special_seen = False, explicit, hard, public
    cdef list listed = [], vary = None, tags = None
    cdef bytes value
    cdef str why = ""
    d.status = status
    d.max_size = settings.max_size
    d.min_size = settings.min_size
    d.stored_ns = response_ns
    d.date_s = d.modified_s = NO_DATE
    d.vary = ()
    d.tags = ()
    if not request.cacheable and not merged:
        return refused(d, request.why)
    if request.head and not merged:
        return refused(d, "head")
    if status < 200 or status == 206 or status == 304 or status > 999:
        return refused(d, "status")
    directives_clear(&cc)
    for i in range(headers.count):
        f = &headers.fields[i]
        if f.id == H_DROPPED:
            continue
        n = f.name_n
        if f.id == H_DATE:
            dates += 1
            d.date_s = date_read(f.value, f.value_n, now_s)
        elif f.id == H_CONNECTION:
            headers.drop_listed(f.value, f.value_n)
        elif f.id != H_OTHER:
            continue
        elif n == 13:
            if name_equal(f.name, b"cache-control", 13):
                directives_read(&cc, f.value, f.value_n, listed)
            elif name_equal(f.name, b"last-modified", 13):
                d.modified_s = date_read(f.value, f.value_n, now_s)
            elif name_equal(f.name, b"surrogate-key", 13):
                tags = add_tags(tags, f.value[:f.value_n].split())
        elif n == 7 and name_equal(f.name, b"expires", 7):
            expiries += 1
            apparent = date_read(f.value, f.value_n, now_s)
            if apparent == NO_DATE:
                apparent = 0
            expires = apparent if expiries == 1 or apparent < expires else expires
        elif n == 3 and name_equal(f.name, b"age", 3):
            ages += 1
            if ages == 1:
                age = age_read(f.value, f.value_n)
        elif n == 4:
            if name_equal(f.name, b"etag", 4):
                d.etag = f.value[:f.value_n] if 0 < f.value_n <= 1024 else None
            elif name_equal(f.name, b"vary", 4):
                if vary is None:
                    vary = []
                for part in (<bytes>f.value[:f.value_n]).lower().split(b","):
                    part = (<bytes>part).strip(b" \t")
                    if part == b"*":
                        star = True
                    elif part and part not in vary:
                        vary.append(part)
        elif n == 10 and name_equal(f.name, b"set-cookie", 10):
            cookie = True
        elif n == 9 and name_equal(f.name, b"cache-tag", 9):
            tags = add_tags(tags, [tag.strip() for tag in f.value[:f.value_n].split(b",")])
        if not special_seen and settings.targeted and (n == 17 or n > 3):
            special_seen = is_targeted(settings, f)
    if special_seen:
        for name in settings.targeted:
            value = combined(headers, <bytes>name, len(name))
            if value is not None and directives_structured(&special, value):
                cc = special
                expiries = 0
                listed = []
                break
    # Storability
    public = (cc.flags & (CC_PUBLIC | CC_MUST_REVALIDATE)) != 0 or cc.s_maxage != SECONDS_UNSET
    if cc.flags & CC_MALFORMED:
        why = "malformed"
    elif cc.flags & CC_MUST_UNDERSTAND and status not in UNDERSTOOD:
        why = "not_understood"
    elif cc.flags & CC_NO_STORE and not settings.override and not cc.flags & CC_MUST_UNDERSTAND:
        why = "no_store"
    elif cc.flags & CC_PRIVATE and settings.private != PRIVATE_SHARE and not (
            settings.private == PRIVATE_CONSUMER and request.keyed_private and (not request.cookies or settings.key_cookies)):
        why = "private"                         # a cookie may identify the client more precisely than the key
    elif cookie and settings.cookies_set == COOKIES_NEVER and b"set-cookie" not in listed:
        why = "set_cookie"
    elif star:
        why = "vary_star"
    elif vary is not None and len(vary) > settings.max_vary:
        why = "vary_limit"
    elif request.authorized and not request.keyed_private and not public and settings.consumer != CONSUMER_SHARED \
            and b"authorization" not in settings.key_headers:
        why = "authorization"
    elif tags is not None and (len(tags) > MAX_TAGS or len(tags) + len(settings.tags) >= MOST_TAGS):
        why = "tags"
    elif vary is not None and not settings.never_vary.isdisjoint(vary):
        why = "vary_unique"                     # no two requests have the same value
    elif vary is not None and not are_tokens(vary):
        why = "vary_malformed"
    # Age (RFC 9111 §4.2.3)
    if dates != 1 or d.date_s == NO_DATE:
        d.date_s = now_s
    apparent = now_s - d.date_s
    if apparent < 0:
        apparent = 0
    age_ns = (seconds_ns(age) if age > 0 else 0) + (response_ns - request_ns if response_ns > request_ns else 0)
    if seconds_ns(apparent) > age_ns:
        age_ns = seconds_ns(apparent)
    # Freshness lifetime (RFC 9111 §4.2.1)
    explicit = True
    if settings.override and status in settings.statuses:
        lifetime = settings.ttl_ns
        cc.flags &= ~CC_NO_CACHE
    elif cc.s_maxage != SECONDS_UNSET:
        lifetime = seconds_ns(cc.s_maxage) if cc.s_maxage > 0 else 0
    elif cc.max_age != SECONDS_UNSET:
        lifetime = seconds_ns(cc.max_age) if cc.max_age > 0 else 0
    elif expiries:
        # Of two different ones the earlier applies. A lifetime that is negative or beyond the limit is clamped.
        lifetime = expires - d.date_s
        lifetime = seconds_ns(0 if lifetime < 0 else lifetime if lifetime < 2147483648 else 2147483648)
    else:
        explicit = False
        lifetime = -1
        if status in settings.statuses and settings.ttl_ns > 0:
            lifetime = settings.ttl_ns
        elif d.modified_s != NO_DATE and settings.heuristic_max_ns > 0 and (status in HEURISTIC_STATUSES or cc.flags & CC_PUBLIC):
            lifetime = seconds_ns(d.date_s - d.modified_s) // 10 if d.date_s > d.modified_s else 0
            if lifetime > settings.heuristic_max_ns:
                lifetime = settings.heuristic_max_ns
            d.flags |= STORED_HEURISTIC
        if not why and request.cookies and not request.keyed_private and not settings.key_cookies \
                and not settings.share_private and not cc.flags & CC_PUBLIC:
            why = "cookie"
        if lifetime < 0:
            lifetime = 0
            if not why and status not in HEURISTIC_STATUSES and not cc.flags & CC_PUBLIC:
                why = "no_freshness"
    if cc.flags & CC_NO_CACHE:
        d.flags |= STORED_NO_CACHE
    if cc.flags & CC_IMMUTABLE:
        d.flags |= STORED_IMMUTABLE
    if d.modified_s != NO_DATE and d.date_s - d.modified_s >= 1:
        d.flags |= STORED_STRONG_DATE
    # Stale use. s-maxage forbids it as proxy-revalidate does (RFC 9111 §5.2.2.10), except where the same response permits it by
    # RFC 5861.
    hard = cc.flags & (CC_MUST_REVALIDATE | CC_PROXY_REVALIDATE | CC_NO_CACHE) != 0
    swr = sie = 0
    if not hard:
        swr = seconds_ns(cc.swr) if cc.swr >= 0 else 0 if cc.s_maxage != SECONDS_UNSET and not settings.override else settings.swr_ns
        sie = seconds_ns(cc.sie) if cc.sie >= 0 else 0 if cc.s_maxage != SECONDS_UNSET and not settings.override else settings.sie_ns
    if hard or (cc.s_maxage != SECONDS_UNSET and not settings.override):
        d.flags |= STORED_NO_STALE
    d.lifetime_ns = lifetime
    d.implied = (not explicit or (settings.override and status in settings.statuses)) and not d.flags & STORED_NO_CACHE
    d.born_ns = response_ns - age_ns
    d.fresh_until_ns = 0 if d.flags & STORED_NO_CACHE else d.born_ns + lifetime
    d.swr_until_ns = d.fresh_until_ns + swr
    d.sie_until_ns = d.fresh_until_ns + sie
    if not why and d.etag is None and d.modified_s == NO_DATE and d.fresh_until_ns <= response_ns \
            and d.sie_until_ns <= response_ns and d.swr_until_ns <= response_ns:
        why = "no_freshness"                    # it could never be used
    if why:
        refused(d, why)
        if not merged:
            return d
    else:
        d.storable = True
        d.why = "stored"
    if vary is not None:
        vary.sort()
        d.vary = tuple(vary)
    d.tags = settings.tags if tags is None else settings.tags + tuple(tags)
    if request.key is not None:
        d.tags += (url_tag(request.key[:request.url_n]),)
    if cookie and settings.cookies_set == COOKIES_STRIP:
        listed.append(b"set-cookie")
    d.head = head_of(status, reason, headers, listed, d.date_s if dates != 1 or not request_date_valid(headers, now_s) else NO_DATE)
    return d


cdef bint is_targeted(CacheSettings settings, field_t* f):
    for name in settings.targeted:
        if field_is(f, <bytes>name, <int>len(name)):
            return True
    return False


cdef int64_t age_read(const char* p, Py_ssize_t n) noexcept:
    """The seconds in an Age field (RFC 9111 §5.1): of several members the first counts. A member that begins with digits and
    continues (`7200.0`, `7200;x=1`) counts as these digits: ignoring it would make an old response appear young. SECONDS_INVALID:
    ignore the field."""
    cdef Py_ssize_t digits = 0
    while digits < n and c"0" <= p[digits] <= c"9":
        digits += 1
    return seconds_read(p, digits)


cdef Decision refused(Decision d, str why):
    d.storable = False
    d.why = why
    return d


cdef bint request_date_valid(Headers headers, int64_t now_s):
    cdef field_t* f = headers.find_id(H_DATE)
    return f != NULL and date_read(f.value, f.value_n, now_s) != NO_DATE


cdef list add_tags(list tags, list more):
    if tags is None:
        tags = []
    for tag in more:
        # A tag above the limit counts as many: the response is then not stored, because a purge by the tag would miss it.
        if len(tag) > MAX_TAG:
            tags.extend([b""] * (MAX_TAGS + 1))
        elif tag and tag not in tags:
            tags.append(tag)
    return tags


cdef bytes head_of(int status, bytes reason, Headers headers, list listed, int64_t date_s):
    """Status line and fields as they are stored: without connection, length and age fields, and without listed ones. date_s: the
    Date to write in place of the one received, or NO_DATE."""
    cdef HeadWriter w = HeadWriter()
    cdef field_t* f
    cdef int i
    w.put(b"HTTP/1.1 ", 9)
    w.put_decimal(status)
    w.put(b" ", 1)
    if reason.isascii() and reason.decode("ascii").isprintable():
        w.put_bytes(reason)
    w.put(b"\r\n", 2)
    if date_s != NO_DATE:
        w.parsed_field(b"Date", date_text(date_s))
    for i in range(headers.count):
        f = &headers.fields[i]
        if f.id != H_OTHER:
            if f.id <= H_LAST_HOP_BY_HOP or f.id == H_CONTENT_LENGTH or f.id == H_TRAILER or f.id == H_X_REQUEST_ID:
                continue
            if f.id == H_DATE and date_s != NO_DATE:
                continue
        elif field_is(f, b"age", 3) or field_is(f, b"proxy-authentication-info", 25):
            continue
        if listed and (<bytes>f.name[:f.name_n]).lower() in listed:
            continue
        w.parsed_span(f)
    return w.take()
