# cython: boundscheck=False
"""Header fields: a table that keeps order and case, and a writer that cannot emit an injected line.

WHAT     `Headers` holds the fields of one message in arrival order as name, value pairs of bytes, with one byte per field that
         says which of the few names the request path cares about it is. Look-ups compare length, then bytes without regard to
         ASCII case; no lower-cased copy is ever made. `HeadWriter` is a growable buffer for message heads.
STATE    fields[i] points to the bytes of name and value, which lie in `raw` (a message as it was read) or in one of `owners`; a
         dropped field keeps its place with id H_DROPPED. Nothing is copied until somebody asks for a value.
WHO      One request, one thread.
COST     append 5 ns; find O(fields), about 1 ns per field that has another length.
SOURCES  RFC 9110 §5 (field syntax), §7.6.1 (Connection); aiohttp _http_writer.pyx (refuse control characters while writing).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

__all__ = ["HeadWriter", "Headers"]

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


# Beside X-Forwarded-* there are the names that say what proxies say of a client, its connection or the URL it asked for, and what
# frameworks believe of whoever sends it (RFC 9440 for Client-Cert; CVE-2018-14773 for X-Original-URL and X-Rewrite-URL):
# H_X_FORWARDED_OTHER.

cdef int x_header_id(const char* name, Py_ssize_t n) noexcept nogil:
    """The H_* of a name that begins with `x-`, folded. At least six characters."""
    cdef unsigned char third = <unsigned char>name[2] | 32
    if third == c"c":
        if n >= 10 and names_fold(name, b"x-consumer", 10) and (n == 10 or FOLD[<unsigned char>name[10]] == c"-"):
            return H_CONSUMER                           # in any spelling: no client says who a request is from
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

    This is the one table of the names that belong to the gateway or to the connection. Another spelling that some upstreams take
    for such a name (`X_Forwarded_For`, `Content_Length`) is H_ALIAS; requests lose it, wherever it stands."""
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
    or a trusted proxy says. A sender that lists them must not make the next hop see another message than we saw."""
    return known in (H_HOST, H_CONTENT_LENGTH, H_TRANSFER_ENCODING, H_UPGRADE, H_CONNECTION, H_TE, H_VIA) \
        or H_FORWARDED <= known <= H_X_REQUEST_ID or known == H_X_REAL_IP or known >= H_FIRST_OWNED


cdef frozenset NEVER_TRAILERS = frozenset((
    b"authorization", b"cookie", b"set-cookie", b"www-authenticate", b"content-encoding", b"content-range", b"cache-control",
    b"age", b"expires", b"location", b"retry-after", b"vary", b"warning", b"max-forwards", b"pragma", b"range",
    b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"authentication-info"))


cdef bint trailer_allowed(const field_t* field) except -1:
    """False for the fields that mean nothing good behind a body: framing, routing, authentication, request modifiers, control data
    (RFC 9110 §6.5.1), and whatever belongs to the gateway."""
    return field.id == H_OTHER and field.name[:field.name_n].lower() not in NEVER_TRAILERS


cdef bint is_owned(tuple owned, const char* name, Py_ssize_t n) except -1:
    """True if the name folds to one of `owned` (None: there are none)."""
    cdef bytes each
    if owned is None:
        return False
    for each in owned:
        if PyBytes_GET_SIZE(each) == n and names_fold(name, PyBytes_AS_STRING(each), n):
            return True
    return False


cdef bytes trailers_announced(const field_t* field, tuple owned):
    """The value of a Trailer field without the names of fields that will not be passed on."""
    cdef field_t named
    cdef bytes name
    cdef list kept = []
    for part in field.value[:field.value_n].split(b","):
        name = (<bytes>part).strip(b" \t")
        named.name = PyBytes_AS_STRING(name)
        named.name_n = <int>PyBytes_GET_SIZE(name)
        named.id = header_id(named.name, named.name_n)
        if name and trailer_allowed(&named) and not is_owned(owned, named.name, named.name_n):
            kept.append(name)
    return b", ".join(kept)


cdef bytes _name_bytes(object name):
    cdef bytes raw
    if isinstance(name, str):
        raw = (<str>name).encode("latin-1")
    elif isinstance(name, bytes):
        raw = name
    else:
        raise TypeError(f"header name: expected str or bytes, got {type(name).__name__}")
    if not name_valid(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
        raise ValueError(f"header name: expected a token (RFC 9110 §5.6.2), got {raw!r}")
    return raw


cdef bytes _value_bytes(object value):
    cdef bytes raw
    if isinstance(value, str):
        raw = (<str>value).encode("latin-1", "replace")
    elif isinstance(value, bytes):
        raw = value
    else:
        raise TypeError(f"header value: expected str or bytes, got {type(value).__name__}")
    raw = raw.strip(b" \t")
    if not value_valid(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
        raise ValueError(f"header value: control characters are not allowed (RFC 9110 §5.5), got {raw!r}")
    return raw


@cython.freelist(64)
cdef class Headers:
    """The header fields of one message, in order. Names match without regard to case; values are text (latin-1).

    At most 512 fields: `add` and `set` raise ValueError beyond that, and for names or values that could break a line.
    """

    def __init__(self, fields=()):
        for name, value in fields:
            self.add(name, value)

    def __cinit__(self):
        self.fields = self.own
        self.room = OWN_FIELDS

    def __dealloc__(self):
        if self.fields != self.own:
            free(self.fields)

    cdef int grow(self) except -1:
        cdef int room = self.room * 4
        cdef field_t* fields = <field_t*>realloc(NULL if self.fields == self.own else self.fields, room * sizeof(field_t))
        if fields == NULL:
            raise MemoryError()
        if self.fields == self.own:
            memcpy(fields, self.own, sizeof(self.own))
        self.fields = fields
        self.room = room
        return 0

    cdef bint append_span(self, const char* name, Py_ssize_t name_n, const char* value, Py_ssize_t value_n, int known) except -1:
        """Add a field whose syntax was already checked and whose bytes `raw` keeps. False, and nothing added, when full."""
        cdef field_t* field
        if self.count >= MAX_FIELDS:
            return False
        if self.count == self.room:
            self.grow()
        field = &self.fields[self.count]
        field.name = name
        field.value = value
        field.name_n = <int>name_n
        field.value_n = <int>value_n
        field.id = known
        self.count += 1
        return True

    cdef bint append(self, bytes name, bytes value, int known) except -1:
        """Add a field whose syntax was already checked. False, and nothing added, when the table is full."""
        if not self.append_span(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(value),
                                PyBytes_GET_SIZE(value), known):
            return False
        if self.owners is None:
            self.owners = [name, value]
        else:
            self.owners.append(name)
            self.owners.append(value)
        return True

    cdef field_t* find_field(self, const char* lower, Py_ssize_t n) noexcept nogil:
        """The first field under the lower-case name, or NULL."""
        cdef int i
        cdef field_t* field
        for i in range(self.count):
            field = &self.fields[i]
            if field.name_n == n and field.id != H_DROPPED and name_equal(field.name, lower, n):
                return field
        return NULL

    cdef field_t* find_id(self, int known) noexcept nogil:
        """The first field the request path knows by this id, or NULL."""
        cdef int i
        for i in range(self.count):
            if self.fields[i].id == known:
                return &self.fields[i]
        return NULL

    cdef bytes find(self, const char* lower, Py_ssize_t n):
        """The first value under the lower-case name, or None."""
        cdef field_t* field = self.find_field(lower, n)
        return None if field == NULL else field.value[:field.value_n]

    cdef bytes find_known(self, int known):
        """The first value of a field the request path knows by id, or None."""
        cdef field_t* field = self.find_id(known)
        return None if field == NULL else field.value[:field.value_n]

    cdef bytes name_at(self, int i):
        return self.fields[i].name[:self.fields[i].name_n]

    cdef bytes value_at(self, int i):
        return self.fields[i].value[:self.fields[i].value_n]

    cdef void drop(self, const char* lower, Py_ssize_t n) noexcept nogil:
        cdef int i
        for i in range(self.count):
            if self.fields[i].name_n == n and name_equal(self.fields[i].name, lower, n):
                self.fields[i].id = H_DROPPED

    cdef void drop_folded(self, const char* name, Py_ssize_t n, bint but_itself) noexcept nogil:
        """Drop every field whose name folds to this lower-case one; but_itself: all but those of this very name."""
        cdef int i
        for i in range(self.count):
            if self.fields[i].name_n == n and not (but_itself and name_equal(self.fields[i].name, name, n)) \
                    and names_fold(self.fields[i].name, name, n):
                self.fields[i].id = H_DROPPED

    cdef bint drop_listed(self, const char* connection, Py_ssize_t n) except -1:
        """Drop every field that a Connection value names (RFC 9110 §7.6.1) but for the `never_listed`."""
        cdef bytes token
        for part in connection[:n].split(b","):
            token = (<bytes>part).strip(b" \t").lower()
            if token and not never_listed(header_id(PyBytes_AS_STRING(token), PyBytes_GET_SIZE(token))):
                self.drop(PyBytes_AS_STRING(token), PyBytes_GET_SIZE(token))
        return True

    cdef void drop_claims(self) noexcept nogil:
        """Drop what only a trusted proxy may say of a client."""
        cdef int i, known
        for i in range(self.count):
            known = self.fields[i].id
            if H_FORWARDED <= known <= H_X_FORWARDED_PORT or known == H_X_REAL_IP or known == H_X_FORWARDED_OTHER:
                self.fields[i].id = H_DROPPED

    cdef int replace_value(self, field_t* field, bytes value) except -1:
        """Put another value, whose syntax was already checked, in place of the field's own."""
        if self.owners is None:
            self.owners = []
        self.owners.append(value)
        field.value = PyBytes_AS_STRING(value)
        field.value_n = <int>PyBytes_GET_SIZE(value)
        return 0

    cdef Headers copy(self):
        """A table with the same fields that can be edited apart from this one."""
        cdef Headers out = Headers.__new__(Headers)
        cdef int i
        for i in range(self.count):
            out.append_span(self.fields[i].name, self.fields[i].name_n, self.fields[i].value, self.fields[i].value_n,
                            self.fields[i].id)
        out.raw = self.raw
        out.owners = None if self.owners is None else list(self.owners)
        return out

    # Python interface

    def get(self, name, default=None):
        """The first value under name, or default."""
        cdef bytes raw = _name_bytes(name).lower()
        cdef bytes value = self.find(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        return default if value is None else value.decode("latin-1")

    def get_all(self, name):
        """Every value under name, in order."""
        cdef str wanted = _name_bytes(name).lower().decode("latin-1")
        return [value for key, value in self.items() if key.lower() == wanted]

    def add(self, name, value):
        """Append a field and keep the ones that are there. ValueError for a malformed name or value, or a full table."""
        cdef bytes raw = _name_bytes(name)
        cdef bytes checked = _value_bytes(value)
        if self.count >= MAX_FIELDS:
            self._compact()
        if not self.append(raw, checked, header_id(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))):
            raise ValueError(f"header table is full: at most {MAX_FIELDS} fields")

    def set(self, name, value):
        """Replace every field of this name by one. ValueError as for add."""
        cdef bytes raw = _name_bytes(name)
        cdef bytes checked = _value_bytes(value)
        self.remove(raw)
        self.add(raw, checked)

    def remove(self, name):
        """Drop every field of this name; True if there was one."""
        cdef bytes raw = _name_bytes(name).lower()
        cdef bint found = self.find_field(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)) != NULL
        self.drop(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        return found

    def rename(self, old, new):
        """Give every field called old the name new, keeping order and values; True if there was one."""
        cdef bytes raw = _name_bytes(old).lower()
        cdef bytes fresh = _name_bytes(new)
        cdef bint found = False
        cdef int i
        for i in range(self.count):
            if self.fields[i].id != H_DROPPED and self.name_at(i).lower() == raw:
                self.fields[i].name = PyBytes_AS_STRING(fresh)
                self.fields[i].name_n = <int>PyBytes_GET_SIZE(fresh)
                self.fields[i].id = header_id(PyBytes_AS_STRING(fresh), PyBytes_GET_SIZE(fresh))
                found = True
        if found:
            if self.owners is None:
                self.owners = []
            self.owners.append(fresh)
        return found

    def _compact(self):
        cdef int i, n = 0
        for i in range(self.count):
            if self.fields[i].id != H_DROPPED:
                self.fields[n] = self.fields[i]
                n += 1
        self.count = n

    def items(self):
        """Every (name, value) as text, in order."""
        cdef int i
        return [
            (self.name_at(i).decode("latin-1"), self.value_at(i).decode("latin-1"))
            for i in range(self.count)
            if self.fields[i].id != H_DROPPED
        ]

    def serialize(self):
        """The fields as they stand on the wire, without the empty line that ends a head."""
        cdef HeadWriter writer = HeadWriter()
        cdef int i
        for i in range(self.count):
            if self.fields[i].id != H_DROPPED:
                writer.parsed_span(&self.fields[i])
        return writer.take()

    def __contains__(self, name):
        return self.get(name) is not None

    def __getitem__(self, name):
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self):
        return iter(self.items())

    def __len__(self):
        return len(self.items())

    def __repr__(self):
        return f"Headers({self.items()!r})"


