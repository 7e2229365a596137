# cython: boundscheck=False
"""Field names and values as bytes: their syntax, comparison without case, and the numbers of the names that the request path knows.

WHAT     `header_id` is the one table of the names that belong to a connection or to the gateway. `name_equal` ignores ASCII case;
         `names_fold` also ignores the difference between `-`, `_`, `.` and the like, as many upstreams do.
STATE    Four tables of 256 bytes, filled at import and constant afterwards.
COST     header_id 2 to 5 ns; a comparison about 1 ns for eight bytes.
SOURCES  RFC 9110 §5 (field syntax), §7.6.1 (Connection); RFC 3875 §4.1.18 (names in CGI).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

__all__ = []

cdef unsigned char[256] LOWER
# Names as CGI, WSGI, PHP and their like see them: every character but letters and digits is one and the same (RFC 3875 §4.1.18).
cdef unsigned char[256] FOLD

cdef void _fill_tables() noexcept:
    cdef int c
    cdef bytes extra = b"!#$%&'*+-.^_`|~"
    for c in range(256):
        LOWER[c] = c + 32 if 65 <= c <= 90 else c
        FOLD[c] = LOWER[c] if 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 else c"-"
        TOKEN[c] = 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122
        FIELD[c] = c == 9 or (c >= 32 and c != 127)
    for c in extra:
        TOKEN[c] = 1

_fill_tables()


cdef bint name_equal(const char* a, const char* lower, Py_ssize_t n) noexcept nogil:
    """True if the n bytes at a equal the lower-case name, ASCII case ignored."""
    cdef Py_ssize_t i
    for i in range(n):
        if LOWER[<unsigned char>a[i]] != <unsigned char>lower[i]:
            return False
    return True


cdef bint name_valid(const char* name, Py_ssize_t n) noexcept nogil:
    """True if name is a token (RFC 9110 §5.6.2), hence safe to write before a colon."""
    cdef Py_ssize_t i
    if n == 0:
        return False
    for i in range(n):
        if not TOKEN[<unsigned char>name[i]]:
            return False
    return True


cdef bint value_valid(const char* value, Py_ssize_t n) noexcept nogil:
    """True if value holds no control character but HTAB, hence cannot end its line (RFC 9110 §5.5)."""
    cdef Py_ssize_t i
    for i in range(n):
        if not FIELD[<unsigned char>value[i]]:
            return False
    return True


cdef bint has_token(const char* value, Py_ssize_t n, const char* lower, Py_ssize_t lower_n) noexcept nogil:
    """True if the comma-separated list in value holds the lower-case token."""
    cdef Py_ssize_t start = 0, end, stop
    while start < n:
        while start < n and (value[start] == c" " or value[start] == c"\t" or value[start] == c","):
            start += 1
        end = start
        while end < n and value[end] != c",":
            end += 1
        stop = end
        while stop > start and (value[stop - 1] == c" " or value[stop - 1] == c"\t"):
            stop -= 1
        if stop - start == lower_n and name_equal(value + start, lower, lower_n):
            return True
        start = end + 1
    return False


cdef bint names_fold(const char* a, const char* b, Py_ssize_t n) noexcept nogil:
    """True if the n bytes at a and b are one name to an upstream that folds `-`, `_`, `.` and the like."""
    cdef Py_ssize_t i
    for i in range(n):
        if FOLD[<unsigned char>a[i]] != FOLD[<unsigned char>b[i]]:
            return False
    return True


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* Whether the n bytes at a, none of them a control character, are the lower-case name of letters, digits and hyphens, ASCII case
       ignored: bit 5 makes a letter lower case and turns nothing else that is visible into a letter, a digit or a hyphen. n is a
       constant wherever this is called, so it is a few loads and no loop. */
    static inline __attribute__((always_inline)) int fastgate_is_name(const char* a, const char* lower, size_t n) {
        if (n >= 8) {
            const uint64_t bits = 0x2020202020202020ULL;
            uint64_t x, y, different = 0;
            size_t i;
            for (i = 0; i < n; i += 8) {
                size_t at = i + 8 <= n ? i : n - 8;
                memcpy(&x, a + at, 8);
                memcpy(&y, lower + at, 8);
                different |= (x | bits) ^ y;
            }
            return different == 0;
        }
        if (n >= 4) {
            uint32_t x, y, different;
            memcpy(&x, a, 4);
            memcpy(&y, lower, 4);
            different = (x | 0x20202020U) ^ y;
            memcpy(&x, a + n - 4, 4);
            memcpy(&y, lower + n - 4, 4);
            return (different | ((x | 0x20202020U) ^ y)) == 0;
        }
        while (n) {
            n--;
            if ((a[n] | 32) != lower[n]) return 0;
        }
        return 1;
    }
    """
    bint is_name "fastgate_is_name"(const char* a, const char* lower, size_t n) noexcept nogil


