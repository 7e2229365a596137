# cython: boundscheck=False
"""Reading what a shared store has of a cached answer, without an object more than the answer.

WHAT     `open_fields` checks an envelope (fastgate/state/envelope.py says what it is and how it lies) and gives out what is in it;
         `look` does so with what an LMDB file has under a key. `seal_fields` makes one.
STATE    None.
COST     about 0.2 us and one byte of value a cycle; the same in Python takes 3 us.
SOURCES  fastgate/state/envelope.py, which writes them.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastgate._core.clock cimport realtime_ns
from fastgate._core.epochs cimport Epochs
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


def open_fields(data, Py_ssize_t skip, bytes key):
    """(expires_ns, sequence, tags, raw_bytes, stored, is_compressed) of the envelope in data behind `skip` bytes; None when it is
    another key's (key None: any), a str that says what is wrong when it is not what was sealed."""
    cdef Py_buffer view
    cdef const char* p
    cdef Py_ssize_t n, at, end
    cdef uint64_t check
    cdef uint32_t magic, tags_n, raw_n, stored_n
    cdef uint16_t key_n, tag_n
    cdef int64_t expires_ns, sequence
    cdef list tags
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        p = <const char*>view.buf + skip
        n = view.len - skip
        if n < HEAD:
            return f"{max(n, 0)} bytes, expected at least {HEAD}"
        memcpy(&check, p, 8)
        memcpy(&magic, p + 8, 4)
        memcpy(&key_n, p + 14, 2)
        memcpy(&tags_n, p + 16, 4)
        memcpy(&raw_n, p + 20, 4)
        memcpy(&stored_n, p + 24, 4)
        memcpy(&expires_ns, p + 28, 8)
        memcpy(&sequence, p + 36, 8)
        at = HEAD + key_n
        if magic != MAGIC or <uint8_t>p[12] != VERSION or raw_n > LARGEST or at + <Py_ssize_t>tags_n + <Py_ssize_t>stored_n != n:
            return "not an envelope of this version"
        if siphash13(p + 8, n - 8, CHECK_KEY) != check:
            return "checksum"
        if key is not None and (PyBytes_GET_SIZE(key) != key_n or memcmp(PyBytes_AS_STRING(key), p + HEAD, key_n) != 0):
            return None
        tags = []
        end = at + tags_n
        while at + 2 <= end:
            memcpy(&tag_n, p + at, 2)
            at += 2
            if at + tag_n > end:
                return "tags"
            tags.append(PyBytes_FromStringAndSize(p + at, tag_n))
            at += tag_n
        if at != end:
            return "tags"
        return (expires_ns, sequence, tuple(tags), raw_n, PyBytes_FromStringAndSize(p + end, stored_n),
                (<uint8_t>p[13] & COMPRESSED) != 0)
    finally:
        PyBuffer_Release(&view)


SLOW = object()
"""What `look` says of all but the usual: a small value that lies as it was made. The caller reads it the long way."""


def look(env, answers, bytes secret not None, bytes key not None, Epochs epochs not None, Py_ssize_t skip, Py_ssize_t piece):
    """The value of key in an LMDB file of fastgate/caching/disk.py, None when there is none, or SLOW.

    It decides nothing by itself that the long way would decide differently: errors, damage, large and compressed values are SLOW.
    """
    cdef Py_buffer view
    cdef hash128_t hashed
    cdef uint64_t[2] word
    cdef uint32_t length
    cdef int64_t made, since
    # Before the transaction begins: what the file was cleaned of by now, the transaction sees cleaned.
    cdef int64_t applied = epochs.c_applied()
    cdef int64_t sequence = epochs.c_sequence()
    cdef object value = None
    cdef tuple fields
    if PyBytes_GET_SIZE(secret) != 16:
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
            length = 0xFFFFFFFF
            if view.len >= skip and skip >= 12:
                memcpy(&length, <const char*>view.buf + 8, 4)
            PyBuffer_Release(&view)
            if length > piece:
                return SLOW
            value = open_fields(found, skip, key)
        finally:
            txn.abort()
    except Exception:
        return SLOW                             # the long way meets it too, and knows its name
    if value is None:
        return None
    if type(value) is not tuple:
        return SLOW
    fields = <tuple>value
    if <bint>fields[5]:
        return SLOW
    if <int64_t>fields[0] <= realtime_ns():
        return None
    made = <int64_t>fields[1]
    if made != sequence:
        since = made if made > applied else applied
        if since != sequence and epochs.c_concerns(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), <tuple>fields[2], since):
            return None
    return fields[4]


def seal_fields(bytes head not None, bytes key not None, bytes labels not None, bytes stored not None):
    """The envelope of these four parts; the first 8 bytes of head become the check. Others run while a large value is copied."""
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
        # Nobody else knows `made` yet, and `stored` is held and cannot change.
        with nogil:
            memcpy(to + n - stored_n, value, stored_n)
            check = siphash13(to + 8, n - 8, CHECK_KEY)
    memcpy(to, &check, 8)
    return made
