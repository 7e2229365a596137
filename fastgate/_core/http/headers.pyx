# cython: boundscheck=False
"""Header fields: a table that keeps order and case, and a writer that cannot emit an injected line.

WHAT     `Headers` holds the fields of one message in arrival order as name, value pairs of bytes, with one number per field for
         the names that the request path knows (header_names.pyx). Lookups compare length, then bytes without regard to
         ASCII case; no lower-cased copy is ever made. `HeadWriter` is a growable buffer for message heads.
STATE    fields[i] points to the bytes of name and value, which lie in `raw` (a message as it was read) or in one of `owners`; a
         dropped field keeps its place with id H_DROPPED. Nothing is copied until a value is requested.
WHO      One request, one thread.
COST     append 5 ns; find O(fields), about 1 ns per field that has another length.
SOURCES  RFC 9110 §5 (field syntax), §7.6.1 (Connection); aiohttp _http_writer.pyx (refuse control characters while writing).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

__all__ = ["HeadWriter", "Headers"]

cdef frozenset NEVER_TRAILERS = frozenset((
    b"authorization", b"cookie", b"set-cookie", b"www-authenticate", b"content-encoding", b"content-range", b"cache-control",
    b"age", b"expires", b"location", b"retry-after", b"vary", b"warning", b"max-forwards", b"pragma", b"range",
    b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"authentication-info"))


cdef bint trailer_allowed(const field_t* field) except -1:
    """False for fields that must not follow a body: framing, routing, authentication, request modifiers, control data
    (RFC 9110 §6.5.1), and those that belong to the gateway."""
    return field.id == H_OTHER and field.name[:field.name_n].lower() not in NEVER_TRAILERS


cdef bytes trailers_announced(const field_t* field, tuple owned):
    """The value of a Trailer field without the names of fields that are not passed on."""
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
        """Add a field whose syntax was already checked and whose bytes `raw` owns. False, and no field added, if the table is
        full."""
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
        """Add a field whose syntax was already checked. False, and no field added, if the table is full."""
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
        """The first field with this lower-case name, or NULL."""
        cdef int i
        cdef field_t* field
        for i in range(self.count):
            field = &self.fields[i]
            if field.name_n == n and field.id != H_DROPPED and name_equal(field.name, lower, n):
                return field
        return NULL

    cdef field_t* find_id(self, int known) noexcept nogil:
        """The first field with this id, or NULL."""
        cdef int i
        for i in range(self.count):
            if self.fields[i].id == known:
                return &self.fields[i]
        return NULL

    cdef bytes find(self, const char* lower, Py_ssize_t n):
        """The first value of this lower-case name, or None."""
        cdef field_t* field = self.find_field(lower, n)
        return None if field == NULL else field.value[:field.value_n]

    cdef bytes find_known(self, int known):
        """The first value of the field with this id, or None."""
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
        """Drop every field whose name folds to this lower-case one; but_itself: except those whose name equals it."""
        cdef int i
        for i in range(self.count):
            if self.fields[i].name_n == n and not (but_itself and name_equal(self.fields[i].name, name, n)) \
                    and names_fold(self.fields[i].name, name, n):
                self.fields[i].id = H_DROPPED

    cdef bint drop_listed(self, const char* connection, Py_ssize_t n) except -1:
        """Drop every field that a Connection value names (RFC 9110 §7.6.1), except the `never_listed`."""
        cdef bytes token
        for part in connection[:n].split(b","):
            token = (<bytes>part).strip(b" \t").lower()
            if token and not never_listed(header_id(PyBytes_AS_STRING(token), PyBytes_GET_SIZE(token))):
                self.drop(PyBytes_AS_STRING(token), PyBytes_GET_SIZE(token))
        return True

    cdef void drop_claims(self) noexcept nogil:
        """Drop the fields that only a trusted proxy may set."""
        cdef int i, known
        for i in range(self.count):
            known = self.fields[i].id
            if H_FORWARDED <= known <= H_X_FORWARDED_PORT or known == H_X_REAL_IP or known == H_X_FORWARDED_OTHER:
                self.fields[i].id = H_DROPPED

    cdef int replace_value(self, field_t* field, bytes value) except -1:
        """Replace the value of a field. The syntax of the new value was already checked."""
        if self.owners is None:
            self.owners = []
        self.owners.append(value)
        field.value = PyBytes_AS_STRING(value)
        field.value_n = <int>PyBytes_GET_SIZE(value)
        return 0

    cdef Headers copy(self):
        """An independent, editable table with the same fields."""
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
        """The first value of name, or default."""
        cdef bytes raw = _name_bytes(name).lower()
        cdef bytes value = self.find(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        return default if value is None else value.decode("latin-1")

    def get_all(self, name):
        """Every value of name, in order."""
        cdef str wanted = _name_bytes(name).lower().decode("latin-1")
        return [value for key, value in self.items() if key.lower() == wanted]

    def add(self, name, value):
        """Append a field and keep the existing ones. Raises ValueError for a malformed name or value, or a full table."""
        cdef bytes raw = _name_bytes(name)
        cdef bytes checked = _value_bytes(value)
        if self.count >= MAX_FIELDS:
            self._compact()
        if not self.append(raw, checked, header_id(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))):
            raise ValueError(f"header table is full: at most {MAX_FIELDS} fields")

    def set(self, name, value):
        """Replace every field of this name by one. Raises ValueError as `add` does."""
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
        """Rename every field called old to new, keeping order and values; True if there was one."""
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
        """The fields in wire format, without the empty line that ends a head."""
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


cdef Headers headers_of(object value):
    return value if isinstance(value, Headers) else Headers(value)


cdef class HeadWriter:
    """A growable byte buffer for message heads. `field` refuses bytes that could end a line early."""

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
        """Write one field line. Raises ValueError, and writes nothing, for a name or value that could break the line."""
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
        """Write one field line directly from a table."""
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
        """The bytes written; the buffer is empty afterwards."""
        cdef bytes out = PyBytes_FromStringAndSize(self.data, self.size)
        self.size = 0
        return out
