# cython: boundscheck=False, nonecheck=True
"""The cache as a response stage: stores upstream responses and applies their effect on other stored responses.

WHAT     `CacheFill` replaces the client's conditions by those of the cache (`ask`), decides from the head whether to store the
         response, collects the body and stores it once it is complete. A 304 to the cache's conditions, and a failure for which a
         stale response may be served, replace the upstream's response by the stored one. The stage also applies the effects of a
         response on other entries: invalidation by an unsafe request, and purges that the upstream requests.
STATE    One per request that goes upstream on a route with `cache`. A response is held in memory until it is complete.
WHO      The worker's loop.
COST     One decision per response; a piece of the body is a reference, not a copy.
SOURCES  RFC 9111 §3 (storing), §4.3 (validation), §4.4 (invalidation); RFC 5861 §4 (stale-if-error); RFC 9211 (Cache-Status).
"""

import logging

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.cache.http_cache cimport Decision, Rules, StoredResponse
from fastgate._core.cache.worker_cache cimport C_REVALIDATED, C_STALE_ON_ERROR, WorkerCache
from fastgate._core.clock cimport realtime_ns
from fastgate._core.http.headers cimport Headers
from fastgate._core.pipeline.context cimport RequestContext
from fastgate.proxy.cache_request cimport CacheRequest
from fastgate.proxy.request_body cimport add_piece
from fastgate.proxy.stages cimport S_PASS, S_REPLACED, ResponseStage

from fastgate._core.cache.http_cache import REPLACED_FIELDS, url_pattern, url_tag
from fastgate._core.http.urlpath import normal_escapes, normalise

__all__ = ["CacheFill"]

log = logging.getLogger("fastgate")

# Why a request bypasses the cache, if that is not visible in the request itself.
cdef dict BYPASS_DETAILS = {"identity": b"identity", "plugin": b"plugin", "key": b"key", "strategy": b"strategy"}
cdef enum:
    MOST_PURGES = 64                            # purges that one response may request


