# Atomic reads and writes of one 64-bit word, the only way in which _core changes shared memory.
#
# WHAT      inline wrappers over the GCC/Clang __atomic builtins; nothing here allocates, blocks or can fail.
# STATE     none: the word belongs to the caller, is 8-byte aligned and may be in shared memory.
# WHO WRITES  any thread of any process. A 64-bit CAS is lock-free on every supported machine (asserted at compile time), so
#           a writer killed at any instruction leaves the word either old or new.
# COST      uncontended: a load or store is a plain move on x86-64, a fetch_add or CAS about 5 ns.
# SOURCES   https://gcc.gnu.org/onlinedocs/gcc/_005f_005fatomic-Builtins.html; C11 §7.17 (memory order)
#
# The plain names are sequentially consistent for read-modify-write, acquire for loads and release for stores: correct everywhere.
# *_relaxed is for counters that order nothing else. The _u64 variants do the same on unsigned words.

from libc.stdint cimport int64_t, uint64_t


cdef extern from *:
    """
    #ifndef FASTGATE_ATOMIC
    #define FASTGATE_ATOMIC
    #include <stdint.h>
    _Static_assert(__atomic_always_lock_free(sizeof(int64_t), 0), "64-bit atomics must be lock-free");
    #define FASTGATE_ATOMIC_OF(T, S) \\
    static inline T fastgate_atomic_load##S(const T *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); } \\
    static inline T fastgate_atomic_load_relaxed##S(const T *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); } \\
    static inline void fastgate_atomic_store##S(T *p, T v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); } \\
    static inline void fastgate_atomic_store_relaxed##S(T *p, T v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); } \\
    static inline T fastgate_atomic_add##S(T *p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \\
    static inline T fastgate_atomic_add_relaxed##S(T *p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); } \\
    static inline T fastgate_atomic_or##S(T *p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); } \\
    static inline T fastgate_atomic_and##S(T *p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \\
    static inline T fastgate_atomic_exchange##S(T *p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \\
    static inline int fastgate_atomic_cas##S(T *p, T *expected, T v) { \\
        return __atomic_compare_exchange_n(p, expected, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE); } \\
    static inline void fastgate_atomic_max##S(T *p, T v) { \\
        T old = __atomic_load_n(p, __ATOMIC_RELAXED); \\
        while (old < v && !__atomic_compare_exchange_n(p, &old, v, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) { } }
    FASTGATE_ATOMIC_OF(int64_t, )
    FASTGATE_ATOMIC_OF(uint64_t, _u64)
    static inline void fastgate_atomic_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    #endif
    """
    int64_t atomic_load "fastgate_atomic_load"(const int64_t* word) noexcept nogil
    int64_t atomic_load_relaxed "fastgate_atomic_load_relaxed"(const int64_t* word) noexcept nogil
    void atomic_store "fastgate_atomic_store"(int64_t* word, int64_t value) noexcept nogil
    void atomic_store_relaxed "fastgate_atomic_store_relaxed"(int64_t* word, int64_t value) noexcept nogil
    # fetch_add, fetch_or, fetch_and, exchange: the value from before
    int64_t atomic_add "fastgate_atomic_add"(int64_t* word, int64_t value) noexcept nogil
    int64_t atomic_add_relaxed "fastgate_atomic_add_relaxed"(int64_t* word, int64_t value) noexcept nogil
    int64_t atomic_or "fastgate_atomic_or"(int64_t* word, int64_t value) noexcept nogil
    int64_t atomic_and "fastgate_atomic_and"(int64_t* word, int64_t value) noexcept nogil
    int64_t atomic_exchange "fastgate_atomic_exchange"(int64_t* word, int64_t value) noexcept nogil
    # True and the word is `value`; or False, the word unchanged and what it held written to expected[0]
    bint atomic_cas "fastgate_atomic_cas"(int64_t* word, int64_t* expected, int64_t value) noexcept nogil
    # raises the word to `value` unless it is already higher (relaxed)
    void atomic_max "fastgate_atomic_max"(int64_t* word, int64_t value) noexcept nogil

    uint64_t atomic_load_u64 "fastgate_atomic_load_u64"(const uint64_t* word) noexcept nogil
    uint64_t atomic_load_relaxed_u64 "fastgate_atomic_load_relaxed_u64"(const uint64_t* word) noexcept nogil
    void atomic_store_u64 "fastgate_atomic_store_u64"(uint64_t* word, uint64_t value) noexcept nogil
    void atomic_store_relaxed_u64 "fastgate_atomic_store_relaxed_u64"(uint64_t* word, uint64_t value) noexcept nogil
    uint64_t atomic_add_u64 "fastgate_atomic_add_u64"(uint64_t* word, uint64_t value) noexcept nogil
    uint64_t atomic_add_relaxed_u64 "fastgate_atomic_add_relaxed_u64"(uint64_t* word, uint64_t value) noexcept nogil
    uint64_t atomic_or_u64 "fastgate_atomic_or_u64"(uint64_t* word, uint64_t value) noexcept nogil
    uint64_t atomic_and_u64 "fastgate_atomic_and_u64"(uint64_t* word, uint64_t value) noexcept nogil
    uint64_t atomic_exchange_u64 "fastgate_atomic_exchange_u64"(uint64_t* word, uint64_t value) noexcept nogil
    bint atomic_cas_u64 "fastgate_atomic_cas_u64"(uint64_t* word, uint64_t* expected, uint64_t value) noexcept nogil
    void atomic_max_u64 "fastgate_atomic_max_u64"(uint64_t* word, uint64_t value) noexcept nogil

    void atomic_fence "fastgate_atomic_fence"() noexcept nogil
