# WHAT           Whether a text matches a glob. On bytes, the whole text: `*` any run, `?` one byte, `[abc]` `[a-z]` `[!x]` one byte
#                of a set (a leading `]` is a member), `\` makes the next byte literal. `/` is a byte like any other.
# STATE          None. A pattern must have passed glob_check, which glob_match relies on.
# WHO WRITES     No state.
# COST           O(text) without a star, O(text * pattern) at worst: only the last star is ever retried.
# SOURCES        POSIX fnmatch; Russ Cox, Glob Matching Can Be Simple And Fast Too (2017).

ctypedef const unsigned char* glob_text_t


cdef inline Py_ssize_t glob_set_end(glob_text_t p, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    """Index of the `]` that closes the set opened at p[at], or -1."""
    cdef Py_ssize_t i = at + 1
    if i < n and p[i] == c"!":
        i += 1
    if i < n and p[i] == c"]":
        i += 1
    while i < n and p[i] != c"]":
        i += 1
    return i if i < n else -1


cdef inline bint glob_check(glob_text_t p, Py_ssize_t n) noexcept nogil:
    """False if a set is not closed or the pattern ends in a lone backslash."""
    cdef Py_ssize_t i = 0
    while i < n:
        if p[i] == c"\\":
            i += 1
            if i == n:
                return False
        elif p[i] == c"[":
            i = glob_set_end(p, i, n)
            if i < 0:
                return False
        i += 1
    return True


cdef inline bint glob_set_has(glob_text_t p, Py_ssize_t at, Py_ssize_t end, unsigned char byte) noexcept nogil:
    cdef Py_ssize_t i = at + 1
    cdef bint negated = p[i] == c"!"
    cdef bint found = False
    if negated:
        i += 1
    while i < end:
        if i + 2 < end and p[i + 1] == c"-":
            found |= p[i] <= byte <= p[i + 2]
            i += 3
        else:
            found |= p[i] == byte
            i += 1
    return found != negated


cdef inline bint glob_match(glob_text_t p, Py_ssize_t pattern_n, glob_text_t text, Py_ssize_t text_n) noexcept nogil:
    cdef Py_ssize_t px = 0, tx = 0, star = -1, star_tx = 0, end
    while tx < text_n:
        if px < pattern_n:
            if p[px] == c"*":
                star = px
                star_tx = tx
                px += 1
                continue
            if p[px] == c"?":
                px += 1
                tx += 1
                continue
            if p[px] == c"[":
                end = glob_set_end(p, px, pattern_n)
                if glob_set_has(p, px, end, text[tx]):
                    px = end + 1
                    tx += 1
                    continue
            elif p[px] == c"\\":
                if p[px + 1] == text[tx]:
                    px += 2
                    tx += 1
                    continue
            elif p[px] == text[tx]:
                px += 1
                tx += 1
                continue
        if star < 0:
            return False
        star_tx += 1
        px = star + 1
        tx = star_tx
    while px < pattern_n and p[px] == c"*":
        px += 1
    return px == pattern_n
