"""Epochs: which cached responses are no longer valid, and which are being fetched, for all processes of a host.

WHAT        The purge log: numbered records (everything, one key, one tag, a prefix, a pattern) that every process applies to its own
            cache before its next lookup. A purge is in effect on the whole host when its call returns.
            The fills: which process is fetching a key (fills.pyx).
            The roles: tasks that one process of a host does for all (reading the purge bus), with a few words each.
            It stores no responses; cache.pyx and the store on disk do.
STATE       header 32 words | roles 8 × 8 words | slots 1024 words | ring of records | fills, 8 words to a bucket

              record   sequence | kind 8, far 8, length 48 | time, ns | text up to 1 024 bytes

            A sequence begins at the wall clock's nanoseconds, so that numbers stored on disk by an earlier run are older than all of this
            one. A reader that is behind by more than the ring holds treats that as a purge of everything.
            A record is written before `head` refers to it, and under its own sequence word (a seqlock), so that a reader of an overwritten
            record notices.
WHO WRITES  Records and `head`: the holder of the lock word. The lock carries its owner's identity; the lock of a dead process is taken
            over, and `head` did not yet refer to what it had half written.
COST        Nothing new: one load. An append about 100 ns. Memory: 1 048 bytes a purge, 8 bytes a fill.
SOURCES     Varnish bans; Lameter, Effective synchronization on Linux (seqlock); robust futexes.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastgate._core.arguments cimport int_argument, text_argument
from fastgate._core.shm.atomic cimport (
    atomic_add_relaxed, atomic_cas, atomic_fence, atomic_load, atomic_load_relaxed, atomic_max, atomic_store,
)
from fastgate._core.cache.cache cimport Cache
from fastgate._core.clock cimport monotonic_ns, realtime_ns
from fastgate._core.http.glob cimport glob_check, glob_match
from fastgate._core.hashing cimport hash128, hash128_t, hash_key_random
from fastgate._core.shm.fills cimport (
    FILL_BUCKET, FILL_BUSY, FILL_SLOTS, FILLS_CROWDED, FILLS_LED, FILLS_TAKEN_OVER, fills_done, fills_lead, fills_state, fills_under_way,
)
from fastgate._core.shm.owners cimport owner_alive, owner_self
from fastgate._core.shm.shm cimport SharedMemory

from collections import namedtuple

__all__ = ["Epochs", "Fill", "Purge"]

cdef extern from *:
    """
    #include <sched.h>
    #include <time.h>
    static inline void epochs_pause(int round) {
        struct timespec t = {0, 50000};
        if (round < 64) sched_yield(); else nanosleep(&t, NULL);
    }
    static inline void epochs_read_fence(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    """
    void epochs_pause(int round) noexcept nogil
    void epochs_read_fence() noexcept nogil

cdef enum:
    LAYOUT = 1
    HEADER_WORDS = 32
    # words of the header
    AT_LAYOUT = 0           # layout << 48 | purges << 24 | fills / 8; 0 = new
    AT_START = 1            # the sequence before the first purge of this run
    AT_HEAD = 8             # the sequence of the last purge; on its own line with the words that readers compare it with
    AT_APPLIED = 9
    AT_LOCK = 16
    AT_SECRET = 17          # 2 words
    AT_FILLS = 24           # counters of fills.pyx
    ROLES = 8
    ROLE_WORDS = 8          # the owner, and NOTES words
    NOTES = 7
    TEXT_MAX = 1024         # as in cache.pyx
    RECORD_BYTES = 1048
    RECORD_TEXT = 24
    LOCK_ROUNDS = 5000      # about 0.3 s: a holder needs 100 ns, so it was suspended

Purge = namedtuple("Purge", "sequence kind text is_far realtime_ns")
KINDS = (None, "all", "key", "tag", "prefix", "pattern")


cdef class Epochs:
    """Epochs(purges=1024, fills=65536, shared=None)\n--\n
    The purge log, the fills in progress and the roles of one host.

    purges: records in the ring, 16 to 65 536. fills: keys fetched concurrently, 64 to 1 000 000. shared: SharedMemory of
    Epochs.size(purges, fills) bytes, whose users must see the same pids; without it the memory belongs to this process and its
    forks.
    ValueError: out of range, too little memory, or memory initialized for other numbers.

    Keys, prefixes and patterns are those of the cache: bytes, or str as UTF-8. Texts of 1 024 bytes at most; a longer key is
    purged as a prefix, which matches more than requested and never less.
    """

    def __cinit__(self, purges=1024, fills=65_536, SharedMemory shared=None):
        cdef int64_t records = int_argument(purges, "purges", 16, 65_536)
        cdef int64_t words = (int_argument(fills, "fills", 64, 1_000_000) + FILL_BUCKET - 1) // FILL_BUCKET * FILL_BUCKET
        cdef int64_t layout = (<int64_t>LAYOUT << 48) | (records << 24) | (words // FILL_BUCKET)
        cdef int64_t found = 0
        cdef size_t needed = Epochs.size(purges, fills)
        if shared is not None and shared.size < needed:
            raise ValueError(f"shared: expected at least {needed} bytes for {records} purges and {words} fills, got {shared.size}")
        self.shared = shared
        self.keep = shared if shared is not None else SharedMemory(needed)
        self.header = <int64_t*>(<SharedMemory>self.keep).address
        self.ring = <char*>(self.header + HEADER_WORDS + ROLES * ROLE_WORDS + FILL_SLOTS)
        self.fill_table.words = <uint64_t*>(self.ring + ((records * RECORD_BYTES + 63) // 64) * 64)
        self.fill_table.count = words
        self.fill_table.slots = self.header + HEADER_WORDS + ROLES * ROLE_WORDS
        self.fill_table.counters = self.header + AT_FILLS
        self.purges = records
        self.fills = words
        if not atomic_cas(&self.header[AT_LAYOUT], &found, layout) and found != layout:
            raise ValueError(f"shared: it holds {(found >> 24) & 0xffffff} purges and {(found & 0xffffff) * FILL_BUCKET} fills, "
                             f"expected {records} and {words}")
        hash_key_random(self.secret)
        found = 0
        if atomic_cas(&self.header[AT_SECRET], &found, <int64_t>(self.secret[0] | 1)):
            found = <int64_t>(self.secret[0] | 1)
        self.secret[0] = <uint64_t>found
        self.secret[1] = <uint64_t>found ^ 0x9e3779b97f4a7c15
        # The first process sets the start; `head` counts from it, so that zero bytes are a valid empty log.
        found = 0
        atomic_cas(&self.header[AT_START], &found, realtime_ns())

    # ── the purge log

    cdef int64_t c_sequence(self) noexcept nogil:
        return atomic_load(&self.header[AT_START]) + atomic_load(&self.header[AT_HEAD])

    cdef int64_t c_applied(self) noexcept nogil:
        return atomic_load(&self.header[AT_START]) + atomic_load(&self.header[AT_APPLIED])

    cdef int64_t oldest(self, int64_t head) noexcept nogil:
        """The oldest count the ring still holds; records are identified by their counts 1, 2, …"""
        return head - self.purges + 1 if head > self.purges else 1

    cdef bint lock(self) noexcept nogil:
        cdef int64_t me = owner_self()
        cdef int64_t holder
        cdef int round
        for round in range(LOCK_ROUNDS):
            holder = 0
            if atomic_cas(&self.header[AT_LOCK], &holder, me):
                return True
            if round % 64 == 63 and not owner_alive(holder) and atomic_cas(&self.header[AT_LOCK], &holder, me):
                return True
            epochs_pause(round)
        return False

    cdef void unlock(self) noexcept nogil:
        atomic_store(&self.header[AT_LOCK], 0)

    cdef int64_t append(self, int kind, bint far, const char* text, Py_ssize_t n) noexcept nogil:
        """The sequence of the new record; -1 if the lock is held by a stopped process."""
        cdef int64_t count
        cdef char* record
        if not self.lock():
            return -1
        count = atomic_load(&self.header[AT_HEAD]) + 1
        record = self.ring + (count % self.purges) * RECORD_BYTES
        atomic_store(<int64_t*>record, 0)
        atomic_fence()
        (<int64_t*>record)[1] = kind | (<int64_t>far << 8) | (<int64_t>n << 16)
        (<int64_t*>record)[2] = realtime_ns()
        if n:
            memcpy(record + RECORD_TEXT, text, n)
        atomic_store(<int64_t*>record, count)
        # A read-modify-write, and so a full fence: when the call returns, every other process's next load sees it.
        atomic_add_relaxed(&self.header[AT_HEAD], 1)
        atomic_fence()
        self.unlock()
        return atomic_load(&self.header[AT_START]) + count

    cdef int copy_record(self, int64_t count, int* kind, bint* far, char* text, Py_ssize_t* n,
                         int64_t* at_ns) noexcept nogil:
        """1 and the record of that count, or 0: it was overwritten."""
        cdef char* record = self.ring + (count % self.purges) * RECORD_BYTES
        cdef int64_t shape
        if atomic_load(<int64_t*>record) != count:
            return 0
        shape = (<int64_t*>record)[1]
        kind[0] = <int>(shape & 0xff)
        far[0] = (shape >> 8) & 1
        n[0] = shape >> 16
        if n[0] < 0 or n[0] > TEXT_MAX:
            return 0
        at_ns[0] = (<int64_t*>record)[2]
        memcpy(text, record + RECORD_TEXT, n[0])
        epochs_read_fence()
        return atomic_load(<int64_t*>record) == count

    cdef int64_t purge(self, int kind, object text, str name, bint far) except -1:
        cdef const char* at = NULL
        cdef Py_ssize_t n = 0
        cdef int64_t sequence
        if kind != PURGE_ALL:
            text_argument(text, name, TEXT_MAX if kind != PURGE_KEY else INT64_MAX, &at, &n)
        if kind == PURGE_KEY and n > TEXT_MAX:
            kind = PURGE_PREFIX
            n = TEXT_MAX
        if kind == PURGE_PATTERN and not glob_check(<const unsigned char*>at, n):
            raise ValueError(f"pattern: expected every [ closed and no lone \\ at the end, got {text!r}")
        sequence = self.append(kind, far, at, n)
        if sequence < 0:
            raise TimeoutError("the purge log is held by a process that is stopped")
        return sequence

    def purge_all(self, *, far=False):
        """Purges everything; the sequence of the purge, which is in effect on the whole host. far: it came from another host."""
        return self.purge(PURGE_ALL, None, "", far)

    def purge_key(self, key, *, far=False):
        """Purges one key; returns the sequence."""
        return self.purge(PURGE_KEY, key, "key", far)

    def purge_tag(self, tag, *, far=False):
        """Purges everything with the tag; returns the sequence."""
        return self.purge(PURGE_TAG, tag, "tag", far)

    def purge_prefix(self, prefix, *, far=False):
        """Purges the keys with this prefix; returns the sequence."""
        return self.purge(PURGE_PREFIX, prefix, "prefix", far)

    def purge_pattern(self, pattern, *, far=False):
        """Purges the keys that a glob matches as a whole (`*`, `?`, `[a-z]`, `\\`); returns the sequence."""
        return self.purge(PURGE_PATTERN, pattern, "pattern", far)

    @property
    def sequence(self):
        """The number of the last purge. A fill reads it before it sends the request to the origin."""
        return self.c_sequence()

    @property
    def start(self):
        """The sequence before the first purge of this run: numbers below are of earlier runs."""
        return atomic_load(&self.header[AT_START])

    @property
    def applied(self):
        """The number up to which the disk store has applied the purges."""
        return self.c_applied()

    def set_applied(self, int64_t sequence):
        """Records that the disk store has applied every purge up to this one. Never goes back."""
        atomic_max(&self.header[AT_APPLIED], min(sequence - atomic_load(&self.header[AT_START]),
                                                 atomic_load(&self.header[AT_HEAD])))

    def since(self, int64_t sequence):
        """The purges after that number as a list, oldest first; None if some of them are no longer known (then purge
        everything)."""
        cdef int64_t start = atomic_load(&self.header[AT_START])
        cdef int64_t head = atomic_load(&self.header[AT_HEAD])
        cdef int64_t count = sequence - start, at_ns
        cdef int kind
        cdef bint far
        cdef char text[TEXT_MAX]
        cdef Py_ssize_t n
        if count < 0 or count > head:
            count = 0
        if count + 1 < self.oldest(head):
            return None
        found = []
        while count < head:
            count += 1
            if not self.copy_record(count, &kind, &far, text, &n, &at_ns):
                return None
            found.append(Purge(start + count, KINDS[kind], text[:n], bool(far), at_ns))
        return found

    cdef bint c_concerns(self, const char* key, Py_ssize_t n, tuple tags, int64_t since) except -1:
        cdef int64_t head = atomic_load(&self.header[AT_HEAD])
        cdef int64_t count = since - atomic_load(&self.header[AT_START])
        cdef int64_t at_ns
        cdef int kind
        cdef bint far
        cdef char text[TEXT_MAX]
        cdef Py_ssize_t text_n, tag_n
        cdef const char* at
        if count == head:
            return False
        if count < 0 or count > head:
            count = 0               # from an earlier run, or from a clock that was set back: every purge of this run is later
        if count + 1 < self.oldest(head):
            return True
        while count < head:
            count += 1
            if not self.copy_record(count, &kind, &far, text, &text_n, &at_ns):
                return True
            if kind == PURGE_ALL:
                return True
            if kind == PURGE_KEY:
                if n == text_n and memcmp(key, text, n) == 0:
                    return True
            elif kind == PURGE_PREFIX:
                if n >= text_n and memcmp(key, text, text_n) == 0:
                    return True
            elif kind == PURGE_PATTERN:
                if glob_match(<const unsigned char*>text, text_n, <const unsigned char*>key, n):
                    return True
            elif kind == PURGE_TAG:
                if tags is not None:
                    for tag in tags:
                        text_argument(tag, "tags", TEXT_MAX, &at, &tag_n)
                        if tag_n == text_n and memcmp(at, text, tag_n) == 0:
                            return True
            else:
                return True
        return False

    def concerns(self, key, tags=(), int64_t since=0):
        """Whether a purge after `since` matches the key or one of its tags. Also True if that is no longer known."""
        cdef const char* at
        cdef Py_ssize_t n
        text_argument(key, "key", INT64_MAX, &at, &n)
        return self.c_concerns(at, n, tuple(tags), since)

    cdef int64_t c_apply(self, Cache cache, int64_t seen) except -1:
        cdef int64_t start = atomic_load(&self.header[AT_START])
        cdef int64_t head = atomic_load(&self.header[AT_HEAD])
        cdef int64_t count = seen - start
        cdef int64_t at_ns
        cdef int kind
        cdef bint far
        cdef char text[TEXT_MAX]
        cdef Py_ssize_t n
        if count == head:
            return seen
        if count < 0 or count > head or count + 1 < self.oldest(head):
            cache.clear()
            return start + head
        while count < head:
            count += 1
            if not self.copy_record(count, &kind, &far, text, &n, &at_ns) or kind == PURGE_ALL:
                cache.clear()
            elif kind == PURGE_KEY:
                cache.delete(text[:n])
            elif kind == PURGE_TAG:
                cache.purge_tag(text[:n])
            elif kind == PURGE_PREFIX:
                cache.purge_prefix(text[:n])
            elif kind == PURGE_PATTERN:
                cache.purge_pattern(text[:n])
            else:
                cache.clear()
        return start + head

    def apply(self, Cache cache not None, int64_t seen):
        """Applies unseen purges to a cache; returns the sequence to pass the next time.

        A new cache has seen `sequence`.
        """
        return self.c_apply(cache, seen)

    # ── the fills

    cdef void c_hash(self, const void* key, size_t n, hash128_t* out) noexcept nogil:
        hash128(key, n, self.secret, out)

    cdef int64_t c_lead(self, const hash128_t* key, int64_t max_age_ns, int64_t now_ns) noexcept nogil:
        return fills_lead(&self.fill_table, key, max_age_ns, now_ns)

    cdef int64_t c_state(self, const hash128_t* key, int64_t max_age_ns, int64_t now_ns) noexcept nogil:
        return fills_state(&self.fill_table, key, max_age_ns, now_ns)

    cdef bint c_done(self, const hash128_t* key, int64_t place, bint alone, int64_t now_ns) noexcept nogil:
        """True if the fill was still ours: it had not been given up."""
        return fills_done(&self.fill_table, key, place, alone, now_ns)

    def lead(self, key, *, max_age_s=30.0, now_ns=None):
        """A Fill: this process is to make the key; or None: another one makes it, wait; or False: make it without a Fill,
        since it was not shareable a moment ago, or there is no place."""
        cdef const char* at
        cdef Py_ssize_t n
        cdef Fill fill = Fill.__new__(Fill)
        cdef int64_t now = monotonic_ns() if now_ns is None else now_ns
        text_argument(key, "key", INT64_MAX, &at, &n)
        self.c_hash(at, n, &fill.key)
        fill.place = self.c_lead(&fill.key, <int64_t>(<double>max_age_s * 1e9), now)
        if fill.place >= 0:
            fill.owner = self
            return fill
        return None if fill.place == FILL_BUSY else False

    def busy(self, key, *, max_age_s=30.0, now_ns=None):
        """True while a process fetches the key."""
        cdef const char* at
        cdef Py_ssize_t n
        cdef hash128_t hashed
        cdef int64_t now = monotonic_ns() if now_ns is None else now_ns
        text_argument(key, "key", INT64_MAX, &at, &n)
        self.c_hash(at, n, &hashed)
        return self.c_state(&hashed, <int64_t>(<double>max_age_s * 1e9), now) == FILL_BUSY

    # ── the roles

    def claim(self, role):
        """True if this process now has the role (0 to 7): it was free, or its holder is dead. Call it periodically."""
        cdef int64_t* words = self.header + HEADER_WORDS + int_argument(role, "role", 0, ROLES - 1) * ROLE_WORDS
        cdef int64_t me = owner_self()
        cdef int64_t holder = atomic_load(words)
        if holder == me:
            return True
        if holder != 0 and owner_alive(holder):
            return False
        return atomic_cas(words, &holder, me)

    def leave(self, role):
        """True if this process had the role, which is free now."""
        cdef int64_t* words = self.header + HEADER_WORDS + int_argument(role, "role", 0, ROLES - 1) * ROLE_WORDS
        cdef int64_t me = owner_self()
        return atomic_cas(words, &me, 0)

    def note(self, role, index):
        """One of the 7 numbers of a role; they outlive its holders. Initially 0."""
        return atomic_load(self.header + HEADER_WORDS + int_argument(role, "role", 0, ROLES - 1) * ROLE_WORDS
                           + 1 + int_argument(index, "index", 0, NOTES - 1))

    def set_note(self, role, index, value):
        """Sets one of them; only the role's holder should."""
        atomic_store(self.header + HEADER_WORDS + int_argument(role, "role", 0, ROLES - 1) * ROLE_WORDS
                     + 1 + int_argument(index, "index", 0, NOTES - 1),
                     int_argument(value, "value", -INT64_MAX, INT64_MAX))

    def change_note(self, role, index, expected, value):
        """True if one of them was `expected` and is `value` now, atomically: of several processes one changes it."""
        cdef int64_t was = int_argument(expected, "expected", -INT64_MAX, INT64_MAX)
        return atomic_cas(self.header + HEADER_WORDS + int_argument(role, "role", 0, ROLES - 1) * ROLE_WORDS
                          + 1 + int_argument(index, "index", 0, NOTES - 1),
                          &was, int_argument(value, "value", -INT64_MAX, INT64_MAX))

    # ── statistics

    def statistics(self):
        """Counts since the start: purges; fills led, taken over from a silent process, crowded out; and fills in progress."""
        cdef int64_t under_way = fills_under_way(&self.fill_table)
        return {
            "purges": atomic_load(&self.header[AT_HEAD]), "led": atomic_load_relaxed(&self.header[AT_FILLS + FILLS_LED]),
            "taken_over": atomic_load_relaxed(&self.header[AT_FILLS + FILLS_TAKEN_OVER]),
            "crowded": atomic_load_relaxed(&self.header[AT_FILLS + FILLS_CROWDED]), "under_way": under_way,
        }

    @staticmethod
    def size(purges=1024, fills=65_536):
        """Bytes of shared memory for so many purge records and fills."""
        records = int_argument(purges, "purges", 16, 65_536)
        words = (int_argument(fills, "fills", 64, 1_000_000) + FILL_BUCKET - 1) // FILL_BUCKET * FILL_BUCKET
        return (HEADER_WORDS + ROLES * ROLE_WORDS + FILL_SLOTS) * 8 + (records * RECORD_BYTES + 63) // 64 * 64 + words * 8

    def __repr__(self):
        return f"Epochs(purges={self.purges}, fills={self.fills}: sequence={self.c_sequence()})"


cdef class Fill:
    """The task of fetching one key. done() ends it; so does dropping it, dying, or taking too long."""

    cdef Epochs owner
    cdef hash128_t key
    cdef int64_t place

    def done(self, *, alone=False):
        """True if it was still ours. alone: the response is not shareable, others should not wait for this key for now."""
        cdef Epochs owner = self.owner
        self.owner = None
        return owner is not None and owner.c_done(&self.key, self.place, alone, monotonic_ns())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.done()
        return False

    def __dealloc__(self):
        if self.owner is not None:
            self.owner.c_done(&self.key, self.place, False, 0)
