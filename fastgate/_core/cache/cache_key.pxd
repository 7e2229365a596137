"""The key of a cache entry as bytes and their hash, which Python computes once per object and remembers. Inlined."""

from libc.stdint cimport uint64_t

from fastgate._core.arguments cimport text_argument

cdef enum:
    KEY_MAX = 65535                             # bytes of a key: its length is stored in two bytes

cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030E0000
    #define cache_hash_bytes(at, n) ((uint64_t)Py_HashBuffer((at), (n)))
    #else
    #define cache_hash_bytes(at, n) ((uint64_t)_Py_HashBytes((at), (n)))
    #endif

    /* Bytes, length and hash of a bytes or ASCII str: both hash their bytes the same way and remember it. 0 for others. */
    static inline int cache_key_view(PyObject *key, const char **at, Py_ssize_t *n, uint64_t *hash) {
        if (PyBytes_CheckExact(key)) {
            *at = PyBytes_AS_STRING(key);
            *n = PyBytes_GET_SIZE(key);
        } else if (PyUnicode_CheckExact(key) && PyUnicode_IS_COMPACT_ASCII(key)) {
            *at = (const char *)PyUnicode_1BYTE_DATA(key);
            *n = PyUnicode_GET_LENGTH(key);
        } else {
            return 0;
        }
        *hash = (uint64_t)PyObject_Hash(key);
        return 1;
    }
    """
    uint64_t cache_hash_bytes(const char* at, Py_ssize_t n) noexcept
    int cache_key_view(object key, const char** at, Py_ssize_t* n, uint64_t* hash) noexcept

cdef inline int key_argument(object key, const char** at, Py_ssize_t* n, uint64_t* hash) except -1:
    """Bytes, length and hash of a key; valid while it lives."""
    if not cache_key_view(key, at, n, hash):
        text_argument(key, "key", KEY_MAX, at, n)
        hash[0] = cache_hash_bytes(at[0], n[0])
    elif n[0] > KEY_MAX:
        raise ValueError(f"key: expected 0 to {KEY_MAX} bytes, got {n[0]}")
    return 0
