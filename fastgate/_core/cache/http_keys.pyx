"""Cache keys: the primary key of a request, and the key of a variant under it.

WHAT        A primary key is `scheme://authority/path?query`, then the other parts that distinguish responses: the route, the
            consumer, chosen header fields and cookies, the digest of a body. A URL holds no NUL, and each further part begins
            with one. `Vary` names the request fields that the responses of one primary key depend on (RFC 9111 §4.1), and creates
            the keys of variants.
STATE       `Vary`: one per key and worker; its names only grow. The rest are pure functions.
SOURCES     RFC 9111 §2, §4.1; RFC 6265 §5.4
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcpy

import hashlib

from fastgate._core.cache.http_fields cimport MAX_NAME, MAX_NAMES, are_tokens, normalised
from fastgate._core.cache.http_request cimport RequestRules
from fastgate._core.cache.http_settings cimport CONSUMER_PRIVATE, CONSUMER_SHARED, QUERY_ALL, QUERY_NONE, CacheSettings
from fastgate._core.http.headers cimport H_DROPPED, Headers, field_is, field_t, headers_of, name_equal, names_fold
from fastgate._core.pipeline.identity cimport Identity

__all__ = ["Vary", "identity_key", "merge_vary", "url_pattern", "url_tag"]


cdef bytes combined(Headers headers, const char* lower, Py_ssize_t n):
    """Every value of the name as one list, or None (RFC 9110 §5.3)."""
    cdef bytes out = None
    cdef int i
    for i in range(headers.count):
        if headers.fields[i].id != H_DROPPED and field_is(&headers.fields[i], lower, <int>n):
            out = headers.value_at(i) if out is None else out + b"," + headers.value_at(i)
    return out


cdef bytes other_spellings(Headers headers, const char* lower, Py_ssize_t n):
    """The fields that an upstream may read as this name, because of a different spelling (`X_Lang`); None if there are none."""
    cdef bytes out = None
    cdef field_t* f
    cdef int i
    for i in range(headers.count):
        f = &headers.fields[i]
        if f.name_n == n and f.id != H_DROPPED and names_fold(f.name, lower, n) and not name_equal(f.name, lower, n):
            out = (b"" if out is None else out) + counted(f.name[:n].lower()) + counted(headers.value_at(i))
    return out


cdef bytes counted(bytes value):
    """A part of a key with its length before it, so that no value can imitate the parts that follow."""
    return b"%d:" % len(value) + value


def identity_key(identity):
    """The part of a key that separates responses by identity: consumer, tier, scopes and roles. None for no identity."""
    if identity is None:
        return None
    return (<Identity?>identity).cache_key()


cdef bytes url_of(bint secure, bytes authority, bytes path, bytes part, bytes route, bytes consumer):
    """scheme://authority/path?query, the authority in lower case, then the route's part and the consumer's (or None), in one
    step."""
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


cdef bytes query_part(CacheSettings settings, bytes query):
    """The query in the form of the key, with its question mark; b"" if there is none. None: the request must not be cached.

    Parameters are sorted by name, those of one name keep their order. With an allow list a name is compared as an origin could
    read it: unescaped, without case, up to a bracket. An omitted parameter must have no effect: one with a `;` could hide another
    one (parameter cloaking), so such a request is not cached.
    """
    cdef list parts
    cdef list kept = []
    cdef bytes name
    if query is None or settings.query == QUERY_NONE:
        return b""
    if settings.query == QUERY_ALL:
        if memchr(PyBytes_AS_STRING(query), c"&", PyBytes_GET_SIZE(query)) == NULL:
            return b"?" + query
        parts = query.split(b"&")
        parts.sort(key=before_equals)
        return b"?" + b"&".join(parts)
    for part in query.split(b"&"):
        name = parameter_name(before_equals(part))
        if name in settings.query_names:
            kept.append(part)
        elif b";" in part or b"%3b" in part.lower():
            return None
    kept.sort(key=before_equals)
    return b"?" + b"&".join(kept) if kept else b""


cdef bytes url_key(CacheSettings settings, bint secure, bytes authority, bytes path, bytes query):
    """The key's URL part, which all responses for this URL share; None as for query_part."""
    cdef bytes part = query_part(settings, query)
    if part is None:
        return None
    return url_of(secure, authority, path, part, b"", None)


