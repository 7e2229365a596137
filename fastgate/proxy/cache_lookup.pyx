# cython: boundscheck=False, nonecheck=True
"""The cache lookup of one request, between the decisions and the upstream.

WHAT     `CacheLookup` looks for a stored response and returns the next step of the request: send it, wait for another request
         that fetches the same resource, or forward and let `stage` store the response. It also starts background fetches.

             look ─ fresh ──────────────────────────────────────► STORED
               │ ├─ stale-while-revalidate ─► refetch, and ─────► STORED
               │ ├─ only-if-cached, not stored ─────────────────► NOT_STORED
               │ └─ another request fetches it ─► WAIT ─ stored ──► look again
               ▼                                  └─ not shareable, failed, or timed out ─► FORWARD
             FORWARD ─► stage (cache_fill.pyx) ─► release: wake waiters

STATE    One per request of a route with `cache`. It leads at most one Fill or waits for one; `finish` gives either up.
WHO      The worker's loop.
COST     A hit is two small objects, a lookup and one send.
SOURCES  RFC 9111 §4; RFC 5861; Varnish's busy objects and hit-for-miss; nginx proxy_cache_lock.
"""

import logging

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.cache.http_cache cimport (
    CACHE_FRESH, CACHE_MISS, CACHE_ONLY_IF_CACHED, CACHE_REVALIDATE, CACHE_STALE_WHILE_REVALIDATE, Rules, StoredResponse, Vary,
)
from fastgate._core.cache.http_fields cimport CC_ONLY_IF_CACHED
from fastgate._core.cache.worker_cache cimport (
    C_BYPASS, C_COALESCED, C_EXPIRED, C_HIT, C_MISS, C_ONLY_IF_CACHED, C_STALE, C_STALE_ON_ERROR, FROM_MEMORY, FROM_REDIS, Fill,
    RouteCache, WorkerCache,
)
from fastgate._core.clock cimport monotonic_ns, realtime_ns
from fastgate._core.pipeline.context cimport M_GET, RequestContext
from fastgate._core.shm.metric cimport metric_add
from fastgate.proxy.background cimport BackgroundRequest, background_get
from fastgate.proxy.cache_fill cimport CacheFill
from fastgate.proxy.stages cimport ResponseStage
from fastgate.proxy.upstream_request cimport X_FINISHED, X_LOOKING, UpstreamRequest

from fastgate._core.cache.http_cache import REPLACED_FIELDS
from fastgate.errors import REASONS

__all__ = ["CacheLookup"]

log = logging.getLogger("fastgate")

cdef double POLL_S = 0.003                      # between polls for a response that another worker fetches
cdef double STALLED_S = 0.1                     # a client that has not taken a byte for this long no longer delays others
cdef enum:
    MOST_BEHIND = 64                            # background requests at once in a worker


cdef CacheLookup cache_lookup(UpstreamRequest x):
    """The lookup of a request whose destination caches. It has not begun."""
    cdef CacheLookup lookup = CacheLookup.__new__(CacheLookup)
    lookup.request = x
    lookup.ctx = x.ctx
    lookup.route = <RouteCache>x.destination.cache
    lookup.rules = lookup.route.rules.c_read(x.ctx.method_id, x.ctx.method_bytes, x.ctx.headers, x.ctx.has_body)
    return lookup


