# WHAT           The prefixes and patterns that a cache has purged and whose victims have not all been met yet.
# STATE          One array, in order of seq. A purge hits what was checked before its seq.
# WHO WRITES     The cache, under the GIL.
# COST           add: O(waiting), to join repetitions; hit: O(purges since the last check). 24 bytes and the text each.
# SOURCES        Varnish bans.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove

from fastgate._core.http.glob cimport glob_match

ctypedef struct purge_t:
    uint64_t seq
    uint32_t n
    bint is_pattern
    unsigned char* text

ctypedef struct purges_t:
    purge_t* list
    uint32_t count
    uint32_t room
    uint64_t bytes                              # all memory of it


cdef inline uint64_t purge_text_bytes(uint64_t n) noexcept nogil:
    return (n + 8 + 15) & ~<uint64_t>15


cdef inline void purges_forget(purges_t* p, const char* text, uint32_t n, bint is_pattern) noexcept nogil:
    """Removes an earlier purge of the same text: the later one includes it."""
    cdef uint32_t i
    for i in range(p.count):
        if p.list[i].is_pattern == is_pattern and p.list[i].n == n and memcmp(p.list[i].text, text, n) == 0:
            free(p.list[i].text)
            p.bytes -= purge_text_bytes(n)
            memmove(&p.list[i], &p.list[i + 1], (p.count - i - 1) * sizeof(purge_t))
            p.count -= 1
            return


cdef inline bint purges_add(purges_t* p, uint64_t seq, const char* text, uint32_t n, bint is_pattern) noexcept nogil:
    """False, without a change, if there is no memory."""
    cdef purge_t* grown
    cdef unsigned char* copy
    if p.count == p.room:
        grown = <purge_t*>realloc(p.list, (p.room * 2 + 8) * sizeof(purge_t))
        if grown == NULL:
            return False
        p.bytes += (p.room + 8) * sizeof(purge_t)
        p.room = p.room * 2 + 8
        p.list = grown
    copy = <unsigned char*>malloc(n)
    if copy == NULL:
        return False
    memcpy(copy, text, n)
    p.bytes += purge_text_bytes(n)
    p.list[p.count] = purge_t(seq, n, is_pattern, copy)
    p.count += 1
    return True


cdef inline void purges_retire(purges_t* p, uint64_t seq) noexcept nogil:
    """Drops the purges up to seq."""
    cdef uint32_t n = 0
    while n < p.count and p.list[n].seq <= seq:
        p.bytes -= purge_text_bytes(p.list[n].n)
        free(p.list[n].text)
        n += 1
    if n:
        p.count -= n
        memmove(p.list, &p.list[n], p.count * sizeof(purge_t))


cdef inline bint purges_hit(const purges_t* p, uint64_t checked_seq, const char* key, uint32_t n) noexcept nogil:
    """True if a purge later than checked_seq matches the key."""
    cdef uint32_t i = p.count
    cdef purge_t* purge
    while i > 0:
        i -= 1
        purge = &p.list[i]
        if purge.seq <= checked_seq:
            return False
        if purge.is_pattern:
            if glob_match(purge.text, purge.n, <const unsigned char*>key, n):
                return True
        elif n >= purge.n and memcmp(key, purge.text, purge.n) == 0:
            return True
    return False


cdef inline void purges_free(purges_t* p) noexcept nogil:
    purges_retire(p, <uint64_t>-1)
    free(p.list)
    p.list = NULL
