# cython: boundscheck=False, nonecheck=True
"""The state of a worker: the plan in effect, every client connection, the timer wheel, the access log.

WHAT     `DataPlane` creates the protocols of new connections, replaces the plan between two requests, turns the timer wheel, and
         drains.
STATE    connections: every open client connection.
WHO      The worker's loop.
COST     A turn of the wheel every 20 ms.
"""

import asyncio
import logging
import resource

from libc.stdint cimport int64_t

from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.shm.counters cimport Counters
from fastgate._core.http.headers cimport WIRE_FIELDS
from fastgate._core.pipeline.plan cimport Plan, RoutePlan
from fastgate.proxy.accesslog cimport AccessLog
from fastgate.proxy.h1_client cimport ClientConnection
from fastgate.proxy.plane cimport WHEEL_TICK_NS, Plane
from fastgate.upstream.stream cimport SAME_CLIENT, SAME_LISTENER, SAME_ROUTE

from fastgate._core.pipeline.plan import plugin_title

__all__ = ["DataPlane"]

log = logging.getLogger("fastgate")

cdef double CLOSE_S = 60.0              # a tunnel of an old plan may stay open for days: its plugins are closed after this time
cdef int64_t STALL_NS = 200_000_000     # between two ticks of 20 ms: something blocked the worker, or it got no CPU

# After that, the wheel is turned later, once: by the length of the pause, and at most by this. Data that upstreams and clients sent
# while the worker was blocked, and handshakes that it interrupted, must not be taken for missing. The rounds of the loop are for
# another block meanwhile: a loop runs its timers before it reads its sockets.
cdef double STALL_GRACE_S = 1.0
cdef enum:
    STALL_ROUNDS = 4


cdef bint goes_to(RoutePlan route, upstream):
    return route.destination is not None and route.destination.upstream is upstream


