# cython: boundscheck=False
"""The bytes of a request head for an HTTP/1.1 upstream.

WHAT     Pure functions over a HeadWriter. They remove the fields that belong to one connection (RFC 9110 §7.6.1), set the
         framing, and describe the client to the next hop (X-Forwarded-*, Forwarded, Via, X-Request-ID). They make no decisions.
STATE    None.
COST     One pass over the fields and one memcpy each.
SOURCES  RFC 9112 §3, §6; RFC 9110 §7.6; RFC 7239 (Forwarded); RFC 9110 §7.6.3 (Via).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.pipeline.context cimport M_TRACE, RequestContext
from fastgate._core.http.headers cimport (
    H_CONSUMER,
    H_CONTENT_LENGTH,
    H_FORWARDED,
    H_HOST,
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
from fastgate.upstream.stream cimport BODY_NONE, BODY_UNKNOWN

__all__ = ["request_head_bytes"]


cdef bytes upstream_target(RequestContext ctx, RoutePlan route):
    """The request target for the upstream: the rewritten path, then the query unchanged."""
    cdef bytes path
    if route.rewrite is None:
        path = ctx.path_bytes
    else:
        path = route.rewrite.apply(ctx)
    if ctx.query_bytes is None:
        return path
    return path + b"?" + ctx.query_bytes


cdef int write_request_head(HeadWriter w, RequestContext ctx, Destination destination, bytes authority, Credential credential,
                            bytes method, bytes path, Headers fields, int64_t length, int64_t left_ns) except -1:
    """Write the head of the request as sent to a target.

    authority: the target's own, for the Host field. length: bytes of the body, BODY_UNKNOWN (chunked) or BODY_NONE. left_ns > 0:
    the rest of the total deadline, sent in the deadline header.
    """
    cdef int i, known
    cdef bytes value
    cdef bytes te = None
    cdef bytes shown = None
    cdef bytes deadline = destination.deadline_header
    if ctx.method_id == M_TRACE:
        credential = None                               # the response of TRACE would show it to the client (RFC 9110 §9.3.8)
    if credential is not None:
        shown = credential.field_name
        if credential.parameter is not None:
            path = credential.target_with(path)
    w.put_bytes(method)
    put_text(w, b" ", 1)
    w.put_bytes(path)
    put_text(w, b" HTTP/1.1\r\nHost: ", 17)
    w.put_bytes(ctx.authority if destination.preserve_host else authority)
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
                if length == BODY_UNKNOWN:
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
    elif length == BODY_UNKNOWN:
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


cdef int64_t body_length(RequestContext ctx) noexcept:
    """The length of a request's body, in the form `UpstreamStream.send_head` takes."""
    if ctx.content_length >= 0:
        return ctx.content_length
    return BODY_UNKNOWN if ctx.has_body else BODY_NONE


def request_head_bytes(RequestContext ctx, RoutePlan route, bytes authority, Credential credential):
    """The head of the request as the target with this authority would receive it: for `fastgate explain` and for tests."""
    cdef HeadWriter w = HeadWriter()
    cdef Headers fields = ctx.headers
    if route.request_edits is not None:
        fields = ctx.headers.copy()
        route.request_edits.apply(ctx, fields)
    write_request_head(w, ctx, route.destination, authority, credential, ctx.method_bytes, upstream_target(ctx, route), fields,
                       body_length(ctx), 0)
    return w.take()