@cython.final
cdef class CacheFill(ResponseStage):
    """Stores the response to one request."""

    def __cinit__(self, CacheRequest place not None):
        self.place = place
        self.ctx = place.ctx

    cdef int ask(self, Headers fields) except -1:
        """Edit the head for the upstream: the cache's conditions replace the client's."""
        cdef CacheRequest place = self.place
        cdef bytes lower
        place.sent_ns = realtime_ns()
        if place.found is None or not place.rules.cacheable:
            return 0
        for name in REPLACED_FIELDS:
            lower = <bytes>name
            fields.drop(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower))
        if place.revalidating and not place.rules.head:
            for name, value in place.found.conditions():
                fields.add(name, value)
        return 0

    cdef int head(self, int status, bytes phrase, Headers fields, int64_t length) except -1:
        cdef CacheRequest place = self.place
        cdef int64_t now = realtime_ns()
        if place.route.purge_header is not None:
            self._purge_as_told(status, fields)
        if not place.rules.cacheable or place.key is None:          # without a key there is no place to store it
            return self._uncached(status, fields)
        if place.revalidating and status == 304 and not place.rules.head:
            return self._revalidated(fields, now)
        if (status == 500 or 502 <= status <= 504) and place.found is not None and place.found.c_may_serve_on_error(place.rules, now):
            place.failed = True
            place.release(None, True)
            place.ready(place.found, C_STALE_ON_ERROR)
            return S_REPLACED
        if place.rules.head:
            return self._head_only(status, fields, now)
        return self._judge(status, phrase, fields, now)

    cdef int _uncached(self, int status, Headers fields) except -1:
        """The response is not stored, but it may affect stored responses."""
        cdef CacheRequest place = self.place
        if place.rules.unsafe:
            self._invalidate(status, fields)
        add_status(fields, place.route.rules.forwarded(place.why, 0, False, False, BYPASS_DETAILS.get(place.rules.why)))
        return S_PASS

    cdef int _revalidated(self, Headers fields, int64_t now) except -1:
        """A 304 to the cache's conditions: the stored response stays valid, updated with the new fields."""
        cdef CacheRequest place = self.place
        cdef StoredResponse stored = place.found
        cdef Decision decision = place.route.rules.update(place.rules, stored, fields, place.sent_ns, now)
        if decision is not None:
            self._live_adapted(decision, None)
            stored = decision.c_finish(place.found.body)
            if decision.storable:
                self._keep_safely(stored)
        place.release(stored, decision is None or not decision.storable)
        place.ready(stored, C_REVALIDATED)
        return S_REPLACED

    cdef int _head_only(self, int status, Headers fields, int64_t now) except -1:
        """The response to HEAD: it may freshen the stored response (RFC 9111 §4.3.5), and is not stored itself."""
        cdef CacheRequest place = self.place
        cdef Decision decision
        if place.found is not None and status == 200:
            decision = place.route.rules.update_from_head(place.rules, place.found, fields, place.sent_ns, now)
            if decision is None:
                place.route.store.epochs.purge_key(place.variant)
            else:
                self._keep_safely(decision.c_finish(place.found.body))
        add_status(fields, place.route.rules.forwarded(place.why, status))
        return S_PASS

    cdef int _judge(self, int status, bytes phrase, Headers fields, int64_t now) except -1:
        """Decide whether to store the response."""
        cdef CacheRequest place = self.place
        cdef Rules rules = place.route.rules
        cdef Decision decision
        try:
            decision = rules.c_store(place.rules, status, phrase if phrase else b"", fields, place.sent_ns, now)
        except Exception:                               # if the decision fails, do not store
            log.exception("while judging the response to request %s", self.ctx.request_id)
            place.release(None, True)
            return S_PASS
        strategy = place.route.strategy
        if decision.storable and strategy is not None and not strategy.cacheable(self.ctx, status, fields):
            decision.storable = False
        if decision.storable and strategy is not None and strategy.has_ttl:
            lifetime = strategy.ttl(self.ctx, status, fields, decision.lifetime_ns)
            decision.c_live(lifetime if decision.implied else min(lifetime, decision.lifetime_ns))
        if decision.storable:
            self.decision = decision
            self.pieces = []
        else:
            place.release(None, True)
        add_status(fields, rules.forwarded(place.why, status, decision.storable, place.collapsed,
                                           None if decision.storable else decision.why.encode()))
        return S_PASS

    cdef bytes chunk(self, bytes chunk):
        if self.decision is not None:
            self.size += PyBytes_GET_SIZE(chunk)
            if <uint64_t>self.size > self.decision.max_size:
                self._give_up()
            else:
                add_piece(self.pieces, chunk, True)
        return chunk

    cdef bytes end(self):
        return b""

    cdef int _give_up(self) except -1:
        """The response is too large to be stored."""
        self.decision = None
        self.pieces = None
        return self.place.release(None, True)

    cdef int whole(self) except -1:
        """The response is complete, and everything that arrived with it was read: store it, and wake waiting requests."""
        cdef Decision decision = self.decision
        cdef StoredResponse stored = None
        cdef bytes body
        if decision is None:
            return self.place.release(None, False)
        self.decision = None
        try:
            body = <bytes>self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
            if decision.fits(len(body)):
                self._live_adapted(decision, body)
                stored = decision.c_finish(body)
                self.place.keep(stored)
        except Exception:                               # a response that cannot be stored still reaches its client
            log.exception("while storing for request %s", self.ctx.request_id)
            stored = None
        self.pieces = None
        return self.place.release(stored, stored is None)

    cdef int failed(self) except -1:
        cdef CacheRequest place = self.place
        cdef StoredResponse found = place.found
        if found is None or not place.rules.cacheable or not found.c_may_serve_on_error(place.rules, realtime_ns()):
            return S_PASS
        place.found = None
        place.failed = True
        place.release(None, True)
        place.ready(found, C_STALE_ON_ERROR)
        return S_REPLACED

    cdef int over(self) except -1:
        self.decision = None
        self.pieces = None
        return self.place.finish()

    cdef int _live_adapted(self, Decision decision, bytes body) except -1:
        """Apply the learned lifetime if the origin gives none. body None: the same as the stored one."""
        cdef CacheRequest place = self.place
        if place.route.predict is not None and place.route.predict.is_adaptive and decision.implied and decision.status == 200:
            decision.c_live(place.route.predict.ttl_ns(place.variant, decision.etag, body, realtime_ns(), decision.lifetime_ns))
        return 0

    def _keep_safely(self, StoredResponse stored):
        """Store a response that is sent whether or not it can be stored."""
        try:
            self.place.keep(stored)
        except Exception:
            log.exception("while storing for request %s", self.ctx.request_id)

    # effects of a response on other entries

    def _invalidate(self, int status, Headers fields):
        """An unsafe request succeeded: responses stored for its URL, on any route, may be outdated and are invalidated."""
        cdef RequestContext ctx = self.ctx
        cdef WorkerCache store = self.place.route.store
        cdef set urls = set()
        cdef bint merge = self.place.request.plan.merge_slashes
        try:
            for rules in store.forms.values():
                urls.update((<Rules>rules).invalidated(self.place.rules, status, fields, ctx.c_secure(), ctx.authority, ctx.path_bytes,
                                                       ctx.query_bytes, merge=merge))
            for url in urls:
                store.epochs.purge_tag(url_tag(url))
        except Exception:                               # the upstream has acted: its response is sent in any case
            log.exception("while invalidating for request %s", ctx.request_id)

    def _purge_url(self, bytes what):
        """Purge a path with its query, on the request's host, on every route."""
        cdef RequestContext ctx = self.ctx
        cdef set urls = set()
        cdef bint merge = self.place.request.plan.merge_slashes
        path, mark, query = what.partition(b"?")
        for rules in self.place.route.store.forms.values():
            urls.add((<Rules>rules).c_url(ctx.c_secure(), ctx.authority, normalise(path, merge), query if mark else None))
        urls.discard(None)
        for url in urls:
            self.place.route.store.epochs.purge_tag(url_tag(url))

    def _purge_as_told(self, int status, Headers fields):
        """Carry out the purges that the upstream's response requests, and remove the fields before the client sees them."""
        cdef RequestContext ctx = self.ctx
        cdef bytes name = self.place.route.purge_header
        cdef bytes value = fields.find(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        cdef bytes host
        if value is None:
            return
        fields.drop(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        if status >= 400:
            return
        epochs = self.place.route.store.epochs
        host = (b"https://" if ctx.c_secure() else b"http://") + ctx.authority.lower()
        for part in value.split(b",")[:MOST_PURGES]:
            what = part.strip(b" \t")
            try:
                if what == b"*":
                    epochs.purge_all()
                elif what.startswith(b"/") and b"*" in what:
                    epochs.purge_pattern(url_pattern(host + normal_escapes(what)))
                elif what.startswith(b"/"):
                    self._purge_url(what)
                elif what:
                    epochs.purge_tag(what)
            except (ValueError, TimeoutError) as error:
                log.warning("request %s: the upstream asks to purge %r: %s", ctx.request_id, what, error)


cdef int add_status(Headers fields, bytes line) except -1:
    """Add a ready Cache-Status line to the fields."""
    if line:
        fields.add(b"Cache-Status", line[14:len(line) - 2])
    return 0
