# cython: boundscheck=False, nonecheck=True
"""What the cache does for one request, between the decisions and the upstream.

WHAT     `cache_begin` takes over where the decisions end: it answers from the store, waits for another request that fetches the
         same answer, or lets the exchange forward and keeps what comes back. Whether and how long is `_core/http_cache`'s word,
         where from is `_core/worker_cache`'s.

             look ─ fresh ──────────────────────────────────────► serve
               │ ├─ stale-while-revalidate ─► serve, and fetch behind
               │ ├─ only-if-cached, not there ─► 504
               │ └─ somebody fetches it ─► wait ─ it came ─► look again
               ▼                              └─ it is not for sharing, failed, or took too long ─► fetch
             fetch ─► on_answer ─ 304 to our own question ─► freshen, serve
                          │   └── 5xx, and a stale answer may stand in ─► serve
                          ▼
                      on_chunk … on_whole ─► keep ─► wake who waits

STATE    One CachedRequest per request of a route with `cache`. It leads at most one Fill or waits for one; `on_finish` gives either up.
WHO      The worker's loop.
COST     A hit is two small objects, a look-up and one send. A fetched answer is held once more until it is whole.
SOURCES  RFC 9111; RFC 5861; RFC 9211; Varnish's busy objects and hit-for-miss; nginx proxy_cache_lock.
"""

import hashlib
import logging

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate._core.clock cimport monotonic_ns, realtime_ns
from fastgate._core.pipeline.context cimport M_HEAD, Reason, RequestContext
from fastgate._core.http.headers cimport (
    H_CONTENT_LENGTH, H_CONTENT_TYPE, H_FORWARDED, H_OTHER, H_REFERER, H_USER_AGENT, H_X_FORWARDED_HOST, H_X_FORWARDED_OTHER,
    H_X_FORWARDED_PORT, H_X_FORWARDED_PROTO, Headers, HeadWriter, field_t, header_id,
)
from fastgate._core.cache.http_cache cimport (
    CACHE_FRESH, CACHE_MISS, CACHE_ONLY_IF_CACHED, CACHE_REVALIDATE, CACHE_STALE_WHILE_REVALIDATE, TAIL_ROOM, Decision,
    RequestRules, Rules, StoredResponse, Vary,
)
from fastgate._core.cache.http_fields cimport CC_ONLY_IF_CACHED
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.shm.metric cimport Metric, metric_add
from fastgate._core.pipeline.pipeline cimport Pipeline, ResponseHead
from fastgate._core.cache.worker_cache cimport (
    C_BYPASS, C_COALESCED, C_EXPIRED, C_HIT, C_MISS, C_ONLY_IF_CACHED, C_REVALIDATED, C_STALE, C_STALE_ON_ERROR,
    FROM_MEMORY, FROM_REDIS, Fill, RouteCache, WorkerCache,
)
from fastgate.proxy.client_stream cimport LENGTH_NONE
from fastgate.proxy.exchange cimport X_FINISHED, X_NEW, X_RELAYING, X_SUSPENDED, Exchange, NoClient, Plane, add_piece
from fastgate.upstream.h1_request cimport write_request_head
from fastgate.upstream.pool cimport Target, Upstream
from fastgate.upstream.stream cimport BODY_NONE

from fastgate._core.cache.http_cache import REPLACED_FIELDS, merge_vary, url_pattern, url_tag
from fastgate._core.http.urlpath import normal_escapes, normalise
from fastgate._core.cache.worker_cache import RESULTS
from fastgate.errors import REASONS

__all__ = ["CachedRequest"]

cdef tuple WORDS = tuple(word.encode() for word in RESULTS)

log = logging.getLogger("fastgate")

