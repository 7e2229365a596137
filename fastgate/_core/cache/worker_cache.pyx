# cython: boundscheck=False
"""The cached answers of one worker: memory first, then what the host shares, and who is fetching what.

WHAT     `WorkerCache` looks an answer up in the worker's own memory (L1) and in the tiers behind it, keeps what was fetched, carries
         out purges before every look-up, and knows which keys are being fetched (`Fill`), so that one request upstream serves
         all who ask meanwhile. `RouteCache` is what a route says of it.
STATE    varies: what the last URLs vary by and which variants they have, so that their number stays bounded whatever memory holds.
         forms: what the routes take of a query; forget_forms bounds them whenever a plan is installed.
         memory: `_core/cache`, bounded in bytes. fills: one for each key that is being fetched, so bounded by the requests in
         flight. tiers: an object with get_now, get_later and put (fastgate/caching/tiers.py), or None.
WHO      The worker's loop. Other processes are heard through `epochs` alone.
COST     a look-up in memory is one load (nothing purged) and one hash, about 40 ns.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memcmp

from fastgate._core.cache.cache cimport Cache
from fastgate._core.shm.epochs cimport FILL_ALONE, FILL_BUSY, Epochs
from fastgate._core.http.edits cimport Template
from fastgate._core.hashing cimport hash128_t
from fastgate._core.cache.http_cache cimport Rules, StoredResponse, Vary, stored_from
from fastgate._core.shm.metric cimport Metric, metric_add

__all__ = ["RESULTS", "Fill", "RouteCache", "WorkerCache"]

RESULTS = ("hit", "stale", "revalidated", "miss", "expired", "bypass", "coalesced", "stale_on_error", "only_if_cached")

cdef int64_t FILL_AGE_NS = 30_000_000_000       # a leader that says nothing for so long is given up


cdef enum:
    MOST_VARIES = 512
    MOST_FORMS = 64


cdef class Fill:
    """One answer that is being fetched, and who waits for it in this worker."""


cdef class Handover:
    """Ends a Fill for the other workers, once. Called from whatever thread has written its answer."""

    cdef Epochs epochs
    cdef hash128_t hashed
    cdef int64_t place

    def __cinit__(self, Epochs epochs not None, Fill fill not None):
        self.epochs = epochs
        self.hashed = fill.hashed
        self.place = fill.place

    def __call__(self):
        self.epochs.c_done(&self.hashed, self.place, False, 0)


cdef class WorkerCache:
    """memory: a Cache, or None for a worker that keeps nothing itself. tiers: what lies behind it, or None."""

    def __cinit__(self, Cache memory, Epochs epochs not None, tiers, counter):
        self.memory = memory
        self.epochs = epochs
        self.tiers = tiers
        self.fills = {}
        self.varies = {}
        self.forms = {}
        self.seen = epochs.c_sequence()
        self.purged_fills = counter("fastgate_cache_fills_purged_total")
        self.evicted_variants = counter("fastgate_cache_variants_evicted_total")

    cdef object get(self, bytes key, int64_t now_ns, int64_t realtime_now_ns):
        """The StoredResponse or Vary under key, or None. `source` says where it was."""
        cdef object value
        if self.memory is not None:
            if self.epochs.c_sequence() != self.seen:
                self.seen = self.epochs.c_apply(self.memory, self.seen)
            value = self.memory.lookup(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), now_ns)
            if value is not None:
                self.source = FROM_MEMORY
                return value
        if self.tiers is not None:
            value = self.tiers.get_now(key)
            if value is not None:
                return self.keep(key, value, now_ns, realtime_now_ns, FROM_DISK)
        self.source = FROM_NOWHERE
        return None

    cdef object keep(self, bytes key, object blob, int64_t now_ns, int64_t realtime_now_ns, int source):
        """What a record of a tier says, put into memory too; None when it is damaged or says nothing."""
        cdef object value
        cdef StoredResponse stored
        cdef bytes raw = <bytes>blob if type(blob) is bytes else bytes(blob)
        value = Vary.from_bytes(raw) if PyBytes_GET_SIZE(raw) > 4 and memcmp(PyBytes_AS_STRING(raw), b"FGV1", 4) == 0 else None
        if value is not None:
            value = self.known(key, <Vary>value)
        else:
            value = stored_from(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), True)     # tiers check their envelopes
        self.source = FROM_NOWHERE
        if value is None:
            return None
        self.source = source
        if self.memory is None:
            return value
        if isinstance(value, Vary):
            self.hold(key, <Vary>value, INT64_MAX, now_ns)
        else:
            stored = <StoredResponse>value
            self.memory.store(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), value, stored.size,
                              now_ns + stored.keep_until_ns - realtime_now_ns, 0, stored.tags, now_ns)
        return value

    cdef Vary known(self, bytes key, Vary vary):
        """vary, or the object of this worker that says the same and knows which variants there are."""
        cdef Vary held = <Vary>self.varies.pop(key, None)
        if held is None or held.names != vary.names:
            held = vary
        self.varies[key] = held
        if len(self.varies) > MOST_VARIES:
            del self.varies[next(iter(self.varies))]
        return held

    cdef StoredResponse newer(self, bytes key, StoredResponse held, int64_t now_ns, int64_t realtime_now_ns):
        """What the tiers hold under key when it came after what memory does, as another worker has renewed it; else held."""
        cdef object value
        if self.tiers is None:
            return held
        value = self.tiers.get_now(key)
        if value is None:
            return held
        value = StoredResponse.from_bytes(bytes(value))
        if value is None or (<StoredResponse>value).stored_ns <= held.stored_ns:
            return held
        self.memory.store(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), value, (<StoredResponse>value).size,
                          now_ns + (<StoredResponse>value).keep_until_ns - realtime_now_ns, 0, (<StoredResponse>value).tags, now_ns)
        return <StoredResponse>value

    cdef int put(self, bytes key, object value, tuple tags, int lives, int64_t keep_until_ns, int64_t began, int64_t now_ns,
                 int64_t realtime_now_ns) except -1:
        """Keep an answer (or a Vary) whose fetching began when the purge log was at `began`; 0 when a purge since then concerns it."""
        if self.epochs.c_sequence() != began and self.epochs.c_concerns(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), tags, began):
            metric_add(self.purged_fills, 1)
            return 0
        if self.memory is not None:
            if self.epochs.c_sequence() != self.seen:
                self.seen = self.epochs.c_apply(self.memory, self.seen)
            if isinstance(value, Vary):
                self.hold(key, <Vary>value, now_ns + keep_until_ns - realtime_now_ns, now_ns)
            else:
                self.memory.store(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), value, (<StoredResponse>value).size,
                                  now_ns + keep_until_ns - realtime_now_ns, lives, tags, now_ns)
        if self.tiers is not None:
            self.tiers.put(key, value.to_bytes(), tags, keep_until_ns - realtime_now_ns, began)
        return 1

    cdef int hold(self, bytes key, Vary vary, int64_t expires_ns, int64_t now_ns) except -1:
        """A Vary in memory, charged with what it holds."""
        vary.charged = vary.size
        return self.memory.store(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), vary, vary.charged, expires_ns, 0, (), now_ns)

    cdef int admit(self, bytes primary, Vary vary, bytes key, int limit, int64_t keep_until_ns, int64_t now_ns,
                   int64_t realtime_now_ns) except -1:
        """A variant is stored: the oldest beyond the limit go, here and in the tiers. That is eviction and no purge: nobody else is
        told, and no other worker has to do anything."""
        # Only what a variant's key has behind the primary one is kept: a URL may be long, and there are many of each.
        for left in vary.admit(key[PyBytes_GET_SIZE(primary):], limit):
            oldest = primary + left
            metric_add(self.evicted_variants, 1)
            if self.memory is not None:
                self.memory.delete(oldest)
            if self.tiers is not None:
                self.tiers.forget(oldest)
        if self.memory is not None and vary.size > vary.charged:
            self.hold(primary, vary, now_ns + keep_until_ns - realtime_now_ns, now_ns)
        return 0

    cdef Fill lead(self, bytes key, object leader, int64_t now_ns):
        """The Fill of this key: one that leader now leads, or that of whoever leads it in this worker. None: another process is
        fetching it, or (place FILL_ALONE) nobody should wait for it."""
        cdef Fill fill = <Fill>self.fills.get(key)
        if fill is not None:
            return fill
        fill = Fill.__new__(Fill)
        fill.key = key
        fill.leader = leader
        fill.waiters = []
        self.epochs.c_hash(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &fill.hashed)
        fill.place = self.epochs.c_lead(&fill.hashed, FILL_AGE_NS, now_ns)
        if fill.place == FILL_ALONE:
            return fill
        if fill.place == FILL_BUSY:
            if self.tiers is not None:
                return None
            fill.place = FILL_ALONE                     # its answer would never come here: no wait, and none for others
        self.fills[key] = fill
        return fill

    cdef int done(self, Fill fill, bint alone, int64_t now_ns) except -1:
        """The leader is through. alone: the answer is not for sharing, and the next who ask should not wait for one."""
        if self.fills.get(fill.key) is fill:
            del self.fills[fill.key]
        if fill.place >= 0:
            # What other workers wait for must be where they look: for an answer that is being written that is a moment later.
            if self.tiers is not None and not alone and self.tiers.when_written(fill.key, Handover(self.epochs, fill)):
                fill.place = FILL_ALONE
                return 0
            self.epochs.c_done(&fill.hashed, fill.place, alone, now_ns)
            fill.place = FILL_ALONE
        return 0

    def forget_forms(self, in_force):
        """Let go of all forms of a query but those of the routes in force, and the MOST_FORMS last of others: what was stored under
        one of these may still be there when a reload brings it back."""
        others = [form for form in self.forms if form not in in_force]
        for form in others[:max(0, len(others) - MOST_FORMS)]:
            del self.forms[form]

    def purge_applied(self):
        """Carry out what was purged since the last look-up."""
        if self.memory is not None and self.epochs.c_sequence() != self.seen:
            self.seen = self.epochs.c_apply(self.memory, self.seen)


cdef class RouteCache:
    """What a route says of caching. wait_ns: how long a request waits for another one that fetches the same answer.

    guarded      it authenticates: a request of which nobody knows who it is from does not touch the cache
    places       a Template of what its requests upstream are given of each client, and so is in the key; None: nothing
    plugins      those that edit its requests upstream: each says what of it is to be in the key
    written      lower-case names of the fields that its requests upstream may have with another value than the client's
    sends        the key has such fields
    """

    def __cinit__(self, Rules rules not None, WorkerCache store not None, *, bint coalesce, int64_t wait_ns, counter, str route,
                 strategy=None, predict=None, str purge_header=None, bint guarded=False, Template places=None, plugins=(), written=(),
                 bint sends=False):
        self.rules = rules
        self.guarded = guarded
        self.places = places
        self.plugins = tuple(plugins)
        self.written = frozenset(written)
        self.sends = sends
        self.plain = places is None and not self.plugins and not sends
        # What is purged by URL is purged for every route, each of which may take a query in its own way. The last to be used is last.
        store.forms.pop(rules.query_form, None)
        store.forms[rules.query_form] = rules
        self.purge_header = None if purge_header is None else purge_header.lower().encode()
        self.store = store
        self.coalesce = coalesce
        self.wait_ns = wait_ns
        self.strategy = strategy
        self.predict = predict
        if predict is not None:
            self.refreshed = counter("fastgate_cache_predicted_total", route=route, kind="refresh")
            self.prefetched = counter("fastgate_cache_predicted_total", route=route, kind="prefetch")
        self.results = tuple(counter("fastgate_cache_requests_total", route=route, result=word) for word in RESULTS)
