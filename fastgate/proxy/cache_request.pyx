# cython: boundscheck=False, nonecheck=True
"""The cache's view of a request: its key, and how its response is stored.

WHAT     `CacheRequest` computes the key of a request (cache_lookup.pyx looks up with it) and stores a response under it
         (cache_fill.pyx). `_core/cache/http_cache` decides whether and for how long, `_core/cache/worker_cache` where.
STATE    key, variant and vary are set by the first lookup and identify the entry from then on.
WHO      The worker's loop.
COST     One hash of the key; the fields as sent upstream are created only where the key or a Vary needs them.
SOURCES  RFC 9111 §2 (the cache key), §4.1 (Vary).
"""

import hashlib
import logging

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.cache.http_cache cimport RequestRules, Rules, StoredResponse, Vary
from fastgate._core.cache.worker_cache cimport RouteCache, WorkerCache
from fastgate._core.clock cimport monotonic_ns, realtime_ns
from fastgate._core.http.headers cimport (
    H_CONTENT_TYPE, H_FORWARDED, H_OTHER, H_REFERER, H_USER_AGENT, H_X_FORWARDED_HOST, H_X_FORWARDED_OTHER, H_X_FORWARDED_PORT,
    H_X_FORWARDED_PROTO, Headers, HeadWriter, field_t, header_id,
)
from fastgate._core.pipeline.abstract cimport missing
from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.shm.metric cimport Metric, metric_add
from fastgate.proxy.upstream_request cimport UpstreamRequest
from fastgate.upstream.h1_request cimport write_request_head
from fastgate.upstream.pool cimport Target, Upstream
from fastgate.upstream.stream cimport BODY_NONE

from fastgate._core.cache.http_cache import merge_vary
from fastgate._core.cache.worker_cache import RESULTS

__all__ = ["CacheRequest"]

log = logging.getLogger("fastgate")

cdef tuple WORDS = tuple(word.encode() for word in RESULTS)

# Names that proxies use for the client's address, in addition to X-Forwarded-For and X-Real-IP
cdef frozenset ADDRESS_CLAIMS = frozenset((b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip", b"cf-connecting-ip"))

cdef int64_t DAY_NS = 86_400_000_000_000
cdef enum:
    VARY_DAYS = 30


@cython.no_gc                                           # `finish` breaks its reference cycles
cdef class CacheRequest:
    """A request of a route with `cache`."""

    cdef bytes key_of(self, RequestRules r):
        """The key of a request: URL, route, identity of the client, and everything else shown to the upstream on which its
        response may depend. None: the request bypasses the cache, and r.why gives the reason."""
        cdef RequestContext ctx = self.ctx
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
            rules.bypass(r, "identity")                     # only the upstream knows the client's identity
            return None
        if rules.wants_body and r.post and ctx.body:
            body = hashlib.blake2b(ctx.body, digest_size=16).digest()
        if ctx.trusted or not route.plain:
            try:
                shown = self.shown()
                if route.sends:
                    r.sent = self.sent_fields()
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

    cdef bytes shown(self):
        """What the upstream is told about this client in addition to the client's own fields, each part with its length; None:
        bypass the cache."""
        cdef RequestContext ctx = self.ctx
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
                    # The client's address is left to the origin's Vary, as X-Forwarded-For is: otherwise no two clients would
                    # share a response.
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

    cdef Headers sent_fields(self):
        """The fields of the request as the upstream sees them, where the gateway may have changed those of the client.

        They are read from the serialized head, so they are exactly what is sent, except for the target's Host, which the client
        does not control.
        """
        cdef RequestContext ctx = self.ctx
        cdef HeadWriter w
        cdef Headers fields
        cdef Upstream upstream
        if self.sent is None:
            fields = ctx.headers
            if self.request.route.request_edits is not None:
                fields = ctx.headers.copy()
                self.request.route.request_edits.apply(ctx, fields)
            upstream = <Upstream>self.request.destination.upstream
            w = HeadWriter()
            write_request_head(w, ctx, self.request.destination, (<Target>upstream.targets[0]).authority, upstream.credential, ctx.method_bytes, b"/",
                               fields, ctx.content_length if ctx.content_length >= 0 else BODY_NONE, 0)
            self.sent = Headers()
            lines = w.take().split(b"\r\n")
            for line in lines[1:]:
                if line:
                    name, _, value = (<bytes>line).partition(b": ")
                    self.sent.append(name, value, H_OTHER)
        return self.sent

    cdef bytes vary_key(self, Vary vary):
        """The key of the variant that this request selects."""
        cdef int known
        if vary.written < 0:
            vary.written = 0
            for name in vary.names:
                known = header_id(name, len(name))
                if name in self.route.written or name.startswith(b"x-forwarded") or (
                        known != H_OTHER and known != H_CONTENT_TYPE and known != H_USER_AGENT and known != H_REFERER):
                    vary.written = 1
        return vary.c_key(self.key, self.sent_fields() if vary.written else self.ctx.headers)

    cdef int64_t now(self) noexcept:
        """CLOCK_REALTIME, read once per value of the monotonic clock."""
        if self.looked_ns != self.ctx.now_ns:
            self.looked_ns = self.ctx.now_ns
            self.looked_real_ns = realtime_ns()
        return self.looked_real_ns

    cdef int count(self, int result) except -1:
        metric_add(<Metric>self.route.results[result], 1)
        self.ctx.cache_word = <bytes>WORDS[result]
        return 0

    cdef int keep(self, StoredResponse stored) except -1:
        """Store a response under its key, or under its variant's with a Vary under the key."""
        cdef WorkerCache store = self.route.store
        cdef int64_t now_ns = monotonic_ns()
        cdef int64_t now = realtime_ns()
        cdef bytes key = self.key
        cdef Vary vary
        cdef int64_t until = stored.keep_until_ns
        cdef int lives = 0
        if stored.vary:
            vary = store.known(self.key, <Vary>merge_vary(self.vary, stored.vary))
            key = self.vary_key(vary)
            if vary is not self.vary and not store.put(self.key, vary, (), 0, now + VARY_DAYS * DAY_NS, self.began, now_ns, now):
                return 0
            store.admit(self.key, vary, key, self.route.rules.max_variants, now + VARY_DAYS * DAY_NS, now_ns, now)
        if self.route.predict is not None:
            stored.took_ns = now - self.sent_ns
            lives = self.route.predict.lives(stored.took_ns, len(stored.body))
        store.put(key, stored, stored.tags, lives, until, self.began, now_ns, now)
        return 0

    cdef int ready(self, StoredResponse stored, int result) except -1:
        """The client has received this stored response in place of the upstream's."""
        missing(self, "ready")

    cdef int release(self, StoredResponse stored, bint alone) except -1:
        """The fetch is over: stored is the response for the waiting requests. alone: the response must not be shared."""
        missing(self, "release")

    cdef int finish(self) except -1:
        """The request is over. May be called more than once."""
        missing(self, "finish")
