# cython: boundscheck=False
"""The cached responses of one worker: in memory, in the tiers shared by the host, and the fetches in flight.

WHAT     `WorkerCache` looks up a response in the worker's own memory (L1) and in the tiers behind it, stores fetched responses,
         applies purges before every lookup, and records which keys are being fetched (`Fill`), so that one upstream request
         serves all concurrent requests. `RouteCache` holds the settings of a route.
STATE    varies: the Vary and the variants of the most recent URLs, bounded in number independently of memory.
         forms: the ways in which routes use a query; forget_forms bounds them whenever a plan is installed.
         memory: `_core/cache`, bounded in bytes. fills: one for each key that is being fetched, so bounded by the requests in
         flight. tiers: an object with reader, get_slow, get_later and put (fastgate/caching/tiers.py), or None.
WHO      The worker's loop. Other processes communicate through `epochs` only.
COST     a lookup in memory is one load (nothing purged) and one hash, about 40 ns.
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

from fastgate._core.cache.envelope import LATER, SLOW

__all__ = ["RESULTS", "Fill", "RouteCache", "WorkerCache"]

RESULTS = ("hit", "stale", "revalidated", "miss", "expired", "bypass", "coalesced", "stale_on_error", "only_if_cached")

cdef int64_t FILL_AGE_NS = 30_000_000_000       # a leader without progress for this long is given up


cdef enum:
    MOST_VARIES = 512
    MOST_FORMS = 64


cdef class Fill:
    """One response that is being fetched, and the requests that wait for it in this worker."""


cdef class Handover:
    """Ends a Fill for the other workers, once. Called from the thread that has written its response."""

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
    """memory: a Cache, or None for a worker that stores nothing in memory. tiers: the tiers behind it, or None."""

    def __cinit__(self, Cache memory, Epochs epochs not None, tiers, counter):
        self.memory = memory
        self.epochs = epochs
        self.tiers = tiers
        self.disk = None if tiers is None else tiers.reader
        self.fills = {}
        self.varies = {}
        self.forms = {}
        self.seen = epochs.c_sequence()
        self.purged_fills = counter("fastgate_cache_fills_purged_total")
        self.evicted_variants = counter("fastgate_cache_variants_evicted_total")

    cdef object get(self, bytes key, int64_t now_ns, int64_t realtime_now_ns):
        """The StoredResponse or Vary of key, or None. `source` tells where it was found."""
        cdef object value
        self.is_large = False
        if self.memory is not None:
            if self.epochs.c_sequence() != self.seen:
                self.seen = self.epochs.c_apply(self.memory, self.seen)
            value = self.memory.lookup(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), now_ns)
            if value is not None:
                self.source = FROM_MEMORY
                return value
        if self.tiers is not None:
            value = self.below(key)
            if value is not None:
                return self.keep(key, value, now_ns, realtime_now_ns, FROM_DISK)
        self.source = FROM_NOWHERE
        return None

    cdef object below(self, bytes key):
        """The record of key in the tiers; None if there is none, or none that can be read without waiting. `is_large` is then set
        if there is one."""
        cdef object value
        self.is_large = False
        if self.disk is None:
            return None
        value = self.disk.get(key)
        if value is SLOW:
            value = self.tiers.get_slow(key)
            if value is LATER:
                self.is_large = True
                return None
        return value

    cdef object keep(self, bytes key, object blob, int64_t now_ns, int64_t realtime_now_ns, int source):
        """Decode a record of a tier, and store the result in memory too; None if it is damaged or empty."""
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
        """vary, or the equal object of this worker that also knows the stored variants."""
        cdef Vary held = <Vary>self.varies.pop(key, None)
        if held is None or held.names != vary.names:
            held = vary
        self.varies[key] = held
        if len(self.varies) > MOST_VARIES:
            del self.varies[next(iter(self.varies))]
        return held

    cdef StoredResponse newer(self, bytes key, StoredResponse held, int64_t now_ns, int64_t realtime_now_ns):
        """The response that the tiers hold for key if it is newer than the one in memory, because another worker has renewed it;
        else held."""
        cdef object value
        if self.tiers is None:
            return held
        value = self.below(key)
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
        """Store a response (or a Vary) whose fetch began when the purge log was at `began`; 0 if a later purge affects it."""
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
        """Store a Vary in memory, charged with its size."""
        vary.charged = vary.size
        return self.memory.store(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), vary, vary.charged, expires_ns, 0, (), now_ns)

    cdef int admit(self, bytes primary, Vary vary, bytes key, int limit, int64_t keep_until_ns, int64_t now_ns,
                   int64_t realtime_now_ns) except -1:
        """A variant is stored: the oldest ones beyond the limit are removed, here and in the tiers. That is an eviction, not a
        purge: other workers are not notified."""
        # Only the part of a variant's key after the primary one is stored: a URL may be long, and there are many variants of
        # each.
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
        """The Fill of this key: one that leader now leads, or the one led by another request of this worker. None: another
        process is fetching it, or (place FILL_ALONE) requests should not wait for it."""
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
            fill.place = FILL_ALONE                     # its response would never be stored here: no waiting
        self.fills[key] = fill
        return fill

    cdef int done(self, Fill fill, bint alone, int64_t now_ns) except -1:
        """The leader has finished. alone: the response must not be shared, and the next requests should not wait for one."""
        if self.fills.get(fill.key) is fill:
            del self.fills[fill.key]
        if fill.place >= 0:
            # Other workers look for the response where it is stored: if it is still being written, wake them afterwards.
            if self.tiers is not None and not alone and self.tiers.when_written(fill.key, Handover(self.epochs, fill)):
                fill.place = FILL_ALONE
                return 0
            self.epochs.c_done(&fill.hashed, fill.place, alone, now_ns)
            fill.place = FILL_ALONE
        return 0

    def forget_forms(self, in_force):
        """Drop all query forms except those of the current routes, and the last MOST_FORMS others: responses stored under one of
        these may still exist when a reload restores it."""
        others = [form for form in self.forms if form not in in_force]
        for form in others[:max(0, len(others) - MOST_FORMS)]:
            del self.forms[form]

    def purge_applied(self):
        """Apply the purges since the last lookup."""
        if self.memory is not None and self.epochs.c_sequence() != self.seen:
            self.seen = self.epochs.c_apply(self.memory, self.seen)


cdef class RouteCache:
    """A route's cache settings. wait_ns: how long a request waits for another one that fetches the same response.

    guarded      it authenticates: a request without an identity does not use the cache places       a Template of the client's
    data in its upstream requests, which is therefore in the key; None: no such data plugins      those that edit its upstream
    requests: each provides its part of the key written      lower-case names of the fields whose value in its upstream requests
    may differ from the client's sends        the key has such fields
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
        # A purge by URL applies to every route, each of which may use a query in its own way. The most recently used is last.
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
