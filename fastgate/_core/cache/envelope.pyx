# cython: boundscheck=False
"""Reading stored responses in a shared store, without creating any object except the response.

WHAT     `open_fields` checks an envelope (fastgate/state/envelope.py describes the format) and returns its fields; a `DiskReader`
         does so with the value of a key in an LMDB file. `seal_fields` creates one.
STATE    None, but the open file of a `DiskReader`.
COST     about 0.2 us and one byte of value a cycle; the same in Python takes 3 us.
SOURCES  fastgate/state/envelope.py, which writes them.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastgate._core.clock cimport realtime_ns
from fastgate._core.shm.epochs cimport Epochs
from fastgate._core.shm.metric cimport Metric, metric_add
from fastgate._core.hashing cimport hash128_t, siphash13, siphash_wide

__all__ = ["LATER", "SLOW", "DiskReader", "open_fields", "seal_fields"]

cdef enum:
    HEAD = 44
    VERSION = 1
    COMPRESSED = 1
    READ_MOST_BYTES = 65536       # an envelope that the loop reads without another thread's help

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
"""Result of `DiskReader.get` for all but the common case: an uncompressed value of up to 64 kB. The caller then uses the general
path."""
LATER = object()
"""Result of the general path for a value so large that a thread should read it."""


@cython.final
cdef class DiskReader:
    """Reads values from the file of the disk tier (fastgate/caching/disk.py), for any thread."""

    def __cinit__(self, Epochs epochs not None, Metric hits not None, Metric misses not None, Py_ssize_t skip, Py_ssize_t piece):
        """skip: bytes before the envelope in a row, at least 12: place 8, length 4, more. piece: values up to this many bytes are
        in one row."""
        if skip < 12:
            raise ValueError(f"skip: expected at least 12, got {skip}")
        self.epochs = epochs
        self.hits = hits
        self.misses = misses
        self.skip = skip
        self.piece = piece

    def open(self, env not None, answers not None, bytes secret not None):
        """Read from this file from now on. secret: 16 bytes, of its hashes."""
        if PyBytes_GET_SIZE(secret) != 16:
            raise ValueError(f"secret: expected 16 bytes, got {PyBytes_GET_SIZE(secret)}")
        memcpy(self.secret, PyBytes_AS_STRING(secret), 16)
        self.answers = answers
        self.env = env

    def close(self):
        """Find nothing from now on. A `get` that has begun uses the file until `reading` is 0."""
        self.env = self.answers = None

    cpdef object get(self, bytes key):
        """The value of key, None if there is none, or SLOW. It never returns a result that the general path would not: errors,
        damage, values above 64 kB and compressed ones are SLOW. Hits and misses are counted, SLOW is not."""
        cdef object env = self.env
        cdef object found
        if key is None:
            raise TypeError("key: expected bytes, got None")
        if env is None:
            return None
        self.reading += 1
        try:
            found = self._look(env, key)
        except Exception:
            return SLOW                             # the general path finds the error too, and reports it
        finally:
            self.reading -= 1
        if found is None:
            metric_add(self.misses, 1)
        elif found is not SLOW:
            metric_add(self.hits, 1)
        return found

    cdef object _look(self, object env, bytes key):
        cdef Py_buffer view
        cdef opened_t opened
        cdef hash128_t hashed
        cdef bytes joined
        cdef uint32_t length
        cdef int64_t since
        cdef const char* wrong
        cdef const char* at
        cdef Py_ssize_t n
        cdef Epochs epochs = self.epochs
        # Before the transaction begins: the transaction sees the effect of all purges applied to the file until now.
        cdef int64_t applied = epochs.c_applied()
        cdef int64_t sequence = epochs.c_sequence()
        siphash_wide(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), self.secret, &hashed)
        txn = env.begin(self.answers, None, False, True)
        try:
            found = txn.get(PyBytes_FromStringAndSize(<const char*>&hashed, 16))
            if found is None:
                return None
            PyObject_GetBuffer(found, &view, PyBUF_SIMPLE)
            try:
                if view.len - self.skip < HEAD:
                    return SLOW
                memcpy(&length, <const char*>view.buf + 8, 4)
                at = <const char*>view.buf + self.skip
                n = view.len - self.skip
                if length > self.piece:
                    if length > READ_MOST_BYTES or <uint8_t>at[13] & COMPRESSED:
                        return SLOW
                    joined = self._join(txn, &hashed, at, n, length)
                    if joined is None:
                        return SLOW
                    at = PyBytes_AS_STRING(joined)
                    n = length
                wrong = open_at(at, n, key, &opened)
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

    cdef bytes _join(self, object txn, const hash128_t* hashed, const char* first, Py_ssize_t first_n, uint32_t length):
        """The envelope of `length` bytes whose first piece is at `first`; None if a piece is missing or has another size."""
        cdef Py_buffer view
        cdef bytes joined = PyBytes_FromStringAndSize(NULL, length)
        cdef bytes row
        cdef char* to = PyBytes_AS_STRING(joined)
        cdef char* name
        cdef Py_ssize_t at = self.piece
        cdef int i = 0
        if first_n != self.piece:
            return None
        memcpy(to, first, first_n)
        while at < length:
            i += 1
            row = PyBytes_FromStringAndSize(NULL, 18)   # as disk_rows.PIECE_NUMBER writes it
            name = PyBytes_AS_STRING(row)
            memcpy(name, hashed, 16)
            name[16] = <char>(i >> 8)
            name[17] = <char>i
            found = txn.get(row)
            if found is None:
                return None
            PyObject_GetBuffer(found, &view, PyBUF_SIMPLE)
            try:
                if view.len != min(self.piece, <Py_ssize_t>length - at):
                    return None
                memcpy(to + at, view.buf, view.len)
            finally:
                PyBuffer_Release(&view)
            at += self.piece
        return joined


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