cdef bytes primary_key(CacheSettings settings, RequestRules request, bint secure, bytes authority, bytes path, bytes query, bytes consumer,
                       bint shared, bytes shown, bytes body):
    """The primary key; sets request.key and request.url_n. None: not cacheable, for the reason in request.why.

    authority: the one used for the request, with its port, since origins build links from it. path: normalised, as sent upstream.
    consumer: `identity_key` of the client, or None. shared: several clients have this identity, so that no entry under its key is
    private. shown: further properties of the request that the upstream receives and may depend on, or None.
    """
    cdef bytes part = query_part(settings, query)
    cdef list parts
    cdef bytes value, raw
    cdef Headers sent = request.headers if request.sent is None else request.sent
    if part is None:
        request.bypass("cloaked")
        return None
    if consumer is not None and settings.consumer == CONSUMER_SHARED:
        consumer = None
    if settings.consumer == CONSUMER_PRIVATE and (consumer is None or shared):
        request.bypass("anonymous")
        return None
    request.keyed_private = consumer is not None and not shared
    request.url_n = (8 if secure else 7) + PyBytes_GET_SIZE(authority) + PyBytes_GET_SIZE(path) + PyBytes_GET_SIZE(part)
    request.key = url_of(secure, authority, path, part, settings.route, consumer)
    if not settings.extra and shown is None and not request.post and (consumer is None or request.authorization < 0):
        return request.key
    # Each further part is preceded by its length. The parts so far need none: a URL holds no NUL, and the parts of the route and
    # of the identity each have one length.
    parts = [request.key]
    if request.post:
        if body is None:
            request.bypass("body")
            return None
        parts.append(b"\0POST " + counted(body))
    if consumer is not None and request.authorization >= 0:
        raw = request.headers.value_at(request.authorization)
        parts.append(b"\0authorization " + counted(hashlib.blake2b(raw, digest_size=16).digest()))
    if shown is not None:
        parts.append(b"\0shown " + counted(shown))
    for name in settings.key_headers:
        value = combined(sent, <bytes>name, len(name))
        parts.append(b"\0header " + name)
        if value is not None and name in settings.secrets:
            parts.append(b"#" + counted(hashlib.blake2b(value, digest_size=16).digest()))
        elif value is not None:
            parts.append(b":" + counted(normalised(<bytes>name, len(name), value)))
        value = other_spellings(sent, <bytes>name, len(name))
        if value is not None:
            parts.append(b"~" + counted(hashlib.blake2b(value, digest_size=16).digest()))
    if settings.key_cookies:
        parts.append(b"\0cookies " + counted(cookies_part(settings.key_cookies, sent)))
    request.key = b"".join(parts)
    return request.key


cpdef bytes before_equals(bytes part):
    return part.partition(b"=")[0]


cdef bytes parameter_name(bytes raw):
    """The name as the most lenient origin could read it."""
    from urllib.parse import unquote_to_bytes

    if b"%" in raw or b"+" in raw:
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    return raw.partition(b"[")[0].strip(b" \t\0").lower()


cdef bytes cookie_name(bytes pair):
    """The name of a cookie as the most lenient origin could read it: PHP unescapes it, cuts it at a bracket and reads a dot or a space as
    an underscore."""
    from urllib.parse import unquote_to_bytes

    cdef bytes raw = pair.partition(b"=")[0]
    if b"%" in raw or b"+" in raw:
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    return raw.partition(b"[")[0].strip(b" \t\r\n\v\f\0").replace(b" ", b"_").replace(b".", b"_").lower()


cdef bytes cookies_part(tuple names, Headers headers):
    """The chosen cookies, in the order of the settings; one that occurs twice counts with each of its values.

    Lines join with `; ` and split at `;` only (RFC 6265 §5.4). Some origins also split at commas, unescape names, or let a quoted
    value extend beyond a `;`: a pair that any of them could read as a chosen cookie is included unchanged, and so is everything
    after an open quote.
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


def url_pattern(bytes pattern not None):
    r"""The pattern over keys for a pattern over URLs: keys begin with the URL. ValueError: a lone `\` at its end."""
    if (len(pattern) - len(pattern.rstrip(b"\\"))) & 1:
        raise ValueError(f"pattern: expected no lone \\ at the end, got {pattern!r}")
    return pattern + b"\0*"


def url_tag(bytes url not None):
    """The tag of every response for this URL, for purges of all of them, whatever their route, consumer or variant. Its length is
    constant, so that a long URL can be purged, and it has a NUL, so that no origin's tag is equal to it."""
    return b"\0url " + hashlib.blake2b(url, digest_size=16).digest()


@cython.final
cdef class Vary:
    """Vary(names=())\n--\n
    What the responses of one primary key vary by, and which variants are stored. One per key and worker.

    `names`, bytes each, only grows: a key over more names than a response varies by separates more than needed, never less.
    TypeError: a name that is not bytes.
    """

    def __init__(self, names=()):
        self.names = tuple(sorted({bytes(name).lower() for name in names}))
        self.recent = {}
        self.written = -1

    cdef bytes c_key(self, bytes primary, Headers headers):
        """The key of the variant that these fields select (RFC 9111 §4.1): those sent upstream, or that would be sent."""
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
        """Record a stored variant; returns the keys of the oldest ones beyond limit, to be removed."""
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
        """Approximate bytes in memory; grows in steps, so that it need not be charged again with each variant."""
        cdef Py_ssize_t n = 1
        while n < len(self.recent):
            n *= 2
        return 512 + n * (160 + (len(next(iter(self.recent))) if self.recent else 0))

    def to_bytes(self):
        """As a record: the names only."""
        return b"FGV1" + b",".join(self.names)

    @staticmethod
    def from_bytes(bytes data not None):
        """The Vary in a record, or None if the record is invalid."""
        if data[:4] != b"FGV1" or not 4 < len(data) <= 4 + MAX_NAMES * (MAX_NAME + 1):
            return None
        names = data[4:].split(b",")
        return Vary(names) if len(names) <= MAX_NAMES and are_tokens(names) else None

    def __repr__(self):
        return f"Vary({', '.join(name.decode('latin-1') for name in self.names)})"


def merge_vary(old, tuple names not None):
    """The Vary for a key whose newest response varies by names: old itself if it covers them, else one over all of them. An
    origin that changes the names each time starts over at 32; older stored variants are not found again. TypeError: old is not a
    Vary."""
    if old is None:
        return Vary(names)
    union = {*(<Vary?>old).names, *names}
    if len(union) == len((<Vary>old).names):
        return old
    return Vary(union if len(union) <= MAX_NAMES else names)
