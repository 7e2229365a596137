"""HTTP caching semantics, for a shared cache: may it be stored, for how long, under which key, may it be used, and as what answer.

WHAT        RFC 9111 with RFC 9110 §§8, 13, 14 (validators, conditions, ranges), RFC 5861 (stale-while-revalidate, stale-if-error),
            RFC 8246 (immutable), RFC 9211 (Cache-Status), RFC 9213 (CDN-Cache-Control). Pure: no I/O, no clock, no storage.
STATE       `Rules`: one route's settings, immutable. `RequestRules`: one request. `Decision`: whether one answer may be stored.
            `StoredResponse`: immutable; its head is ready bytes. `Vary`: what a URL's answers vary by, and which variants are held.
WHO WRITES  Nobody shares anything but `Vary`, which belongs to its worker.
TIMES       int64 ns of CLOCK_REALTIME (not ctx.now_ns, which is monotonic), as they are kept on disk and in Redis.
COST        read: about 60 ns for ten fields; judge of a plain request: 2 ns; tail of a hit: 15 ns.

How the exchange uses it (C names; Python has the same without `c_`):

    request = rules.c_read(ctx.method_id, ctx.method_bytes, ctx.headers, ctx.has_body)
    if request.cacheable:                                 # else CACHE_BYPASS: forward; see `invalidates`
        key = rules.c_key(request, secure, authority, path, query, consumer, body)
            # consumer: identity_key(ctx.identity) or None. body: a digest of the body (only rules.wants_body and a POST), or None.
            # None: not cacheable after all (request.why).
        found = tier[key]                                 # StoredResponse, or Vary -> tier[vary.c_key(key, ctx.headers)]
        verdict = judge(found or None, request, now)      # or found.c_judge(request, now)
    CACHE_FRESH                    request.simple: write found.head, c_tail(rules, now), CRLF, and found.body unless request.head.
                                   else: status, head, body = found.answer(request): 200, 206, 304 or 416; then the tail and CRLF.
                                   `Age` and `Cache-Status` are in the tail; `Date` stays the origin's (RFC 9110 §6.6.1).
    CACHE_STALE_WHILE_REVALIDATE   the same answer now, and a request to the origin in the background, as for REVALIDATE.
    CACHE_REVALIDATE               forward without REPLACED_FIELDS, with found.conditions(). On 304: `rules.update(request, found,
                                   headers, …)`, finish(found.body), answer the client from that, keep it if decision.storable.
                                   On another answer: as for a miss. On 5xx or a dead origin: c_may_serve_on_error(request, now).
    CACHE_MISS                     forward as it came. decision = rules.c_store(request, status, reason, headers, sent_ns, came_ns);
                                   if storable and the body turned out to be whole and within min_size..max_size:
                                   put decision.c_finish(body) under `key`, or, when decision.vary is not empty, under
                                   Vary.c_key(key, …) with the `Vary` itself under `key` (`vary = merge_vary(old, decision.vary)`).
                                   Tags: decision.tags. Until when to keep: stored.keep_until_ns.
                                   Only decide on an answer whose `Connection`-listed fields were dropped.
    CACHE_ONLY_IF_CACHED           504.
    HEAD forwarded, answered 200   rules.update_from_head(...): None means purge the stored one.
    request.unsafe, answered       rules.invalidated(request, status, headers, secure, authority, path, query): URL keys to purge,
                                   each as a key and as a tag.
    Cache-Status of what is forwarded: rules.forwarded(b"uri-miss" | b"vary-miss" | b"stale" | b"request" | b"bypass" | b"method", …).

Choices, where the RFCs leave one: the digits that an invalid `Age` begins with count, else it is ignored; two different `max-age` make the response stale;
partial answers (206) are not stored; request directives are obeyed unless `client_control` is off; an answer that says nothing about
freshness is not stored for a request with cookies that are not in the key.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

import hashlib
import os

from fastgate._core.pipeline.context cimport M_GET, M_HEAD, M_OPTIONS, M_POST, M_TRACE, method_number
from fastgate._core.hashing cimport siphash13
from fastgate._core.http.headers cimport (
    FIELD,
    TOKEN,
    H_CONNECTION,
    H_CONTENT_LENGTH,
    H_DATE,
    H_DROPPED,
    H_LAST_HOP_BY_HOP,
    H_OTHER,
    H_TRAILER,
    H_X_REQUEST_ID,
    MAX_FIELDS,
    Headers,
    HeadWriter,
    field_t,
    header_id,
    name_equal,
    name_valid,
    names_fold,
    value_valid,
)
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.http.scan cimport name_run, plain_run
from fastgate._core.http.urlpath cimport normal_url
from fastgate._core.cache.http_fields cimport (
    CC_IMMUTABLE,
    CC_MALFORMED,
    CC_MUST_REVALIDATE,
    CC_MUST_UNDERSTAND,
    CC_NO_CACHE,
    CC_NO_STORE,
    CC_ONLY_IF_CACHED,
    CC_PRIVATE,
    CC_PROXY_REVALIDATE,
    CC_PUBLIC,
    CC_SEEN,
    NO_DATE,
    SECONDS_INVALID,
    SECONDS_UNSET,
    date_read,
    date_text,
    directives_clear,
    directives_read,
    directives_structured,
    directives_t,
    etag_listed,
    normalised,
    seconds_read,
)

__all__ = [
    "BYPASS",
    "FRESH",
    "MISS",
    "ONLY_IF_CACHED",
    "REPLACED_FIELDS",
    "REVALIDATE",
    "STALE_WHILE_REVALIDATE",
    "Decision",
    "RequestRules",
    "Rules",
    "StoredResponse",
    "Vary",
    "identity_key",
    "judge",
    "merge_vary",
    "url_pattern",
    "url_tag",
]

MISS = CACHE_MISS
FRESH = CACHE_FRESH
STALE_WHILE_REVALIDATE = CACHE_STALE_WHILE_REVALIDATE
REVALIDATE = CACHE_REVALIDATE
ONLY_IF_CACHED = CACHE_ONLY_IF_CACHED
BYPASS = CACHE_BYPASS

#: Fields of the client's request that do not go upstream when a stored answer is revalidated or refreshed: the gateway asks for the
#: whole answer, under its own conditions.
REPLACED_FIELDS = (b"if-none-match", b"if-modified-since", b"range", b"if-range")

cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t AHEAD_NS = 5_000_000_000           # by how much the clocks of two machines of a fleet may differ
cdef int64_t FOR_EVER = INT64_MAX // 4
# Mixed into checksums, so that a record of another format never passes by chance. Not a secret: it finds damage, not forgery.
cdef uint64_t[2] CHECK_KEY = [0x6661737467617465, 0x6361636865763031]

cdef enum:
    CONSUMER_AUTO = 0
    CONSUMER_PRIVATE = 1
    CONSUMER_SHARED = 2
    PRIVATE_NEVER = 0
    PRIVATE_CONSUMER = 1
    PRIVATE_SHARE = 2
    COOKIES_NEVER = 0
    COOKIES_STRIP = 1
    COOKIES_STORE = 2
    QUERY_ALL = 0
    QUERY_NONE = 1
    QUERY_LISTED = 2
    MAX_TAGS = 128                  # of the origin
    MOST_TAGS = 255                 # with the route's and the URL's: what every tier holds for one response
    MAX_TAG = 1024
    MAX_NAMES = 32                  # of fields that the answers of one URL vary by
    MAX_NAME = 256
    MAX_RANGES = 16                 # more is an attack on the sender (RFC 9110 §17.15)

# RFC 9110 §15.1: cacheable when they say nothing about it.
cdef frozenset HEURISTIC_STATUSES = frozenset((200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501))
# What `must-understand` asks for: the caching requirements of these are known and kept (RFC 9111 §5.2.2.3).
cdef frozenset UNDERSTOOD = frozenset((200, 203, 204, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 406, 407, 408, 409, 410, 411,
                                       412, 413, 414, 415, 416, 417, 421, 422, 426, 428, 429, 431, 451, 500, 501, 502, 503, 504, 505,
                                       511))
# Request fields by which some frameworks take another path, method or host than the one in the key. Unless one is in the key, a
# request that carries it does not touch the cache. (X-Forwarded-* goes upstream for trusted proxies alone, and is in their keys.)
cdef frozenset OVERRIDES = frozenset((b"x-override-url", b"x-http-method-override", b"x-http-method", b"x-method-override"))
# What differs with every request, or is asked by the cache itself in place of the client.
cdef frozenset NEVER_VARY = frozenset((b"x-request-id", *REPLACED_FIELDS))
# Methods without effects (RFC 9110 §9.2.1, RFC 4918, 3253, 5323, and QUERY).
cdef frozenset SAFE_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"REPORT", b"SEARCH", b"QUERY"))
# Fields of a 304 that do not replace the stored ones, since the stored body depends on them (RFC 9111 §3.2).
cdef frozenset KEPT_ON_UPDATE = frozenset((b"content-encoding", b"content-length", b"content-md5", b"content-range", b"etag", b"digest",
                                           b"content-digest", b"repr-digest"))
# Fields of a 200 that a 304 does not carry (RFC 9110 §15.4.5).
cdef frozenset NOT_IN_304 = frozenset((b"content-encoding", b"content-language", b"content-length", b"content-md5", b"content-range",
                                       b"content-type", b"content-digest"))


cdef inline int64_t clamped(int64_t seconds) noexcept nogil:
    return seconds * SECOND_NS


cdef inline bint field_is(const field_t* f, const char* lower, int n) noexcept nogil:
    return f.name_n == n and name_equal(f.name, lower, n)


cdef bytes combined(Headers headers, const char* lower, Py_ssize_t n):
    """Every value under the name as one list, or None (RFC 9110 §5.3)."""
    cdef bytes out = None
    cdef int i
    for i in range(headers.count):
        if headers.fields[i].id != H_DROPPED and field_is(&headers.fields[i], lower, <int>n):
            out = headers.value_at(i) if out is None else out + b"," + headers.value_at(i)
    return out


cdef bytes other_spellings(Headers headers, const char* lower, Py_ssize_t n):
    """The fields that an upstream may take for this name, which they spell in another way (`X_Lang`); None when there are none."""
    cdef bytes out = None
    cdef field_t* f
    cdef int i
    for i in range(headers.count):
        f = &headers.fields[i]
        if f.name_n == n and f.id != H_DROPPED and names_fold(f.name, lower, n) and not name_equal(f.name, lower, n):
            out = (b"" if out is None else out) + counted(f.name[:n].lower()) + counted(headers.value_at(i))
    return out


cdef Headers headers_of(object value):
    return value if isinstance(value, Headers) else Headers(value)


def identity_key(identity):
    """What tells this identity's answers from others': consumer, tier, scopes and roles. None for no identity."""
    if identity is None:
        return None
    return (<Identity?>identity).cache_key()


cdef bytes url_of(bint secure, bytes authority, bytes path, bytes part, bytes route, bytes consumer):
    """scheme://authority/path?query, the authority in lower case, then the route's part and the consumer's (or None), in one go."""
    cdef Py_ssize_t scheme_n = 8 if secure else 7
    cdef Py_ssize_t authority_n = PyBytes_GET_SIZE(authority), path_n = PyBytes_GET_SIZE(path), part_n = PyBytes_GET_SIZE(part)
    cdef Py_ssize_t route_n = PyBytes_GET_SIZE(route), consumer_n = 0 if consumer is None else 10 + PyBytes_GET_SIZE(consumer)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, scheme_n + authority_n + path_n + part_n + route_n + consumer_n)
    cdef char* p = PyBytes_AS_STRING(out)
    cdef const char* a = PyBytes_AS_STRING(authority)
    cdef Py_ssize_t i
    memcpy(p, b"https://" if secure else b"http://", scheme_n)
    p += scheme_n
    for i in range(authority_n):
        p[i] = a[i] + 32 if 65 <= a[i] <= 90 else a[i]
    p += authority_n
    memcpy(p, PyBytes_AS_STRING(path), path_n)
    p += path_n
    memcpy(p, PyBytes_AS_STRING(part), part_n)
    p += part_n
    memcpy(p, PyBytes_AS_STRING(route), route_n)
    if consumer is not None:
        p += route_n
        memcpy(p, b"\0consumer ", 10)
        memcpy(p + 10, PyBytes_AS_STRING(consumer), consumer_n - 10)
    return out


