# cython: boundscheck=False
"""The request target and the Host: checked, split, and brought to the one form routes are matched against.

WHAT     Origin-form, absolute-form and asterisk-form (RFC 9112 §3.2). The path is normalised before matching, and the normalised
         path is what goes upstream: what was matched is what is asked for, so a rule cannot be walked around with `%2e%2e/`.
         Percent-encoded unreserved characters are decoded and dot segments removed (RFC 3986 §6.2.2). All other escapes stay as
         they came, encoded slashes too; empty segments stay.
STATE    None.
COST     One pass over the target when there is nothing to normalise.
SOURCES  RFC 9112 §3.2, RFC 3986 §3.2.2, §5.2.4, §6.2.2.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from fastgate._core.context cimport M_OPTIONS, RequestContext

__all__ = ["host", "normalise"]


cdef inline int hex_value(unsigned char c) noexcept:
    if 48 <= c <= 57:
        return c - 48
    if 65 <= c <= 70:
        return c - 55
    if 97 <= c <= 102:
        return c - 87
    return -1


cdef inline bint unreserved(unsigned char c) noexcept:
    return 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c == c"-" or c == c"." or c == c"_" or c == c"~"


cdef int parse_target(RequestContext ctx, bytes target) except -1:
    """Set target, path, query (and, for the absolute-form, host_received) of ctx. A T_* code."""
    cdef Py_ssize_t i, n = PyBytes_GET_SIZE(target)
    cdef const char* t = PyBytes_AS_STRING(target)
    cdef unsigned char c
    cdef Py_ssize_t question = -1, start = 0
    cdef bint plain = True
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
    for i in range(start, n):
        c = <unsigned char>t[i]
        if c < 33 or c > 126 or c == c"#":
            return T_BAD
        if c == c"?" and question < 0:
            question = i
        elif question < 0 and (c == c"%" or (c == c"." and i > start and t[i - 1] == c"/")):
            plain = False
    if question >= 0:
        ctx.query_bytes = PyBytes_FromStringAndSize(t + question + 1, n - question - 1)
        path = PyBytes_FromStringAndSize(t + start, question - start)
    else:
        path = target if start == 0 else target[start:]
    if PyBytes_GET_SIZE(path) == 0:             # http://host?query
        path = b"/"
    if not plain:
        path = normal_path(path)
        if path is None:
            return T_BAD
    ctx.path_bytes = path
    return T_OK


cdef bytes normal_path(bytes path):
    """The path in normal form, or None when an escape is malformed or hides a NUL."""
    cdef Py_ssize_t i = 0, n = PyBytes_GET_SIZE(path)
    cdef const char* p = PyBytes_AS_STRING(path)
    cdef bytearray out = bytearray()
    cdef int high, low, c
    cdef list segments
    while i < n:
        if p[i] != c"%":
            out.append(<unsigned char>p[i])
            i += 1
            continue
        if i + 2 >= n:
            return None
        high = hex_value(<unsigned char>p[i + 1])
        low = hex_value(<unsigned char>p[i + 2])
        if high < 0 or low < 0:
            return None
        c = high * 16 + low
        if c == 0:
            return None
        if unreserved(<unsigned char>c):
            out.append(c)
        else:
            out += path[i:i + 3]
        i += 3
    segments = []
    parts = bytes(out).split(b"/")[1:]
    for k, segment in enumerate(parts):
        if segment == b"." or segment == b"..":
            if segment == b".." and segments:
                segments.pop()
            if k == len(parts) - 1:
                segments.append(b"")
        else:
            segments.append(segment)
    return b"/" + b"/".join(segments)


cdef bytes host_of(bytes authority):
    """The host of an authority, lower case and without port and final dot; None when it is malformed (RFC 3986 §3.2.2)."""
    cdef Py_ssize_t i, n = PyBytes_GET_SIZE(authority), end
    cdef const char* a = PyBytes_AS_STRING(authority)
    cdef unsigned char c
    cdef bint upper = False
    cdef bytes out
    if n == 0 or n > 261:                       # 253 for a name, a colon and a port
        return None
    if a[0] == c"[":
        end = authority.find(b"]")
        if end < 3:
            return None
        for i in range(1, end):
            c = <unsigned char>a[i]
            if hex_value(c) < 0 and c != c":" and c != c".":
                return None
        end += 1
    else:
        end = n
        for i in range(n):
            c = <unsigned char>a[i]
            if c == c":":
                end = i
                break
            if 65 <= c <= 90:
                upper = True
            elif not (unreserved(c) and c != c"~"):
                return None
        if end == 0 or a[0] == c".":
            return None
    if end < n:
        if a[end] != c":" or n - end > 6:
            return None
        for i in range(end + 1, n):
            if not 48 <= <unsigned char>a[i] <= 57:
                return None
        if n - end > 1 and int(authority[end + 1:]) > 65535:
            return None
    if end > 1 and a[end - 1] == c".":
        end -= 1
    out = authority if end == n else authority[:end]
    return out.lower() if upper or a[0] == c"[" else out


cdef bytes normal_authority(bytes received, bytes host, bint secure):
    """An authority in normal form (RFC 3986 §6.2.3): the host as host_of gives it, and the port unless it is what the scheme implies.
    received was checked by host_of."""
    cdef Py_ssize_t colon = received.find(b":", received.find(b"]") + 1)
    cdef int port
    if colon < 0 or colon + 1 == PyBytes_GET_SIZE(received):
        return host
    port = int(received[colon + 1:])
    return host if port == (443 if secure else 80) else b"%b:%d" % (host, port)


def normalise(bytes path not None):
    """normal_path for Python: the path in normal form; ValueError when an escape is malformed or hides a NUL."""
    out = normal_path(path)
    if out is None:
        raise ValueError(f"path {path!r}: malformed percent-encoding")
    return out


def host(bytes authority not None):
    """host_of for Python; ValueError when the authority is malformed."""
    out = host_of(authority)
    if out is None:
        raise ValueError(f"authority {authority!r}: expected host[:port]")
    return out
