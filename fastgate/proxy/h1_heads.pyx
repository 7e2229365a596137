# cython: boundscheck=False
"""The bytes of a message head: what goes to an upstream, and what goes to an HTTP/1.1 client.

WHAT     Pure functions over a HeadWriter. They strip what belongs to one connection (RFC 9110 §7.6.1), set the framing, and tell
         the next hop who asked (X-Forwarded-*, Forwarded, Via, X-Request-ID). Nothing here decides anything.
STATE    None.
COST     One pass over the fields and one memcpy each.
SOURCES  RFC 9112 §3, §6; RFC 9110 §7.6; RFC 7239 (Forwarded); RFC 9110 §7.6.3 (Via).
"""

from http import HTTPStatus

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.pipeline.context cimport M_TRACE, RequestContext
from fastgate._core.http.headers cimport (
    H_CONSUMER,
    H_CONTENT_LENGTH,
    H_FORWARDED,
    H_HOST,
    H_LAST_HOP_BY_HOP,
    H_TE,
    H_TRAILER,
    H_X_REAL_IP,
    H_X_REQUEST_ID,
    H_UPGRADE,
    Headers,
    HeadWriter,
    has_token,
    names_fold,
    trailers_announced,
)
from fastgate._core.pipeline.plan cimport Destination, RoutePlan
from fastgate._core.http.writing cimport put_text
from fastgate.upstream.credential cimport Credential
from fastgate.upstream.pool cimport Target

__all__ = ["request_head_bytes"]

cdef list STATUS_LINES = [None] * 1000       # three digits: upstreams may send more than RFC 9110 knows
cdef list PHRASES = [b""] * 1000

def _fill_status_lines():
    for status in range(100, 1000):
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        PHRASES[status] = phrase.encode()
        STATUS_LINES[status] = f"HTTP/1.1 {status} {phrase}\r\n".encode()

_fill_status_lines()


cdef bytes upstream_target(RequestContext ctx, RoutePlan route):
    """The request target for the upstream: rewritten path, then the query as it came."""
    cdef bytes path
    if route.rewrite is None:
        path = ctx.path_bytes
    else:
        path = route.rewrite.apply(ctx)
    if ctx.query_bytes is None:
        return path
    return path + b"?" + ctx.query_bytes


