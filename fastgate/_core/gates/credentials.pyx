# cython: boundscheck=False
"""The verified credentials of a worker, so that one that was verified before costs a hash and a lookup.

STATE    A table of sets of four places; the place that expires first is replaced. Bounded in bytes (the size of the identities) and in
         entries; expired ones are swept every few seconds, and a table that has become empty shrinks. The key is a keyed 128-bit hash
         (SipHash under a random key of this process): the credential itself is not stored, and a lookup compares two words, so its
         time reveals nothing about the credential.
WHO      The worker's loop.
COST     About 60 ns for a known credential.
"""

import asyncio
import contextlib
import sys

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.hashing cimport hash128, hash128_t, hash_key_random
from fastgate._core.pipeline.identity cimport Identity

__all__ = ["CredentialCache"]

cdef enum:
    FIRST_CREDENTIALS = 1024
    MOST_CREDENTIALS = 524288                   # of 100 000 in use, one in a hundred then shares a set with more than fit
    WAYS = 4                                    # places for one hash
    SWEPT_AT_ONCE = 8192                        # places looked at in one go: 20 us
    BASE_BYTES = 1536                           # an Identity with its texts, its place here, and its limits
    MOST_DEPTH = 32                             # of claims; deeper ones count with the size of their text

cdef int64_t MOST_BYTES = 64 << 20              # of identities per worker: 20 000 tokens of 1 kB, or 40 000 keys
SWEEP_S = 1.0