cdef inline int owned_id(const char* name, const char* lower, Py_ssize_t n, int known) noexcept nogil:
    """known if name is the lower-case name, H_ALIAS if it only folds to it, else H_OTHER."""
    if is_name(name, lower, n):
        return known
    return H_ALIAS if names_fold(name, lower, n) else H_OTHER


# H_X_FORWARDED_OTHER: in addition to X-Forwarded-*, the names by which proxies describe a client, its connection or the requested URL,
# and which frameworks believe from any sender (RFC 9440 for Client-Cert; CVE-2018-14773 for X-Original-URL and X-Rewrite-URL).

cdef int x_header_id(const char* name, Py_ssize_t n) noexcept nogil:
    """The H_* of a name that begins with `x-`, folded. At least six characters."""
    cdef unsigned char third = <unsigned char>name[2] | 32
    if third == c"c":
        if n >= 10 and names_fold(name, b"x-consumer", 10) and (n == 10 or FOLD[<unsigned char>name[10]] == c"-"):
            return H_CONSUMER                           # in any spelling: a client must not set it
        if n == 11:
            return owned_id(name, b"x-client-ip", 11, H_X_FORWARDED_OTHER)
        if n == 13:
            return owned_id(name, b"x-client-cert", 13, H_X_FORWARDED_OTHER)
        if n == 19:
            return owned_id(name, b"x-cluster-client-ip", 19, H_X_FORWARDED_OTHER)
    elif third == c"f":
        if n >= 11 and names_fold(name, b"x-forwarded", 11) and (n == 11 or FOLD[<unsigned char>name[11]] == c"-"):
            if n == 15 and names_fold(name, b"x-forwarded-for", 15):
                return owned_id(name, b"x-forwarded-for", 15, H_X_FORWARDED_FOR)
            if n == 16 and names_fold(name, b"x-forwarded-host", 16):
                return owned_id(name, b"x-forwarded-host", 16, H_X_FORWARDED_HOST)
            if n == 16 and names_fold(name, b"x-forwarded-port", 16):
                return owned_id(name, b"x-forwarded-port", 16, H_X_FORWARDED_PORT)
            if n == 17 and names_fold(name, b"x-forwarded-proto", 17):
                return owned_id(name, b"x-forwarded-proto", 17, H_X_FORWARDED_PROTO)
            return H_X_FORWARDED_OTHER if is_name(name, b"x-forwarded", 11) and (n == 11 or name[11] == c"-") else H_ALIAS
    elif third == c"r":
        if n == 9:
            return owned_id(name, b"x-real-ip", 9, H_X_REAL_IP)
        if n == 12:
            return owned_id(name, b"x-request-id", 12, H_X_REQUEST_ID)
        if n == 13:
            return owned_id(name, b"x-rewrite-url", 13, H_X_FORWARDED_OTHER)
    elif third == c"o":
        if n == 14:
            if names_fold(name, b"x-original-uri", 14):
                return owned_id(name, b"x-original-uri", 14, H_X_FORWARDED_OTHER)
            return owned_id(name, b"x-original-url", 14, H_X_FORWARDED_OTHER)
        if n == 15:
            return owned_id(name, b"x-original-host", 15, H_X_FORWARDED_OTHER)
    elif third == c"s":
        if n == 8:
            return owned_id(name, b"x-scheme", 8, H_X_FORWARDED_OTHER)
        if n == 17:
            return owned_id(name, b"x-ssl-client-cert", 17, H_X_FORWARDED_OTHER)
    elif third == c"h":
        if n == 6:
            return owned_id(name, b"x-host", 6, H_X_FORWARDED_OTHER)
    elif third == c"u":
        if n == 12:
            return owned_id(name, b"x-url-scheme", 12, H_X_FORWARDED_OTHER)
    return H_OTHER


