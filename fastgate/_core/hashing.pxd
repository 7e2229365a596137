from libc.stdint cimport uint64_t

cdef struct hash128_t:
    uint64_t low
    uint64_t high

# SipHash-1-3-128: table keys. SipHash-2-4, 64 bits: the conservative original, for anything that leaves the host.
cdef void hash128(const void* data, size_t n, const uint64_t* key, hash128_t* out) noexcept nogil
cdef uint64_t siphash(const void* data, size_t n, const uint64_t* key) noexcept nogil
# The rest of the family.
cdef uint64_t siphash13(const void* data, size_t n, const uint64_t* key) noexcept nogil
cdef void siphash_wide(const void* data, size_t n, const uint64_t* key, hash128_t* out) noexcept nogil
cdef int hash_key_random(uint64_t* key) except -1
