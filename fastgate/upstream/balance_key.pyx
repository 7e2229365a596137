# cython: boundscheck=False
"""The key of a request for balancing by key: the first of the listed parts that the request has.

WHAT     `consumer`, `key` (the API key's id), `ip`, `header:NAME`, `cookie:NAME`. A request without any of them has no key.
STATE    None.
WHO      The worker's loop.
COST     One SipHash, and a search for the field.
SOURCES  Envoy hash_policy; RFC 6265 §4.2 (Cookie).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcmp

from fastgate._core.balance.strategies cimport KeyHash
from fastgate._core.http.headers cimport field_is, field_t
from fastgate._core.pipeline.context cimport RequestContext

__all__ = ["BalanceKey"]

cdef enum:
    KEY_CONSUMER = 0
    KEY_API_KEY = 1
    KEY_IP = 2
    KEY_HEADER = 3
    KEY_COOKIE = 4

KINDS = {"consumer": KEY_CONSUMER, "key": KEY_API_KEY, "ip": KEY_IP, "header": KEY_HEADER, "cookie": KEY_COOKIE}


cdef class BalanceKey:
    """parts: as in the config, which has checked them. table: hashes the key."""

    def __init__(self, parts, KeyHash table not None):
        split = [part.partition(":") for part in parts]
        self.parts = tuple([(KINDS[kind], name.lower().encode("latin-1") if kind == "header" else name.encode())
                            for kind, _, name in split])
        self.table = table

    cdef uint64_t point(self, RequestContext ctx) except? 0:
        """0: the request has no key."""
        cdef bytes name, value
        cdef const char* found
        cdef Py_ssize_t n
        cdef int kind
        for kind, name in self.parts:
            value = None
            if kind == KEY_CONSUMER or kind == KEY_API_KEY:
                if ctx.identity is not None and not ctx.identity.by_address:
                    value = ctx.identity.consumer_bytes if kind == KEY_CONSUMER else ctx.identity.key_bytes
            elif kind == KEY_IP:
                value = ctx.client
            elif kind == KEY_HEADER:
                value = ctx.headers.find(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
            else:
                found = find_cookie(ctx, name, &n)
                if found != NULL:
                    return self.table.point_of(found, n)
            if value is not None and PyBytes_GET_SIZE(value):
                return self.table.point_of(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        return 0


cdef const char* find_cookie(RequestContext ctx, bytes name, Py_ssize_t* size) noexcept:
    """The value of the first cookie of this name, and its length; NULL if there is none, or if it is empty."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(name)
    cdef const char* at
    cdef const char* end
    cdef const char* stop
    cdef field_t* field
    cdef int i
    for i in range(ctx.headers.count):
        field = &ctx.headers.fields[i]
        if not field_is(field, b"cookie", 6):
            continue
        at = field.value
        end = at + field.value_n
        while at < end:
            stop = <const char*>memchr(at, c";", end - at)
            if stop == NULL:
                stop = end
            while at < stop and at[0] == c" ":
                at += 1
            if stop - at > n + 1 and at[n] == c"=" and memcmp(at, PyBytes_AS_STRING(name), n) == 0:
                size[0] = stop - at - n - 1
                return at + n + 1
            at = stop + 1
    return NULL
