# cython: boundscheck=False
"""The normal form of a URL path and its authority, and the other readings of a path by upstreams.

WHAT     `normal_path` is what is matched, checked, cached by and sent upstream. `read_as` returns the path seen by an upstream that
         decodes more than the normal form does, treats `\\` as a slash, ignores path parameters, or skips empty segments. A path
         that such an upstream would read as one of another route is rejected (_core/pipeline/plan.pyx).
STATE    None.
COST     A target without `%`, `//`, `/.`, `;` or `\\` is not processed here. Others: about 10 ns a byte, and as much per reading.

             normal form    unreserved characters decoded, all other escapes kept with upper-case digits, invalid path characters
                            escaped, dot segments removed, empty segments merged
             /a/%2e%2e/%7euser//x%2fy|z  →  /~user/x%2Fy%7Cz

SOURCES  RFC 3986 §2.1, §2.3, §3.3, §5.2.4, §6.2.2; Java Servlet 6.0 §3.5.2 (path parameters, encoded slashes and backslashes are
         suspicious); nginx ngx_http_parse_complex_uri (merge_slashes); RFC 3629 §10 (overlong forms).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

__all__ = ["normal_escapes", "normalise", "read_url", "readings"]

# Allowed in a path unescaped (RFC 3986 §3.3 pchar, and the slash)
cdef unsigned char[256] PATH_BYTE
cdef unsigned char[256] UNRESERVED

cdef void _fill_tables() noexcept:
    cdef int c
    cdef bytes others = b"!$&'()*+,;=:@/"
    for c in range(256):
        UNRESERVED[c] = 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122
        TARGET_BYTE[c] = B_BAD if c < 33 or c > 126 or c == c"#" else B_LOOK
    for c in b"-._~":
        UNRESERVED[c] = 1
    for c in range(256):
        PATH_BYTE[c] = UNRESERVED[c]
    for c in others:
        PATH_BYTE[c] = 1
    for c in range(256):
        if PATH_BYTE[c]:
            TARGET_BYTE[c] = B_PLAIN
    TARGET_BYTE[c"?"] = B_QUESTION
    TARGET_BYTE[c"/"] = B_SLASH
    TARGET_BYTE[c"."] = B_DOT
    TARGET_BYTE[c";"] = B_SEMICOLON

_fill_tables()


cdef inline int hex_value(unsigned char c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    if 65 <= c <= 70:
        return c - 55
    if 97 <= c <= 102:
        return c - 87
    return -1


cdef inline Py_ssize_t put_escape(char* out, Py_ssize_t w, unsigned char c) noexcept nogil:
    out[w] = c"%"
    out[w + 1] = b"0123456789ABCDEF"[c >> 4]
    out[w + 2] = b"0123456789ABCDEF"[c & 15]
    return w + 3


cdef Py_ssize_t remove_dots(char* out, const char* p, Py_ssize_t n, bint merge) noexcept nogil:
    """Writes the path at p, which starts with a slash, without dot segments, and with merge without empty ones. Returns its
    length; out has room for n + 1 bytes and is not p."""
    cdef Py_ssize_t start = 1, end, size, w = 0
    cdef bint last
    while start <= n:
        end = start
        while end < n and p[end] != c"/":
            end += 1
        last = end == n
        size = end - start
        if size == 1 and p[start] == c".":
            size = 0
        elif size == 2 and p[start] == c"." and p[start + 1] == c".":
            while w > 0:
                w -= 1
                if out[w] == c"/":
                    break
            size = 0
        elif size > 0 or not merge:
            out[w] = c"/"
            memcpy(out + w + 1, p + start, size)
            w += size + 1
            last = False                            # nothing more to add
        if last:
            out[w] = c"/"
            w += 1
        start = end + 1
    if w == 0:
        out[0] = c"/"
        w = 1
    return w


cdef bytes normal_path(const char* path, Py_ssize_t n, bint merge, int* second):
    """The path in normal form, and in second its SECOND_* bits; None if an escape is malformed or encodes a NUL."""
    cdef Py_ssize_t i = 0, w = 0
    cdef unsigned char c
    cdef int high, low, bits = 0
    cdef char* decoded
    cdef char* out
    cdef bytes result
    decoded = <char*>malloc(6 * n + 2)              # every byte may become an escape; the same again for the result
    if decoded == NULL:
        raise MemoryError()
    out = decoded + 3 * n + 1
    while i < n:
        c = <unsigned char>path[i]
        if c == c"%":
            high = hex_value(<unsigned char>path[i + 1]) if i + 2 < n else -1
            low = hex_value(<unsigned char>path[i + 2]) if i + 2 < n else -1
            if high < 0 or low < 0 or high + low == 0:
                free(decoded)
                return None
            c = <unsigned char>(high * 16 + low)
            i += 3
            if UNRESERVED[c]:
                decoded[w] = <char>c
                w += 1
                continue
            if c == c"%":
                bits |= SECOND_ESCAPE | SECOND_DOUBLE | SECOND_PARAMETER | SECOND_BACKSLASH
            elif c == c"\\":
                bits |= SECOND_ESCAPE | SECOND_BACKSLASH
            elif c == c";":
                bits |= SECOND_ESCAPE | SECOND_PARAMETER
            elif PATH_BYTE[c] or c == 0xC0 or c == 0xC1:
                bits |= SECOND_ESCAPE
            w = put_escape(decoded, w, c)
            continue
        i += 1
        if PATH_BYTE[c]:
            if c == c";":
                bits |= SECOND_PARAMETER
            decoded[w] = <char>c
            w += 1
            continue
        if c == c"\\":
            bits |= SECOND_ESCAPE | SECOND_BACKSLASH
        w = put_escape(decoded, w, c)
    w = remove_dots(out, decoded, w, merge)
    for i in range(1, w):
        if out[i] == c"/" and out[i - 1] == c"/":
            bits |= SECOND_EMPTY
            break
    result = PyBytes_FromStringAndSize(out, w)
    free(decoded)
    second[0] = bits
    return result


cdef bint next_reading(reading_t* how, int second) noexcept nogil:
    """Advances to the next reading of a path with these SECOND_* bits; False if there is none. Start with how all zero: the
    normal form as it is, with its empty segments."""
    how.merge = not how.merge                           # decoding and removal of parameters create empty segments too
    if how.merge:
        return True
    if second & SECOND_PARAMETER:
        how.strips_last = not how.strips_last
        if how.strips_last:
            return True
        how.strips_first = not how.strips_first
        if how.strips_first:
            return True
    if second & SECOND_BACKSLASH:
        how.backslash = not how.backslash
        if how.backslash:
            return True
    how.decoding += 1
    return how.decoding <= (MOST_DECODING if second & SECOND_DOUBLE else 1 if second & SECOND_ESCAPE else 0)


cdef Py_ssize_t strip_parameters(char* p, Py_ssize_t n) noexcept nogil:
    """Removes `;…` from every segment, in place."""
    cdef Py_ssize_t i, w = 0
    cdef bint inside = False
    for i in range(n):
        if p[i] == c"/":
            inside = False
        elif p[i] == c";":
            inside = True
        if not inside:
            p[w] = p[i]
            w += 1
    return w


cdef enum:
    # Placeholders for an encoded slash and backslash that are data while the rest is decoded; relevant decoded bytes differ from
    # them
    KEPT_SLASH = 1
    KEPT_BACKSLASH = 2


cdef Py_ssize_t decode(char* p, Py_ssize_t n, bint keep_slashes) noexcept nogil:
    """One round of percent-decoding in place. Malformed escapes stay, as in lenient parsers; an overlong form of an ASCII
    character (RFC 3629 §10) is that character."""
    cdef Py_ssize_t i = 0, w = 0
    cdef int high, low
    cdef unsigned char c
    while i < n:
        if p[i] == c"%" and i + 2 < n:
            high = hex_value(<unsigned char>p[i + 1])
            low = hex_value(<unsigned char>p[i + 2])
            if high >= 0 and low >= 0:
                c = <unsigned char>(high * 16 + low)
                i += 3
                if keep_slashes and c == c"/":
                    c = KEPT_SLASH
                elif keep_slashes and c == c"\\":
                    c = KEPT_BACKSLASH
                elif w > 0 and 0x80 <= c <= 0xBF and (<unsigned char>p[w - 1] == 0xC0 or <unsigned char>p[w - 1] == 0xC1):
                    w -= 1
                    c = <unsigned char>((<unsigned char>p[w] & 1) << 6 | (c & 0x3F))
                p[w] = <char>c
                w += 1
                continue
        p[w] = p[i]
        w += 1
        i += 1
    return w


cdef bytes read_as(bytes path, const reading_t* how, bint keep_slashes):
    """The path, which is in normal form, as read by a parser that decodes like this; in normal form again, so that it can be
    matched. None if that contains a NUL, at which some parsers stop.

    keep_slashes: an encoded slash or backslash is data to that parser and stays one, however often it decodes.
    """
    cdef Py_ssize_t n = PyBytes_GET_SIZE(path), i, w = 0
    cdef char* text = <char*>malloc(5 * n + 8)
    cdef char* out
    cdef unsigned char c
    cdef int at
    cdef bytes result
    if text == NULL:
        raise MemoryError()
    out = text + n
    memcpy(text, PyBytes_AS_STRING(path), n)
    if how.strips_first:
        n = strip_parameters(text, n)
    for at in range(how.decoding):
        n = decode(text, n, keep_slashes)
    for i in range(n):
        if text[i] == 0:
            free(text)
            return None
        if how.backslash and text[i] == c"\\":
            text[i] = c"/"
    if how.strips_last:
        n = strip_parameters(text, n)
    n = remove_dots(out, text, n, how.merge)
    # `out` moves to the front, and is escaped into the space after it
    memcpy(text, out, n)
    out = text + n
    for i in range(n):
        c = <unsigned char>text[i]
        if how.decoding == 0 and c == c"%":
            out[w] = <char>c                        # still an escape
            w += 1
        elif c == KEPT_SLASH or c == KEPT_BACKSLASH:
            w = put_escape(out, w, c"/" if c == KEPT_SLASH else c"\\")
        elif PATH_BYTE[c]:
            out[w] = <char>c
            w += 1
        else:
            w = put_escape(out, w, c)
    result = PyBytes_FromStringAndSize(out, w)
    free(text)
    return result


cdef bytes host_of(bytes authority):
    """The host of an authority, lower case and without port and final dot; None if it is malformed (RFC 3986 §3.2.2)."""
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
            elif not UNRESERVED[c] or c == c"~":
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
    """An authority in normal form (RFC 3986 §6.2.3): the host as returned by host_of, and the port unless it is the scheme's
    default. host_of has validated received."""
    cdef Py_ssize_t colon = received.find(b":", received.find(b"]") + 1)
    cdef int port
    if colon < 0 or colon + 1 == PyBytes_GET_SIZE(received):
        return host
    port = int(received[colon + 1:])
    return host if port == (443 if secure else 80) else b"%b:%d" % (host, port)


def normalise(bytes path not None, bint merge=True):
    """The path in normal form; ValueError if it has no leading slash, or an escape that is malformed or encodes a NUL.

    merge: empty segments are removed (`server.merge_slashes`).
    """
    cdef int second = 0
    if not path.startswith(b"/"):
        raise ValueError(f"path {path!r}: expected a leading slash")
    out = normal_path(PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), merge, &second)
    if out is None:
        raise ValueError(f"path {path!r}: malformed percent-encoding")
    return out


def readings(bytes path not None, bint merge=True, bint keep_slashes=False):
    """For tests: every reading of this path, its normal form first; None among them for one with a NUL."""
    cdef int second = 0
    cdef reading_t how
    cdef bytes normal = normal_path(PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), merge, &second)
    cdef list out = [normal]
    how.decoding = 0
    how.backslash = how.strips_first = how.strips_last = how.merge = False
    while normal is not None and second and next_reading(&how, second):
        other = read_as(normal, &how, keep_slashes)
        if other not in out:
            out.append(other)
    return out


cdef tuple normal_url(bytes url, bint merge):
    """(secure, authority, path, query or None) of an http URL, in the form used for cache keys; ValueError if no request can have
    it. User name and fragment, which no request has, are left out."""
    cdef bytes scheme, rest, authority, path, query, host
    cdef bint secure
    scheme, colon, rest = url.partition(b"://")
    if scheme.lower() not in (b"http", b"https"):
        raise ValueError(f"URL {url[:80]!r}: expected http:// or https://")
    secure = len(scheme) == 5
    rest = rest.partition(b"#")[0]
    rest, mark, query = rest.partition(b"?")
    authority, slash, path = rest.partition(b"/")
    authority = authority.rpartition(b"@")[2]
    host = host_of(authority)
    if host is None:
        raise ValueError(f"URL {url[:80]!r}: expected host[:port] after its scheme")
    return secure, normal_authority(authority, host, secure), normalise(b"/" + path, merge), query if mark else None


def normal_escapes(bytes text not None):
    """text, which is part of a URL or a pattern over URLs, with its escapes in normal form; ValueError for a malformed one."""
    cdef bytes out = b""
    cdef list pieces = text.split(b"%")
    cdef bytes piece
    cdef int high, low
    for i, piece in enumerate(pieces):
        if i == 0:
            out = piece
            continue
        high = hex_value(<unsigned char>piece[0]) if len(piece) > 1 else -1
        low = hex_value(<unsigned char>piece[1]) if len(piece) > 1 else -1
        if high < 0 or low < 0:
            raise ValueError(f"{text[:80]!r}: malformed percent-encoding")
        if UNRESERVED[high * 16 + low]:
            out += bytes((high * 16 + low,)) + piece[2:]
        else:
            out += b"%" + piece[:2].upper() + piece[2:]
    return out


def read_url(bytes url not None, bint merge=True):
    """normal_url for Python."""
    return normal_url(url, merge)
