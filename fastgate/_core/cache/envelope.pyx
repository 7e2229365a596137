# cython: boundscheck=False
"""Reading stored responses in a shared store, without creating any object except the response.

WHAT     `open_fields` checks an envelope (fastgate/state/envelope.py describes the format) and returns its fields; `look` does so
         with the value of a key in an LMDB file. `seal_fields` creates one.
STATE    None.
COST     about 0.2 us and one byte of value a cycle; the same in Python takes 3 us.
SOURCES  fastgate/state/envelope.py, which writes them.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastgate._core.clock cimport realtime_ns
from fastgate._core.shm.epochs cimport Epochs
from fastgate._core.hashing cimport hash128_t, siphash13, siphash_wide

__all__ = ["SLOW", "look", "open_fields", "seal_fields"]

cdef enum:
    HEAD = 44
    VERSION = 1
    COMPRESSED = 1

cdef uint32_t MAGIC = 0x65676166
cdef uint32_t LARGEST = 64 << 20
cdef uint64_t[2] CHECK_KEY
memcpy(CHECK_KEY, b"fastgate cached\0", 16)


# The fields of an envelope, in place.
ctypedef struct opened_t:
    int64_t expires_ns
    int64_t sequence
    uint32_t raw_n
    bint is_compressed
    const char* tags
    Py_ssize_t tags_n
    const char* stored
    Py_ssize_t stored_n


cdef const char* open_at(const char* p, Py_ssize_t n, bytes key, opened_t* out) noexcept:
    """NULL if the n bytes at p, at least HEAD, are an envelope of this key (None: any). Else the error; "": it is for another
    key."""
    cdef uint64_t check
    cdef uint32_t magic, tags_n, stored_n
    cdef uint16_t key_n, tag_n
    cdef Py_ssize_t at, end
    memcpy(&check, p, 8)
    memcpy(&magic, p + 8, 4)
    memcpy(&key_n, p + 14, 2)
    memcpy(&tags_n, p + 16, 4)
    memcpy(&out.raw_n, p + 20, 4)
    memcpy(&stored_n, p + 24, 4)
    memcpy(&out.expires_ns, p + 28, 8)
    memcpy(&out.sequence, p + 36, 8)
    at = HEAD + key_n
    if magic != MAGIC or <uint8_t>p[12] != VERSION or out.raw_n > LARGEST or at + <Py_ssize_t>tags_n + <Py_ssize_t>stored_n != n:
        return b"not an envelope of this version"
    if siphash13(p + 8, n - 8, CHECK_KEY) != check:
        return b"checksum"
    if key is not None and (PyBytes_GET_SIZE(key) != key_n or memcmp(PyBytes_AS_STRING(key), p + HEAD, key_n) != 0):
        return b""
    out.tags = p + at
    out.tags_n = tags_n
    end = at + tags_n
    while at + 2 <= end:
        memcpy(&tag_n, p + at, 2)
        at += 2
        if at + tag_n > end:
            return b"tags"
        at += tag_n
    if at != end:
        return b"tags"
    out.is_compressed = (<uint8_t>p[13] & COMPRESSED) != 0
    out.stored = p + end
    out.stored_n = stored_n
    return NULL


cdef tuple tags_of(const opened_t* opened):
    cdef list tags = []
    cdef Py_ssize_t at = 0
    cdef uint16_t n
    while at < opened.tags_n:
        memcpy(&n, opened.tags + at, 2)
        tags.append(PyBytes_FromStringAndSize(opened.tags + at + 2, n))
        at += 2 + n
    return tuple(tags)


def open_fields(data, Py_ssize_t skip, bytes key):
    """(expires_ns, sequence, tags, raw_bytes, stored, is_compressed) of the envelope in data after `skip` bytes; None if it is
    for another key (key None: any), a str with the error if it differs from the bytes that were sealed."""
    cdef Py_buffer view
    cdef opened_t opened
    cdef const char* wrong
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len - skip < HEAD:
            return f"{max(view.len - skip, 0)} bytes, expected at least {HEAD}"
        wrong = open_at(<const char*>view.buf + skip, view.len - skip, key, &opened)
        if wrong != NULL:
            return None if wrong[0] == 0 else (<bytes>wrong).decode("ascii")
        return (opened.expires_ns, opened.sequence, tags_of(&opened), opened.raw_n,
                PyBytes_FromStringAndSize(opened.stored, opened.stored_n), opened.is_compressed)
    finally:
        PyBuffer_Release(&view)


SLOW = object()
"""Result of `look` for all but the common case: a small, uncompressed value. The caller then uses the general path."""


def look(env, answers, bytes secret not None, bytes key not None, Epochs epochs not None, Py_ssize_t skip, Py_ssize_t piece):
    """The value of key in an LMDB file of fastgate/caching/disk.py, None if there is none, or SLOW.

    It never returns a result that the general path would not: errors, damage, large and compressed values are SLOW.
    """
    cdef Py_buffer view
    cdef opened_t opened
    cdef hash128_t hashed
    cdef uint64_t[2] word
    cdef uint32_t length
    cdef int64_t since
    cdef const char* wrong
    # Before the transaction begins: the transaction sees the effect of all purges applied to the file until now.
    cdef int64_t applied = epochs.c_applied()
    cdef int64_t sequence = epochs.c_sequence()
    if PyBytes_GET_SIZE(secret) != 16 or skip < 12:
        return SLOW
    memcpy(word, PyBytes_AS_STRING(secret), 16)
    siphash_wide(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), word, &hashed)
    try:
        txn = env.begin(answers, None, False, True)
        try:
            found = txn.get(PyBytes_FromStringAndSize(<const char*>&hashed, 16))
            if found is None:
                return None
            PyObject_GetBuffer(found, &view, PyBUF_SIMPLE)
            try:
                if view.len - skip < HEAD:
                    return SLOW
                memcpy(&length, <const char*>view.buf + 8, 4)
                if length > piece:
                    return SLOW
                wrong = open_at(<const char*>view.buf + skip, view.len - skip, key, &opened)
                if wrong != NULL:
                    return None if wrong[0] == 0 else SLOW
                if opened.is_compressed:
                    return SLOW
                if opened.expires_ns <= realtime_ns():
                    return None
                if opened.sequence != sequence:
                    since = opened.sequence if opened.sequence > applied else applied
                    if since != sequence and epochs.c_concerns(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), tags_of(&opened), since):
                        return None
                return PyBytes_FromStringAndSize(opened.stored, opened.stored_n)
            finally:
                PyBuffer_Release(&view)
        finally:
            txn.abort()
    except Exception:
        return SLOW                             # the general path finds the error too, and reports it


def seal_fields(bytes head not None, bytes key not None, bytes labels not None, bytes stored not None):
    """The envelope of these four parts; the first 8 bytes of head become the checksum. Other threads run while a large value is
    copied."""
    cdef Py_ssize_t head_n = PyBytes_GET_SIZE(head), key_n = PyBytes_GET_SIZE(key), labels_n = PyBytes_GET_SIZE(labels)
    cdef Py_ssize_t stored_n = PyBytes_GET_SIZE(stored), n = head_n + key_n + labels_n + stored_n
    cdef bytes made
    cdef char* to
    cdef const char* value = PyBytes_AS_STRING(stored)
    cdef uint64_t check
    if head_n != HEAD:
        raise ValueError(f"head: expected {HEAD} bytes, got {head_n}")
    made = PyBytes_FromStringAndSize(NULL, n)
    to = PyBytes_AS_STRING(made)
    memcpy(to, PyBytes_AS_STRING(head), head_n)
    memcpy(to + head_n, PyBytes_AS_STRING(key), key_n)
    memcpy(to + head_n + key_n, PyBytes_AS_STRING(labels), labels_n)
    if stored_n < 65536:
        memcpy(to + n - stored_n, value, stored_n)
        check = siphash13(to + 8, n - 8, CHECK_KEY)
    else:
        # No other code has a reference to `made` yet, and `stored` is referenced and immutable.
        with nogil:
            memcpy(to + n - stored_n, value, stored_n)
            check = siphash13(to + 8, n - 8, CHECK_KEY)
    memcpy(to, &check, 8)
    return made
