# cython: boundscheck=False
"""The request target and the Host: validation, splitting, and the canonical form that routes are matched against.

WHAT     Origin-form, absolute-form and asterisk-form (RFC 9112 §3.2). The path is normalized (_core/urlpath) before
         it is matched, and the normalized path is sent upstream: routes match what the upstream receives, so a rule cannot be
         bypassed with `%2e%2e/`. The authority is normalized too.
STATE    None.
COST     One pass over the target if it is already normal.
SOURCES  RFC 9112 §3.2, RFC 3986 §3.2.2, §5.2.4, §6.2.2.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from fastgate._core.pipeline.context cimport M_OPTIONS, RequestContext
from fastgate._core.http.urlpath cimport B_BAD, B_DOT, B_PLAIN, B_QUESTION, B_SLASH, TARGET_BYTE, host_of, normal_path

__all__ = ["host"]


cdef int parse_target(RequestContext ctx, bytes target, bint merge) except -1:
    """Set target, path, query (and, for the absolute-form, host_received) of ctx. A T_* code."""
    cdef Py_ssize_t i, n = PyBytes_GET_SIZE(target)
    cdef const char* t = PyBytes_AS_STRING(target)
    cdef unsigned char kind
    cdef Py_ssize_t question = -1, start = 0
    cdef bint plain = True, slash
    cdef bytes path
    ctx.target = target
    if n == 0:
        return T_BAD
    if t[0] != c"/":
        if n == 1 and t[0] == c"*":
            ctx.path_bytes = b"*"
            return T_ASTERISK if ctx.method_id == M_OPTIONS else T_BAD
        lower = target[:8].lower()
        if lower.startswith(b"http://"):
            start = 7
        elif lower == b"https://":
            start = 8
        else:
            return T_BAD
        i = start
        while i < n and t[i] != c"/" and t[i] != c"?":
            if t[i] == c"#":
                return T_BAD
            i += 1
        ctx.host_received = target[start:i]
        if i == n:
            ctx.path_bytes = b"/"
            return T_OK
        start = i
    slash = False                                       # whether the previous byte is a slash
    for i in range(start, n):
        kind = TARGET_BYTE[<unsigned char>t[i]]
        if kind == B_PLAIN:
            slash = False
        elif kind == B_SLASH:
            if slash:
                plain = False
            slash = True
        elif kind == B_DOT:
            if slash:
                plain = False
            slash = False
        elif kind == B_QUESTION:
            question = i
            break
        elif kind == B_BAD:
            return T_BAD
        else:
            plain = False
            slash = False
    if question >= 0:
        for i in range(question + 1, n):
            if TARGET_BYTE[<unsigned char>t[i]] == B_BAD:
                return T_BAD
        ctx.query_bytes = PyBytes_FromStringAndSize(t + question + 1, n - question - 1)
        path = PyBytes_FromStringAndSize(t + start, question - start)
    else:
        path = target if start == 0 else target[start:]
    if PyBytes_GET_SIZE(path) == 0:             # http://host?query
        path = b"/"
    if not plain:
        path = normal_path(PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), merge, &ctx.second)
        if path is None:
            return T_BAD
    ctx.path_bytes = path
    return T_OK


def host(bytes authority not None):
    """`host_of` for Python; raises ValueError if the authority is malformed."""
    out = host_of(authority)
    if out is None:
        raise ValueError(f"authority {authority!r}: expected host[:port]")
    return out
