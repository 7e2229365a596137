"""Public C interface of fastgate._core.cache.http_fields."""

from libc.stdint cimport int64_t

cdef enum:
    SECONDS_UNSET = -1
    SECONDS_INVALID = -2
    MAX_SECONDS = 2147483648                # RFC 9111 §1.2.2: value of a larger delta-seconds

cdef enum:                                  # bits of directives_t.flags
    CC_NO_STORE = 1
    CC_NO_CACHE = 2
    CC_PRIVATE = 4
    CC_PUBLIC = 8
    CC_MUST_REVALIDATE = 16
    CC_PROXY_REVALIDATE = 32
    CC_IMMUTABLE = 64
    CC_MUST_UNDERSTAND = 128
    CC_ONLY_IF_CACHED = 256
    CC_MALFORMED = 512                      # an unterminated quoted string: the rest cannot be read
    CC_SEEN = 1024                          # there was at least one directive

ctypedef struct directives_t:
    int flags
    int64_t max_age                         # seconds, SECONDS_UNSET or SECONDS_INVALID, as the next ones
    int64_t s_maxage
    int64_t swr
    int64_t sie
    int64_t min_fresh
    int64_t max_stale                       # MAX_SECONDS if it has no value

cdef void directives_clear(directives_t* d) noexcept nogil
# The fields named by no-cache="…" and private="…" are appended to listed (lower case), which may be None.
cdef int directives_read(directives_t* d, const char* p, Py_ssize_t n, list listed) except -1
# True if the field is a valid dictionary with at least one member (RFC 9213 §2.1); d is set only then.
cdef bint directives_structured(directives_t* d, bytes value) except -1

cdef int64_t seconds_read(const char* p, Py_ssize_t n) noexcept nogil
cdef bytes normalised(const char* lower, Py_ssize_t lower_n, bytes value)
cdef bint etag_listed(const char* p, Py_ssize_t n, bytes etag) except -1
cdef bint etag_weak(bytes etag)

cdef enum:
    MAX_NAMES = 32                          # of fields in the Vary of one URL's responses
    MAX_NAME = 256                          # bytes of one of them

cdef bint are_tokens(names) except -1