cdef class HeadWriter:
    """A growable byte buffer for message heads. `field` refuses what could end a line early."""

    def __dealloc__(self):
        free(self.data)

    cdef int reserve(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t wanted = self.size + more
        cdef Py_ssize_t capacity
        cdef char* data
        if wanted <= self.capacity:
            return 0
        capacity = self.capacity * 2 if self.capacity else 2048
        while capacity < wanted:
            capacity *= 2
        data = <char*>realloc(self.data, capacity)
        if data == NULL:
            raise MemoryError()
        self.data = data
        self.capacity = capacity
        return 0

    cdef int put(self, const char* data, Py_ssize_t n) except -1:
        if self.size + n > self.capacity:
            self.reserve(n)
        memcpy(self.data + self.size, data, n)
        self.size += n
        return 0

    cdef int put_bytes(self, bytes data) except -1:
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        if self.size + n > self.capacity:
            self.reserve(n)
        memcpy(self.data + self.size, PyBytes_AS_STRING(data), n)
        self.size += n
        return 0

    cdef int put_decimal(self, unsigned long long value) except -1:
        cdef char[20] digits
        cdef int i = 20
        while True:
            i -= 1
            digits[i] = 48 + value % 10
            value //= 10
            if value == 0:
                break
        return self.put(&digits[i], 20 - i)

    cdef int put_hex(self, unsigned long long value) except -1:
        cdef char[16] digits
        cdef int i = 16
        cdef int nibble
        while True:
            i -= 1
            nibble = value & 15
            digits[i] = 48 + nibble if nibble < 10 else 87 + nibble
            value >>= 4
            if value == 0:
                break
        return self.put(&digits[i], 16 - i)

    cdef int field(self, bytes name, bytes value) except -1:
        """Write one field line. ValueError, and nothing written, for a name or value that could break the line."""
        if not name_valid(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)):
            raise ValueError(f"header name: expected a token (RFC 9110 §5.6.2), got {name!r}")
        if not value_valid(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)):
            raise ValueError(f"header value: control characters are not allowed (RFC 9110 §5.5), got {value!r}")
        return self.parsed_field(name, value)

    cdef int parsed_field(self, bytes name, bytes value) except -1:
        """Write one field line whose syntax a parser has already checked."""
        cdef Py_ssize_t name_n = PyBytes_GET_SIZE(name)
        cdef Py_ssize_t value_n = PyBytes_GET_SIZE(value)
        cdef char* at
        if self.size + name_n + value_n + 4 > self.capacity:
            self.reserve(name_n + value_n + 4)
        at = self.data + self.size
        memcpy(at, PyBytes_AS_STRING(name), name_n)
        at[name_n] = c":"
        at[name_n + 1] = c" "
        memcpy(at + name_n + 2, PyBytes_AS_STRING(value), value_n)
        at[name_n + value_n + 2] = c"\r"
        at[name_n + value_n + 3] = c"\n"
        self.size += name_n + value_n + 4
        return 0

    cdef int parsed_span(self, const field_t* field) except -1:
        """Write one field line straight from a table."""
        cdef Py_ssize_t size = <Py_ssize_t>field.name_n + field.value_n + 4
        cdef char* at
        if self.size + size > self.capacity:
            self.reserve(size)
        at = self.data + self.size
        memcpy(at, field.name, field.name_n)
        at += field.name_n
        at[0] = c":"
        at[1] = c" "
        memcpy(at + 2, field.value, field.value_n)
        at += 2 + field.value_n
        at[0] = c"\r"
        at[1] = c"\n"
        self.size += size
        return 0

    cdef bytes take(self):
        """What was written, and an empty buffer again."""
        cdef bytes out = PyBytes_FromStringAndSize(self.data, self.size)
        self.size = 0
        return out
