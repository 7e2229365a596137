"""Public C interface of fastgate._core.http.header_names."""

# Names the request path must recognise. Everything from H_FIRST_HOP_BY_HOP to H_LAST_HOP_BY_HOP concerns one connection only
# (RFC 9110 §7.6.1) and never crosses the gateway.
cdef enum:
    H_OTHER = 0
    H_CONNECTION = 1
    H_KEEP_ALIVE = 2
    H_PROXY_CONNECTION = 3
    H_TRANSFER_ENCODING = 4
    H_TE = 5
    H_UPGRADE = 6
    H_PROXY_AUTHORIZATION = 7
    H_PROXY_AUTHENTICATE = 8
    H_HTTP2_SETTINGS = 9
    H_DROPPED = 10           # listed in Connection, or removed by a plugin
    H_LAST_HOP_BY_HOP = 10
    H_CONTENT_LENGTH = 11
    H_HOST = 12
    H_EXPECT = 13
    H_TRAILER = 14
    H_FORWARDED = 15
    H_X_FORWARDED_FOR = 16
    H_X_FORWARDED_PROTO = 17
    H_X_FORWARDED_HOST = 18
    H_X_FORWARDED_PORT = 19
    H_X_REQUEST_ID = 20
    H_VIA = 21
    H_DATE = 22
    H_SERVER = 23
    H_CONTENT_TYPE = 24
    H_USER_AGENT = 25
    H_X_REAL_IP = 26
    H_REFERER = 27
    # From here on: what only the gateway may set on a request, never a client.
    H_FIRST_OWNED = 28
    H_CONSUMER = 28          # X-Consumer, X-Consumer-*, in any spelling
    H_ALIAS = 29             # another spelling of a name in this list
    H_X_FORWARDED_OTHER = 30 # X-Forwarded-Prefix and the like: a trusted proxy may set it

cdef unsigned char[256] TOKEN             # RFC 9110 §5.6.2 tchar
cdef unsigned char[256] FIELD             # field-vchar, SP, HTAB (RFC 9110 §5.5): everything but the controls

cdef int header_id(const char* name, Py_ssize_t n) noexcept nogil
cdef inline bint trimmed_by_some(unsigned char c) noexcept nogil:
    """True for NEL and NBSP, which parsers that read fields as Latin-1 text trim off a value as white space (Python's str.strip)."""
    return c == 0x85 or c == 0xA0

cdef bint name_equal(const char* a, const char* lower, Py_ssize_t n) noexcept nogil
cdef bint names_fold(const char* a, const char* b, Py_ssize_t n) noexcept nogil
cdef bint name_valid(const char* name, Py_ssize_t n) noexcept nogil
cdef bint value_valid(const char* value, Py_ssize_t n) noexcept nogil
cdef bint has_token(const char* value, Py_ssize_t n, const char* lower, Py_ssize_t lower_n) noexcept nogil
# True if the name folds to one of `owned` (None: there are none).
cdef bint is_owned(tuple owned, const char* name, Py_ssize_t n) except -1
# True for the fields that a Connection field cannot remove.
cdef bint never_listed(int known) noexcept nogil
