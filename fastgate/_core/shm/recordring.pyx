"""RecordRing: the last n small records of all processes, in shared memory.

WHAT        append(record) overwrites the oldest record with a few hundred bytes; recent(n) returns the newest ones. For events
            that many workers record and one process shows: policy violations, bans. Records are opaque to the ring.
STATE       word 0: records ever appended | 7 words unused | capacity places of: number | length | checksum | record_bytes bytes
            A place is empty while its number is 0; the record with number k is in place (k - 1) % capacity.
WHO WRITES  any process: a number is taken by one fetch_add, and then its place belongs to the writer. Two writers collide in one
            place only if one of them was stopped for a whole round; a record torn by that (or by a kill) does not match its
            checksum and is skipped. No process waits for another, and a dead writer leaves nothing locked.
COST        append about 150 ns, one copy and one SipHash; recent one copy and one SipHash for each record.
            Memory: 24 + record_bytes for each place.
SOURCES     Linux kfifo (numbers that only grow); the checksum in place of a seqlock, as in log-structured stores
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from fastgate._core.arguments cimport int_argument
from fastgate._core.shm.atomic cimport atomic_add, atomic_load, atomic_store
from fastgate._core.hashing cimport siphash13
from fastgate._core.shm.shm cimport SharedMemory

__all__ = ["RecordRing"]

cdef enum:
    HEADER_BYTES = 64
    PLACE_BYTES = 24                            # number, length, checksum

cdef int64_t MOST_RECORDS = 1 << 24
cdef int64_t MOST_BYTES = 1 << 16


cdef inline int64_t stride_of(int64_t record_bytes) noexcept nogil:
    return PLACE_BYTES + ((record_bytes + 7) & ~7)


@cython.final
cdef class RecordRing:
    """The newest `capacity` records of at most `record_bytes` bytes each, in private memory or in `shared`.

    capacity: 1 to 2**24. record_bytes: 8 to 65 536. shared: at least size(capacity, record_bytes) bytes, zero-filled when new; all
    processes give the same numbers. ValueError when it is too small.
    """

    def __cinit__(self, capacity, record_bytes=488, SharedMemory shared=None):
        self.capacity = int_argument(capacity, "capacity", 1, MOST_RECORDS)
        self.record_bytes = int_argument(record_bytes, "record_bytes", 8, MOST_BYTES)
        self.stride = stride_of(self.record_bytes)
        need = HEADER_BYTES + self.capacity * self.stride
        if shared is None:
            shared = SharedMemory(need)
        elif <int64_t>shared.size < <int64_t>need:
            raise ValueError(f"shared: expected at least {need} bytes, got {shared.size}")
        self.shared = shared
        self.head = <int64_t*>shared.address
        self.places = <char*>shared.address + HEADER_BYTES
        self.key[0] = 0x6661737467617465
        self.key[1] = 0x7265636f7264730a

    @staticmethod
    def size(capacity, record_bytes=488) -> int:
        """Bytes of shared memory for such a ring."""
        return HEADER_BYTES + int_argument(capacity, "capacity", 1, MOST_RECORDS) * stride_of(
            int_argument(record_bytes, "record_bytes", 8, MOST_BYTES))

    @property
    def appended(self) -> int:
        """Number of records ever appended; only the newest `capacity` of them are kept."""
        return atomic_load(self.head)

    def append(self, bytes record not None) -> int:
        """Stores this record in place of the oldest; returns its number, counted from 1. ValueError if it is too long."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(record)
        cdef int64_t number
        cdef char* place
        cdef int64_t* words
        if n > self.record_bytes:
            raise ValueError(f"record: expected at most {self.record_bytes} bytes, got {n}")
        number = atomic_add(self.head, 1) + 1
        place = self.places + ((number - 1) % self.capacity) * self.stride
        words = <int64_t*>place
        atomic_store(&words[0], 0)
        words[1] = n
        words[2] = <int64_t>self.checksum(PyBytes_AS_STRING(record), n, number)
        memcpy(place + PLACE_BYTES, PyBytes_AS_STRING(record), n)
        atomic_store(&words[0], number)
        return number

    def recent(self, most=100) -> list[tuple[int, bytes]]:
        """The newest records with their numbers, newest first, at most `most`. Records being overwritten are left out."""
        cdef int64_t wanted = int_argument(most, "most", 0, MOST_RECORDS)
        cdef int64_t newest = atomic_load(self.head)
        cdef int64_t number, n, checksum
        cdef char* place
        cdef int64_t* words
        cdef bytes copy
        cdef list out = []
        for number in range(newest, max(newest - min(wanted, self.capacity), 0), -1):
            place = self.places + ((number - 1) % self.capacity) * self.stride
            words = <int64_t*>place
            if atomic_load(&words[0]) != number:
                continue
            n = words[1]
            checksum = words[2]
            if not 0 <= n <= self.record_bytes:
                continue
            copy = PyBytes_FromStringAndSize(place + PLACE_BYTES, n)
            if atomic_load(&words[0]) == number and <int64_t>self.checksum(PyBytes_AS_STRING(copy), n, number) == checksum:
                out.append((number, copy))
        return out

    cdef uint64_t checksum(self, const char* data, Py_ssize_t n, int64_t number) noexcept nogil:
        return siphash13(data, n, self.key) ^ <uint64_t>number

    def __repr__(self) -> str:
        return f"RecordRing({self.capacity}, {self.record_bytes})"