cdef bytes counted(bytes value):
    """A part of a key with its length before it, so that no value can look like the parts behind it."""
    return b"%d:" % len(value) + value


def url_pattern(bytes pattern not None):
    r"""The pattern over keys for one over URLs, which stand at the beginning of keys. ValueError: a lone `\` at its end."""
    if (len(pattern) - len(pattern.rstrip(b"\\"))) & 1:
        raise ValueError(f"pattern: expected no lone \\ at the end, got {pattern!r}")
    return pattern + b"\0*"


def url_tag(bytes url not None):
    """The tag that every response of this URL carries, by which all of them are purged: whichever route, consumer or variant they
    are for. Of one length, so that a long URL can be purged, and with a NUL, so that no origin's tag is equal to it."""
    return b"\0url " + hashlib.blake2b(url, digest_size=16).digest()


cdef int choice(str name, object value, dict known) except -1:
    """known[value], or ValueError."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return known[value]


cdef class Rules:
    """Rules(*, ttl_ns=0, respect="origin", methods=("GET", "HEAD"), statuses=(200, 203, 204, 300, 301, 308, 404, 410),
        query="all", headers=(), cookies=(), consumer="auto", body=False, tags=(), min_size=0, max_size=16000000,
        stale_while_revalidate_ns=0, stale_if_error_ns=0, heuristic_max_ns=86400000000000, private="never",
        set_cookie="never", share_private=False, max_variants=64, max_vary=8, targeted=("CDN-Cache-Control",),
        client_control=True, enforce=True, status_name="fastgate", route=b"", shown=(), secrets=(), never_vary=())\n--\n
    One route's cache settings, ready for use. Durations are nanoseconds, sizes bytes.

    ttl_ns       how long a response is fresh that states nothing about it; 0, the default: see heuristic_max_ns
    respect      "origin" (default) or "override": ttl_ns holds for the listed statuses whatever the origin states
    methods      "GET" brings "HEAD"; "POST" counts together with body
    statuses     those that ttl_ns holds for; others are stored if the origin gives them a lifetime
    headers      names of request fields that are part of the key
    cookies      names of cookies that are part of the key
    body         True: the body of a POST is part of the key
    tags         of every response, for purges
    min_size, max_size   bounds on the stored body; 0 and 16 000 000
    stale_while_revalidate_ns, stale_if_error_ns   how long after its expiry a response is served while a new one is fetched, and
                 when the origin fails, if it states nothing about that; 0
    heuristic_max_ns   bound on the freshness guessed from Last-Modified; one day. 0: no guessing
    max_variants, max_vary   variants of one key, and names in a Vary that is stored; 64 and 8
    targeted     names of Cache-Control fields for caches like this one (RFC 9213), the first that is there counts
    client_control   False: Cache-Control of requests does not count
    enforce      for the caller, who serves nothing from the cache when it is False
    status_name  of this cache in Cache-Status; "" for no such field
    query        "all", "none", or the names of the parameters that make a difference
    consumer     "auto", "private" or "shared"
    private      "never", "consumer" or "share"
    set_cookie   "never", "strip" or "store"
    share_private  the second word on what would share one client's answer with another
    route        what tells this route's responses from those of other routes for the same URL
    shown        names of fields that are in the key without being settings: the route chose by them, or the gateway sets them
    secrets      names of fields that are in the key like those of `shown`, but as a digest
    never_vary   names of fields that differ with every request, or that the cache replaces: what varies by them is not stored
    ValueError: another word than those listed, a status_name that is too long, or sharing without share_private.
    """

    def __init__(self, *, ttl_ns=0, respect="origin", methods=("GET", "HEAD"), statuses=(200, 203, 204, 300, 301, 308, 404, 410),
                 query="all", headers=(), cookies=(), consumer="auto", body=False, tags=(), min_size=0, max_size=16_000_000,
                 stale_while_revalidate_ns=0, stale_if_error_ns=0, heuristic_max_ns=86_400_000_000_000, private="never",
                 set_cookie="never", share_private=False, max_variants=64, max_vary=8, targeted=("CDN-Cache-Control",),
                 client_control=True, enforce=True, status_name="fastgate", bytes route=b"", shown=(), secrets=(), never_vary=()):
        self.ttl_ns = ttl_ns
        self.override = choice("respect", respect, {"origin": False, "override": True})
        self.caches_post = "POST" in methods and body
        self.statuses = frozenset(statuses)
        self.query = QUERY_ALL if query == "all" else QUERY_NONE if query == "none" else QUERY_LISTED
        self.route = b"\0route " + route if route else b""
        self.never_vary = NEVER_VARY.union(name.encode().lower() for name in never_vary)
        self.query_names = frozenset(name.encode().lower() for name in query) if self.query == QUERY_LISTED else frozenset()
        self.key_headers = tuple(sorted({name.encode().lower() for name in (*headers, *shown, *secrets)}))
        self.secrets = frozenset(name.encode().lower() for name in secrets)
        self.key_cookies = tuple(sorted(name.encode() for name in cookies))
        self.consumer = choice("consumer", consumer, {"auto": CONSUMER_AUTO, "private": CONSUMER_PRIVATE, "shared": CONSUMER_SHARED})
        self.wants_consumer = self.consumer != CONSUMER_SHARED
        self.wants_body = self.caches_post
        self.tags = tuple(tag.encode() for tag in tags)
        self.min_size = min_size
        self.max_size = max_size
        self.swr_ns = stale_while_revalidate_ns
        self.sie_ns = stale_if_error_ns
        self.heuristic_max_ns = heuristic_max_ns
        self.private = choice("private", private, {"never": PRIVATE_NEVER, "consumer": PRIVATE_CONSUMER, "share": PRIVATE_SHARE})
        self.cookies_set = choice("set_cookie", set_cookie, {"never": COOKIES_NEVER, "strip": COOKIES_STRIP, "store": COOKIES_STORE})
        self.share_private = share_private
        if not share_private and (consumer == "shared" or private == "share" or set_cookie != "never"):
            raise ValueError("these settings share private answers: share_private must say so too")
        self.max_variants = max_variants
        self.max_vary = max_vary
        self.targeted = tuple(name.encode().lower() for name in targeted)
        self.client_control = client_control
        self.enforce = enforce
        self.extra = bool(self.key_headers or self.key_cookies)
        name = status_name.encode()
        self.status_name = name
        self.status_n = 0
        if name:
            line = b"Cache-Status: " + name + b"; hit; ttl="
            if len(line) > <Py_ssize_t>sizeof(self.status_head):
                raise ValueError(f"status_name: at most {sizeof(self.status_head) - 26} characters")
            memcpy(self.status_head, <const char*>(<bytes>line), len(line))
            self.status_n = <int>len(line)

    # --- the request ---

    cdef RequestRules c_read(self, int method_id, bytes method, Headers headers, bint has_body):
        """What the request says to a cache. has_body: it has content; a GET with content never touches the cache."""
        cdef RequestRules r = RequestRules.__new__(RequestRules)
        cdef directives_t cc
        cdef field_t* f
        cdef int i, n
        cdef bint overridden = False, direct = False, pragma = False, foreign = False
        r.headers = headers
        r.cacheable = True
        if method_id == M_HEAD:
            r.head = True
        elif method_id == M_POST and self.caches_post:
            r.post = True
        elif method_id != M_GET:
            r.cacheable = False
            r.why = "method"
            r.unsafe = not (method_id == M_OPTIONS or method_id == M_TRACE or method in SAFE_METHODS)
            return r
        if has_body and not r.post:
            return self.bypass(r, "body")
        for i in range(headers.count):
            f = &headers.fields[i]
            if f.id != H_OTHER:
                continue
            n = f.name_n
            if n == 13:
                if name_equal(f.name, b"cache-control", 13):
                    if not direct:
                        directives_clear(&cc)
                        direct = True
                    directives_read(&cc, f.value, f.value_n, None)
                elif name_equal(f.name, b"if-none-match", 13):
                    if r.if_none_match < 0:
                        r.if_none_match = i
                    else:
                        foreign = True
                elif name_equal(f.name, b"authorization", 13):
                    r.authorized = True
                    r.authorization = i
                else:
                    overridden = overridden or self.overrides(f)
            elif n == 6:
                if name_equal(f.name, b"cookie", 6):
                    r.cookies = True
                elif name_equal(f.name, b"pragma", 6):
                    pragma = pragma or (f.value_n == 8 and name_equal(f.value, b"no-cache", 8))
                else:
                    overridden = overridden or self.overrides(f)
            elif n == 17:
                if name_equal(f.name, b"if-modified-since", 17):
                    r.if_modified_since = i
                else:
                    overridden = overridden or self.overrides(f)
            elif n == 5:
                if name_equal(f.name, b"range", 5):
                    if r.range >= 0:
                        foreign = True
                    r.range = i
            elif n == 8:
                if name_equal(f.name, b"if-range", 8):
                    r.if_range = i
                elif name_equal(f.name, b"if-match", 8):
                    foreign = True
            elif n == 19:
                if name_equal(f.name, b"if-unmodified-since", 19):
                    foreign = True
            elif n >= 12 and n <= 22 or n == 6:
                overridden = overridden or self.overrides(f)
        if foreign:                     # for the origin alone (RFC 9111 §4.3.2), or given twice
            return self.bypass(r, "condition")
        if overridden:
            return self.bypass(r, "override")
        r.simple = r.if_none_match < 0 and r.if_modified_since < 0 and r.range < 0
        r.plain = True
        if direct and cc.flags:
            r.flags = cc.flags
            if cc.flags & CC_NO_STORE:
                return self.bypass(r, "no_store")
            if cc.sie >= 0:
                r.sie_ns = clamped(cc.sie)
            if not self.client_control:
                r.flags &= CC_ONLY_IF_CACHED
            else:
                if cc.max_age >= 0:
                    r.max_age_ns = clamped(cc.max_age)
                if cc.min_fresh >= 0:
                    r.min_fresh_ns = clamped(cc.min_fresh)
                if cc.max_stale >= 0:
                    r.max_stale_ns = clamped(cc.max_stale)
            r.plain = not (r.flags & (CC_NO_CACHE | CC_ONLY_IF_CACHED)) and r.max_age_ns < 0 and r.min_fresh_ns == 0 \
                and r.max_stale_ns < 0
        elif pragma and self.client_control:            # RFC 9111 §5.4: only without Cache-Control
            r.flags = CC_NO_CACHE
            r.plain = False
        return r

    cdef RequestRules bypass(self, RequestRules r, str why):
        r.cacheable = False
        r.why = why
        return r

    cdef bint overrides(self, field_t* f):
        """True for a field that may change which resource is meant, and that is not in the key."""
        cdef bytes lower
        if f.name[0] != c"X" and f.name[0] != c"x":
            return False
        lower = (<bytes>f.name[:f.name_n]).lower().replace(b"_", b"-").replace(b".", b"-")
        return lower in OVERRIDES and lower not in self.key_headers

    def read_request(self, str method not None, headers=(), bint has_body=False):
        """RequestRules of a request; headers: a `Headers` or (name, value) pairs."""
        cdef bytes raw = method.encode("latin-1")
        return self.c_read(method_number(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)), raw, headers_of(headers), has_body)

    # --- the key ---

    cdef bytes query_part(self, bytes query):
        """The query as the key has it, with its question mark; b"" when there is none. None: it must not be cached.

        Parameters are sorted by name, those of one name keep their order. With an allow list a name is compared as an origin
        could read it: unescaped, without case, up to a bracket. A parameter that is left out must be nothing to anyone: one with
        a `;` could hide another from us (parameter cloaking), so such a request is not cached.
        """
        cdef list parts
        cdef list kept = []
        cdef bytes name
        if query is None or self.query == QUERY_NONE:
            return b""
        if self.query == QUERY_ALL:
            if memchr(PyBytes_AS_STRING(query), c"&", PyBytes_GET_SIZE(query)) == NULL:
                return b"?" + query
            parts = query.split(b"&")
            parts.sort(key=before_equals)
            return b"?" + b"&".join(parts)
        for part in query.split(b"&"):
            name = parameter_name(before_equals(part))
            if name in self.query_names:
                kept.append(part)
            elif b";" in part or b"%3b" in part.lower():
                return None
        kept.sort(key=before_equals)
        return b"?" + b"&".join(kept) if kept else b""

    cdef bytes c_url(self, bint secure, bytes authority, bytes path, bytes query):
        """The key's URL part, which all responses for this URL share, whoever asks; None as for query_part."""
        cdef bytes part = self.query_part(query)
        if part is None:
            return None
        return url_of(secure, authority, path, part, b"", None)

    cdef bytes c_key(self, RequestRules request, bint secure, bytes authority, bytes path, bytes query, bytes consumer, bint shared,
                     bytes shown, bytes body):
        """The primary key; sets request.key and request.url_n. None: not cacheable, request.why says why.

        authority: as it was decided for the request, with its port, since origins build links from it. path: normalised, as it goes
        upstream. consumer: `identity_key` of who asks, or None. shared: many have this identity, so that nothing under its key is
        private. shown: what else of the request the upstream is shown and may go by, or None.
        """
        cdef bytes part = self.query_part(query)
        cdef list parts
        cdef bytes value, raw
        cdef Headers sent = request.headers if request.sent is None else request.sent
        if part is None:
            self.bypass(request, "cloaked")
            return None
        if consumer is not None and self.consumer == CONSUMER_SHARED:
            consumer = None
        if self.consumer == CONSUMER_PRIVATE and (consumer is None or shared):
            self.bypass(request, "anonymous")
            return None
        request.keyed_private = consumer is not None and not shared
        request.url_n = (8 if secure else 7) + PyBytes_GET_SIZE(authority) + PyBytes_GET_SIZE(path) + PyBytes_GET_SIZE(part)
        request.key = url_of(secure, authority, path, part, self.route, consumer)
        if not self.extra and shown is None and not request.post and (consumer is None or request.authorization < 0):
            return request.key
        # What follows has its length before it. The parts before it have not, and need none: a URL holds no NUL, and the route's part
        # and an identity's have each one length.
        parts = [request.key]
        if request.post:
            if body is None:
                self.bypass(request, "body")
                return None
            parts.append(b"\0POST " + counted(body))
        if consumer is not None and request.authorization >= 0:
            raw = request.headers.value_at(request.authorization)
            parts.append(b"\0authorization " + counted(hashlib.blake2b(raw, digest_size=16).digest()))
        if shown is not None:
            parts.append(b"\0shown " + counted(shown))
        for name in self.key_headers:
            value = combined(sent, <bytes>name, len(name))
            parts.append(b"\0header " + name)
            if value is not None and name in self.secrets:
                parts.append(b"#" + counted(hashlib.blake2b(value, digest_size=16).digest()))
            elif value is not None:
                parts.append(b":" + counted(normalised(<bytes>name, len(name), value)))
            value = other_spellings(sent, <bytes>name, len(name))
            if value is not None:
                parts.append(b"~" + counted(hashlib.blake2b(value, digest_size=16).digest()))
        if self.key_cookies:
            parts.append(b"\0cookies " + counted(cookies_part(self.key_cookies, sent)))
        request.key = b"".join(parts)
        return request.key

    def url_key(self, bint secure, bytes authority not None, bytes path not None, query=None):
        """The URL part of a key."""
        return self.c_url(secure, authority, path, query)

    @property
    def query_form(self):
        """What this route takes of a query: routes with equal ones have equal URL parts."""
        return self.query, self.query_names

    def key(self, RequestRules request not None, bint secure, bytes authority not None, bytes path not None, query=None, consumer=None,
            body=None, *, bint shared=False, shown=None):
        """The primary key of a request, or None."""
        if request.headers is None:
            raise ValueError("request: expected one that read_request made")
        return self.c_key(request, secure, authority, path, query, consumer, shared, shown, body)

    # --- the answer ---

    cdef Decision c_store(self, RequestRules request, int status, bytes reason, Headers headers, int64_t request_ns,
                          int64_t response_ns):
        """Whether the answer may be stored, and how long. The times: when the request was sent and when the head came."""
        return self.decide(request, status, reason, headers, request_ns, response_ns, False)

    cdef Decision decide(self, RequestRules request, int status, bytes reason, Headers headers, int64_t request_ns,
                         int64_t response_ns, bint merged):
        """merged: headers are the stored ones with a 304's, so that the answer is made even when it may not be kept."""
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
        d.max_size = self.max_size
        d.min_size = self.min_size
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
            if not special_seen and self.targeted and (n == 17 or n > 3):
                special_seen = self.is_targeted(f)
        if special_seen:
            for name in self.targeted:
                value = combined(headers, <bytes>name, len(name))
                if value is not None and directives_structured(&special, value):
                    cc = special
                    expiries = 0
                    listed = []
                    break
        # May it be stored?
        public = (cc.flags & (CC_PUBLIC | CC_MUST_REVALIDATE)) != 0 or cc.s_maxage != SECONDS_UNSET
        if cc.flags & CC_MALFORMED:
            why = "malformed"
        elif cc.flags & CC_MUST_UNDERSTAND and status not in UNDERSTOOD:
            why = "not_understood"
        elif cc.flags & CC_NO_STORE and not self.override and not cc.flags & CC_MUST_UNDERSTAND:
            why = "no_store"
        elif cc.flags & CC_PRIVATE and self.private != PRIVATE_SHARE and not (
                self.private == PRIVATE_CONSUMER and request.keyed_private and (not request.cookies or self.key_cookies)):
            why = "private"                         # a cookie may say more of who it is than the key does
        elif cookie and self.cookies_set == COOKIES_NEVER and b"set-cookie" not in listed:
            why = "set_cookie"
        elif star:
            why = "vary_star"
        elif vary is not None and len(vary) > self.max_vary:
            why = "vary_limit"
        elif request.authorized and not request.keyed_private and not public and self.consumer != CONSUMER_SHARED \
                and b"authorization" not in self.key_headers:
            why = "authorization"
        elif tags is not None and (len(tags) > MAX_TAGS or len(tags) + len(self.tags) >= MOST_TAGS):
            why = "tags"
        elif vary is not None and not self.never_vary.isdisjoint(vary):
            why = "vary_unique"                     # no two requests are alike
        elif vary is not None and not are_tokens(vary):
            why = "vary_malformed"
        # How old is it? (RFC 9111 §4.2.3)
        if dates != 1 or d.date_s == NO_DATE:
            d.date_s = now_s
        apparent = now_s - d.date_s
        if apparent < 0:
            apparent = 0
        age_ns = (clamped(age) if age > 0 else 0) + (response_ns - request_ns if response_ns > request_ns else 0)
        if clamped(apparent) > age_ns:
            age_ns = clamped(apparent)
        # For how long is it fresh? (RFC 9111 §4.2.1)
        explicit = True
        if self.override and status in self.statuses:
            lifetime = self.ttl_ns
            cc.flags &= ~CC_NO_CACHE
        elif cc.s_maxage != SECONDS_UNSET:
            lifetime = clamped(cc.s_maxage) if cc.s_maxage > 0 else 0
        elif cc.max_age != SECONDS_UNSET:
            lifetime = clamped(cc.max_age) if cc.max_age > 0 else 0
        elif expiries:
            # Two different ones: the earlier. A lifetime that is negative or beyond all bounds is cut.
            lifetime = expires - d.date_s
            lifetime = clamped(0 if lifetime < 0 else lifetime if lifetime < 2147483648 else 2147483648)
        else:
            explicit = False
            lifetime = -1
            if status in self.statuses and self.ttl_ns > 0:
                lifetime = self.ttl_ns
            elif d.modified_s != NO_DATE and self.heuristic_max_ns > 0 and (status in HEURISTIC_STATUSES or cc.flags & CC_PUBLIC):
                lifetime = clamped(d.date_s - d.modified_s) // 10 if d.date_s > d.modified_s else 0
                if lifetime > self.heuristic_max_ns:
                    lifetime = self.heuristic_max_ns
                d.flags |= STORED_HEURISTIC
            if not why and request.cookies and not request.keyed_private and not self.key_cookies \
                    and not self.share_private and not cc.flags & CC_PUBLIC:
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
        # And afterwards? s-maxage forbids stale use as proxy-revalidate does (RFC 9111 §5.2.2.10), except where the same answer
        # permits it by RFC 5861.
        hard = cc.flags & (CC_MUST_REVALIDATE | CC_PROXY_REVALIDATE | CC_NO_CACHE) != 0
        swr = sie = 0
        if not hard:
            swr = clamped(cc.swr) if cc.swr >= 0 else 0 if cc.s_maxage != SECONDS_UNSET and not self.override else self.swr_ns
            sie = clamped(cc.sie) if cc.sie >= 0 else 0 if cc.s_maxage != SECONDS_UNSET and not self.override else self.sie_ns
        if hard or (cc.s_maxage != SECONDS_UNSET and not self.override):
            d.flags |= STORED_NO_STALE
        d.lifetime_ns = lifetime
        d.implied = (not explicit or (self.override and status in self.statuses)) and not d.flags & STORED_NO_CACHE
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
        d.tags = self.tags if tags is None else self.tags + tuple(tags)
        if request.key is not None:
            d.tags += (url_tag(request.key[:request.url_n]),)
        if cookie and self.cookies_set == COOKIES_STRIP:
            listed.append(b"set-cookie")
        d.head = head_of(status, reason, headers, listed, d.date_s if dates != 1 or not request_date_valid(headers, now_s) else NO_DATE)
        return d

    cdef bint is_targeted(self, field_t* f):
        for name in self.targeted:
            if field_is(f, <bytes>name, <int>len(name)):
                return True
        return False

    def store(self, RequestRules request not None, int status, headers, int64_t request_ns, int64_t response_ns, bytes reason=b"OK"):
        """Decision on an answer; headers: a `Headers` or (name, value) pairs."""
        return self.c_store(request, status, reason, headers_of(headers), request_ns, response_ns)

    def update(self, RequestRules request not None, StoredResponse stored not None, headers, int64_t request_ns, int64_t response_ns):
        """Decision on a stored answer that a 304 with these fields has confirmed (RFC 9111 §4.3.4); finish it with stored.body.

        storable False: it may answer this request, but not be kept. None: the 304 is about another answer, by its validator, so the
        stored one may answer this request as it is, and is not freshened.
        """
        cdef Headers fresh = headers_of(headers)
        cdef field_t* f = fresh.find_field(b"etag", 4)
        if not stored.head:
            raise ValueError("stored: expected one that a Decision or from_bytes made")
        if f != NULL and stored.etag is not None and f.value[:f.value_n] != stored.etag and not (
                weak(f.value[:f.value_n]) and weak(stored.etag)):
            return None
        return self.decide(request, stored.status, stored.reason(), stored.merged(fresh), request_ns, response_ns, True)

    def update_from_head(self, RequestRules request not None, StoredResponse stored not None, headers, int64_t request_ns,
                         int64_t response_ns):
        """Decision on a stored answer after a 200 to HEAD (RFC 9111 §4.3.5), or None when it is another answer now: purge it."""
        cdef Headers fresh = headers_of(headers)
        cdef field_t* f = fresh.find_field(b"etag", 4)
        cdef bytes value
        if stored.status != 200 or (f != NULL and f.value[:f.value_n] != stored.etag):
            return None
        f = fresh.find_field(b"last-modified", 13)
        if f != NULL and date_read(f.value, f.value_n, response_ns // SECOND_NS) != stored.modified_s:
            return None
        f = fresh.find_id(H_CONTENT_LENGTH)
        if f != NULL and f.value[:f.value_n] != str(len(stored.body)).encode():
            return None
        decision = self.decide(request, stored.status, stored.reason(), stored.merged(fresh), request_ns, response_ns, True)
        return decision if decision.storable else None

    # --- invalidation ---

    def invalidated(self, RequestRules request not None, int status, headers, bint secure, bytes authority not None,
                    bytes path not None, query=None, *, bint merge=True):
        """The URL keys that a response to this request invalidates (RFC 9111 §4.4): none unless the method is unsafe and the response
        is no error; the target, and what Location and Content-Location name on the same origin.
        merge: paths have no empty segments (`server.merge_slashes`)."""
        cdef list out = []
        cdef Headers table = headers_of(headers)
        if not request.unsafe or not 200 <= status < 400:
            return out
        own = self.c_url(secure, authority, path, query)
        if own is not None:
            out.append(own)
        from urllib.parse import urljoin

        base = ((b"https://" if secure else b"http://") + authority + path).decode("latin-1")
        for name in (b"location", b"content-location"):
            value = table.find(<bytes>name, len(name))
            if value is None or len(value) > 8192:
                continue
            try:
                target = normal_url(urljoin(base, (<bytes>value).decode("latin-1")).encode("latin-1"), merge)
            except ValueError:
                continue
            if target[0] != secure or target[1] != authority:
                continue
            found = self.c_url(secure, authority, target[2], target[3])
            if found is not None and found not in out:
                out.append(found)
        return out

    # --- Cache-Status ---

    def forwarded(self, bytes why not None, int status=0, bint stored=False, bint collapsed=False, detail=None):
        """The Cache-Status line of an answer that came from the origin; b"" when they are off."""
        if self.status_n == 0:
            return b""
        line = b"Cache-Status: " + self.status_name + b"; fwd=" + why
        if status:
            line += b"; fwd-status=" + str(status).encode()
        if stored:
            line += b"; stored"
        if collapsed:
            line += b"; collapsed"
        if detail:
            line += b"; detail=" + detail
        return line + b"\r\n"


cdef int64_t age_read(const char* p, Py_ssize_t n) noexcept:
    """The seconds in an Age field (RFC 9111 §5.1): of several members the first counts. A member that begins with digits and goes on
    (`7200.0`, `7200;x=1`) counts as these digits: ignoring it would make an old response young. SECONDS_INVALID is to be ignored."""
    cdef Py_ssize_t digits = 0
    while digits < n and c"0" <= p[digits] <= c"9":
        digits += 1
    return seconds_read(p, digits)


cdef bint are_tokens(names) except -1:
    """True if each is a field name (RFC 9110 §5.1) of a length that can be kept."""
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not name_valid(<bytes>name, len(name)):
            return False
    return True


cdef Decision refused(Decision d, str why):
    d.storable = False
    d.why = why
    return d


cdef bint weak(bytes etag):
    return etag[:2] == b"W/"


cdef bint request_date_valid(Headers headers, int64_t now_s):
    cdef field_t* f = headers.find_id(H_DATE)
    return f != NULL and date_read(f.value, f.value_n, now_s) != NO_DATE


cdef list add_tags(list tags, list more):
    if tags is None:
        tags = []
    for tag in more:
        # A tag beyond all bounds counts as many: the answer is then not stored, since a purge by it would not find it.
        if len(tag) > MAX_TAG:
            tags.extend([b""] * (MAX_TAGS + 1))
        elif tag and tag not in tags:
            tags.append(tag)
    return tags


cpdef bytes before_equals(bytes part):
    return part.partition(b"=")[0]


cdef bytes parameter_name(bytes raw):
    """The name as the most generous origin could read it."""
    from urllib.parse import unquote_to_bytes

    if b"%" in raw or b"+" in raw:
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    return raw.partition(b"[")[0].strip(b" \t\0").lower()


cdef bytes cookie_name(bytes pair):
    """The name of a cookie as the most generous origin could read it: PHP unescapes it, cuts it at a bracket and takes a dot or a space
    for an underscore."""
    from urllib.parse import unquote_to_bytes

    cdef bytes raw = pair.partition(b"=")[0]
    if b"%" in raw or b"+" in raw:
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    return raw.partition(b"[")[0].strip(b" \t\r\n\v\f\0").replace(b" ", b"_").replace(b".", b"_").lower()


cdef bytes cookies_part(tuple names, Headers headers):
    """The chosen cookies, in the order of the settings; one that is given twice counts with each of its values.

    Lines join with `; ` and split at `;` only (RFC 6265 §5.4). Some origins also split at commas, unescape names, or let a quoted value
    reach beyond a `;`: a pair that could be a chosen cookie to any of them counts as it stands, and so does what lies in open quotes.
    """
    cdef dict wanted = {cookie_name(<bytes>name): [] for name in names}
    cdef list pairs = [], out = []
    cdef bytes part
    cdef set read
    cdef int i
    for i in range(headers.count):
        if headers.fields[i].id != H_DROPPED and field_is(&headers.fields[i], b"cookie", 6):
            pairs.extend(headers.value_at(i).split(b";"))
    for i in range(len(pairs)):
        part = (<bytes>pairs[i]).strip(b" \t")
        read = {cookie_name(<bytes>each) for each in part.split(b",")} if b"," in part else {cookie_name(part)}
        for name in read:
            if name in wanted:
                (<list>wanted[name]).append(part)
        if part.count(b'"') & 1:
            out = [b";".join(pairs[i:])]
            break
    for found in wanted.values():
        out.append(b"%d;" % len(found))
        for part in found:
            out.append(counted(part))
    return b"".join(out)


cdef bytes head_of(int status, bytes reason, Headers headers, list listed, int64_t date_s):
    """Status line and fields as they are stored: nothing of the connection, of its length or its age, and no listed field.
    date_s: the Date to write in place of what came, or NO_DATE."""
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


@cython.freelist(64)
cdef class RequestRules:
    """What one request says to a cache. Made by `Rules.read_request`."""

    def __cinit__(self):
        self.if_none_match = self.if_modified_since = self.range = self.if_range = self.authorization = -1
        self.max_age_ns = self.max_stale_ns = self.sie_ns = -1

    @property
    def url_key(self):
        """The URL part of the key."""
        return None if self.key is None else self.key[:self.url_n]

    def __repr__(self):
        return f"RequestRules(cacheable={self.cacheable}, plain={self.plain}, simple={self.simple}, why={self.why!r})"


@cython.freelist(16)
cdef class Decision:
    """Whether one answer may be stored. `finish` makes what is stored, when the body is whole. Made by `Rules.store`."""

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
        """The StoredResponse. ValueError when there is no head for one: the decision was no."""
        if self.head is None:
            raise ValueError(f"not storable: {self.why}")
        return self.c_finish(body)

    cdef int c_live(self, int64_t lifetime_ns) noexcept:
        """Another lifetime than the rules found; what may be served stale afterwards moves with it."""
        cdef int64_t longer = lifetime_ns - self.lifetime_ns
        if self.fresh_until_ns:
            self.lifetime_ns = lifetime_ns
            self.fresh_until_ns += longer
            self.swr_until_ns += longer
            self.sie_until_ns += longer
        return 0

    def fits(self, uint64_t size):
        """True when a body of this size is within the route's bounds."""
        return self.min_size <= size <= self.max_size

    def __repr__(self):
        return f"Decision({'stored' if self.storable else self.why}, lifetime={self.lifetime_ns / 1e9}s)"


cdef class StoredResponse:
    """One stored answer. Immutable; `to_bytes` and `from_bytes` take it to disk and back. Made by `Decision.finish`."""

    def __cinit__(self):
        self.head = self.body = b""
        self.tags = self.vary = ()
        self.date_s = self.modified_s = NO_DATE

    cdef int c_judge(self, RequestRules r, int64_t now_ns) noexcept:
        cdef int64_t age, left
        if now_ns < self.fresh_until_ns and r.plain and now_ns >= self.stored_ns - AHEAD_NS:
            return CACHE_FRESH
        if now_ns < self.stored_ns - AHEAD_NS:          # the clock was set back: nobody knows how old this is
            return CACHE_ONLY_IF_CACHED if r.flags & CC_ONLY_IF_CACHED else CACHE_REVALIDATE
        age = now_ns - self.born_ns
        left = self.fresh_until_ns - now_ns
        if r.flags & CC_NO_CACHE:
            return CACHE_ONLY_IF_CACHED if r.flags & CC_ONLY_IF_CACHED else CACHE_REVALIDATE
        if left > 0:
            # RFC 8246 §2: a reload (max-age=0) of what is immutable and fresh needs no question to the origin.
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
        """True when this may answer although the origin failed (RFC 5861 §4), as the answer, the route or the request says."""
        if self.flags & STORED_NO_CACHE:
            return False
        if now_ns < self.sie_until_ns or now_ns < self.swr_until_ns:
            return True
        return r is not None and r.sie_ns >= 0 and not self.flags & STORED_NO_STALE and now_ns - self.fresh_until_ns <= r.sie_ns

    cdef int c_tail(self, Rules rules, int64_t now_ns, char* out) noexcept:
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
        """When it is of no use any more. With a validator it outlives its freshness by as long again, at most a day; without one by a
        minute, for clients that take stale answers and for a HEAD that renews it."""
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
        """Bytes it holds, near enough for a budget."""
        cdef Py_ssize_t n = 256 + PyBytes_GET_SIZE(self.head) + PyBytes_GET_SIZE(self.body)
        for tag in self.tags:
            n += 40 + len(tag)
        return n

    def age_s(self, int64_t now_ns):
        """Its age in whole seconds."""
        return max(0, (now_ns - self.born_ns) // SECOND_NS)

    def tail(self, Rules rules, int64_t now_ns):
        """`Age` and `Cache-Status` as a hit carries them."""
        cdef char out[TAIL_ROOM]
        cdef int n = self.c_tail(rules, now_ns, out)
        return out[:n]

    def may_serve_on_error(self, RequestRules request, int64_t now_ns):
        """True when this may answer although the origin failed."""
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
        """The fields that make a request conditional on this answer: (name, value) pairs; [] when it has no validator."""
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
        if p == end:                                # made by hand
            return out
        # Written by head_of, or read by stored_from, which has looked at every line.
        p = <const char*>memchr(p, c"\n", end - p) + 1
        while p < end:
            stop = <const char*>memchr(p, c"\r", end - p)
            colon = <const char*>memchr(p, c":", stop - p)
            out.append_span(p, colon - p, colon + 2, stop - colon - 2, header_id(p, colon - p))
            p = stop + 2
        return out

    cdef Headers merged(self, Headers fresh):
        """The stored fields with those of a newer answer in their place (RFC 9111 §3.2)."""
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
        if b"date" not in replaced:             # the newer answer's date is when it came
            out.drop(b"date", 4)
        if b"age" not in replaced:
            out.drop(b"age", 3)
        return out

    # --- the client's own conditions and ranges ---

    def answer(self, RequestRules request not None):
        """(status, head, body) for a request that may be answered from this: its conditions and ranges applied (RFC 9110 §13.2.2).

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
            return value == self.etag and not weak(value)
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
        """(206 or 416, head, body), or None when the field is to be ignored."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.body), total = 0, start, end
        cdef list ranges = []
        cdef bint any_syntax = False
        if value[:6].lower() != b"bytes=" or len(value) > 1024 or size == 0:
            return None                             # of nothing there is no part, and a 416 would be an error where the whole is none
        for part in value[6:].split(b","):
            part = (<bytes>part).strip(b" \t")
            if not part:
                continue
            first, dash, last = (<bytes>part).partition(b"-")
            if not dash or (first and not first.isdigit()) or (last and not last.isdigit()) or not (first or last):
                return None
            if len(first) > 18 or len(last) > 18:
                return None
            any_syntax = True
            if not first:
                if int(last) == 0:
                    continue
                start = size - int(last) if int(last) < size else 0
                end = size
            else:
                if last and int(last) < int(first):
                    return None
                start = int(first)
                end = min(int(last) + 1, size) if last else size
                if start >= size:
                    continue
            ranges.append((start, end))
            total += end - start
        if not any_syntax or len(ranges) > MAX_RANGES:
            return None
        length = str(size).encode()
        if not ranges:
            return 416, (b"HTTP/1.1 416 Range Not Satisfiable\r\nDate: " + self.field(b"date") + b"\r\nContent-Range: bytes */"
                         + length + b"\r\nContent-Length: 0\r\n"), b""
        if len(ranges) > 1 and total >= size:
            return None                             # overlapping or all of it: the whole is shorter (RFC 9110 §14.2)
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
        """The answer in a record (bytes or any buffer), or None when it is damaged or of another version."""
        cdef const unsigned char[::1] view
        if isinstance(data, bytes):
            return stored_from(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), False)
        view = data
        return stored_from(<const char*>&view[0], view.shape[0], False) if view.shape[0] else None

    def __repr__(self):
        return f"StoredResponse({self.status}, {len(self.body)} bytes)"


# A record, little endian:
#   4 "FGC1" | 8 checksum of what follows | 2 status | 2 flags | 2 tags | 2 vary | 7 × 8 times | 4 etag (or none) | 4 head | 8 body
#   then per tag and per vary name 2 length, and all texts one behind the other
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
    """count texts with their lengths before them; None when they reach beyond the end."""
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
        Py_INCREF(text)                                 # what PyTuple_SET_ITEM takes over
        PyTuple_SET_ITEM(out, i, text)
        at[0] += n
    return out


cdef bint head_whole(const char* p, const char* end, int status, Py_ssize_t body_n, bint* modified) noexcept:
    """True for a head as `head_of` and `c_finish` write it: a status line of that status, then lines of a name, `: ` and a value, among
    them one Date and the body's length, and none of the connection. modified: a Last-Modified is among them."""
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
    """A time that can be added to and subtracted from."""
    return -FOR_EVER <= ns <= FOR_EVER


cdef StoredResponse stored_from(const char* p, Py_ssize_t n, bint intact):
    """The response in a record, or None. The bytes are copied: p may be a map that changes later.

    A checksum finds damage; whoever can write to the store can write that, too. So all that later code relies on is looked at here,
    once: lengths, names, every line of the head, times. intact: the envelope it lay in has a checksum of the same bytes, which was right.
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
    """The decimal digits of value >= 0; how many."""
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


cdef class Vary:
    """Vary(names=())\n--\n
    What the answers of one primary key vary by, and which variants were let in. One per key and worker.

    `names`, bytes each, only grows: a key over more names than an answer varies by separates more than needed, and never less.
    TypeError: a name that is not bytes.
    """

    def __init__(self, names=()):
        self.names = tuple(sorted({bytes(name).lower() for name in names}))
        self.recent = {}
        self.written = -1

    cdef bytes c_key(self, bytes primary, Headers headers):
        """The key of the variant that these fields select (RFC 9111 §4.1): those that went upstream, or would."""
        cdef list parts = []
        cdef bytes value, out
        for name in self.names:
            value = combined(headers, <bytes>name, len(name))
            parts.append(b"\0" + name)
            if value is not None:
                parts.append(b":" + counted(normalised(<bytes>name, len(name), value)))
            value = other_spellings(headers, <bytes>name, len(name))
            if value is not None:
                parts.append(b"~" + counted(hashlib.blake2b(value, digest_size=16).digest()))
        out = b"".join(parts)
        if len(out) > 160:
            out = hashlib.blake2b(out, digest_size=32).digest()
        return primary + b"\0vary" + out

    def key(self, bytes primary not None, headers):
        """The key of the variant that these request fields select."""
        return self.c_key(primary, headers_of(headers))

    def admit(self, bytes key not None, int limit):
        """Note a variant that is stored; the keys of the oldest ones beyond limit, to be removed."""
        cdef list out = []
        self.recent.pop(key, None)
        self.recent[key] = None
        while len(self.recent) > limit:
            oldest = next(iter(self.recent))
            del self.recent[oldest]
            out.append(oldest)
        return out

    @property
    def size(self):
        """Bytes it holds, near enough for a budget; grows in steps, so that it need not be charged anew with each variant."""
        cdef Py_ssize_t n = 1
        while n < len(self.recent):
            n *= 2
        return 512 + n * (160 + (len(next(iter(self.recent))) if self.recent else 0))

    def to_bytes(self):
        """As a record: the names only."""
        return b"FGV1" + b",".join(self.names)

    @staticmethod
    def from_bytes(bytes data not None):
        """The Vary in a record, or None when it is none that was stored."""
        if data[:4] != b"FGV1" or not 4 < len(data) <= 4 + MAX_NAMES * (MAX_NAME + 1):
            return None
        names = data[4:].split(b",")
        return Vary(names) if len(names) <= MAX_NAMES and are_tokens(names) else None

    def __repr__(self):
        return f"Vary({', '.join(name.decode('latin-1') for name in self.names)})"


def merge_vary(old, tuple names not None):
    """The Vary for a key whose newest answer varies by names: old itself when it covers them, else one over all of them. An origin
    that names others each time starts anew at 32; what was kept until then is not found again. TypeError: old is no Vary."""
    if old is None:
        return Vary(names)
    union = {*(<Vary?>old).names, *names}
    if len(union) == len((<Vary>old).names):
        return old
    return Vary(union if len(union) <= MAX_NAMES else names)


def judge(stored, RequestRules request not None, int64_t now_ns):
    """What to do: MISS, FRESH, STALE_WHILE_REVALIDATE, REVALIDATE, ONLY_IF_CACHED or BYPASS.

    stored may be None. request: from Rules.read_request(). now_ns: the wall clock. TypeError: something else.
    """
    if not request.cacheable:
        return CACHE_BYPASS
    if stored is None:
        return CACHE_ONLY_IF_CACHED if request.flags & CC_ONLY_IF_CACHED else CACHE_MISS
    return (<StoredResponse?>stored).c_judge(request, now_ns)
