"""A cache bounded in bytes, with time to live, tags and purges, and a bounded time per call.

WHAT        Maps byte keys to values, within max_bytes including its own index. Policies: `lru`, and `s3fifo`, which a scan
            cannot empty. It does not compress, does not persist and is private to the process.
STATE       index: linear hashing (linear_hash.pxd), bucket ─► entry ─► entry; two ghost words per bucket.
            queues: lru uses MAIN only. s3fifo: SMALL (a tenth of the bytes) ─► MAIN when hit, else evicted and remembered
            as a ghost; a key whose ghost is fresh goes directly to MAIN. A hit only increments a counter and moves no entry.
            ghost = 16 bits of hash + 16 bits of epoch; fresh for as many evictions as there are entries.
            purges: each gets the next `seq`. An entry knows the last seq it was checked against, so a purge takes effect
            immediately and costs nothing per entry; entries are checked on their next use, and by a sweep of a few per call.
            An entry changes its place in a queue only after it has been checked, so one pass of the sweep from tail to
            head reaches every entry that an earlier purge could affect, and the purges before it are forgotten.
WHO WRITES  Under the GIL. No Python code runs while the structure is inconsistent: values are released at the end of
            the call, so a destructor may use the cache.
COST        get, set, delete: O(1); Python caches a key's hash. set evicts at most 4 096 entries. purge_*: O(1) plus a sweep of 64
            entries; while purges wait for the sweep, the first use of an entry checks each of them.
            Memory per entry: 72 bytes + key + 8 per tag, rounded up to 16, + 16 to 64 of index; all of it counts towards
            max_bytes.
SOURCES     Yang et al.: FIFO queues are all you need for cache eviction (SOSP 2023); libCacheSim S3FIFO.c; the generations
            of Varnish bans (lurker).
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from fastgate._core.arguments cimport float_argument, int_argument, text_argument
from fastgate._core.cache.cache_entry cimport (block_size, bury, entry_block, entry_key, entry_t, entry_tags, ghost_add, ghost_take,
                                         queue_push, queue_remove, queue_t, tag_acquire, tag_find, tag_release, tag_t)
from fastgate._core.cache.cache_key cimport KEY_MAX, cache_hash_bytes, key_argument
from fastgate._core.coarse_clock cimport coarse_ns
from fastgate._core.debug cimport debug_assert, debug_live_add, debug_live_count
from fastgate._core.http.glob cimport glob_check
from fastgate._core.shm.linear_hash cimport (node_t, table_bucket, table_bytes, table_free, table_grow, table_init, table_link,
                                         table_unlink)
from fastgate._core.shm.purges cimport purges_add, purges_forget, purges_free, purges_hit, purges_retire

__all__ = ["Cache"]

cdef enum:
    MAIN = 0
    SMALL = 1
    ALIVE = 0
    EXPIRED = 1
    PURGED = 2
    SMALL_SHARE = 10                            # SMALL gets 1/10 of the bytes, as in the paper
    PROMOTE_HITS = 1                            # hits in SMALL that lead to MAIN; the paper uses 2, but 1 does as well
                                                # or better on every trace of benchmarks/quality
    HITS_MAX = 3
    LIVES_MAX = 3
    ROTATIONS_MAX = 32                          # second chances in one eviction; after that the tail is evicted
    EVICTIONS_MAX = 4096                        # evictions in one set(): 0.5 ms
    ROTATIONS_TOTAL = 8192                      # second chances in one set()
    PURGES_MAX = 1024                           # active prefixes and patterns; one more clears the cache
    PURGE_SWEEP = 64
    TEXT_MAX = 1024                             # of tags, prefixes and patterns
    TAGS_MAX = 255                              # stored in one byte
    MAX_BYTES_MIN = 65536                       # 13 % of it is the empty index

cdef int64_t NEVER = INT64_MAX
cdef int64_t NOW_MAX = 1 << 62                  # 146 years; leaves room to add a TTL
cdef double TTL_MAX_S = 1e9                     # 31 years


cdef uint64_t value_size(Py_ssize_t n) noexcept nogil:
    return block_size(<uint64_t>n + 33)         # 33 = sys.getsizeof(b"")


cdef int64_t ttl_argument(object ttl_s) except -1:
    if type(ttl_s) is float and ttl_s == float("inf"):
        return NEVER
    return <int64_t>(float_argument(ttl_s, "ttl_s", 1e-9, TTL_MAX_S) * 1e9)


@cython.final
cdef class Cache:
    """Cache(max_bytes, policy="s3fifo", ttl_s=None)\n--\n
    Values by key, at most max_bytes of them: `Cache(64 << 20, ttl_s=60).set("k", b"v", tags=["user:7"])`.

    max_bytes   65 536 to 2**48. Values, keys, the index, tags and pending purges count towards it. An entry of more
                than half of it is refused.
    policy      "s3fifo" (default): keys seen once are evicted early, so scans do not empty it. "lru": least recently used first.
    ttl_s       lifetime of an entry unless set() specifies one, 1e-9 to 1e9 seconds; None = until evicted.

    Keys are bytes, or str, encoded as UTF-8; up to 65 535 bytes. Values are bytes, kept by reference, or any object
    with a size_bytes. The garbage collector does not traverse it: a value that refers to its cache keeps both alive until
    clear(). `now_ns` is the monotonic clock unless given (the coarse one: a TTL is exact to 4 ms); a clock that goes backwards
    only makes entries live longer. Keys are hashed by Python's hash: with a secret, unless PYTHONHASHSEED is set.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, max_bytes, policy="s3fifo", ttl_s=None):
        self.max_bytes = int_argument(max_bytes, "max_bytes", MAX_BYTES_MIN, 1 << 48)
        if policy != "lru" and policy != "s3fifo":
            raise ValueError(f"policy: expected 'lru' or 's3fifo', got {policy!r}")
        self.is_lru = policy == "lru"
        self.ttl_ns = NEVER if ttl_s is None else ttl_argument(ttl_s)
        self.ghosts.epoch = 1
        self.ghosts.epoch_left = 1
        if not table_init(&self.entries) or not table_init(&self.tags):
            raise MemoryError
        debug_live_add(1)

    def __dealloc__(self):
        cdef entry_t* grave = NULL
        cdef int q
        if self.entries.directory != NULL and self.tags.directory != NULL:
            debug_live_add(-1)
            for q in range(2):
                while self.queues[q].tail != NULL:
                    self.drop(self.queues[q].tail, &grave)
        purges_free(&self.purges)
        table_free(&self.entries)
        table_free(&self.tags)
        bury(grave)

    # ── reading

    def get(self, key, default=None, *, now_ns=None):
        """The value of key, or default if there is no live one. Counts as a hit or a miss."""
        cdef const char* at
        cdef Py_ssize_t n
        cdef entry_t* e
        cdef uint64_t hash
        cdef int64_t now = -1
        key_argument(key, &at, &n, &hash)
        if now_ns is not None:
            now = int_argument(now_ns, "now_ns", 0, NOW_MAX)
        e = self.find(at, n, hash)
        if e == NULL:
            self.misses += 1
            return default
        if now < 0 and e.expires_ns != NEVER:
            now = coarse_ns()
        value = self.hit(e, now)
        return default if value is None else value

    def __contains__(self, key):
        """True if get() would find it now. Is not counted and does not refresh the entry."""
        cdef const char* at
        cdef Py_ssize_t n
        cdef uint64_t hash
        key_argument(key, &at, &n, &hash)
        cdef entry_t* e = self.find(at, n, hash)
        return e != NULL and self.state_of(e, coarse_ns() if e.expires_ns != NEVER else 0) == ALIVE

    cdef object lookup(self, const char* key, Py_ssize_t n, int64_t now_ns):
        cdef entry_t* e = self.find(key, n, cache_hash_bytes(key, n))
        if e == NULL:
            self.misses += 1
            return None
        return self.hit(e, now_ns)

    cdef entry_t* find(self, const char* key, Py_ssize_t n, uint64_t hash) noexcept:
        cdef node_t* node = table_bucket(&self.entries, hash).head
        cdef entry_t* e
        while node != NULL:
            if node.hash == hash:
                e = <entry_t*>node
                if e.key_n == <uint32_t>n and memcmp(entry_key(e), key, n) == 0:
                    return e
            node = node.chain
        return NULL

    cdef object hit(self, entry_t* e, int64_t now_ns):
        """The value of e, or None if e is dead (and is dropped)."""
        cdef entry_t* grave = NULL
        cdef queue_t* q
        value = None
        if e.expires_ns > now_ns and e.checked_seq == self.seq:
            value = <object>e.value
        else:
            if not self.drop_dead(e, now_ns, &grave):
                value = <object>e.value
            if self.clean_seq != self.seq:
                # From here on only `value` may keep e alive: the sweep does not drop it, because it has just been checked.
                self.sweep_some(2, now_ns, &grave)
        if value is None:
            self.misses += 1
        else:
            self.hits += 1
            if not self.is_lru:
                if e.hits < HITS_MAX:
                    e.hits += 1
            elif e.prev != NULL:
                q = &self.queues[MAIN]
                if self.cursor == e:
                    self.cursor = e.prev
                queue_remove(q, e)
                queue_push(q, e)
        if grave != NULL:
            bury(grave)
        return value

    # ── writing

    def set(self, key, value, *, ttl_s=None, cost=1.0, tags=(), size_bytes=None, now_ns=None):
        """True if value is now stored under key; False if it was refused, and then key has no value.

        ttl_s        1e-9 to 1e9 seconds, or math.inf; None = the cache's own. cost         cost of producing this value, as a
        multiple of the usual one, 0 to 1e12. Each doubling above 1, three
                     at most, spares it one eviction.
        tags         up to 255 str or bytes of up to 1 024 bytes each, for purge_tag(). size_bytes   bytes to charge for the
        value, 0 to 2**47; required if it is not bytes.

        Refused: an entry larger than half of max_bytes, or one that would require more than 4 096 evictions at once.
        """
        cdef const char* at
        cdef Py_ssize_t n
        cdef uint64_t size, hash
        cdef int lives = 0
        cdef int64_t ttl_ns = self.ttl_ns
        cdef int64_t now
        cdef double times
        key_argument(key, &at, &n, &hash)
        if size_bytes is not None:
            size = int_argument(size_bytes, "size_bytes", 0, 1 << 47)
        elif type(value) is bytes:
            size = value_size(PyBytes_GET_SIZE(value))
        else:
            raise TypeError(f"value: expected bytes, or size_bytes along with another object, got {type(value).__name__}")
        if value is None:
            raise TypeError("value: expected an object, got None, which get() returns for nothing")
        if ttl_s is not None:
            ttl_ns = ttl_argument(ttl_s)
        if type(cost) is not float or cost != 1.0:
            times = float_argument(cost, "cost", 0.0, 1e12)
            while lives < LIVES_MAX and times >= 2.0:
                lives += 1
                times /= 2.0
        if type(tags) is not tuple:
            if isinstance(tags, (str, bytes)):
                raise TypeError(f"tags: expected an iterable of str or bytes, got {tags!r}")
            tags = tuple(tags)
        now = self.now_of(now_ns, ttl_ns != NEVER or self.timed > 0)
        return self.put(at, n, hash, value, size, NEVER if ttl_ns == NEVER else now + ttl_ns, lives, tags, now) == 1

    cdef int64_t now_of(self, object now_ns, bint needed) except -1:
        if now_ns is not None:
            return int_argument(now_ns, "now_ns", 0, NOW_MAX)
        return coarse_ns() if needed else 0

    cdef int store(self, const char* key, Py_ssize_t n, object value, uint64_t size, int64_t expires_ns, int lives,
                   tuple tags, int64_t now_ns) except -1:
        return self.put(key, n, cache_hash_bytes(key, n), value, size, expires_ns, lives, tags, now_ns)

    cdef int put(self, const char* key, Py_ssize_t n, uint64_t hash, object value, uint64_t size, int64_t expires_ns, int lives,
                 tuple tags, int64_t now_ns) except -1:
        cdef entry_t* grave = NULL
        cdef entry_t* e
        cdef entry_t* old
        cdef const char* at
        cdef Py_ssize_t tag_n = len(tags), tag_length, i
        cdef bint fits
        if tag_n > TAGS_MAX:
            raise ValueError(f"tags: expected 0 to {TAGS_MAX}, got {tag_n}")
        for i in range(tag_n):
            text_argument(tags[i], "tags", TEXT_MAX, &at, &tag_length)
        e = <entry_t*>malloc(sizeof(entry_t) + tag_n * sizeof(void*) + n)
        if e == NULL:
            raise MemoryError
        e.node.hash = hash
        e.value = <PyObject*>value
        e.expires_ns = expires_ns
        e.checked_seq = self.seq
        e.key_n = <uint32_t>n
        e.tag_n = <uint8_t>tag_n
        e.size = entry_block(e) + size
        e.hits = 0
        e.lives = <uint8_t>lives
        memcpy(entry_key(e), key, n)
        for i in range(tag_n):
            text_argument(tags[i], "tags", TEXT_MAX, &at, &tag_length)
            entry_tags(e)[i] = tag_acquire(&self.tags, &self.tag_bytes, at, tag_length,
                                           cache_hash_bytes(at, tag_length))
            if entry_tags(e)[i] == NULL:
                while i > 0:
                    i -= 1
                    tag_release(&self.tags, &self.tag_bytes, entry_tags(e)[i])
                free(e)
                raise MemoryError
        # No operation fails and no Python code runs from here to bury().
        e.queue = MAIN
        old = self.find(key, n, e.node.hash)
        if old != NULL:
            e.queue = old.queue
            if self.state_of(old, now_ns) == ALIVE and old.hits < HITS_MAX:
                e.hits = old.hits + 1
            elif self.state_of(old, now_ns) == ALIVE:
                e.hits = HITS_MAX
            self.drop(old, &grave)
        elif not self.is_lru:
            e.queue = MAIN if ghost_take(&self.ghosts, &self.entries, hash) else SMALL
        table_grow(&self.entries)
        fits = e.size <= self.max_bytes // 2 and self.make_room(e.size, now_ns, &grave)
        if fits:
            Py_INCREF(value)
            table_link(&self.entries, &e.node)
            queue_push(&self.queues[e.queue], e)
            self.entry_bytes += e.size
            self.stored += 1
            if expires_ns != NEVER:
                self.timed += 1
        else:
            self.refused += 1
            for i in range(tag_n):
                tag_release(&self.tags, &self.tag_bytes, entry_tags(e)[i])
            free(e)
            self.make_room(0, now_ns, &grave)
        if self.clean_seq != self.seq:
            self.sweep_some(4, now_ns, &grave)
        elif self.timed:
            self.sweep_some(1, now_ns, &grave)
        bury(grave)
        return fits

    def delete(self, key, *, now_ns=None):
        """True if key had a live value, which is removed."""
        cdef const char* at
        cdef Py_ssize_t n
        cdef entry_t* grave = NULL
        cdef uint64_t hash
        cdef bint alive
        key_argument(key, &at, &n, &hash)
        cdef int64_t now = self.now_of(now_ns, self.timed > 0)
        cdef entry_t* e = self.find(at, n, hash)
        if e == NULL:
            return False
        alive = not self.drop_dead(e, now, &grave)
        if alive:
            self.drop(e, &grave)
        bury(grave)
        return alive

    # ── purging

    def purge_tag(self, tag):
        """Removes every entry stored with this tag until now, with immediate effect."""
        cdef const char* at
        cdef Py_ssize_t n
        cdef entry_t* grave = NULL
        text_argument(tag, "tag", TEXT_MAX, &at, &n)
        cdef tag_t* found = tag_find(&self.tags, at, n, cache_hash_bytes(at, n))
        if found == NULL:
            return
        self.seq += 1
        found.purged_seq = self.seq
        self.sweep_some(PURGE_SWEEP, 0, &grave)
        bury(grave)

    def purge_prefix(self, prefix):
        """Removes every entry stored until now whose key starts with prefix (1 to 1 024 bytes), with immediate effect.

        Up to 1 024 different prefixes and patterns wait for the sweep; one more purges everything (`purge_overflows`).
        """
        self.purge(prefix, "prefix", False)

    def purge_pattern(self, pattern):
        r"""Removes every entry stored until now whose whole key matches the glob, with immediate effect; see purge_prefix().

        On bytes: `*` any run, `?` one byte, `[abc]` `[a-z]` `[!x]` one of a set, `\` takes the next byte literally.
        """
        self.purge(pattern, "pattern", True)

    def clear(self):
        """Removes every entry. Their memory is released over the next calls; len() is 0 immediately."""
        cdef entry_t* grave = NULL
        self.seq += 1
        self.floor_seq = self.seq
        self.cleared = self.entries.count
        # No prefix or pattern can affect a remaining entry.
        self.clean_seq = self.seq - 1
        purges_retire(&self.purges, self.clean_seq)
        self.sweep_some(PURGE_SWEEP, 0, &grave)
        bury(grave)

    cdef int purge(self, object text, str name, bint is_pattern) except -1:
        cdef const char* at
        cdef Py_ssize_t n
        cdef entry_t* grave = NULL
        text_argument(text, name, TEXT_MAX, &at, &n)
        if n == 0:
            raise ValueError(f"{name}: expected 1 to {TEXT_MAX} bytes, got 0")
        if is_pattern and not glob_check(<const unsigned char*>at, n):
            raise ValueError(f"{name}: expected a closed [set] and no lone backslash at the end, got {text!r}")
        purges_forget(&self.purges, at, <uint32_t>n, is_pattern)
        if self.purges.count == PURGES_MAX:
            self.overflowed += 1
            self.clear()
            return 0
        if not purges_add(&self.purges, self.seq + 1, at, <uint32_t>n, is_pattern):
            self.clear()                        # no memory to record it: purging too much is safe
            raise MemoryError
        self.seq += 1
        self.sweep_some(PURGE_SWEEP, 0, &grave)
        self.make_room(0, 0, &grave)
        bury(grave)
        return 0

    cdef int state_of(self, entry_t* e, int64_t now_ns) noexcept:
        """ALIVE, EXPIRED or PURGED; the result for purges is noted on the entry."""
        cdef uint8_t i
        if e.checked_seq != self.seq:
            if e.checked_seq < self.floor_seq:
                return PURGED
            for i in range(e.tag_n):
                if entry_tags(e)[i].purged_seq > e.checked_seq:
                    return PURGED
            if purges_hit(&self.purges, e.checked_seq, entry_key(e), e.key_n):
                return PURGED
            e.checked_seq = self.seq
        return ALIVE if e.expires_ns > now_ns else EXPIRED

    def sweep(self, max_entries=1024, *, now_ns=None):
        """Checks up to max_entries (1 to 2**20) entries and frees the expired and purged ones; returns how many were freed.

        Every call sweeps a few entries anyway. For idle moments.
        """
        cdef entry_t* grave = NULL
        cdef uint64_t steps = int_argument(max_entries, "max_entries", 1, 1 << 20)
        cdef uint64_t freed = self.sweep_some(steps, self.now_of(now_ns, self.timed > 0), &grave)
        bury(grave)
        return freed

    cdef uint64_t sweep_some(self, uint64_t entries, int64_t now_ns, entry_t** grave) noexcept:
        cdef entry_t* e
        cdef uint64_t freed = 0
        if not self.sweeping:
            if self.clean_seq == self.seq and not self.timed:
                return 0
            self.sweeping = True
            self.pass_seq = self.seq
            self.cursor_queue = MAIN
            self.cursor = self.queues[MAIN].tail
        while entries:
            e = self.cursor
            if e == NULL:
                # SMALL after MAIN: an entry that moved from SMALL to MAIN behind the cursor was checked when it moved.
                if self.cursor_queue == MAIN and self.queues[SMALL].tail != NULL:
                    self.cursor_queue = SMALL
                    self.cursor = self.queues[SMALL].tail
                    continue
                self.sweeping = False
                self.clean_seq = self.pass_seq
                purges_retire(&self.purges, self.clean_seq)
                break
            entries -= 1
            self.cursor = e.prev
            freed += self.drop_dead(e, now_ns, grave)
        return freed

    # ── eviction

    cdef uint64_t used(self) noexcept:
        return self.entry_bytes + self.tag_bytes + self.purges.bytes + table_bytes(&self.entries) + table_bytes(&self.tags)

    cdef void drop(self, entry_t* e, entry_t** grave) noexcept:
        """Unlinks e and adds it to the grave list; bury() releases its value."""
        cdef uint8_t i
        if self.cursor == e:
            self.cursor = e.prev
        if e.checked_seq < self.floor_seq:
            self.cleared -= 1
        if e.expires_ns != NEVER:
            self.timed -= 1
        table_unlink(&self.entries, &e.node)
        queue_remove(&self.queues[e.queue], e)
        self.entry_bytes -= e.size
        for i in range(e.tag_n):
            tag_release(&self.tags, &self.tag_bytes, entry_tags(e)[i])
        e.next = grave[0]
        grave[0] = e

    cdef bint drop_dead(self, entry_t* e, int64_t now_ns, entry_t** grave) noexcept:
        cdef int state = self.state_of(e, now_ns)
        if state == ALIVE:
            return False
        if state == EXPIRED:
            self.expired += 1
        else:
            self.purged += 1
        self.drop(e, grave)
        return True

    cdef bint make_room(self, uint64_t need, int64_t now_ns, entry_t** grave) noexcept:
        """False if `need` more bytes would not fit even after EVICTIONS_MAX evictions."""
        cdef int left = EVICTIONS_MAX
        cdef int rotations = ROTATIONS_TOTAL
        while self.used() + need > self.max_bytes:
            if left == 0 or not self.evict_one(now_ns, &rotations, grave):
                return False
            left -= 1
        return True

    cdef bint evict_one(self, int64_t now_ns, int* rotations_total, entry_t** grave) noexcept:
        """Drops one entry, dead or by policy; False if there is none."""
        cdef queue_t* main = &self.queues[MAIN]
        cdef queue_t* small = &self.queues[SMALL]
        cdef entry_t* e
        cdef int rotations = ROTATIONS_MAX
        while True:
            e = main.tail
            if small.tail != NULL and (e == NULL or small.bytes > self.max_bytes // SMALL_SHARE):
                e = small.tail
            if e == NULL:
                return False
            if self.drop_dead(e, now_ns, grave):
                return True
            if rotations == 0 or rotations_total[0] == 0:
                break
            if e.queue == SMALL:
                if e.hits >= PROMOTE_HITS:
                    e.hits = 0
                elif e.lives:
                    e.lives -= 1
                else:
                    break
            elif e.hits and not self.is_lru:
                e.hits -= 1
            elif e.lives:
                e.lives -= 1
            else:
                break
            rotations -= 1
            rotations_total[0] -= 1
            if self.cursor == e:
                self.cursor = e.prev
            queue_remove(&self.queues[e.queue], e)
            e.queue = MAIN
            queue_push(main, e)
        if e.queue == SMALL:
            ghost_add(&self.ghosts, &self.entries, e.node.hash)
        self.evicted += 1
        self.drop(e, grave)
        return True

    # ── inspection

    def __len__(self):
        """Number of entries held, including expired and purged ones that the sweep has not reached yet."""
        return self.entries.count - self.cleared

    @property
    def used_bytes(self):
        """Bytes charged now: never more than max_bytes."""
        return self.used()

    @property
    def policy(self):
        return "lru" if self.is_lru else "s3fifo"

    def stats(self):
        """Counts since creation, and the current contents, as a new dict.

        hits, misses   of get()                      stored, refused    of set() evicted        by policy, while alive
        expired, purged    entries dropped because they were dead entries        len()                         pending_purges
        prefixes and patterns the sweep has not finished used_bytes     index_bytes, tag_bytes and purge_bytes are parts of it
        purge_overflows   purges that became clear()
        """
        return {
            "hits": self.hits, "misses": self.misses, "stored": self.stored, "refused": self.refused,
            "evicted": self.evicted, "expired": self.expired, "purged": self.purged, "entries": len(self),
            "used_bytes": self.used(), "index_bytes": table_bytes(&self.entries) + table_bytes(&self.tags),
            "tag_bytes": self.tag_bytes, "purge_bytes": self.purges.bytes, "pending_purges": self.purges.count,
            "purge_overflows": self.overflowed,
        }

    def _entries(self):
        """For tests: (key, queue, hits, lives, bytes) of every entry, each queue from head to tail. O(n)."""
        cdef entry_t* e
        cdef int q
        found = []
        for q in range(2):
            e = self.queues[q].head
            while e != NULL:
                found.append((entry_key(e)[:e.key_n], "small" if q == SMALL else "main", e.hits, e.lives, e.size))
                e = e.next
        return found

    def __repr__(self):
        return f"Cache({self.max_bytes}, {self.policy!r}: entries={len(self)}, used_bytes={self.used()})"


def live_objects():
    """How many caches are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
