"""The properties of one request that matter to a shared cache (RFC 9111 §5.2.1, RFC 9110 §13, §14).

WHAT        Whether the cache may be used for the request, its Cache-Control directives, its conditions and ranges.
STATE       `RequestRules`, one per request, from a freelist. It refers to the header table of the request and copies nothing.
COST        About 60 ns for ten fields.
"""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.cache.http_fields cimport (
    CC_NO_CACHE,
    CC_NO_STORE,
    CC_ONLY_IF_CACHED,
    directives_clear,
    directives_read,
    directives_t,
)
from fastgate._core.cache.http_settings cimport CacheSettings
from fastgate._core.http.headers cimport H_OTHER, Headers, field_t, name_equal
from fastgate._core.pipeline.context cimport M_GET, M_HEAD, M_OPTIONS, M_POST, M_TRACE

__all__ = ["RequestRules"]

cdef int64_t SECOND_NS = 1_000_000_000

# Request fields that make some frameworks use another path, method or host than the one in the key. A request with such a field
# that is not in the key bypasses the cache. (X-Forwarded-* is sent upstream for trusted proxies only, and is in their keys.)
cdef frozenset OVERRIDES = frozenset((b"x-override-url", b"x-http-method-override", b"x-http-method", b"x-method-override"))
# Methods without effects (RFC 9110 §9.2.1, RFC 4918, 3253, 5323, and QUERY).
cdef frozenset SAFE_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"REPORT", b"SEARCH", b"QUERY"))


@cython.final
@cython.freelist(64)
cdef class RequestRules:
    """The properties of one request that matter to a shared cache. Made by `Rules.read_request`."""

    def __cinit__(self):
        self.if_none_match = self.if_modified_since = self.range = self.if_range = self.authorization = -1
        self.max_age_ns = self.max_stale_ns = self.sie_ns = -1

    @property
    def url_key(self):
        """The URL part of the key."""
        return None if self.key is None else self.key[:self.url_n]

    cdef RequestRules bypass(self, str why):
        """Exclude the request from the cache; why: a fixed word, for metrics and Cache-Status."""
        self.cacheable = False
        self.why = why
        return self

    def __repr__(self):
        return f"RequestRules(cacheable={self.cacheable}, plain={self.plain}, simple={self.simple}, why={self.why!r})"


cdef bint overrides(CacheSettings settings, field_t* f):
    """True for a field that may select another resource and is not in the key."""
    cdef bytes lower
    if f.name[0] != c"X" and f.name[0] != c"x":
        return False
    lower = (<bytes>f.name[:f.name_n]).lower().replace(b"_", b"-").replace(b".", b"-")
    return lower in OVERRIDES and lower not in settings.key_headers


cdef RequestRules read_request(CacheSettings settings, int method_id, bytes method, Headers headers, bint has_body):
    """The cache-related properties of the request. has_body: it has content; a GET with content never uses the cache."""
    cdef RequestRules r = RequestRules.__new__(RequestRules)
    cdef directives_t cc
    cdef field_t* f
    cdef int i, n
    cdef bint overridden = False, direct = False, pragma = False, foreign = False
    r.headers = headers
    r.cacheable = True
    if method_id == M_HEAD:
        r.head = True
    elif method_id == M_POST and settings.caches_post:
        r.post = True
    elif method_id != M_GET:
        r.cacheable = False
        r.why = "method"
        r.unsafe = not (method_id == M_OPTIONS or method_id == M_TRACE or method in SAFE_METHODS)
        return r
    if has_body and not r.post:
        return r.bypass("body")
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
                overridden = overridden or overrides(settings, f)
        elif n == 6:
            if name_equal(f.name, b"cookie", 6):
                r.cookies = True
            elif name_equal(f.name, b"pragma", 6):
                pragma = pragma or (f.value_n == 8 and name_equal(f.value, b"no-cache", 8))
            else:
                overridden = overridden or overrides(settings, f)
        elif n == 17:
            if name_equal(f.name, b"if-modified-since", 17):
                r.if_modified_since = i
            else:
                overridden = overridden or overrides(settings, f)
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
            overridden = overridden or overrides(settings, f)
    if foreign:                     # for the origin only (RFC 9111 §4.3.2), or repeated
        return r.bypass("condition")
    if overridden:
        return r.bypass("override")
    r.simple = r.if_none_match < 0 and r.if_modified_since < 0 and r.range < 0
    r.plain = True
    if direct and cc.flags:
        r.flags = cc.flags
        if cc.flags & CC_NO_STORE:
            return r.bypass("no_store")
        if cc.sie >= 0:
            r.sie_ns = cc.sie * SECOND_NS
        if not settings.client_control:
            r.flags &= CC_ONLY_IF_CACHED
        else:
            if cc.max_age >= 0:
                r.max_age_ns = cc.max_age * SECOND_NS
            if cc.min_fresh >= 0:
                r.min_fresh_ns = cc.min_fresh * SECOND_NS
            if cc.max_stale >= 0:
                r.max_stale_ns = cc.max_stale * SECOND_NS
        r.plain = not (r.flags & (CC_NO_CACHE | CC_ONLY_IF_CACHED)) and r.max_age_ns < 0 and r.min_fresh_ns == 0 \
            and r.max_stale_ns < 0
    elif pragma and settings.client_control:            # RFC 9111 §5.4: only without Cache-Control
        r.flags = CC_NO_CACHE
        r.plain = False
    return r
