"""Reading the header fields that caching depends on.

WHAT        delta-seconds, Cache-Control of requests and responses (RFC 9111 §5.2, RFC 5861, RFC 8246), structured dictionaries
            (RFC 9651) for targeted fields (RFC 9213), lists of entity tags and of field names, and the normal form in which two
            values of a field that `Vary` names are compared (RFC 9111 §4.1). Dates are in http_dates.pyx.
STATE       None: pure functions.
COST        One pass over the value. Cache-Control with three directives: about 60 ns.
RULES       A malformed field never makes a response more cacheable. A directive that occurs twice with different values is
            invalid, and an invalid freshness directive makes the response stale (RFC 9111 §4.2.1).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp

from fastgate._core.http.header_names cimport TOKEN, name_valid

__all__ = ["normalise_value", "parse_cache_control", "parse_dictionary"]


# --- Cache-Control ---------------------------------------------------------------------------------------------------------------

cdef int64_t seconds_read(const char* p, Py_ssize_t n) noexcept nogil:
    """delta-seconds, at most MAX_SECONDS; SECONDS_INVALID for anything but digits."""
    cdef int64_t value = 0
    cdef Py_ssize_t i
    if n == 0:
        return SECONDS_INVALID
    for i in range(n):
        if not 48 <= p[i] <= 57:
            return SECONDS_INVALID
        if value < MAX_SECONDS:
            value = value * 10 + (p[i] - 48)
    return value if value < MAX_SECONDS else MAX_SECONDS


cdef void directives_clear(directives_t* d) noexcept nogil:
    d.flags = 0
    d.max_age = d.s_maxage = d.swr = d.sie = d.min_fresh = d.max_stale = SECONDS_UNSET


cdef inline void seconds_set(int64_t* place, int64_t value) noexcept nogil:
    """The same value twice counts once; two different values are invalid."""
    place[0] = value if place[0] == SECONDS_UNSET or place[0] == value else SECONDS_INVALID


cdef inline bint is_word(const char* p, Py_ssize_t n, const char* lower, Py_ssize_t lower_n) noexcept nogil:
    cdef Py_ssize_t i
    cdef char c
    if n != lower_n:
        return False
    for i in range(n):
        c = p[i]
        if 65 <= c <= 90:
            c += 32
        if c != lower[i]:
            return False
    return True


cdef int fields_listed(const char* p, Py_ssize_t n, list listed) except -1:
    """How many names were appended."""
    cdef int count = 0
    for part in (<bytes>p[:n]).split(b","):
        name = (<bytes>part).strip(b" \t").lower()
        if name:
            listed.append(name)
            count += 1
    return count


cdef int directive_apply(directives_t* d, const char* name, Py_ssize_t n, const char* value, Py_ssize_t value_n, list listed) except -1:
    """One directive; value is NULL if it has none."""
    cdef int64_t seconds = SECONDS_INVALID if value == NULL else seconds_read(value, value_n)
    d.flags |= CC_SEEN
    if n == 7:
        if is_word(name, n, b"max-age", 7):
            seconds_set(&d.max_age, seconds)
        elif is_word(name, n, b"private", 7):
            if value == NULL or listed is None or fields_listed(value, value_n, listed) == 0:
                d.flags |= CC_PRIVATE
    elif n == 8:
        if is_word(name, n, b"no-store", 8):
            d.flags |= CC_NO_STORE
        elif is_word(name, n, b"no-cache", 8):
            if value == NULL or listed is None or fields_listed(value, value_n, listed) == 0:
                d.flags |= CC_NO_CACHE
        elif is_word(name, n, b"s-maxage", 8):
            seconds_set(&d.s_maxage, seconds)
    elif n == 6:
        if is_word(name, n, b"public", 6):
            d.flags |= CC_PUBLIC
    elif n == 9:
        if is_word(name, n, b"immutable", 9):
            d.flags |= CC_IMMUTABLE
        elif is_word(name, n, b"min-fresh", 9):
            seconds_set(&d.min_fresh, seconds)
        elif is_word(name, n, b"max-stale", 9):
            seconds_set(&d.max_stale, MAX_SECONDS if value == NULL else seconds)
    elif n == 14:
        if is_word(name, n, b"stale-if-error", 14):
            seconds_set(&d.sie, seconds)
        elif is_word(name, n, b"only-if-cached", 14):
            d.flags |= CC_ONLY_IF_CACHED
    elif n == 15:
        if is_word(name, n, b"must-revalidate", 15):
            d.flags |= CC_MUST_REVALIDATE
        elif is_word(name, n, b"must-understand", 15):
            d.flags |= CC_MUST_UNDERSTAND
    elif n == 16:
        if is_word(name, n, b"proxy-revalidate", 16):
            d.flags |= CC_PROXY_REVALIDATE
    elif n == 22:
        if is_word(name, n, b"stale-while-revalidate", 22):
            seconds_set(&d.swr, seconds)
    return 0


cdef int directives_read(directives_t* d, const char* p, Py_ssize_t n, list listed) except -1:
    """Add one field line to d. listed: takes the names in no-cache="…" and private="…"; None: those count as unqualified."""
    cdef Py_ssize_t i = 0, start, name_n, value_n
    cdef const char* value
    cdef bytes unescaped
    while i < n:
        while i < n and (p[i] == c" " or p[i] == c"\t" or p[i] == c","):
            i += 1
        if i >= n:
            break
        start = i
        while i < n and TOKEN[<unsigned char>p[i]]:
            i += 1
        name_n = i - start
        value = NULL
        value_n = 0
        unescaped = None
        if i < n and p[i] == c"=":
            i += 1
            value = p + i
            if i < n and p[i] == c'"':
                i += 1
                value = p + i
                while i < n and p[i] != c'"':
                    if p[i] == c"\\":
                        i += 1
                    i += 1
                if i >= n:
                    d.flags |= CC_MALFORMED
                    return 0
                value_n = p + i - value
                i += 1
                if memchr(value, c"\\", value_n) != NULL:
                    unescaped = unescape(value[:value_n])
                    value = PyBytes_AS_STRING(unescaped)
                    value_n = PyBytes_GET_SIZE(unescaped)
            else:
                while i < n and p[i] != c"," and p[i] != c" " and p[i] != c"\t":
                    if p[i] == c'"':
                        d.flags |= CC_MALFORMED
                        return 0
                    i += 1
                value_n = p + i - value
        # A directive is followed by a comma or the end. Anything else (`max-age =1`, `max-age= 1`, `max-age="1"x`) makes a value
        # invalid rather than absent: the origin's intent is unknown.
        while i < n and (p[i] == c" " or p[i] == c"\t"):
            i += 1
        if i < n and p[i] != c",":
            value = p
            value_n = 0
            while i < n and p[i] != c",":
                if p[i] == c'"':
                    d.flags |= CC_MALFORMED
                    return 0
                i += 1
        directive_apply(d, p + start, name_n, value, value_n, listed)
    return 0


cdef bytes unescape(bytes text):
    cdef bytearray out = bytearray()
    cdef Py_ssize_t i = 0
    while i < len(text):
        if text[i] == 92 and i + 1 < len(text):
            i += 1
        out.append(text[i])
        i += 1
    return bytes(out)


# --- structured dictionaries (RFC 9651) ------------------------------------------------------------------------------------------

class _Malformed(Exception):
    pass


cdef class Structured:
    """One pass over a structured dictionary."""
    cdef const char* p
    cdef Py_ssize_t i, n

    cdef int spaces(self, bint tabs) except -1:
        while self.i < self.n and (self.p[self.i] == c" " or (tabs and self.p[self.i] == c"\t")):
            self.i += 1
        return 0

    cdef int peek(self) noexcept:
        return <unsigned char>self.p[self.i] if self.i < self.n else -1

    cdef bytes key(self):
        cdef Py_ssize_t start = self.i
        cdef int c = self.peek()
        if not (97 <= c <= 122 or c == c"*"):
            raise _Malformed
        while 97 <= c <= 122 or 48 <= c <= 57 or c == c"_" or c == c"-" or c == c"." or c == c"*":
            self.i += 1
            c = self.peek()
        return self.p[start:self.i]

    cdef object bare(self):
        cdef int c = self.peek()
        cdef Py_ssize_t start = self.i, dot = -1
        cdef bytearray text
        if c == c"-" or 48 <= c <= 57:
            if c == c"-":
                self.i += 1
            if not 48 <= self.peek() <= 57:
                raise _Malformed
            while 48 <= self.peek() <= 57 or (self.peek() == c"." and dot < 0):
                if self.peek() == c".":
                    dot = self.i
                self.i += 1
            if dot >= 0 and (dot == self.i - 1 or self.i - dot > 4 or dot - start - (self.p[start] == c"-") > 12):
                raise _Malformed
            if dot < 0:
                if self.i - start - (self.p[start] == c"-") > 15:
                    raise _Malformed
                return int(self.p[start:self.i])
            return float(self.p[start:self.i])
        if c == c'"':
            text = bytearray()
            self.i += 1
            while True:
                c = self.peek()
                if c < 32 or c > 126:
                    raise _Malformed
                self.i += 1
                if c == c'"':
                    return bytes(text).decode()
                if c == c"\\":
                    c = self.peek()
                    if c != c'"' and c != c"\\":
                        raise _Malformed
                    self.i += 1
                text.append(c)
        if 65 <= c <= 90 or 97 <= c <= 122 or c == c"*":
            while self.i < self.n and (TOKEN[<unsigned char>self.p[self.i]] or self.p[self.i] == c":" or self.p[self.i] == c"/"):
                self.i += 1
            return self.p[start:self.i]
        if c == c"?":
            self.i += 1
            c = self.peek()
            if c != c"0" and c != c"1":
                raise _Malformed
            self.i += 1
            return c == c"1"
        if c == c":":
            self.i += 1
            while self.peek() != c":":
                c = self.peek()
                if not (65 <= c <= 90 or 97 <= c <= 122 or 48 <= c <= 57 or c == c"+" or c == c"/" or c == c"="):
                    raise _Malformed
                self.i += 1
            self.i += 1
            return None                                     # a byte sequence: no directive has one
        if c == c"@":
            self.i += 1
            if not isinstance(self.bare(), int):
                raise _Malformed
            return None
        raise _Malformed

    cdef int parameters(self) except -1:
        while self.peek() == c";":
            self.i += 1
            self.spaces(False)
            self.key()
            if self.peek() == c"=":
                self.i += 1
                self.bare()
        return 0

    cdef object member(self):
        if self.peek() != c"(":
            value = self.bare()
            self.parameters()
            return value
        self.i += 1
        while True:
            self.spaces(False)
            if self.peek() == c")":
                self.i += 1
                self.parameters()
                return None
            self.bare()
            self.parameters()
            if self.peek() != c" " and self.peek() != c")":
                raise _Malformed

    cdef dict dictionary(self, bytes value):
        cdef dict out = {}
        self.p = PyBytes_AS_STRING(value)
        self.n = PyBytes_GET_SIZE(value)
        self.i = 0
        self.spaces(False)
        while self.i < self.n:
            name = self.key()
            if self.peek() == c"=":
                self.i += 1
                out[name] = self.member()
            else:
                out[name] = True
                self.parameters()
            self.spaces(True)
            if self.i >= self.n:
                return out
            if self.peek() != c",":
                raise _Malformed
            self.i += 1
            self.spaces(True)
            if self.i >= self.n:
                raise _Malformed                            # a trailing comma
        return out


cdef bint directives_structured(directives_t* d, bytes value) except -1:
    """Read a targeted field (RFC 9213 §2.1) into d; False, and d unchanged, if it is malformed or empty.

    A value of the wrong type (`max-age="60"`, `no-store=5`) omits its directive, except that a freshness lifetime of the wrong
    type counts as invalid: the response is stale.
    """
    cdef dict members
    cdef directives_t fresh
    cdef bytes text
    try:
        members = Structured().dictionary(value)
    except _Malformed:
        return False
    if not members:
        return False
    directives_clear(&fresh)
    for name, item in members.items():
        if item is True:
            directive_apply(&fresh, name, len(name), NULL, 0, None)
        elif item is False:
            continue
        elif isinstance(item, int) or name in (b"max-age", b"s-maxage"):
            text = b"-" if isinstance(item, str) else str(item).encode()
            directive_apply(&fresh, name, len(name), PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), None)
    d[0] = fresh
    return True


# --- lists -----------------------------------------------------------------------------------------------------------------------

cdef list split_list(bytes value):
    """The members of a comma-separated list, without the space around them; commas in quotes do not separate."""
    cdef list out = []
    cdef const char* p = PyBytes_AS_STRING(value)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value), i, start = 0
    cdef bint quoted = False
    if memchr(p, c'"', n) == NULL:
        for part in value.split(b","):
            part = (<bytes>part).strip(b" \t")
            if part:
                out.append(part)
        return out
    for i in range(n + 1):
        if i < n and p[i] == c'"' and (not quoted or p[i - 1] != c"\\"):
            quoted = not quoted
        elif i == n or (p[i] == c"," and not quoted):
            part = p[start:i].strip(b" \t")
            if part:
                out.append(part)
            start = i + 1
    return out


cdef bytes weight(bytes text):
    """A q value in its shortest form: `0.50` is `0.5`, `1.0` is `1`. Unchanged if malformed."""
    if text[:2] in (b"0.", b"1.") and len(text) <= 5 and text[2:].isdigit():
        text = text.rstrip(b"0").rstrip(b".")
    return text


cdef bytes preference(bytes part):
    """One member of an Accept-like list, lower case, without space, q=1 omitted."""
    cdef list pieces = [piece.strip(b" \t") for piece in part.lower().split(b";")]
    cdef list out = [pieces[0]]
    for piece in pieces[1:]:
        name, equals, value = (<bytes>piece).partition(b"=")
        name = name.strip(b" \t")
        value = value.strip(b" \t")
        if name == b"q":
            value = weight(value)
            if value == b"1":
                continue
        if name:
            out.append(name + equals + value)
    return b";".join(out)


cdef bytes normalised(const char* lower, Py_ssize_t lower_n, bytes value):
    """The normal form of the combined value of a field: equivalent values are equal (RFC 9111 §4.1).

    Accept, Accept-Encoding, Accept-Language and Accept-Charset: case, space, the notation of q and the order of members are
    ignored (order has no meaning there, RFC 9110 §12.4.2). Any other field: only the space around commas.
    """
    cdef list members
    cdef const char* p = PyBytes_AS_STRING(value)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    cdef bint preferences = ((lower_n == 15 and (memcmp(lower, b"accept-encoding", 15) == 0
                                                 or memcmp(lower, b"accept-language", 15) == 0))
                             or (lower_n == 6 and memcmp(lower, b"accept", 6) == 0)
                             or (lower_n == 14 and memcmp(lower, b"accept-charset", 14) == 0))
    if not preferences:
        if memchr(p, c",", n) == NULL:
            return value.strip(b" \t")
        return b",".join(split_list(value))
    members = split_list(value)
    if len(members) > 1 or memchr(p, c";", n) != NULL:
        members = sorted({preference(part) for part in members} - {b""})        # `;` alone is an empty member, too
    elif members:
        members[0] = (<bytes>members[0]).lower()
    return b",".join(members)


cdef bint etag_listed(const char* p, Py_ssize_t n, bytes etag) except -1:
    """True if an If-None-Match value names the tag (weak comparison, RFC 9110 §8.8.3.2), or is `*`.

    Tags without quotes are compared unchanged: such origins exist, and both sides come from the same one.
    """
    cdef bytes wanted
    cdef Py_ssize_t i
    while n and (p[0] == c" " or p[0] == c"\t"):
        p += 1
        n -= 1
    if n == 1 and p[0] == c"*":
        return True
    if etag is None:
        return False
    wanted = etag[2:] if etag[:2] == b"W/" else etag
    for part in split_list(p[:n]):
        if (part[2:] if (<bytes>part)[:2] == b"W/" else part) == wanted:
            return True
    return False


cdef bint etag_weak(bytes etag):
    """True for a weak entity tag (RFC 9110 §8.8.3)."""
    return etag[:2] == b"W/"


cdef bint are_tokens(names) except -1:
    """True if each is a field name (RFC 9110 §5.1) of at most MAX_NAME bytes."""
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not name_valid(<bytes>name, len(name)):
            return False
    return True


# --- Python ----------------------------------------------------------------------------------------------------------------------


def parse_dictionary(bytes value not None):
    """A structured dictionary (RFC 9651): numbers, True and False, str for strings, bytes for tokens, None for the rest; or None."""
    try:
        return Structured().dictionary(value)
    except _Malformed:
        return None


def parse_cache_control(*values):
    """The directives of these field lines, by name: seconds, True, or the fields they list. `invalid` as a value marks one that
    cannot be parsed."""
    cdef directives_t d
    cdef list listed = []
    cdef dict out = {}
    directives_clear(&d)
    for value in values:
        directives_read(&d, <bytes?>value, len(value), listed)
    for name, bit in (("no-store", CC_NO_STORE), ("no-cache", CC_NO_CACHE), ("private", CC_PRIVATE), ("public", CC_PUBLIC),
                      ("must-revalidate", CC_MUST_REVALIDATE), ("proxy-revalidate", CC_PROXY_REVALIDATE),
                      ("immutable", CC_IMMUTABLE), ("must-understand", CC_MUST_UNDERSTAND),
                      ("only-if-cached", CC_ONLY_IF_CACHED), ("malformed", CC_MALFORMED)):
        if d.flags & <int>bit:
            out[name] = True
    for name, number in (("max-age", d.max_age), ("s-maxage", d.s_maxage), ("stale-while-revalidate", d.swr),
                         ("stale-if-error", d.sie), ("min-fresh", d.min_fresh), ("max-stale", d.max_stale)):
        if number != SECONDS_UNSET:
            out[name] = "invalid" if number == SECONDS_INVALID else number
    if listed:
        out["fields"] = listed
    return out


def normalise_value(bytes name not None, bytes value not None):
    """The form in which two values of this request field are compared for `Vary`."""
    cdef bytes lower = name.lower()
    return normalised(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower), value)