cdef int write_request_head(HeadWriter w, RequestContext ctx, Destination destination, Target target, bytes method, bytes path, Headers fields,
                            int64_t length, bint chunked, int64_t left_ns) except -1:
    """Write the head of the request as the target shall see it.

    length >= 0 frames the body by Content-Length, chunked by Transfer-Encoding, neither means no body. left_ns > 0 is what is
    left of the total deadline, told in its deadline header.
    """
    cdef int i, known
    cdef bytes value
    cdef bytes te = None
    cdef Credential credential = target.upstream.credential
    cdef bytes shown = None
    cdef bytes deadline = destination.deadline_header
    if ctx.method_id == M_TRACE:
        credential = None                               # its response would show it to the client (RFC 9110 §9.3.8)
    if credential is not None:
        shown = credential.field_name
        if credential.parameter is not None:
            path = credential.target_with(path)
    w.put_bytes(method)
    put_text(w, b" ", 1)
    w.put_bytes(path)
    put_text(w, b" HTTP/1.1\r\nHost: ", 17)
    w.put_bytes(ctx.authority if destination.preserve_host else target.authority)
    put_text(w, b"\r\n", 2)
    for i in range(fields.count):
        known = fields.fields[i].id
        if known != 0:
            if known <= H_CONTENT_LENGTH or known == H_HOST:
                if known == H_TE:
                    te = fields.value_at(i)
                continue
            if H_FORWARDED <= known <= H_X_REQUEST_ID or (known == H_X_REAL_IP and not ctx.trusted) \
                    or (known == H_CONSUMER and ctx.upstream_lines is not None):
                continue
            if known == H_TRAILER:
                if chunked:
                    value = trailers_announced(&fields.fields[i], (destination.owned or ()) + (() if shown is None else (shown,)))
                    if value:
                        w.parsed_field(b"Trailer", value)
                continue
        if shown is not None and fields.fields[i].name_n == PyBytes_GET_SIZE(shown) and names_fold(
                fields.fields[i].name, PyBytes_AS_STRING(shown), fields.fields[i].name_n):
            continue
        if deadline is not None and fields.fields[i].name_n == PyBytes_GET_SIZE(deadline) and names_fold(
                fields.fields[i].name, PyBytes_AS_STRING(deadline), fields.fields[i].name_n):
            continue
        w.parsed_span(&fields.fields[i])
    if credential is not None and credential.line is not None:
        w.put_bytes(credential.line)
    if length >= 0:
        put_text(w, b"Content-Length: ", 16)
        w.put_decimal(length)
        put_text(w, b"\r\n", 2)
    elif chunked:
        put_text(w, b"Transfer-Encoding: chunked\r\n", 28)
    if ctx.upgrade:
        value = ctx.headers.find_known(H_UPGRADE)
        put_text(w, b"Connection: Upgrade\r\n", 21)
        w.parsed_field(b"Upgrade", value)
    elif te is not None and has_token(PyBytes_AS_STRING(te), PyBytes_GET_SIZE(te), b"trailers", 8):
        put_text(w, b"Connection: TE\r\nTE: trailers\r\n", 30)
    w.put_bytes(ctx.forwarding)
    if ctx.upstream_lines is not None:
        w.put_bytes(ctx.upstream_lines)
    put_text(w, b"Via: 1.1 fastgate\r\nX-Request-ID: ", 33)
    w.put_bytes(ctx.request_id_bytes)
    put_text(w, b"\r\n", 2)
    if left_ns > 0 and destination.deadline_header is not None:
        w.put_bytes(destination.deadline_header)
        put_text(w, b": ", 2)
        w.put_decimal(left_ns // 1000000)
        put_text(w, b"\r\n", 2)
    put_text(w, b"\r\n", 2)
    return 0


cdef int write_status_line(HeadWriter w, int status, bytes phrase) except -1:
    """The status line, with the upstream's phrase unless it has none or one that is not plain text."""
    cdef Py_ssize_t i, n
    cdef const char* p
    if phrase is not None and phrase != <bytes>PHRASES[status]:
        n = PyBytes_GET_SIZE(phrase)
        p = PyBytes_AS_STRING(phrase)
        for i in range(n):
            if not 32 <= <unsigned char>p[i] < 127:
                break
        else:
            put_text(w, b"HTTP/1.1 ", 9)
            w.put_decimal(status)
            put_text(w, b" ", 1)
            w.put_bytes(phrase)
            put_text(w, b"\r\n", 2)
            return 0
    w.put_bytes(<bytes>STATUS_LINES[status])
    return 0


cdef int write_response_fields(HeadWriter w, Headers fields, bint keep_trailer) except -1:
    """The fields of an upstream's answer that may pass: no connection fields, no framing, not its request id."""
    cdef int i, known
    for i in range(fields.count):
        known = fields.fields[i].id
        if known != 0 and (known <= H_CONTENT_LENGTH or known == H_X_REQUEST_ID or (known == H_TRAILER and not keep_trailer)):
            continue
        w.parsed_span(&fields.fields[i])
    return 0


def request_head_bytes(RequestContext ctx, RoutePlan route, Target target):
    """The head of the request as the target would see it: for `fastgate explain` and for tests."""
    cdef HeadWriter w = HeadWriter()
    cdef Headers fields = ctx.headers
    if route.request_edits is not None:
        fields = ctx.headers.copy()
        route.request_edits.apply(ctx, fields)
    write_request_head(w, ctx, route.destination, target, ctx.method_bytes, upstream_target(ctx, route), fields, ctx.content_length,
                       ctx.has_body and ctx.content_length < 0, 0)
    return w.take()