cdef class DataPlane(Plane):
    """One worker's data plane: the plan in effect and every client connection."""

    def __init__(self, loop, memory, int slot, AccessLog access_log=None):
        if access_log is None:
            access_log = AccessLog("off", "json", memory.counters, slot)
        Plane.__init__(self, loop, memory, slot, access_log)
        self.replaced = []
        self.turned_ns = monotonic_ns()
        self.ticker = loop.call_later(0.02, self._tick)

    def _tick(self):
        cdef int64_t now_ns = monotonic_ns()
        cdef int64_t paused_ns = now_ns - self.turned_ns
        cdef bint stalled = paused_ns >= STALL_NS
        self.turned_ns = now_ns
        self.ticker = self.loop.call_later(0.02, self._tick)
        self.ticks += 1
        atomic_add_relaxed_u64(&self.counts.loop_ticks, 1)
        if stalled:
            atomic_add_relaxed_u64(&self.counts.loop_stalls, 1)
        if stalled and not self.turn_pending:
            self.turn_pending = True
            self.loop.call_later(min(paused_ns / 1e9, STALL_GRACE_S), self._turn, STALL_ROUNDS)
        elif not self.turn_pending:
            self._turn(0)

    def _turn(self, int rounds):
        """Turn the wheel, after so many rounds of the loop."""
        self.turn_pending = rounds > 0
        if self.turn_pending:
            self.loop.call_soon(self._turn, rounds - 1)
            return
        if self.ticker is None:
            return                                      # closed
        cdef int64_t now_ns = monotonic_ns()
        try:
            self.wheel.turn(now_ns)
            if self.ticks % 10 == 0:
                self.log.flush()
        except Exception:
            log.exception("while turning the timer wheel")

    def install(self, Plan plan not None):
        """Put a plan into effect. Requests in flight end with the plan they began with; upstreams that only the old plan used
        close their idle connections and drain."""
        cdef Plan old = self.plan
        server = plan.config.server
        self.max_header_bytes = server.max_header_bytes
        self.max_headers = min(server.max_headers, WIRE_FIELDS)
        self.max_target_bytes = server.max_target_bytes
        self.header_timeout_ns = server.header_timeout_ns
        self.body_timeout_ns = server.body_timeout_ns
        self.min_upload_rate = server.min_upload_rate_bytes
        self.min_download_rate = server.min_download_rate_bytes
        self.rate_grace_ns = server.rate_grace_ns
        # An eighth: a client that stops is then given up after body_timeout and not up to twice as late.
        self.look_ns = max(WHEEL_TICK_NS, min(1_000_000_000, server.body_timeout_ns // 8, server.rate_grace_ns))
        self.idle_timeout_ns = server.idle_timeout_ns
        # The limit of file descriptors bounds the connections too: half of it is for clients, three eighths for upstreams
        # (Upstream.budget), the rest for files, listeners and Redis.
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_connections = min(server.max_connections, max(64, descriptors // 2))
        # With several listeners, each leaves a tenth to the others: a flood on one does not block the rest.
        self.max_of_listener = self.max_connections - (self.max_connections // 10 if len(plan.config.listen) > 1 else 0)
        self.max_requests = server.max_requests_per_connection
        self.half_close_allowed = server.client_half_close == "allow"
        if (self.log.output, self.log.format) != (plan.config.access_log.output, plan.config.access_log.format):
            fresh = AccessLog(plan.config.access_log.output, plan.config.access_log.format, self.counters, self.slot)
            self.log.close()
            self.log = fresh
        query_key = plan.config.auth.api_key.query
        self.log.secrets = frozenset() if query_key is None else frozenset((query_key.encode(),))
        for upstream in plan.upstreams.values():
            routes = sum(1 for route in plan.routes if goes_to(<RoutePlan>route, upstream))
            upstream.shares = SAME_CLIENT | (SAME_ROUTE if routes > 1 else 0) \
                | (SAME_LISTENER if len(plan.config.listen) > 1 else 0)
        plan.installed = True
        self.plan = plan
        stores = {}
        for route in plan.routes:
            if route.destination is not None and route.destination.cache is not None:
                stores.setdefault(route.destination.cache.store, set()).add(route.destination.cache.rules.query_form)
        for store, forms in stores.items():
            store.forget_forms(forms)
        if old is None:
            return
        if old.requests:
            old.unused = self.loop.create_future()
            old.unused.add_done_callback(lambda _: self.replaced.remove(old))
            self.replaced.append(old)
        kept = set(map(id, plan.upstreams.values()))
        for upstream in old.upstreams.values():
            if id(upstream) not in kept:
                upstream.retire()
                self._let_go(upstream)
        kept = set(map(id, plan.plugins))
        for plugin in old.plugins:
            if id(plugin) not in kept:
                self.loop.create_task(self._close_plugin(plugin))

    def _let_go(self, upstream):
        """Drop an upstream once all requests of plans that contain it have ended."""
        users = [(<Plan>plan).unused for plan in self.replaced if upstream in (<Plan>plan).upstreams.values()]
        left = len(users)

        def over(_):
            nonlocal left
            left -= 1
            if left <= 0:
                upstream.let_go()

        for unused in users:
            unused.add_done_callback(over)
        if not users:
            upstream.let_go()

    async def _close_plugin(self, plugin):
        """Close a plugin once all requests of plans that contain it have ended, or after a minute."""
        users = [(<Plan>plan).unused for plan in self.replaced if plugin in (<Plan>plan).plugins]
        if users:
            await asyncio.wait(users, timeout=CLOSE_S)
        try:
            await plugin.close()
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise                                   # the worker is stopping; not an error of the plugin
            log.exception("%s failed in close", plugin_title(plugin))
        except BaseException:
            log.exception("%s failed in close", plugin_title(plugin))

    def connection(self, listener):
        """The protocol for a new connection on a listener (its config)."""
        cdef ClientConnection connection = ClientConnection.__new__(ClientConnection)
        connection.plane = self
        connection.listener = listener.address
        connection.scheme = "https" if listener.tls is not None else "http"
        connection.takes_proxy_header = listener.proxy_protocol
        connection.redirect_port = listener.redirect
        return connection

    @property
    def open_connections(self):
        """Number of open client connections."""
        return len(self.connections)

    @property
    def active_requests(self):
        """Number of requests in flight, including tunnels."""
        return sum(1 for c in self.connections if (<ClientConnection>c).exchange is not None)

    def begin_drain(self, close_tunnels=True):
        """Close idle connections after a grace period, and the others after their current request. Tunnels are closed (WebSockets
        with 1001) unless close_tunnels is False: then they stay open until `abort`."""
        self.draining = True
        for connection in list(self.connections):
            try:
                (<ClientConnection>connection)._begin_drain(close_tunnels)
            except Exception:                           # an error on one connection must not affect the others
                log.exception("while draining a connection")

    def abort(self):
        """The drain time is over: close tunnels and all remaining connections."""
        for connection in list(self.connections):
            if (<ClientConnection>connection).tunnel:
                (<ClientConnection>connection)._close_websocket()
            (<ClientConnection>connection).cut()

    def reopen_logs(self):
        """Reopen the file of the access log after log rotation moved it."""
        try:
            self.log.reopen()
        except OSError:
            log.exception("the access log cannot be opened anew; the old file is kept")

    def close(self):
        """Stop the ticker and write out the log."""
        if self.ticker is not None:
            self.ticker.cancel()
            self.ticker = None
        self.log.close()
