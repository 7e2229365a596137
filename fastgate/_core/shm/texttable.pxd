# An open-addressing table from (owner, text) to a number, for tables that are built once and then only read.
#
# WHAT      a declaration file with inline functions only: the router's hosts, literals and edges.
# STATE     slots[mask + 1]: {hash, owner, target, offset and length of the text in the user's arena}; hash 0 = empty; load <= 1/2.
# WHO WRITES  the builder, before any reader. Readers of any thread need no lock.
# COST      one hash over the text (8 bytes per step) and on average 1.5 probes; 24 bytes per slot.
# SOURCES   linear probing, Knuth TAOCP 6.4; the multiply-xor mixer is MurmurHash3's finalizer; FNV-1a for suffixes.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcmp

ctypedef struct slot_t:
    uint64_t hash       # 0 = empty
    uint32_t owner
    int32_t target
    uint32_t offset
    uint32_t length

ctypedef struct table_t:
    slot_t* slots
    uint64_t mask       # number of slots - 1; slots is NULL when the table is empty


cdef extern from *:
    """
    #ifndef FASTGATE_TEXTTABLE
    #define FASTGATE_TEXTTABLE
    #include <stdint.h>
    #include <string.h>
    /* Not keyed: the tables hold the operator's patterns only, requests insert nothing, so no client can lengthen a probe. */
    static inline uint64_t fastgate_text_hash(const char *p, Py_ssize_t n, uint64_t owner) {
        uint64_t h = (owner + 1) * 0x9E3779B97F4A7C15ull ^ (uint64_t)n * 0xD6E8FEB86659FD93ull, w;
        for (; n >= 8; p += 8, n -= 8) {
            memcpy(&w, p, 8);
            h = (h ^ w) * 0xFF51AFD7ED558CCDull;
            h ^= h >> 32;
        }
        w = 0;
        if (n >= 4) {
            uint32_t lo, hi;
            memcpy(&lo, p, 4);
            memcpy(&hi, p + n - 4, 4);
            w = (uint64_t)hi << 32 | lo;
        } else if (n > 0) {
            w = (uint64_t)(unsigned char)p[0] << 16 | (uint64_t)(unsigned char)p[n >> 1] << 8 | (unsigned char)p[n - 1];
        }
        h = (h ^ w) * 0xC4CEB9FE1A85EC53ull;
        h ^= h >> 29;
        h *= 0x9E3779B97F4A7C15ull;
        h ^= h >> 32;
        return h ? h : 1;
    }
    #endif
    """
    uint64_t text_hash "fastgate_text_hash"(const char* p, Py_ssize_t n, uint64_t owner) noexcept nogil

cdef inline int32_t table_find(const table_t* table, uint32_t owner, uint64_t hash, const char* text, Py_ssize_t n,
                               const char* arena) noexcept nogil:
    """The target stored for (owner, text), or -1."""
    cdef uint64_t at = hash & table.mask
    cdef const slot_t* slot = &table.slots[at]
    while slot.hash != 0:
        if (slot.hash == hash and slot.owner == owner and slot.length == <uint32_t>n
                and memcmp(arena + slot.offset, text, n) == 0):
            return slot.target
        at = (at + 1) & table.mask
        slot = &table.slots[at]
    return -1


cdef inline uint64_t reversed_hash(uint64_t hash, unsigned char c) noexcept nogil:
    """One step of FNV-1a, fed from the end of the host so that one pass gives the hash of every suffix."""
    return (hash ^ c) * <uint64_t>0x100000001B3


cdef inline uint64_t suffix_hash(const char* text, Py_ssize_t n) noexcept nogil:
    cdef uint64_t hash = <uint64_t>0xCBF29CE484222325
    while n > 0:
        n -= 1
        hash = reversed_hash(hash, <unsigned char>text[n])
    return hash | 1


cdef inline int table_allocate(table_t* table, Py_ssize_t entries) except -1:
    cdef uint64_t size = 4
    if entries == 0:
        return 0
    while size < <uint64_t>entries * 2:
        size *= 2
    table.slots = <slot_t*>calloc(size, sizeof(slot_t))
    if table.slots == NULL:
        raise MemoryError()
    table.mask = size - 1
    return 0


cdef inline int table_insert(table_t* table, uint32_t owner, bytes text, int32_t target, bint is_suffix,
                             bytearray arena) except -1:
    """Adds (owner, text) -> target; the pair must be new. Suffixes are hashed from their end."""
    cdef uint64_t hash, at
    cdef slot_t* slot
    if is_suffix:
        hash = suffix_hash(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    else:
        hash = text_hash(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), owner)
    at = hash & table.mask
    while table.slots[at].hash != 0:
        at = (at + 1) & table.mask
    slot = &table.slots[at]
    slot.hash = hash
    slot.owner = owner
    slot.target = target
    slot.offset = <uint32_t>len(arena)
    slot.length = <uint32_t>PyBytes_GET_SIZE(text)
    arena += text
    return 0
