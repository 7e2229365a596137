"""Public C interface of fastgate._core.http.urlpath."""

cdef enum:
    # Classes of the bytes of a request target
    B_PLAIN = 0
    B_BAD = 1                 # invalid in a target: controls, space, bytes above 126, `#`
    B_QUESTION = 2
    B_SLASH = 3
    B_DOT = 4
    B_LOOK = 5                # the path must be normalized: `%`, and characters that must be escaped
    B_SEMICOLON = 6

cdef unsigned char[256] TARGET_BYTE

cdef enum:
    # Reasons why another parser may read a path other than the normal form
    SECOND_ESCAPE = 1         # an escape of a character that need not be escaped
    SECOND_PARAMETER = 2      # `;`, after which some parsers ignore the rest of a segment
    SECOND_BACKSLASH = 4      # a backslash, which some parsers treat as a slash
    SECOND_DOUBLE = 8         # an escaped percent sign: there is more to decode
    SECOND_EMPTY = 16         # an empty segment, which most parsers skip

cdef enum:
    MOST_DECODING = 3         # rounds of decoding that are examined

cdef bytes host_of(bytes authority)
cdef bytes normal_authority(bytes received, bytes host, bint secure)
cdef tuple normal_url(bytes url, bint merge)
cdef bytes normal_path(const char* path, Py_ssize_t n, bint merge, int* second)

ctypedef struct reading_t:
    int decoding              # rounds of percent-decoding
    bint backslash            # `\` is a slash
    bint strips_first         # path parameters are cut off before decoding …
    bint strips_last          # … and after it
    bint merge                # empty segments are skipped

cdef bint next_reading(reading_t* how, int second) noexcept nogil
cdef bytes read_as(bytes path, const reading_t* how, bint keep_slashes)