@cython.final
@cython.no_gc
cdef class CacheLookup(CacheRequest):
    """The lookup of one request."""

    cdef int begin(self) except -1:
        """Decide whether to use the cache; if so, look up."""
        cdef RequestContext ctx = self.ctx
        if not self.rules.cacheable:
            return self.bypass(b"method" if self.rules.unsafe else b"request")
        if self.route.rules.wants_body and self.rules.post and ctx.has_body and ctx.body is None:
            if not 0 <= ctx.content_length <= KEY_BODY_BYTES:
                return self.bypass(b"request")         # too large to be held just for a key
            return L_BODY
        return self.look()

    cdef int look(self) except -1:
        """Look for a stored response. Returns the verdict."""
        cdef RequestContext ctx = self.ctx
        cdef WorkerCache store = self.route.store
        cdef object value
        cdef int64_t now = realtime_ns()
        self.looked_ns = ctx.now_ns
        self.looked_real_ns = now
        if self.key is None:
            self.key = self.key_of(self.rules)
            if self.key is None:
                return self.bypass(b"request")
        self.began = store.epochs.c_sequence()
        self.variant = self.key
        self.vary = None
        try:
            value = store.get(self.key, ctx.now_ns, now)
            if isinstance(value, Vary):
                self.vary = <Vary>value
                self.variant = self.vary_key(self.vary)
                value = store.get(self.variant, ctx.now_ns, now)
                if isinstance(value, Vary):
                    value = None
        except Exception:                               # an error in the cache must not fail a request
            log.exception("while asking the cache for request %s", ctx.request_id)
            self.key = None
            return self.bypass(b"bypass")
        self.source = store.source
        if value is None and store.tiers is not None and (store.is_large or self.poll is None and store.tiers.has_later):
            self.waiting = False                        # for the response that another worker has just stored, if it did
            self.task = self.request.plane.loop.create_task(self._ask_later(store.is_large))
            return L_WAIT
        return self._judge(<StoredResponse>value)

    async def _ask_later(self, is_large):
        """Query the asynchronous tier, which has its own time limit. is_large: the response is on the disk."""
        cdef WorkerCache store = self.route.store
        cdef RequestContext ctx = self.ctx
        cdef object value
        try:
            for _ in range(2):
                blob = await store.tiers.get_later(self.variant, is_large)
                if self.task is None:
                    return
                ctx.now_ns = monotonic_ns()
                value = None
                if blob is not None:
                    value = store.keep(self.variant, blob, ctx.now_ns, realtime_ns(), FROM_REDIS)
                if not isinstance(value, Vary) or self.variant is not self.key:
                    break
                self.vary = <Vary>value
                self.variant = self.vary_key(self.vary)
                value = store.get(self.variant, ctx.now_ns, realtime_ns())
                is_large = store.is_large
                if value is not None:
                    break
            if isinstance(value, Vary):
                value = None
            self.source = store.source
        except Exception:
            log.exception("while asking the cache for request %s", ctx.request_id)
            if self.task is None:
                return
            value = None
        self.task = None
        try:
            self._go_on(self._judge(<StoredResponse>value))
        except Exception:
            log.exception("while caching request %s", ctx.request_id)
            if self.request is not None:
                self.request.fail(REASONS["internal_error"])

    cdef int _judge(self, StoredResponse found) except -1:
        """Use the stored response (None: there is none), or fetch."""
        cdef int verdict = CACHE_MISS
        if found is not None:
            verdict = found.c_judge(self.rules, self.now())
            if verdict != CACHE_FRESH and self.source == FROM_MEMORY:
                found = self.route.store.newer(self.variant, found, self.ctx.now_ns, self.now())
                verdict = found.c_judge(self.rules, self.now())
            if verdict == CACHE_STALE_WHILE_REVALIDATE and self.rules.post:
                verdict = CACHE_REVALIDATE              # a background request is a GET: it would fetch the response to something else
        elif self.rules.flags & CC_ONLY_IF_CACHED:
            verdict = CACHE_ONLY_IF_CACHED
        if not self.route.rules.enforce and verdict != CACHE_MISS:
            self.count(C_HIT if verdict == CACHE_FRESH else C_STALE)        # shadow mode: count what would have happened
            self.why = b"bypass"
            return L_FORWARD
        if self.route.predict is not None:
            if self.route.predict.prefetches and not self.foreseen:
                self._prefetch()
            if verdict == CACHE_FRESH:
                self._hit_again(found)
        if verdict == CACHE_FRESH:
            self.ready(found, C_COALESCED if self.collapsed else C_HIT)
            return L_STORED
        if verdict == CACHE_STALE_WHILE_REVALIDATE:
            self._revalidate_behind(found)
            self.ready(found, C_STALE)
            return L_STORED
        if verdict == CACHE_ONLY_IF_CACHED:
            self.count(C_ONLY_IF_CACHED)
            return L_NOT_STORED
        self.found = found
        self.why = b"uri-miss"
        if verdict == CACHE_REVALIDATE:
            self.why = b"stale"
            self.revalidating = found.etag is not None or len(found.conditions()) > 0
        elif self.vary is not None:
            self.why = b"vary-miss"
        return self._fetch()

    cdef int _fetch(self) except -1:
        """Ask the upstream, unless another request is already doing so."""
        cdef WorkerCache store = self.route.store
        cdef Fill fill
        cdef int64_t now_ns = self.ctx.now_ns
        if self.route.coalesce and self.route.rules.enforce and not self.rules.head \
                and (self.waits_until_ns == 0 or now_ns < self.waits_until_ns):
            fill = store.lead(self.variant, self, now_ns)
            if fill is None or fill.leader is not self:
                if self.waits_until_ns == 0:
                    self.waits_until_ns = now_ns + self.route.wait_ns
                self.waiting = True
                self.collapsed = True
                if fill is None:
                    self.poll = self.request.plane.loop.call_later(POLL_S, look_again, self)
                else:
                    self.fill = fill
                    fill.waiters.append(self)
                return L_WAIT
            self.fill = fill
            self.leads = True
        self.collapsed = False
        self._count_fetch()
        return L_FORWARD

    cdef int _count_fetch(self) except -1:
        return self.count(C_EXPIRED if self.found is not None else C_MISS)

    cdef int bypass(self, bytes why) except -1:
        self.why = why
        self.count(C_BYPASS)
        return L_FORWARD

    cdef int64_t wait_ns(self) noexcept:
        """How long to wait for another request's response; 0: as long as the time limit of the tier that is queried."""
        return max(self.waits_until_ns - self.ctx.now_ns, 1) if self.waiting else 0

    cdef int wait_over(self) except -1:
        """The response did not arrive in time: fetch it without coalescing."""
        self.waiting = False
        if self.poll is not None:
            self.poll.cancel()
        if self.fill is not None:
            self.fill.waiters.remove(self)
            self.fill = None
        self.collapsed = False
        self._count_fetch()
        return L_FORWARD

    cdef int _go_on(self, int verdict) except -1:
        """Report the verdict after the wait to the request."""
        if verdict == L_WAIT:
            return self.request.arm(self.wait_ns(), None)
        return self.request.looked(verdict)

    cdef ResponseStage stage(self):
        """The stage that the upstream's response passes."""
        return CacheFill(self)

    cdef int ready(self, StoredResponse stored, int result) except -1:
        cdef Rules rules = self.route.rules
        self.count(result)
        self.tail_n = stored.c_tail(rules, self.now(), self.tail)
        self.status = stored.status
        self.head = stored.head
        self.body = stored.body
        if not self.rules.simple:
            self.status, self.head, self.body = stored.answer(self.rules)
        elif self.rules.head:
            self.body = b""
        return 0

    cdef int release(self, StoredResponse stored, bint alone) except -1:
        cdef Fill fill = self.fill
        cdef CacheLookup waiter
        cdef int64_t now_ns = monotonic_ns()
        if not self.leads or fill is None:
            return 0
        self.fill = None
        self.leads = False
        if stored is not None and stored.fresh_until_ns <= self.sent_ns and stored.swr_until_ns <= self.sent_ns:
            alone = True                                # stale on arrival: all waiters ask the upstream in parallel
        self.route.store.done(fill, alone, now_ns)
        waiters = fill.waiters
        fill.waiters = []
        fill.leader = None
        for each in waiters:
            waiter = <CacheLookup>each
            if waiter.request is None or waiter.request.state != X_LOOKING:
                continue
            waiter.waiting = False
            waiter.fill = None
            waiter.ctx.now_ns = now_ns
            try:
                if not alone:
                    waiter._go_on(waiter.look())
                elif self.failed and waiter._stands_in():   # saves each waiter from asking an upstream that fails
                    waiter.request.looked(L_STORED)
                else:
                    waiter.collapsed = False
                    waiter._count_fetch()
                    waiter.request.looked(L_FORWARD)
            except Exception:
                log.exception("while caching request %s", waiter.ctx.request_id)
                if waiter.request is not None:
                    waiter.request.fail(REASONS["internal_error"])
        return 0

    cdef bint _stands_in(self) except -1:
        """The upstream failed for the request that this one waited for: True if a stored response is ready instead."""
        cdef StoredResponse found = self.found
        if found is None or not found.c_may_serve_on_error(self.rules, realtime_ns()):
            return False
        self.collapsed = False
        self.found = None
        self.failed = True
        self.ready(found, C_STALE_ON_ERROR)
        return True

    cdef int refused(self) except -1:
        """The gateway responds locally: report the cache's part in Cache-Status."""
        cdef RequestContext ctx = self.ctx
        cdef Rules rules = self.route.rules
        cdef bytes line
        if rules.status_n == 0:
            return 0
        if self.why is None:
            line = b"Cache-Status: " + rules.status_name + b"; detail=not-cached\r\n"
        else:
            line = rules.forwarded(self.why)
        ctx.local_lines = line if ctx.local_lines is None else ctx.local_lines + line
        return 0

    cdef int finish(self) except -1:
        """The request is over: wake the requests that wait for it."""
        if self.request is None:
            return 0
        if self.task is not None:
            task = self.task
            self.task = None
            task.cancel()
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None
        if self.poll is not None:
            self.poll.cancel()
            self.poll = None
        if self.waiting and self.fill is not None:
            self.waiting = False
            if self in self.fill.waiters:
                self.fill.waiters.remove(self)
            self.fill = None
        if self.background:
            self.route.store.background = self.route.store.background - 1
        if self.leads:
            self.release(None, False)
        self.request = None
        return 0

    # a leader whose client does not read

    cdef int stalled(self) except -1:
        """The client of this request does not read, so its upstream is not read either."""
        if self.leads and self.stall is None:
            self.stall = self.request.plane.loop.call_later(STALLED_S, leader_stalled, self)
        return 0

    cdef int _step_aside(self) except -1:
        """Other requests wait for a response that a client reads slowly: refetch it in the background, independently of any
        client."""
        cdef WorkerCache store = self.route.store
        cdef Fill fill = self.fill
        cdef CacheLookup behind
        if not self.leads or fill is None:
            return 0
        if not fill.waiters:
            self.fill = None
            self.leads = False
            return store.done(fill, False, monotonic_ns())  # waiters in other workers fetch it
        if store.background >= MOST_BEHIND or self.rules.post:
            return self.release(None, True)
        self.fill = None
        self.leads = False
        behind = self._behind()
        without_conditions(behind.ctx)
        behind.rules = self.route.rules.c_read(M_GET, b"GET", behind.ctx.headers, False)
        self._same_place(behind)
        behind.began = store.epochs.c_sequence()
        behind.why = self.why
        behind.ctx.now_ns = monotonic_ns()
        return self._start_behind(behind, fill)

    # background fetches

    cdef CacheLookup _behind(self):
        """The lookup of a background request for the same resource; neither has begun."""
        cdef CacheLookup behind = CacheLookup.__new__(CacheLookup)
        behind.request = background_get(self.request)
        behind.ctx = behind.request.ctx
        behind.route = self.route
        behind.rules = self.route.rules.c_read(M_GET, b"GET", behind.ctx.headers, False)
        return behind

    cdef int _same_place(self, CacheLookup other) except -1:
        """Make the other lookup store where this one looked."""
        other.key = self.key
        other.variant = self.variant
        other.vary = self.vary
        other.sent = self.sent
        other.rules.key = self.rules.key
        other.rules.url_n = self.rules.url_n
        other.rules.keyed_private = self.rules.keyed_private
        other.rules.sent = self.rules.sent
        return 0

    cdef int _start_behind(self, CacheLookup behind, Fill fill) except -1:
        fill.leader = behind
        behind.fill = fill
        behind.leads = True
        behind.background = True
        self.route.store.background = self.route.store.background + 1
        behind.request.stages = [CacheFill(behind)]
        return (<BackgroundRequest>behind.request).start()

    cdef int _revalidate_behind(self, StoredResponse found) except -1:
        """Revalidate a stored response at the upstream while it is being sent to the client. 1: the request was started."""
        cdef WorkerCache store = self.route.store
        cdef CacheLookup behind
        cdef Fill fill
        if store.background >= MOST_BEHIND:
            return 0
        fill = store.lead(self.variant, None, self.ctx.now_ns)
        if fill is None or fill.leader is not None:
            return 0
        behind = self._behind()
        self._same_place(behind)
        behind.found = found
        behind.revalidating = len(found.conditions()) > 0
        behind.began = self.began
        behind.why = b"stale"
        self._start_behind(behind, fill)
        return 1

    cdef int _hit_again(self, StoredResponse found) except -1:
        """A hit on a route that predicts: refetch the response if it is popular and about to expire."""
        cdef int64_t left
        found.hits += 1
        if not self.route.predict.refreshes or not self.rules.simple or self.rules.head or self.rules.post:
            return 0
        left = found.fresh_until_ns - realtime_ns()
        if left * 2 < found.fresh_until_ns - found.stored_ns \
                and self.route.predict.due(left, found.fresh_until_ns - found.stored_ns, found.took_ns, found.hits) \
                and self._revalidate_behind(found):
            found.hits = 0                              # if it fails, hits are counted from zero before the next try
            metric_add(self.route.refreshed, 1)
        return 0

    cdef int _prefetch(self) except -1:
        """Prefetch the resources that usually follow this request, within the budget."""
        cdef RequestContext ctx = self.ctx
        cdef bytes target = ctx.path_bytes if not ctx.query_bytes else ctx.path_bytes + b"?" + ctx.query_bytes
        self.foreseen = True
        if not self.rules.plain or self.rules.head or self.rules.post:
            return 0
        client = ctx.client
        if ctx.identity is not None and not ctx.identity.by_address:
            client = ctx.identity.consumer_bytes
        try:
            for other in self.route.predict.follows(client, target, ctx.now_ns):
                self._fetch_ahead(<bytes>other)
        except Exception:                               # for example a plugin's condition on routes: the request continues
            log.exception("while fetching ahead for request %s", ctx.request_id)
        return 0

    cdef int _fetch_ahead(self, bytes target) except -1:
        """Prefetch this target, as this request's client would request it, unless it is stored already or does not belong to this
        route."""
        cdef WorkerCache store = self.route.store
        cdef Rules rules = self.route.rules
        cdef CacheLookup behind
        cdef RequestContext ctx
        cdef Fill fill
        cdef bytes path, query
        cdef object value
        cdef int64_t now = realtime_ns()
        if store.background >= MOST_BEHIND or self.route.strategy is not None:
            return 0
        behind = self._behind()
        ctx = behind.ctx
        path, mark, query = target.partition(b"?")
        ctx.target = target
        ctx.path_bytes = path
        ctx.query_bytes = query if mark else None
        without_conditions(ctx)
        if self.request.plan.match(ctx) is not self.request.route:
            return 0
        behind.rules = rules.c_read(M_GET, b"GET", ctx.headers, False)
        behind.key = behind.key_of(behind.rules)
        if behind.key is None or not behind.rules.cacheable:
            return 0
        behind.variant = behind.key
        value = store.get(behind.key, ctx.now_ns, now)
        if isinstance(value, Vary):
            behind.vary = <Vary>value
            behind.variant = behind.vary_key(behind.vary)
            value = store.get(behind.variant, ctx.now_ns, now)
        if isinstance(value, StoredResponse):
            if (<StoredResponse>value).c_judge(behind.rules, now) == CACHE_FRESH:
                return 0
            behind.found = <StoredResponse>value
            behind.revalidating = len(behind.found.conditions()) > 0
        if not self.route.predict.may_fetch(target):
            return 0
        fill = store.lead(behind.variant, None, ctx.now_ns)
        if fill is None or fill.leader is not None:
            return 0
        behind.began = store.epochs.c_sequence()
        behind.why = b"uri-miss"
        self.route.predict.fetching(target, ctx.now_ns)
        metric_add(self.route.prefetched, 1)
        return self._start_behind(behind, fill)


cdef int without_conditions(RequestContext ctx) except -1:
    """Remove the client's conditions and ranges, so that a whole response is fetched."""
    cdef bytes lower
    for name in REPLACED_FIELDS:
        lower = <bytes>name
        ctx.headers.drop(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower))
    return 0


def look_again(CacheLookup lookup):
    """Another worker fetches it: check whether it has arrived."""
    if lookup.request is None or not lookup.waiting:
        return
    lookup.waiting = False
    lookup.ctx.now_ns = monotonic_ns()
    try:
        lookup._go_on(lookup.look())
    except Exception:
        log.exception("while caching request %s", lookup.ctx.request_id)
        if lookup.request is not None:
            lookup.request.fail(REASONS["internal_error"])


def leader_stalled(CacheLookup lookup):
    """The client paused the leader a moment ago: check whether it still does."""
    if lookup.request is None:
        return
    lookup.stall = None
    if not lookup.request.is_blocked():
        return
    try:
        lookup._step_aside()
    except Exception:
        log.exception("while caching request %s", lookup.ctx.request_id)
