"""Public C interface of fastgate._core.http.headers."""

cdef enum:
    WIRE_FIELDS = 256         # of a message as it was received
    MAX_FIELDS = 512          # room for fields added by edits, gates and plugins

# Names known to the request path. Those from H_FIRST_HOP_BY_HOP to H_LAST_HOP_BY_HOP concern one connection only (RFC 9110
# §7.6.1) and are never forwarded.
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
    # From here on: fields that only the gateway may set in a request; those of clients are removed.
    H_FIRST_OWNED = 28
    H_CONSUMER = 28          # X-Consumer, X-Consumer-*, in any spelling
    H_ALIAS = 29             # another spelling of a name in this list
    H_X_FORWARDED_OTHER = 30 # X-Forwarded-Prefix and others: accepted from trusted proxies

cdef unsigned char[256] TOKEN             # RFC 9110 §5.6.2 tchar
cdef unsigned char[256] FIELD             # field-vchar, SP, HTAB (RFC 9110 §5.5): everything but the controls

cdef int header_id(const char* name, Py_ssize_t n) noexcept nogil
cdef inline bint trimmed_by_some(unsigned char c) noexcept nogil:
    """True for NEL and NBSP, which parsers that read fields as Latin-1 text trim off a value as white space (Python's
    str.strip)."""
    return c == 0x85 or c == 0xA0

cdef bint name_equal(const char* a, const char* lower, Py_ssize_t n) noexcept nogil
cdef bint names_fold(const char* a, const char* b, Py_ssize_t n) noexcept nogil
cdef bint name_valid(const char* name, Py_ssize_t n) noexcept nogil
cdef bint value_valid(const char* value, Py_ssize_t n) noexcept nogil
cdef bint has_token(const char* value, Py_ssize_t n, const char* lower, Py_ssize_t lower_n) noexcept nogil

ctypedef struct field_t:
    const char* name
    const char* value
    int name_n
    int value_n
    int id                # H_*

cdef bint trailer_allowed(const field_t* field) except -1
cdef bint is_owned(tuple owned, const char* name, Py_ssize_t n) except -1
cdef bytes trailers_announced(const field_t* field, tuple owned)

cdef enum:
    OWN_FIELDS = 16           # more than most messages have

cdef class Headers:
    cdef field_t own[OWN_FIELDS]
    cdef field_t* fields                  # own, or a larger allocation
    cdef readonly int count
    cdef int room
    cdef object raw                       # the bytes most fields point into
    cdef list owners                      # the bytes the other fields point into
    cdef int grow(self) except -1
    cdef bint append(self, bytes name, bytes value, int known) except -1
    cdef bint append_span(self, const char* name, Py_ssize_t name_n, const char* value, Py_ssize_t value_n, int known) except -1
    cdef field_t* find_field(self, const char* lower, Py_ssize_t n) noexcept nogil
    cdef field_t* find_id(self, int known) noexcept nogil
    cdef bytes find(self, const char* lower, Py_ssize_t n)
    cdef bytes find_known(self, int known)
    cdef void drop(self, const char* lower, Py_ssize_t n) noexcept nogil
    cdef void drop_folded(self, const char* name, Py_ssize_t n, bint but_itself) noexcept nogil
    cdef bint drop_listed(self, const char* connection, Py_ssize_t n) except -1
    cdef void drop_claims(self) noexcept nogil
    cdef int replace_value(self, field_t* field, bytes value) except -1
    cdef Headers copy(self)
    cdef bytes name_at(self, int i)
    cdef bytes value_at(self, int i)

cdef class HeadWriter:
    cdef char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity
    cdef int reserve(self, Py_ssize_t more) except -1
    cdef int put(self, const char* data, Py_ssize_t n) except -1
    cdef int put_bytes(self, bytes data) except -1
    cdef int put_decimal(self, unsigned long long value) except -1
    cdef int put_hex(self, unsigned long long value) except -1
    cdef int field(self, bytes name, bytes value) except -1
    cdef int parsed_field(self, bytes name, bytes value) except -1
    cdef int parsed_span(self, const field_t* field) except -1
    cdef bytes take(self)