cdef int header_id(const char* name, Py_ssize_t n) noexcept nogil:
    """The H_* of a field name (no control characters in it), H_OTHER for all the names the request path does not look at.

    This is the one table of the names that belong to the gateway or to the connection. Another spelling that some upstreams read as
    such a name (`X_Forwarded_For`, `Content_Length`) is H_ALIAS and is removed from requests."""
    cdef unsigned char first
    if n < 2:
        return H_OTHER
    first = <unsigned char>name[0] | 32
    if first == c"x":
        return x_header_id(name, n) if n >= 6 and FOLD[<unsigned char>name[1]] == c"-" else H_OTHER
    if n == 2:
        return H_TE if is_name(name, b"te", 2) else H_OTHER
    elif n == 3:
        return H_VIA if is_name(name, b"via", 3) else H_OTHER
    elif n == 4:
        if is_name(name, b"host", 4):
            return H_HOST
        return H_DATE if is_name(name, b"date", 4) else H_OTHER
    elif n == 6:
        if is_name(name, b"expect", 6):
            return H_EXPECT
        return H_SERVER if is_name(name, b"server", 6) else H_OTHER
    elif n == 7:
        if is_name(name, b"upgrade", 7):
            return H_UPGRADE
        if is_name(name, b"referer", 7):
            return H_REFERER
        return H_TRAILER if is_name(name, b"trailer", 7) else H_OTHER
    elif n == 9:
        return H_FORWARDED if is_name(name, b"forwarded", 9) else H_OTHER
    elif n == 10:
        if first == c"c":
            return H_CONNECTION if is_name(name, b"connection", 10) else H_OTHER
        if first == c"u":
            return H_USER_AGENT if is_name(name, b"user-agent", 10) else H_OTHER
        if first == c"k":
            return owned_id(name, b"keep-alive", 10, H_KEEP_ALIVE)
    elif n == 11:
        if first == c"c":
            return owned_id(name, b"client-cert", 11, H_X_FORWARDED_OTHER)
    elif n == 12:
        return H_CONTENT_TYPE if is_name(name, b"content-type", 12) else H_OTHER
    elif n == 14:
        if first == c"c":
            return owned_id(name, b"content-length", 14, H_CONTENT_LENGTH)
        if first == c"h":
            return owned_id(name, b"http2-settings", 14, H_HTTP2_SETTINGS)
        if first == c"t":
            return owned_id(name, b"true-client-ip", 14, H_X_FORWARDED_OTHER)
    elif n == 15:
        if first == c"f":
            return owned_id(name, b"front-end-https", 15, H_X_FORWARDED_OTHER)
    elif n == 16:
        if first == c"p":
            return owned_id(name, b"proxy-connection", 16, H_PROXY_CONNECTION)
        if first == c"c":
            return owned_id(name, b"cf-connecting-ip", 16, H_X_FORWARDED_OTHER)
    elif n == 17:
        if first == c"t":
            return owned_id(name, b"transfer-encoding", 17, H_TRANSFER_ENCODING)
        if first == c"c":
            return owned_id(name, b"client-cert-chain", 17, H_X_FORWARDED_OTHER)
    elif n == 18:
        if first == c"p":
            return owned_id(name, b"proxy-authenticate", 18, H_PROXY_AUTHENTICATE)
    elif n == 19:
        if first == c"p":
            return owned_id(name, b"proxy-authorization", 19, H_PROXY_AUTHORIZATION)
    return H_OTHER


cdef bint never_listed(int known) noexcept nogil:
    """True for the fields that a Connection field cannot take away: what frames or routes the message, and what only the gateway
    or a trusted proxy sets. A sender that lists them must not make the next hop see another message than the gateway saw."""
    return known in (H_HOST, H_CONTENT_LENGTH, H_TRANSFER_ENCODING, H_UPGRADE, H_CONNECTION, H_TE, H_VIA) \
        or H_FORWARDED <= known <= H_X_REQUEST_ID or known == H_X_REAL_IP or known >= H_FIRST_OWNED


cdef bint is_owned(tuple owned, const char* name, Py_ssize_t n) except -1:
    """True if the name folds to one of `owned` (None: there are none)."""
    cdef bytes each
    if owned is None:
        return False
    for each in owned:
        if PyBytes_GET_SIZE(each) == n and names_fold(name, PyBytes_AS_STRING(each), n):
            return True
    return False