def weight(object value, int depth=0):
    """Approximate bytes of memory of a value of claims or metadata."""
    cdef Py_ssize_t total = sys.getsizeof(value)
    if depth >= MOST_DEPTH:
        return total + len(repr(value))
    if isinstance(value, dict):
        for key, item in (<dict>value).items():
            total += sys.getsizeof(key) + <Py_ssize_t>weight(item, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            total += <Py_ssize_t>weight(item, depth + 1)
    return total


@cython.final
cdef class CredentialCache:
    """The verified credentials of a worker. metrics, worker: where its size and its evictions are counted."""

    def __init__(self, int64_t max_bytes=MOST_BYTES, metrics=None, str worker="0"):
        self.max_bytes = max_bytes
        if metrics is not None:
            self.told = (metrics.gauge("fastgate_auth_cache_bytes", worker=worker),
                         metrics.gauge("fastgate_auth_cache_entries", worker=worker),
                         metrics.counter("fastgate_auth_cache_evictions_total"))

    def __cinit__(self):
        self.capacity = FIRST_CREDENTIALS
        self.max_bytes = MOST_BYTES
        self.rows = <credential_t*>calloc(self.capacity, sizeof(credential_t))
        if self.rows == NULL:
            raise MemoryError()
        self.identities = [None] * self.capacity
        hash_key_random(self.secret)

    def __dealloc__(self):
        free(self.rows)

    cdef void key_of(self, uint64_t family, const char* data, Py_ssize_t n, hash128_t* out) noexcept:
        """The key of a credential in one family: gates that decide alike."""
        cdef uint64_t key[2]
        key[0] = self.secret[0] ^ family
        key[1] = self.secret[1]
        hash128(data, n, key, out)

    cdef Identity find(self, const hash128_t* key, int64_t now_ns):
        """The identity; None if it is not cached, or expired."""
        cdef Py_ssize_t first = <Py_ssize_t>(key.low & <uint64_t>(self.capacity - WAYS))
        cdef Py_ssize_t i
        for i in range(first, first + WAYS):
            if self.rows[i].low == key.low and self.rows[i].high == key.high:
                if now_ns < self.rows[i].until_ns:
                    self.hits += 1
                    return <Identity>self.identities[i]
                break
        self.misses += 1
        return None

    cdef int keep(self, const hash128_t* key, Identity identity, int64_t until_ns) except -1:
        """Store it until until_ns (CLOCK_MONOTONIC)."""
        cdef Py_ssize_t first = <Py_ssize_t>(key.low & <uint64_t>(self.capacity - WAYS))
        cdef Py_ssize_t i, place = -1
        cdef int64_t size = BASE_BYTES + <Py_ssize_t>weight(identity.claims) + <Py_ssize_t>weight(identity.metadata) \
            + <Py_ssize_t>weight(identity.scopes) + <Py_ssize_t>weight(identity.roles) + 2 * PyBytes_GET_SIZE(identity.upstream_lines)
        if size > self.max_bytes // 8:
            self.evictions += 1                         # one that would evict an eighth of all others is verified each time
            return 0
        for i in range(first, first + WAYS):
            if self.rows[i].low == key.low and self.rows[i].high == key.high:
                place = i
                break
        if place < 0:
            for i in range(first, first + WAYS):
                if self.identities[i] is None:
                    place = i
                    break
        if place < 0:
            # A full set happens early (birthdays); more room is made when an eighth is taken.
            if self.used * 8 > self.capacity and self.capacity < MOST_CREDENTIALS:
                self.resize(2 * self.capacity)
                return self.keep(key, identity, until_ns)
            place = first
            for i in range(first + 1, first + WAYS):
                if self.rows[i].until_ns < self.rows[place].until_ns:
                    place = i
            self.evictions += 1
        if self.identities[place] is not None:
            self.drop(place)
        while self.bytes + size > self.max_bytes and self.used > 0:
            self.hand = (self.hand + 1) & (self.capacity - 1)
            if self.identities[self.hand] is not None:
                self.drop(self.hand)
                self.evictions += 1
        self.rows[place].low = key.low
        self.rows[place].high = key.high
        self.rows[place].until_ns = until_ns
        self.rows[place].size = size
        self.identities[place] = identity
        self.used += 1
        self.bytes += size
        return 0

    cdef void drop(self, Py_ssize_t place):
        self.bytes -= self.rows[place].size
        self.used -= 1
        self.rows[place].low = self.rows[place].high = 0
        self.rows[place].until_ns = 0
        self.identities[place] = None

    cdef int resize(self, Py_ssize_t capacity) except -1:
        """Change the number of places, a power of two. Growing splits each set in two, so everything fits; entries that do not fit after
        shrinking are dropped."""
        cdef Py_ssize_t old_capacity = self.capacity, i, j, end
        cdef credential_t* old = self.rows
        cdef credential_t* rows = <credential_t*>calloc(capacity, sizeof(credential_t))
        cdef list identities = self.identities
        if rows == NULL:
            raise MemoryError()
        self.rows = rows
        self.capacity = capacity
        self.identities = [None] * capacity
        self.hand = self.swept = 0
        self.used = 0
        self.bytes = 0
        for i in range(old_capacity):
            if identities[i] is None:
                continue
            j = <Py_ssize_t>(old[i].low & <uint64_t>(capacity - WAYS))
            end = j + WAYS
            while j < end and self.identities[j] is not None:
                j += 1
            if j == end:
                self.evictions += 1
                continue
            rows[j] = old[i]
            self.identities[j] = identities[i]
            self.used += 1
            self.bytes += old[i].size
        free(old)

    def sweep(self, int64_t now_ns):
        """Drop expired entries in the next few thousand places. True when the whole table has been swept."""
        cdef Py_ssize_t end = min(self.swept + SWEPT_AT_ONCE, self.capacity)
        while self.swept < end:
            if self.identities[self.swept] is not None and (self.rows[self.swept].until_ns <= now_ns):
                self.drop(self.swept)
            self.swept += 1
        if self.swept < self.capacity:
            return False
        self.swept = 0
        if self.capacity > FIRST_CREDENTIALS and self.used * 64 < self.capacity:
            self.resize(self.capacity // 2)
        return True

    def tell(self):
        """Update the metrics of size and evictions."""
        if self.told is None:
            return
        self.told[0].set(self.bytes)
        self.told[1].set(self.used)
        if self.evictions:
            self.told[2].add(self.evictions)
            self.evictions = 0

    async def start(self):
        """Start the periodic sweep."""
        self.sweeper = asyncio.get_running_loop().create_task(self._sweeping())

    async def close(self):
        if self.sweeper is not None:
            self.sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.sweeper
            self.sweeper = None

    async def _sweeping(self):
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep(monotonic_ns())
            self.tell()

    def __len__(self):
        return self.used
