"""HTTP caching semantics of a shared cache: whether a response may be stored, its lifetime, its key, its use and the bytes sent.

WHAT        RFC 9111 with RFC 9110 §§8, 13, 14 (validators, conditions, ranges), RFC 5861 (stale-while-revalidate,
            stale-if-error), RFC 8246 (immutable), RFC 9211 (Cache-Status), RFC 9213 (CDN-Cache-Control). Pure: no I/O, no clock,
            no storage. `Rules` is what callers use. Its parts: http_settings (one route's settings), http_request (one request),
            http_keys (keys and `Vary`), http_decision (whether one response may be stored), http_stored (a stored response),
            http_ranges.
STATE       `Rules`: immutable. `Vary` belongs to its worker; nothing else is shared between requests or changes after
            construction.
TIMES       int64 ns of CLOCK_REALTIME (not ctx.now_ns, which is monotonic), as they are stored on disk and in Redis.
COST        c_read: about 60 ns for ten fields; c_judge of a plain request: 2 ns; c_tail of a hit: 15 ns.

How the exchange uses it (C names; Python has the same without `c_`):

    request = rules.c_read(ctx.method_id, ctx.method_bytes, ctx.headers, ctx.has_body)
    if request.cacheable:                                 # else CACHE_BYPASS: forward; see `invalidates`
        key = rules.c_key(request, secure, authority, path, query, consumer, shared, shown, body)
            # consumer: identity_key(ctx.identity) or None. body: a digest of the body (only rules.wants_body and a POST), or None.
            # None: not cacheable after all (request.why).
        found = tier[key]                                 # StoredResponse, or Vary -> tier[vary.c_key(key, ctx.headers)]
        verdict = judge(found or None, request, now)      # or found.c_judge(request, now)
    CACHE_FRESH                    request.simple: write found.head, c_tail(rules, now), CRLF, and found.body unless request.head.
                                   else: `status, head, body = found.answer(request)`: 200, 206, 304 or 416; then the tail and CRLF.
                                   `Age` and `Cache-Status` are in the tail; `Date` remains the origin's (RFC 9110 §6.6.1).
    CACHE_STALE_WHILE_REVALIDATE   the same response now, and a request to the origin in the background, as for REVALIDATE.
    CACHE_REVALIDATE               forward without REPLACED_FIELDS, with found.conditions(). On 304: `rules.update(request, found,
                                   headers, …)`, finish(found.body), respond from that, store it if decision.storable.
                                   On another response: as for a miss. On 5xx or a failed origin: c_may_serve_on_error(request, now).
    CACHE_MISS                     forward unchanged. decision = rules.c_store(request, status, reason, headers, sent_ns, came_ns);
                                   if storable and the body turned out to be complete and within min_size..max_size:
                                   put decision.c_finish(body) under `key`, or, when decision.vary is not empty, under
                                   Vary.c_key(key, …) with the `Vary` itself under `key` (`vary = merge_vary(old, decision.vary)`).
                                   Tags: decision.tags. Store until stored.keep_until_ns.
                                   Only decide on a response whose `Connection`-listed fields were dropped.
    CACHE_ONLY_IF_CACHED           504.
    HEAD forwarded, response 200   rules.update_from_head(...): None means purge the stored one.
    request.unsafe, with response  rules.invalidated(request, status, headers, secure, authority, path, query): URL keys to purge,
                                   each as a key and as a tag.
    Cache-Status of a forwarded request: rules.forwarded(b"uri-miss" | b"vary-miss" | b"stale" | b"request" | b"bypass" | b"method", …).

`client_control` off: Cache-Control of requests is ignored. Choices on responses: http_decision.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.cache.http_dates cimport date_read
from fastgate._core.cache.http_decision cimport decide
from fastgate._core.cache.http_fields cimport CC_ONLY_IF_CACHED, etag_weak
from fastgate._core.cache.http_keys cimport primary_key, url_key
from fastgate._core.cache.http_request cimport read_request
from fastgate._core.http.headers cimport H_CONTENT_LENGTH, field_t, headers_of
from fastgate._core.http.urlpath cimport normal_url
from fastgate._core.pipeline.context cimport method_number

from fastgate._core.cache.http_keys import merge_vary, url_pattern, url_tag
from fastgate._core.cache.http_settings import REPLACED_FIELDS

__all__ = [
    "BYPASS",
    "FRESH",
    "MISS",
    "ONLY_IF_CACHED",
    "REPLACED_FIELDS",
    "REVALIDATE",
    "STALE_WHILE_REVALIDATE",
    "Rules",
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

cdef int64_t SECOND_NS = 1_000_000_000


@cython.final
cdef class Rules(CacheSettings):
    """Rules(*, ttl_ns=0, respect="origin", methods=("GET", "HEAD"), statuses=(200, 203, 204, 300, 301, 308, 404, 410),
        query="all", headers=(), cookies=(), consumer="auto", body=False, tags=(), min_size=0, max_size=16000000,
        stale_while_revalidate_ns=0, stale_if_error_ns=0, heuristic_max_ns=86400000000000, private="never",
        set_cookie="never", share_private=False, max_variants=64, max_vary=8, targeted=("CDN-Cache-Control",),
        client_control=True, enforce=True, status_name="fastgate", route=b"", shown=(), secrets=(), never_vary=())\n--\n
    One route's cache settings, ready for use. Durations are nanoseconds, sizes bytes.

    ttl_ns       freshness of a response that states none; 0, the default: see heuristic_max_ns
    respect      "origin" (default) or "override": ttl_ns applies to the listed statuses whatever the origin states
    methods      "GET" includes "HEAD"; "POST" needs body
    statuses     those that ttl_ns applies to; others are stored if the origin gives them a lifetime
    headers      names of request fields that are part of the key
    cookies      names of cookies that are part of the key
    body         True: the body of a POST is part of the key
    tags         of every response, for purges
    min_size, max_size   bounds on the stored body; 0 and 16 000 000
    stale_while_revalidate_ns, stale_if_error_ns   how long after its expiry a response is served while a new one is fetched, and
                 if the origin fails, unless the response states it; 0
    heuristic_max_ns   limit of the freshness estimated from Last-Modified; one day. 0: no estimate
    max_variants, max_vary   variants of one key, and names in a Vary that is stored; 64 and 8
    targeted     names of Cache-Control fields for this kind of cache (RFC 9213); the first one present applies
    client_control   False: Cache-Control of requests is ignored
    enforce      read by the caller, which serves no response from the cache if it is False
    status_name  name of this cache in Cache-Status; "" for no such field
    query        "all", "none", or the names of the parameters that select the response
    consumer     "auto", "private" or "shared"
    private      "never", "consumer" or "share"
    set_cookie   "never", "strip" or "store"
    share_private  must be True for settings that share one client's response with another
    route        distinguishes this route's responses from those of other routes for the same URL
    shown        names of fields in the key that are not settings: the route matches on them, or the gateway sets them
    secrets      like `shown`, but the key has a digest of the value
    never_vary   names of fields that differ with every request, or that the cache replaces: a response that varies by one is
                 not stored
    ValueError: an unlisted value, a status_name that is too long, or sharing without share_private.
    """

    # --- the request ---

    cdef RequestRules c_read(self, int method_id, bytes method, Headers headers, bint has_body):
        """The cache-related properties of the request. has_body: it has content; a GET with content never uses the cache."""
        return read_request(self, method_id, method, headers, has_body)

    cdef RequestRules bypass(self, RequestRules request, str why):
        """The request, excluded from the cache; why: a fixed word, for metrics and Cache-Status."""
        return request.bypass(why)

    def read_request(self, str method not None, headers=(), bint has_body=False):
        """RequestRules of a request; headers: a `Headers` or (name, value) pairs."""
        cdef bytes raw = method.encode("latin-1")
        return self.c_read(method_number(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)), raw, headers_of(headers), has_body)

    # --- the key ---

    cdef bytes c_url(self, bint secure, bytes authority, bytes path, bytes query):
        """The URL part of a key, which all responses for this URL share; None if the query must not be cached."""
        return url_key(self, secure, authority, path, query)

    cdef bytes c_key(self, RequestRules request, bint secure, bytes authority, bytes path, bytes query, bytes consumer, bint shared,
                     bytes shown, bytes body):
        """The primary key; see `primary_key`."""
        return primary_key(self, request, secure, authority, path, query, consumer, shared, shown, body)

    def url_key(self, bint secure, bytes authority not None, bytes path not None, query=None):
        """The URL part of a key."""
        return self.c_url(secure, authority, path, query)

    @property
    def query_form(self):
        """The parts of a query that this route uses: routes with equal forms have equal URL parts."""
        return self.query, self.query_names

    def key(self, RequestRules request not None, bint secure, bytes authority not None, bytes path not None, query=None, consumer=None,
            body=None, *, bint shared=False, shown=None):
        """The primary key of a request, or None."""
        if request.headers is None:
            raise ValueError("request: expected one that read_request made")
        return self.c_key(request, secure, authority, path, query, consumer, shared, shown, body)

    # --- the response ---

    cdef Decision c_store(self, RequestRules request, int status, bytes reason, Headers headers, int64_t request_ns,
                          int64_t response_ns):
        """Whether the response may be stored, and for how long. The times: when the request was sent and when the head arrived."""
        return decide(self, request, status, reason, headers, request_ns, response_ns, False)

    def store(self, RequestRules request not None, int status, headers, int64_t request_ns, int64_t response_ns, bytes reason=b"OK"):
        """Decision on a response; headers: a `Headers` or (name, value) pairs."""
        return self.c_store(request, status, reason, headers_of(headers), request_ns, response_ns)

    def update(self, RequestRules request not None, StoredResponse stored not None, headers, int64_t request_ns, int64_t response_ns):
        """Decision on a stored response that a 304 with these fields has confirmed (RFC 9111 §4.3.4); finish it with stored.body.

        storable False: it may be used for this request, but not stored. None: according to its validator the 304 is about another
        response, so the stored one may be used for this request unchanged, and is not freshened.
        """
        cdef Headers fresh = headers_of(headers)
        cdef field_t* f = fresh.find_field(b"etag", 4)
        if not stored.head:
            raise ValueError("stored: expected one that a Decision or from_bytes made")
        if f != NULL and stored.etag is not None and f.value[:f.value_n] != stored.etag and not (
                etag_weak(f.value[:f.value_n]) and etag_weak(stored.etag)):
            return None
        return decide(self, request, stored.status, stored.reason(), stored.merged(fresh), request_ns, response_ns, True)

    def update_from_head(self, RequestRules request not None, StoredResponse stored not None, headers, int64_t request_ns,
                         int64_t response_ns):
        """Decision on a stored response after a 200 to HEAD (RFC 9111 §4.3.5), or None if the response has changed: purge it."""
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
        decision = decide(self, request, stored.status, stored.reason(), stored.merged(fresh), request_ns, response_ns, True)
        return decision if decision.storable else None

    # --- invalidation ---

    def invalidated(self, RequestRules request not None, int status, headers, bint secure, bytes authority not None,
                    bytes path not None, query=None, *, bint merge=True):
        """The URL keys that a response to this request invalidates (RFC 9111 §4.4): none unless the method is unsafe and the response
        no error; the target, and the targets of Location and Content-Location on the same origin.
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
        """The Cache-Status line of a response from the origin; b"" if the field is off."""
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


def judge(stored, RequestRules request not None, int64_t now_ns):
    """The verdict: MISS, FRESH, STALE_WHILE_REVALIDATE, REVALIDATE, ONLY_IF_CACHED or BYPASS.

    stored may be None. request: from Rules.read_request(). now_ns: the wall clock. TypeError: something else.
    """
    if not request.cacheable:
        return CACHE_BYPASS
    if stored is None:
        return CACHE_ONLY_IF_CACHED if request.flags & CC_ONLY_IF_CACHED else CACHE_MISS
    return (<StoredResponse?>stored).c_judge(request, now_ns)
