"""Public C interface of fastgate._core.http.headers, with that of header_names."""

from fastgate._core.http.header_names cimport *

cdef enum:
    WIRE_FIELDS = 256         # of a message as it was received
    MAX_FIELDS = 512          # leaves room for fields added by edits, gates and plugins

ctypedef struct field_t:
    const char* name
    const char* value
    int name_n
    int value_n
    int id                # H_*

cdef inline bint field_is(const field_t* field, const char* lower, int n) noexcept nogil:
    """True if the field has this lower-case name, ASCII case ignored."""
    return field.name_n == n and name_equal(field.name, lower, n)

cdef bint trailer_allowed(const field_t* field) except -1
cdef bytes trailers_announced(const field_t* field, tuple owned)

cdef enum:
    OWN_FIELDS = 16           # more than most messages have

cdef class Headers:
    cdef field_t own[OWN_FIELDS]
    cdef field_t* fields                  # `own`, or a larger allocation
    cdef readonly int count
    cdef int room
    cdef object raw                       # owns the bytes that most fields point into
    cdef list owners                      # own the bytes that the other fields point into
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

# The value itself if it is a Headers, else one created from its (name, value) pairs.
cdef Headers headers_of(object value)

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