# What proxies call the client's address, beside X-Forwarded-For and X-Real-IP
cdef frozenset ADDRESS_CLAIMS = frozenset((b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip", b"cf-connecting-ip"))

# Why a request is kept out of the cache, where the request itself does not show it.
cdef dict BYPASS_DETAILS = {"identity": b"identity", "plugin": b"plugin", "key": b"key", "strategy": b"strategy"}
cdef Reason ONLY_IF_CACHED = REASONS["only_if_cached"]
cdef int64_t DAY_NS = 86_400_000_000_000
cdef double POLL_S = 0.003                      # between looks at what another worker fetches
cdef double STALLED_S = 0.1                     # a client that has not taken a byte for so long holds up nobody else
cdef enum:
    MOST_PURGES = 64                            # that one answer may ask for
    MOST_BEHIND = 64                            # revalidations that nobody waits for, at once in a worker
    KEY_BODY_BYTES = 1048576                    # of a request whose body is part of the key
    VARY_DAYS = 30


cdef int cache_begin(Exchange x) except -1:
    """Every decision is made and the route caches: answer from the store, or go on to the upstream."""
    cdef RequestContext ctx = x.ctx
    cdef RouteCache route = <RouteCache>x.destination.cache
    cdef CachedRequest c = CachedRequest.__new__(CachedRequest)
    if ctx.upgrade:
        return x._forward()                             # a tunnel is nobody else's
    c.route = route
    c.ctx = ctx
    c.rules = route.rules.c_read(ctx.method_id, ctx.method_bytes, ctx.headers, ctx.has_body)
    x.cached = c
    if not c.rules.cacheable:
        return c.bypass(x, b"method" if c.rules.unsafe else b"request")
    if route.rules.wants_body and c.rules.post and ctx.has_body and ctx.body is None:
        if not 0 <= ctx.content_length <= KEY_BODY_BYTES:
            return c.bypass(x, b"request")             # too large to be held for the sake of a key
        x.state = X_SUSPENDED
        x.task = x.plane.loop.create_task(with_body(x))
        return 0
    return c.look(x)


async def with_body(Exchange x):
    """The key needs the request's body: read it whole first."""
    cdef CachedRequest c = <CachedRequest>x.cached
    try:
        await x._whole_body(KEY_BODY_BYTES)
        if x.state != X_SUSPENDED:
            return
        x.task = None
        x.state = X_NEW
        x.ctx.now_ns = monotonic_ns()
        c.look(x)
    except Exception:
        log.exception("while caching request %s", x.ctx.request_id)
        if x.state != X_FINISHED:
            x._fail(REASONS["internal_error"])


@cython.freelist(64)
cdef class CachedRequest:
    """A request of a route with `cache`."""

    cdef int look(self, Exchange x) except -1:
        """Look for an answer, and decide."""
        cdef RequestContext ctx = x.ctx
        cdef WorkerCache store = self.route.store
        cdef object value
        cdef int64_t now = realtime_ns()
        self.looked_ns = x.ctx.now_ns
        self.looked_real_ns = now
        if self.key is None:
            self.key = self.key_of(x, self.rules)
            if self.key is None:
                return self.bypass(x, b"request")
        self.began = store.epochs.c_sequence()
        self.variant = self.key
        self.vary = None
        try:
            value = store.get(self.key, ctx.now_ns, now)
            if isinstance(value, Vary):
                self.vary = <Vary>value
                self.variant = self.vary_key(x, self.vary)
                value = store.get(self.variant, ctx.now_ns, now)
                if isinstance(value, Vary):
                    value = None
        except Exception:                               # a cache that cannot be asked costs nobody a response
            log.exception("while asking the cache for request %s", ctx.request_id)
            self.key = None
            return self.bypass(x, b"bypass")
        self.source = store.source
        if value is None and store.tiers is not None and store.tiers.has_later and self.poll is None:
            x.state = X_SUSPENDED
            x.task = x.plane.loop.create_task(self.ask_later(x))
            return 0
        return self.judge(x, <StoredResponse>value)

    cdef bytes key_of(self, Exchange x, RequestRules r):
        """The key of a request: the URL, the route, who asks, and what else the upstream is shown that its response may depend on.
        None: it is not for the cache, r.why says why."""
        cdef RequestContext ctx = x.ctx
        cdef RouteCache route = self.route
        cdef Rules rules = route.rules
        cdef Identity identity = ctx.identity
        cdef bytes consumer = None
        cdef bytes body = None
        cdef bytes shown = None
        cdef bytes path = ctx.path_bytes
        cdef bytes query = ctx.query_bytes
        cdef bint shared = False
        if identity is not None:
            shared = identity.shared
            if rules.wants_consumer:
                consumer = identity.cache_key()
        if route.guarded and (identity is None or (shared and not identity.by_address)) and not rules.share_private:
            rules.bypass(r, "identity")                     # only the upstream knows who it is
            return None
        if rules.wants_body and r.post and ctx.body:
            body = hashlib.blake2b(ctx.body, digest_size=16).digest()
        if ctx.trusted or not route.plain:
            try:
                shown = self.shown(x)
                if route.sends:
                    r.sent = self.sent_fields(x)
            except Exception:
                log.exception("the key of request %s", ctx.request_id)
                rules.bypass(r, "key")
                return None
            if shown is None:
                rules.bypass(r, "plugin")
                return None
            if PyBytes_GET_SIZE(shown) == 0:
                shown = None
        if route.strategy is not None:
            path = route.strategy.key(ctx)
            query = None
            if path is None or b"\0" in path:
                rules.bypass(r, "strategy")
                return None
            if not path.startswith(b"/"):
                path = b"/ " + path                         # a path has no space, and the authority ends before it
        return rules.c_key(r, ctx.c_secure(), ctx.authority, path, query, consumer, shared, shown, body)

    cdef bytes shown(self, Exchange x):
        """What the upstream is told of this client beside its own fields, each part with its length; None: not for the cache."""
        cdef RequestContext ctx = x.ctx
        cdef Headers headers = ctx.headers
        cdef field_t* f
        cdef list out = []
        cdef bytes part, name
        cdef int i
        if ctx.trusted:
            for i in range(headers.count):
                f = &headers.fields[i]
                if f.id == H_X_FORWARDED_PROTO or f.id == H_X_FORWARDED_HOST or f.id == H_X_FORWARDED_PORT \
                        or f.id == H_X_FORWARDED_OTHER:
                    name = headers.name_at(i).lower()
                    # Who asked is for the origin's Vary, as X-Forwarded-For is: else no two clients would share a response.
                    part = None if name in ADDRESS_CLAIMS else headers.value_at(i)
                elif f.id == H_FORWARDED:
                    name = b"forwarded"
                    part = b";".join(each for each in map(bytes.strip, headers.value_at(i).replace(b",", b";").split(b";"))
                                     if each and not each.lower().startswith((b"for=", b"by=")))
                else:
                    continue
                if part:
                    out.append(b"%b=%d:" % (name, len(part)) + part)
        if self.route.places is not None:
            part = self.route.places.render(ctx)
            out.append(b"%d:" % len(part) + part)
        for plugin in self.route.plugins:
            said = plugin.cache_key(ctx)
            if said is None:
                return None
            part = said if isinstance(said, bytes) else (<str?>said).encode("utf-8", "surrogateescape")
            out.append(b"%d:" % len(part) + part)
        return b"".join(out)

    cdef Headers sent_fields(self, Exchange x):
        """The fields of the request as the upstream sees them, for those of which the gateway may say something else than the client.

        They are read from the head itself, so that they are what is sent; but for the target's Host, which is no client's word.
        """
        cdef RequestContext ctx = x.ctx
        cdef HeadWriter w
        cdef Headers fields
        cdef Upstream upstream
        if self.sent is None:
            fields = ctx.headers
            if x.route.request_edits is not None:
                fields = ctx.headers.copy()
                x.route.request_edits.apply(ctx, fields)
            upstream = <Upstream>x.destination.upstream
            w = HeadWriter()
            write_request_head(w, ctx, x.destination, (<Target>upstream.targets[0]).authority, upstream.credential, ctx.method_bytes, b"/",
                               fields, ctx.content_length if ctx.content_length >= 0 else BODY_NONE, 0)
            self.sent = Headers()
            lines = w.take().split(b"\r\n")
            for line in lines[1:]:
                if line:
                    name, _, value = (<bytes>line).partition(b": ")
                    self.sent.append(name, value, H_OTHER)
        return self.sent

    cdef bytes vary_key(self, Exchange x, Vary vary):
        """The key of the variant that this request selects."""
        cdef int known
        if vary.written < 0:
            vary.written = 0
            for name in vary.names:
                known = header_id(name, len(name))
                if name in self.route.written or name.startswith(b"x-forwarded") or (
                        known != H_OTHER and known != H_CONTENT_TYPE and known != H_USER_AGENT and known != H_REFERER):
                    vary.written = 1
        return vary.c_key(self.key, self.sent_fields(x) if vary.written else x.ctx.headers)

    async def ask_later(self, Exchange x):
        """Ask the tier that must be awaited; it has its own time limit."""
        cdef WorkerCache store = self.route.store
        cdef object value
        try:
            for _ in range(2):
                blob = await store.tiers.get_later(self.variant)
                if x.state != X_SUSPENDED:
                    return
                x.ctx.now_ns = monotonic_ns()
                value = None
                if blob is not None:
                    value = store.keep(self.variant, blob, x.ctx.now_ns, realtime_ns(), FROM_REDIS)
                if not isinstance(value, Vary) or self.variant is not self.key:
                    break
                self.vary = <Vary>value
                self.variant = self.vary_key(x, self.vary)
                value = store.get(self.variant, x.ctx.now_ns, realtime_ns())
                if value is not None:
                    break
            if isinstance(value, Vary):
                value = None
            self.source = store.source
        except Exception:
            log.exception("while asking the cache for request %s", x.ctx.request_id)
            if x.state != X_SUSPENDED:
                return
            value = None
        x.task = None
        x.state = X_NEW
        try:
            self.judge(x, <StoredResponse>value)
        except Exception:
            log.exception("while caching request %s", x.ctx.request_id)
            if x.state != X_FINISHED:
                x._fail(REASONS["internal_error"])

    cdef int judge(self, Exchange x, StoredResponse found) except -1:
        """What there is, or None: use it, or fetch."""
        cdef int verdict = CACHE_MISS
        if found is not None:
            verdict = found.c_judge(self.rules, self.now(x))
            if verdict != CACHE_FRESH and self.source == FROM_MEMORY:
                found = self.route.store.newer(self.variant, found, x.ctx.now_ns, self.now(x))
                verdict = found.c_judge(self.rules, self.now(x))
        elif self.rules.flags & CC_ONLY_IF_CACHED:
            verdict = CACHE_ONLY_IF_CACHED
        if not self.route.rules.enforce and verdict != CACHE_MISS:
            self.count(C_HIT if verdict == CACHE_FRESH else C_STALE)        # shadow mode: only what it would have been
            self.why = b"bypass"
            return x._forward()
        if self.route.predict is not None:
            if self.route.predict.prefetches and not self.foreseen:
                self.prefetch(x)
            if verdict == CACHE_FRESH:
                self.hit_again(x, found)
        if verdict == CACHE_FRESH:
            return self.serve(x, found, C_COALESCED if self.collapsed else C_HIT)
        if verdict == CACHE_STALE_WHILE_REVALIDATE:
            self.revalidate_behind(x, found)
            return self.serve(x, found, C_STALE)
        if verdict == CACHE_ONLY_IF_CACHED:
            self.count(C_ONLY_IF_CACHED)
            return x.refuse(ONLY_IF_CACHED)
        self.found = found
        self.why = b"uri-miss"
        if verdict == CACHE_REVALIDATE:
            self.why = b"stale"
            self.revalidating = found.etag is not None or len(found.conditions()) > 0
        elif self.vary is not None:
            self.why = b"vary-miss"
        return self.fetch(x)

    cdef int fetch(self, Exchange x) except -1:
        """Ask the upstream, unless somebody is doing so already."""
        cdef WorkerCache store = self.route.store
        cdef Fill fill
        cdef int64_t now_ns = x.ctx.now_ns
        if self.route.coalesce and self.route.rules.enforce and not self.rules.head \
                and (self.waits_until_ns == 0 or now_ns < self.waits_until_ns):
            fill = store.lead(self.variant, x, now_ns)
            if fill is None or fill.leader is not x:
                if self.waits_until_ns == 0:
                    self.waits_until_ns = now_ns + self.route.wait_ns
                self.waiting = True
                self.collapsed = True
                x._arm(max(self.waits_until_ns - now_ns, 1), None)
                if fill is None:
                    self.poll = x.plane.loop.call_later(POLL_S, look_again, x)
                else:
                    self.fill = fill
                    fill.waiters.append(x)
                return 0
            self.fill = fill
            self.leads = True
        self.collapsed = False
        self.count(C_EXPIRED if self.found is not None else C_MISS)
        return x._forward()

    cdef int wait_over(self, Exchange x) except -1:
        """What it waited for did not come in time: fetch it alone."""
        self.waiting = False
        if self.poll is not None:
            self.poll.cancel()
        if self.fill is not None:
            self.fill.waiters.remove(x)
            self.fill = None
        self.collapsed = False
        self.count(C_EXPIRED if self.found is not None else C_MISS)
        return x._forward()

    cdef int release(self, Exchange x, StoredResponse stored, bint alone) except -1:
        """The fetch we led is over: wake who waits for it. alone: its answer is not for sharing."""
        cdef Fill fill = self.fill
        cdef Exchange waiter
        cdef CachedRequest c
        cdef int64_t now_ns = monotonic_ns()
        if not self.leads or fill is None:
            return 0
        self.fill = None
        self.leads = False
        if stored is not None and stored.fresh_until_ns <= self.sent_ns and stored.swr_until_ns <= self.sent_ns:
            alone = True                                # stale as it came: everybody asks the upstream, not one after the other
        self.route.store.done(fill, alone, now_ns)
        waiters = fill.waiters
        fill.waiters = []
        fill.leader = None
        for each in waiters:
            waiter = <Exchange>each
            if waiter.state == X_FINISHED:
                continue
            c = <CachedRequest>waiter.cached
            c.waiting = False
            c.fill = None
            waiter.ctx.now_ns = now_ns
            try:
                if alone:
                    c.collapsed = False
                    if self.failed and c.on_failure(waiter, None):
                        continue                        # the upstream need not be asked by each to hear that it fails
                    c.count(C_EXPIRED if c.found is not None else C_MISS)
                    waiter._forward()
                else:
                    c.look(waiter)
            except Exception:
                log.exception("while caching request %s", waiter.ctx.request_id)
                if waiter.state != X_FINISHED:
                    waiter._fail(REASONS["internal_error"])
        return 0

    cdef int bypass(self, Exchange x, bytes why) except -1:
        self.why = why
        self.count(C_BYPASS)
        return x._forward()

    cdef int64_t now(self, Exchange x) noexcept:
        """CLOCK_REALTIME, read once for all that happens at one reading of the other clock."""
        if self.looked_ns != x.ctx.now_ns:
            self.looked_ns = x.ctx.now_ns
            self.looked_real_ns = realtime_ns()
        return self.looked_real_ns

    cdef int count(self, int result) except -1:
        metric_add(<Metric>self.route.results[result], 1)
        self.ctx.cache_word = <bytes>WORDS[result]
        return 0

    # answers

    cdef int serve(self, Exchange x, StoredResponse stored, int result) except -1:
        """Answer from the store; the request ends here unless its upstream is still to be read to the end."""
        cdef RequestContext ctx = x.ctx
        cdef Rules rules = self.route.rules
        cdef Pipeline pipeline = x.route.pipeline
        cdef char[TAIL_ROOM] tail
        cdef int tail_n = stored.c_tail(rules, self.now(x), tail)
        cdef int status = stored.status
        cdef bytes head = stored.head
        cdef bytes body = stored.body
        self.count(result)
        self.served = True
        x.response_started = True
        x.state = X_RELAYING
        if not self.rules.simple:
            status, head, body = stored.answer(self.rules)
        elif self.rules.head:
            body = b""
        ctx.status = status
        if pipeline.response or x.route.response_edits is not None or pipeline.response_chunk:
            self.edited(x, status, head, body, tail[:tail_n])
        else:
            x.client.respond_ready(head, tail, tail_n, body)
        if x.state == X_FINISHED:
            return 0                                    # a hook failed, and the connection was cut
        if x.up is not None:
            return 0                                    # a 304 of the upstream: it ends by itself, and then the request
        x.response_complete = True
        x.client.flush()
        return x._finish()

    cdef int edited(self, Exchange x, int status, bytes head, bytes body, bytes tail) except -1:
        """The same through the route's edits and response hooks."""
        cdef RequestContext ctx = x.ctx
        cdef Headers fields = Headers()
        cdef ResponseHead made
        lines = (head + tail).split(b"\r\n")
        for line in lines[1:]:
            if line:
                name, _, value = line.partition(b": ")
                fields.add(name, value)
        if x.route.response_edits is not None:
            x.route.response_edits.apply(ctx, fields)
        made = ResponseHead(status, fields, body)
        x._response_hooks(made)
        fields = made.headers
        body = made.body
        ctx.status = made.status
        if x.route.pipeline.response_chunk and ctx.method_id != M_HEAD and ctx.status != 204 and ctx.status != 304:
            if body:
                body = x._hooked_response_chunk(body, False)
                if body is None:
                    return 0
            last = x._hooked_response_chunk(b"", True)
            if last is None:
                return 0
            body = body + last
        if ctx.method_id == M_HEAD or ctx.status == 204 or ctx.status == 304:
            given = fields.find_known(H_CONTENT_LENGTH)
            x.told_length = int(given) if given is not None and ctx.status != 204 else -1
            x.client.respond_head(ctx.status, None, fields, LENGTH_NONE)
        else:
            x.client.respond_head(ctx.status, None, fields, len(body))
            if body:
                x.client.respond_chunk(body)
        return x.client.respond_end(None)

    cdef int revalidate_behind(self, Exchange x, StoredResponse found) except -1:
        """Ask the upstream whether a stored answer still holds, while it is already on its way to the client. 1: it is asked."""
        cdef WorkerCache store = self.route.store
        cdef Exchange behind
        cdef CachedRequest c
        cdef Fill fill
        if store.background >= MOST_BEHIND:
            return 0
        fill = store.lead(self.variant, None, x.ctx.now_ns)
        if fill is None or fill.leader is not None:
            return 0
        behind = self.behind_of(x)
        c = <CachedRequest>behind.cached
        self.same_place(c)
        c.found = found
        c.revalidating = len(found.conditions()) > 0
        c.began = self.began
        c.why = b"stale"
        return self.start_behind(x, behind, fill)

    cdef int same_place(self, CachedRequest c) except -1:
        """What c fetches is kept where this request looked."""
        c.key = self.key
        c.variant = self.variant
        c.vary = self.vary
        c.sent = self.sent
        c.rules.key = self.rules.key
        c.rules.url_n = self.rules.url_n
        c.rules.keyed_private = self.rules.keyed_private
        c.rules.sent = self.rules.sent
        return 0

    cdef int on_stalled(self, Exchange x) except -1:
        """The client of this request does not read, so its upstream is not read either."""
        if self.leads and self.stall is None and not self.background:
            self.stall = x.plane.loop.call_later(STALLED_S, leader_stalled, x)
        return 0

    cdef int step_aside(self, Exchange x) except -1:
        """Others wait for what a client takes slowly: let it be fetched for them by a request that no client can slow down."""
        cdef WorkerCache store = self.route.store
        cdef Fill fill = self.fill
        cdef Exchange behind
        cdef CachedRequest c
        cdef bytes lower
        if not self.leads or fill is None:
            return 0
        if not fill.waiters:
            self.fill = None
            self.leads = False
            return store.done(fill, False, monotonic_ns())  # who waits in another worker fetches it
        if store.background >= MOST_BEHIND or self.rules.post:
            return self.release(x, None, True)
        self.fill = None
        self.leads = False
        behind = self.behind_of(x)
        for name in REPLACED_FIELDS:
            lower = <bytes>name
            behind.ctx.headers.drop(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower))
        c = <CachedRequest>behind.cached
        c.rules = self.route.rules.c_read(0, b"GET", behind.ctx.headers, False)
        self.same_place(c)
        c.began = store.epochs.c_sequence()
        c.why = self.why
        behind.ctx.now_ns = monotonic_ns()
        self.start_behind(x, behind, fill)
        return 0

    cdef int hit_again(self, Exchange x, StoredResponse found) except -1:
        """A hit of a route that predicts: fetch the answer anew when it is popular and near its end."""
        cdef int64_t left
        found.hits += 1
        if not self.route.predict.refreshes or not self.rules.simple or self.rules.head:
            return 0
        left = found.fresh_until_ns - realtime_ns()
        if left * 2 < found.fresh_until_ns - found.stored_ns \
                and self.route.predict.due(left, found.fresh_until_ns - found.stored_ns, found.took_ns, found.hits) \
                and self.revalidate_behind(x, found):
            found.hits = 0                              # when it fails, it must be earned again before the next try
            metric_add(self.route.refreshed, 1)
        return 0

    cdef int prefetch(self, Exchange x) except -1:
        """Fetch what usually follows this request, within the budget."""
        cdef RequestContext ctx = x.ctx
        cdef bytes target = ctx.path_bytes if not ctx.query_bytes else ctx.path_bytes + b"?" + ctx.query_bytes
        self.foreseen = True
        if not self.rules.plain or self.rules.head or self.rules.post or self.background:
            return 0
        client = ctx.client
        if ctx.identity is not None and not ctx.identity.by_address:
            client = ctx.identity.consumer_bytes
        try:
            for other in self.route.predict.follows(client, target, ctx.now_ns):
                self.fetch_ahead(x, <bytes>other)
        except Exception:                               # such as a plugin's condition on routes: the request goes on
            log.exception("while fetching ahead for request %s", ctx.request_id)
        return 0

    cdef int fetch_ahead(self, Exchange x, bytes target) except -1:
        """Fetch this target for whoever asks next, as this request's client would, unless it is there or not this route's."""
        cdef WorkerCache store = self.route.store
        cdef Rules rules = self.route.rules
        cdef Exchange behind
        cdef RequestContext ctx
        cdef CachedRequest c
        cdef Fill fill
        cdef bytes path, query, lower
        cdef object value
        cdef int64_t now = realtime_ns()
        if store.background >= MOST_BEHIND or self.route.strategy is not None:
            return 0
        behind = self.behind_of(x)
        ctx = behind.ctx
        c = <CachedRequest>behind.cached
        path, mark, query = target.partition(b"?")
        ctx.target = target
        ctx.path_bytes = path
        ctx.query_bytes = query if mark else None
        for name in REPLACED_FIELDS:
            lower = <bytes>name
            ctx.headers.drop(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower))
        if x.plan.match(ctx) is not x.route:
            return 0
        c.rules = rules.c_read(0, b"GET", ctx.headers, False)
        c.key = c.key_of(behind, c.rules)
        if c.key is None or not c.rules.cacheable:
            return 0
        c.variant = c.key
        value = store.get(c.key, ctx.now_ns, now)
        if isinstance(value, Vary):
            c.vary = <Vary>value
            c.variant = c.vary_key(behind, c.vary)
            value = store.get(c.variant, ctx.now_ns, now)
        if isinstance(value, StoredResponse):
            if (<StoredResponse>value).c_judge(c.rules, now) == CACHE_FRESH:
                return 0
            c.found = <StoredResponse>value
            c.revalidating = len(c.found.conditions()) > 0
        if not self.route.predict.may_fetch(target):
            return 0
        fill = store.lead(c.variant, None, ctx.now_ns)
        if fill is None or fill.leader is not None:
            return 0
        c.began = store.epochs.c_sequence()
        c.why = b"uri-miss"
        self.route.predict.fetching(target, ctx.now_ns)
        metric_add(self.route.prefetched, 1)
        return self.start_behind(x, behind, fill)

    cdef int start_behind(self, Exchange x, Exchange behind, Fill fill) except -1:
        cdef CachedRequest c = <CachedRequest>behind.cached
        fill.leader = behind
        c.fill = fill
        c.leads = True
        c.background = True
        self.route.store.background = self.route.store.background + 1
        behind.begin()
        x.plane.loop.call_soon(start_behind, behind)
        return 1

    cdef Exchange behind_of(self, Exchange x):
        """An exchange for the same request that no client waits for; it is not started."""
        cdef Exchange behind = Exchange.__new__(Exchange)
        cdef RequestContext ctx, from_ctx = x.ctx
        cdef CachedRequest c
        cdef NoClient client
        ctx = RequestContext.__new__(RequestContext)
        client = NoClient.__new__(NoClient)
        client.exchange = behind
        client.client_writable = True
        behind.plane = x.plane
        behind.plan = x.plan
        behind.client = client
        behind.ctx = ctx
        behind.route = x.route
        behind.destination = x.destination
        behind.counts = x.counts
        behind.body_complete = True
        behind.background = True
        behind.body_timeout_ns = x.body_timeout_ns
        behind.told_length = -1
        ctx.method_bytes = b"GET"
        ctx.method_id = 0
        ctx.target = from_ctx.target
        ctx.path_bytes = from_ctx.path_bytes
        ctx.query_bytes = from_ctx.query_bytes
        ctx.authority = from_ctx.authority
        ctx.host_bytes = from_ctx.host_bytes
        ctx.version_minor = 1
        ctx.headers = from_ctx.headers.copy()
        ctx.scheme = from_ctx.scheme
        ctx.peer = from_ctx.peer
        ctx.client = from_ctx.client
        ctx.trusted = from_ctx.trusted
        ctx.request_id_bytes = from_ctx.request_id_bytes
        ctx.forwarding = from_ctx.forwarding
        ctx.upstream_lines = from_ctx.upstream_lines
        ctx.identity = from_ctx.identity
        ctx.route = from_ctx.route
        ctx.param_names = from_ctx.param_names
        ctx.params_n = from_ctx.params_n
        for i in range(from_ctx.params_n):
            ctx.param_start[i] = from_ctx.param_start[i]
            ctx.param_size[i] = from_ctx.param_size[i]
        ctx.now_ns = ctx.started_ns = from_ctx.now_ns
        c = CachedRequest.__new__(CachedRequest)
        c.route = self.route
        c.ctx = ctx
        c.rules = self.route.rules.c_read(0, b"GET", ctx.headers, False)
        behind.cached = c
        return behind

    # what the exchange tells

    cdef int conditions(self, Headers fields) except -1:
        """The head for the upstream: our question in place of the client's own."""
        cdef bytes lower
        self.sent_ns = realtime_ns()
        if self.found is None or self.rules is None or not self.rules.cacheable:
            return 0
        for name in REPLACED_FIELDS:
            lower = <bytes>name
            fields.drop(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower))
        if self.revalidating and not self.rules.head:
            for name, value in self.found.conditions():
                fields.add(name, value)
        return 0

    cdef int on_answer(self, Exchange x, int status, bytes phrase, Headers fields) except -1:
        """An answer's head is here, as the upstream_response hooks left it. 1: the client has its answer from the store."""
        cdef RequestContext ctx = x.ctx
        cdef Rules rules = self.route.rules
        cdef WorkerCache store = self.route.store
        cdef Decision decision
        cdef StoredResponse stored
        cdef int64_t now = realtime_ns()
        if self.route.purge_header is not None:
            self.purge_told(status, fields, x.plan.merge_slashes)
        if not self.rules.cacheable or self.key is None:        # without a key there is nowhere to keep it
            if self.rules.unsafe:
                self.invalidate(status, fields, x.plan.merge_slashes)
            self.add_status(fields, rules.forwarded(self.why, 0, False, False, BYPASS_DETAILS.get(self.rules.why)))
            return 0
        if self.revalidating and status == 304 and not self.rules.head:
            decision = rules.update(self.rules, self.found, fields, self.sent_ns, now)
            stored = self.found
            if decision is not None:
                self.keep_for(decision, None)
                stored = decision.c_finish(self.found.body)
                if decision.storable:
                    self.keep_safely(x, stored, decision)
            self.release(x, stored, decision is None or not decision.storable)
            self.serve(x, stored, C_REVALIDATED)
            return 1
        if (status == 500 or 502 <= status <= 504) and self.found is not None and self.found.c_may_serve_on_error(self.rules, now):
            self.failed = True
            self.release(x, None, True)
            stored = self.found
            x._let_go()
            self.serve(x, stored, C_STALE_ON_ERROR)
            return 1
        if self.rules.head:
            if self.found is not None and status == 200:
                decision = rules.update_from_head(self.rules, self.found, fields, self.sent_ns, now)
                if decision is None:
                    store.epochs.purge_key(self.variant)
                else:
                    self.keep_safely(x, decision.c_finish(self.found.body), decision)
            self.add_status(fields, rules.forwarded(self.why, status))
            return 0
        try:
            decision = rules.c_store(self.rules, status, phrase if phrase else b"", fields, self.sent_ns, now)
        except Exception:                               # what cannot be judged is not stored
            log.exception("while judging the response to request %s", ctx.request_id)
            return self.release(x, None, True)
        if decision.storable and self.route.strategy is not None and not self.route.strategy.cacheable(ctx, status, fields):
            decision.storable = False
        if decision.storable and self.route.strategy is not None and self.route.strategy.has_ttl:
            lifetime = self.route.strategy.ttl(ctx, status, fields, decision.lifetime_ns)
            decision.c_live(lifetime if decision.implied else min(lifetime, decision.lifetime_ns))
        if decision.storable:
            self.decision = decision
            self.pieces = []
        else:
            self.release(x, None, True)
        self.add_status(fields, rules.forwarded(self.why, status, decision.storable, self.collapsed,
                                                None if decision.storable else decision.why.encode()))
        return 0

    def invalidate(self, int status, Headers fields, bint merge):
        """An unsafe request was carried out: what is stored for its URL may no longer hold, on any route."""
        cdef RequestContext ctx = self.ctx
        cdef WorkerCache store = self.route.store
        cdef set urls = set()
        try:
            for rules in store.forms.values():
                urls.update((<Rules>rules).invalidated(self.rules, status, fields, ctx.c_secure(), ctx.authority, ctx.path_bytes,
                                                       ctx.query_bytes, merge=merge))
            for url in urls:
                store.epochs.purge_tag(url_tag(url))
        except Exception:                               # the upstream has acted: its response goes out, come what may
            log.exception("while invalidating for request %s", ctx.request_id)

    def purge_url(self, bytes what, bint merge):
        """Purge a path with its query, on the request's host, for every route."""
        cdef RequestContext ctx = self.ctx
        cdef set urls = set()
        path, mark, query = what.partition(b"?")
        for rules in self.route.store.forms.values():
            urls.add((<Rules>rules).c_url(ctx.c_secure(), ctx.authority, normalise(path, merge), query if mark else None))
        urls.discard(None)
        for url in urls:
            self.route.store.epochs.purge_tag(url_tag(url))

    def purge_told(self, int status, Headers fields, bint merge):
        """Carry out the purges that the upstream's answer asks for, and keep them from the client."""
        cdef RequestContext ctx = self.ctx
        cdef bytes name = self.route.purge_header
        cdef bytes value = fields.find(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        cdef bytes host
        if value is None:
            return
        fields.drop(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        if status >= 400:
            return
        epochs = self.route.store.epochs
        host = (b"https://" if ctx.c_secure() else b"http://") + ctx.authority.lower()
        for part in value.split(b",")[:MOST_PURGES]:
            what = part.strip(b" \t")
            try:
                if what == b"*":
                    epochs.purge_all()
                elif what.startswith(b"/") and b"*" in what:
                    epochs.purge_pattern(url_pattern(host + normal_escapes(what)))
                elif what.startswith(b"/"):
                    self.purge_url(what, merge)
                elif what:
                    epochs.purge_tag(what)
            except (ValueError, TimeoutError) as error:
                log.warning("request %s: the upstream asks to purge %r: %s", ctx.request_id, what, error)

    def add_status(self, Headers fields, bytes line):
        """Add a ready Cache-Status line to the fields."""
        if line:
            fields.add(b"Cache-Status", line[14:len(line) - 2])

    cdef int on_chunk(self, bytes chunk, Exchange x) except -1:
        """A piece of the answer's body."""
        if self.decision is None:
            return 0
        self.size += PyBytes_GET_SIZE(chunk)
        if <uint64_t>self.size > self.decision.max_size:
            self.decision = None
            self.pieces = None
            return self.release(x, None, True)
        add_piece(self.pieces, chunk)
        return 0

    cdef int on_whole(self, Exchange x) except -1:
        """The answer is whole, and all that came with it was read: keep it, and wake who waits."""
        cdef Decision decision = self.decision
        cdef StoredResponse stored = None
        cdef bytes body
        if decision is None:
            return self.release(x, None, False)
        self.decision = None
        try:
            body = <bytes>self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
            if decision.fits(len(body)):
                self.keep_for(decision, body)
                stored = decision.c_finish(body)
                self.keep(x, stored, decision)
        except Exception:                               # what cannot be stored is not stored; the request has its response
            log.exception("while storing for request %s", self.ctx.request_id)
            stored = None
        self.pieces = None
        return self.release(x, stored, stored is None)

    cdef int keep_for(self, Decision decision, bytes body) except -1:
        """The lifetime that was learned, where the origin gives none. body None: it is the one we have."""
        if self.route.predict is not None and self.route.predict.is_adaptive and decision.implied and decision.status == 200:
            decision.c_live(self.route.predict.ttl_ns(self.variant, decision.etag, body, realtime_ns(), decision.lifetime_ns))
        return 0

    def keep_safely(self, Exchange x, StoredResponse stored, Decision decision):
        """keep, for a response that goes out whether or not it can be kept."""
        try:
            self.keep(x, stored, decision)
        except Exception:
            log.exception("while storing for request %s", self.ctx.request_id)

    cdef int on_refused(self, Exchange x) except -1:
        """The gateway answers by itself: say in Cache-Status what the cache had to do with it."""
        cdef RequestContext ctx = self.ctx
        cdef Rules rules = self.route.rules
        cdef bytes line
        if rules.status_n == 0 or self.background:
            return 0
        if self.why is None:
            line = b"Cache-Status: " + rules.status_name + b"; detail=not-cached\r\n"
        else:
            line = rules.forwarded(self.why)
        ctx.local_lines = line if ctx.local_lines is None else ctx.local_lines + line
        return 0

    def keep(self, Exchange x, StoredResponse stored, Decision decision):
        """Put an answer under its key, or under its variant's with a Vary under the key."""
        cdef WorkerCache store = self.route.store
        cdef int64_t now_ns = monotonic_ns()
        cdef int64_t now = realtime_ns()
        cdef bytes key = self.key
        cdef Vary vary
        cdef int64_t until = stored.keep_until_ns
        cdef int lives = 0
        if stored.vary:
            vary = store.known(self.key, <Vary>merge_vary(self.vary, stored.vary))
            key = self.vary_key(x, vary)
            if vary is not self.vary and not store.put(self.key, vary, (), 0, now + VARY_DAYS * DAY_NS, self.began, now_ns, now):
                return
            store.admit(self.key, vary, key, self.route.rules.max_variants, now + VARY_DAYS * DAY_NS, now_ns, now)
        if self.route.predict is not None:
            stored.took_ns = now - self.sent_ns
            lives = self.route.predict.lives(stored.took_ns, len(stored.body))
        store.put(key, stored, stored.tags, lives, until, self.began, now_ns, now)

    cdef int on_failure(self, Exchange x, Reason reason) except -1:
        """The upstream cannot be asked, or failed before an answer. 1: a stale answer stood in."""
        cdef StoredResponse found = self.found
        if found is None or x.response_started or not self.rules.cacheable or self.waiting \
                or not found.c_may_serve_on_error(self.rules, realtime_ns()):
            return 0
        self.found = None
        self.failed = True
        self.release(x, None, True)
        self.serve(x, found, C_STALE_ON_ERROR)
        return 1

    cdef int on_finish(self, Exchange x) except -1:
        """The request is over: whoever waits for us must not wait for nothing."""
        self.decision = None
        self.pieces = None
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None
        if self.poll is not None:
            self.poll.cancel()
            self.poll = None
        if self.waiting and self.fill is not None:
            self.waiting = False
            if x in self.fill.waiters:
                self.fill.waiters.remove(x)
            self.fill = None
        if self.background:
            self.route.store.background = self.route.store.background - 1
        if self.leads:
            self.release(x, None, False)
        return 0


def look_again(Exchange x):
    """Another worker fetches it: see whether it has come."""
    cdef CachedRequest c = <CachedRequest>x.cached
    if x.state == X_FINISHED or c is None or not c.waiting:
        return
    c.waiting = False
    x.ctx.now_ns = monotonic_ns()
    try:
        c.look(x)
    except Exception:
        log.exception("while caching request %s", x.ctx.request_id)
        if x.state != X_FINISHED:
            x._fail(REASONS["internal_error"])


def leader_stalled(Exchange x):
    """It was paused by its client a moment ago: see whether it still is."""
    cdef CachedRequest c = <CachedRequest>x.cached
    if x.state == X_FINISHED or c is None:
        return
    c.stall = None
    if x.client.client_writable:
        return
    try:
        c.step_aside(x)
    except Exception:
        log.exception("while caching request %s", x.ctx.request_id)


def start_behind(Exchange behind):
    """Start a revalidation that no client waits for."""
    behind.ctx.now_ns = monotonic_ns()
    try:
        behind._forward()
    except Exception:
        log.exception("while revalidating for request %s", behind.ctx.request_id)
        if behind.state != X_FINISHED:
            behind._fail(REASONS["internal_error"])
