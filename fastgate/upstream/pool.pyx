# cython: boundscheck=False, nonecheck=True
"""Upstreams, their targets, and the kept-alive connections to each.

WHAT     `Upstream` is a named set of targets with a balancing order; `Target` keeps the idle connections to one address and the
         requests that wait for one. The first free connection, whether released or new, serves the request that has waited
         longest.
STATE    total = open + opening ≤ max_connections; idle ⊆ open; while a request waits that is within its share, no connection is
         idle, and either an opening is in flight or total is at its bound.
SHARES   A connection in use belongs to a route, a listener and a client (the consumer, or the address of a request without one).
         None of them holds more than most_of_one = max_connections − reserve of a pool, nor the same share of its queue: one that
         has reached its share waits for its own connections, and the rest stays available to the others. The connections of each
         are counted only while at least most_of_one connections are in use: below that no share can be exceeded.
WHO      The worker's loop. Each worker has its own pools: max_connections is per worker and target.
COST     take and release: a list pop and append. Opening a connection takes a task. Near the limit of a pool: a pass over its
         connections (1 024 of them at most, evenly spaced) for each request.
SOURCES  Go net/http Transport (first free connection serves the first waiter); httpcore connection_pool.py.
"""

import asyncio
import logging
import resource
import ssl as ssl_module
from collections import deque

from cpython.list cimport PyList_GET_SIZE
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.shm.atomic cimport atomic_add_relaxed_u64
from fastgate._core.balance.targets cimport TargetSet, ticket_t
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.http.headers cimport HeadWriter
from fastgate._core.log_throttle cimport log_throttle_pass
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.shm.counters cimport Counters
from fastgate._core.pipeline.wheel cimport TimerWheel
from fastgate.upstream.balance_key cimport BalanceKey
from fastgate.upstream.h1_stream cimport U_CLOSED, U_IDLE, ConnectionOwner, H1UpstreamStream
from fastgate.upstream.stream cimport SAME_CLIENT, SAME_LISTENER, SAME_ROUTE, ResponseSink, UpstreamStream

from fastgate.errors import REASONS

__all__ = ["Target", "Upstream"]

log = logging.getLogger("fastgate")

cdef extern from "Python.h":
    PyObject* PyList_GET_ITEM(object, Py_ssize_t)

cdef Reason CONNECT_FAILED = REASONS["upstream_connect_failed"]
cdef Reason CONNECT_TIMEOUT = REASONS["upstream_connect_timeout"]
cdef Reason TLS_FAILED = REASONS["upstream_tls_failed"]

cdef enum:
    # A connection that was idle for longer than this is used only after its socket was checked. The check finds the peer's close,
    # which would lose a request that must not be sent twice, and unsolicited bytes, which would become the next response.
    PEEK_AFTER_NS = 1000000
    # A connection whose last head announced a body that must not follow (HEAD, 304) is not used for this long: if a body follows
    # anyway, it arrives right after its head.
    WARY_NS = 100000000
    # Connections examined to count the share of one party. A sample of 1 024 is off by 3 %, a third of the reserve.
    SAMPLE = 1024
    MOST_CONNECTIONS = 65536

cdef int64_t LOUD_NS = 10_000_000_000           # between two log lines about the same pool


cdef int parties_over(list sinks, ResponseSink sink, int shares, int64_t most) except -1:
    """The parties of sink (SAME_* bits) that own at least `most` of the sinks: its route, its listener, its client."""
    cdef int64_t routes = 0, listeners = 0, clients = 0
    cdef int common
    for each in sinks:
        common = sink.shared_with(<ResponseSink>each)
        routes += (common & SAME_ROUTE) != 0
        listeners += (common & SAME_LISTENER) != 0
        clients += (common & SAME_CLIENT) != 0
    common = (SAME_ROUTE if routes >= most else 0) | (SAME_LISTENER if listeners >= most else 0) \
        | (SAME_CLIENT if clients >= most else 0)
    return common & shares


cdef class Target(ConnectionOwner):
    """One address of an upstream and the connections to it."""

    def __init__(self, Upstream upstream, str url, str host, int port, unix_path, ssl, server_name, bytes authority):
        self.upstream = upstream
        self.url = url
        self.host = host
        self.port = port
        self.unix_path = unix_path
        self.ssl = ssl
        self.server_name = server_name
        self.authority = authority
        self.address = unix_path.encode() if unix_path else f"{host}:{port}".encode()
        self.open = []
        self.idle = []
        self.waiters = deque()
        self.tasks = set()

    cdef UpstreamStream take(self, ResponseSink sink, int64_t now_ns):
        """The most recently used idle connection, or None."""
        cdef H1UpstreamStream connection
        if len(self.open) - len(self.idle) >= self.upstream.most_of_one and self._over_share(sink):
            return None
        while self.idle:
            connection = <H1UpstreamStream>self.idle.pop()
            if connection.state != U_IDLE:
                continue
            if self._is_too_old(connection, now_ns):
                connection.close()
                continue
            if connection.wary and now_ns - connection.released_ns < WARY_NS:
                connection.close()                      # the body that its last head announced may still arrive
                continue
            if now_ns - connection.released_ns > PEEK_AFTER_NS and not connection.seems_alive():
                connection.close()
                continue
            return connection
        return None

    cdef int acquire(self, ResponseSink sink) except -1:
        """Queue sink for the next free connection, opening one if the bounds allow. A_OPENING, A_QUEUED or A_FULL."""
        cdef Upstream upstream = self.upstream
        cdef bint may_open = self._may_open() and (len(self.open) - len(self.idle) < upstream.most_of_one or not self._over_share(sink))
        if not may_open:
            self._say_limited()
            if not self._has_queue_place(sink):
                return A_FULL
        sink.waiting = True
        self.waiters.append(sink)
        atomic_add_relaxed_u64(&upstream.counts.upstream_waiting, 1)
        if may_open:
            self._open(sink)
            return A_OPENING
        return A_QUEUED

    cdef bint _may_open(self):
        """True if neither this pool nor the process is at its limit of connections."""
        cdef Upstream upstream = self.upstream
        # The first connection of a target is always allowed: one busy upstream must not block the others.
        return self.total < upstream.max_connections \
            and (self.total == 0 or <int64_t>upstream.counts.upstream_open < upstream.budget)

    cdef int _over_share(self, ResponseSink sink) except -1:
        """The parties of sink (SAME_* bits) that hold their whole share here; 0: it may take a connection."""
        cdef H1UpstreamStream connection
        cdef Py_ssize_t n = len(self.open)
        cdef Py_ssize_t stride = max(1, (n + SAMPLE - 1) // SAMPLE)
        cdef Py_ssize_t i
        cdef list sinks = []
        cdef int64_t most = self.upstream.most_of_one
        if most >= self.upstream.max_connections:
            return 0
        for i in range(0, n, stride):
            connection = <H1UpstreamStream>self.open[i]
            if connection.sink is not None:
                sinks.append(connection.sink)
        return parties_over(sinks, sink, self.upstream.shares, (most + stride - 1) // stride)

    cdef bint _has_queue_place(self, ResponseSink sink):
        """True if sink may wait: the queue has room; the last tenth is reserved for parties that do not fill the rest of it
        alone."""
        cdef Upstream upstream = self.upstream
        cdef Py_ssize_t waiting = len(self.waiters) - self.opening
        cdef int most = upstream.max_queue - upstream.max_queue // 10
        if waiting >= upstream.max_queue:
            return False
        if waiting < most or upstream.most_of_one >= upstream.max_connections:
            return True
        return parties_over(list(self.waiters), sink, upstream.shares, most) == 0

    cdef int _say_limited(self) except -1:
        """Count a request that exceeds the limit of the pool, and log it at most once per period."""
        cdef Upstream upstream = self.upstream
        cdef int64_t now_ns = monotonic_ns()
        atomic_add_relaxed_u64(&upstream.counts.upstream_limited_total, 1)
        cdef int64_t requests = log_throttle_pass(&self.limited_log, now_ns, LOUD_NS)
        if requests:
            log.warning("upstream %s at %s: connection limit reached: %d connections in use (limit %d, for one route, listener or client "
                        "%d), %d requests waiting, %d requests since the last such line", upstream.name, self.url,
                        len(self.open) - len(self.idle), upstream.max_connections, upstream.most_of_one, len(self.waiters),
                        requests)
        return 0

    cdef int forget(self, ResponseSink sink) except -1:
        """Remove sink from the queue, if it is there."""
        if sink.waiting:
            sink.waiting = False
            self.waiters.remove(sink)
            atomic_add_relaxed_u64(&self.upstream.counts.upstream_waiting, <unsigned long long>-1)
        return 0

    cdef int release(self, H1UpstreamStream connection, int64_t now_ns) except -1:
        """Take back a connection whose response is complete and which may be used again."""
        cdef Upstream upstream = self.upstream
        cdef int64_t idle_until_ns
        connection.sink = None
        if connection.state == U_CLOSED:
            return 0
        connection.state = U_IDLE
        if connection.extra_bytes or not connection.writable or upstream.retired \
                or (upstream.max_requests and connection.requests >= upstream.max_requests) \
                or self._is_too_old(connection, now_ns):
            connection.close()
            return 0
        connection.resume()
        connection.released_ns = now_ns
        return self._hand_over(connection, now_ns)

    cdef bint _is_too_old(self, H1UpstreamStream connection, int64_t now_ns) noexcept:
        cdef int64_t most_ns = self.upstream.max_lifetime_ns
        return most_ns != 0 and now_ns - connection.opened_ns >= most_ns

    cdef ResponseSink _next_waiter(self):
        """Remove and return the longest waiting request that is within its share; None if there is none."""
        cdef ResponseSink sink, full_route = None, full_listener = None, full_client = None
        cdef Py_ssize_t at = 0
        cdef int over
        if len(self.open) - len(self.idle) > self.upstream.most_of_one:       # the connection to be handed over is among them
            for each in self.waiters:
                sink = <ResponseSink>each
                # At most one route, one listener and one client can exceed their share: each is counted once.
                if not (full_route is not None and sink.shared_with(full_route) & SAME_ROUTE
                        or full_listener is not None and sink.shared_with(full_listener) & SAME_LISTENER
                        or full_client is not None and sink.shared_with(full_client) & SAME_CLIENT):
                    over = self._over_share(sink)
                    if over == 0:
                        break
                    if over & SAME_ROUTE:
                        full_route = sink
                    if over & SAME_LISTENER:
                        full_listener = sink
                    if over & SAME_CLIENT:
                        full_client = sink
                at += 1
        if at == len(self.waiters):
            return None
        sink = <ResponseSink>self.waiters[at]
        del self.waiters[at]
        sink.waiting = False
        atomic_add_relaxed_u64(&self.upstream.counts.upstream_waiting, <unsigned long long>-1)
        return sink

    cdef int _hand_over(self, H1UpstreamStream connection, int64_t now_ns) except -1:
        """Give a free connection to a waiting request, or keep it idle."""
        cdef Upstream upstream = self.upstream
        cdef ResponseSink sink = None
        cdef int64_t idle_until_ns
        if self.waiters:
            if connection.requests and (connection.wary or not connection.seems_alive()):
                connection.close()                      # its slot is free for another one
                return 0
            sink = self._next_waiter()
        if sink is not None:
            sink.on_connection(connection)
            return 0
        if len(self.idle) >= upstream.max_idle:
            connection.close()
            return 0
        if connection.wary:
            self.idle.insert(0, connection)             # used last
        else:
            self.idle.append(connection)
        idle_until_ns = now_ns + upstream.idle_timeout_ns
        if upstream.max_lifetime_ns:
            idle_until_ns = min(idle_until_ns, connection.opened_ns + upstream.max_lifetime_ns)
        upstream.wheel.arm(connection, idle_until_ns)
        return 0

    cdef int connection_closed(self, H1UpstreamStream connection) except -1:
        cdef H1UpstreamStream last = <H1UpstreamStream>self.open.pop()
        cdef Py_ssize_t i
        if last is not connection:
            self.open[connection.place] = last
            last.place = connection.place
        self.total -= 1
        atomic_add_relaxed_u64(&self.upstream.counts.upstream_open, <unsigned long long>-1)
        for i in range(PyList_GET_SIZE(self.idle)):     # not list.remove, which compares each object
            if PyList_GET_ITEM(self.idle, i) == <PyObject*>connection:
                del self.idle[i]
                break
        self._open_for_queue()
        return 0

    cdef int _open_for_queue(self) except -1:
        """Open a connection for the first waiting request for which none is being opened, if the bounds allow."""
        if len(self.waiters) > self.opening and self._may_open():
            self._open(<ResponseSink>self.waiters[self.opening])
        return 0

    cdef int _open(self, ResponseSink sink) except -1:
        """Open a connection for sink: if that fails, sink fails. If it succeeds, the request that has waited longest gets it."""
        self.total += 1
        self.opening += 1
        atomic_add_relaxed_u64(&self.upstream.counts.upstream_open, 1)
        task = self.upstream.loop.create_task(self._opened(sink))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return 0

    async def _opened(self, ResponseSink sink):
        cdef H1UpstreamStream connection = H1UpstreamStream(self, self.upstream.wheel, self.upstream.out)
        cdef Reason reason = None
        cdef Upstream upstream = self.upstream
        detail = ""
        limit = asyncio.timeout(None)
        # By the wheel, which lets the loop read its sockets first after the worker was blocked.
        timer = upstream.wheel.call_at(monotonic_ns() + upstream.connect_timeout_ns, lambda _: limit.reschedule(0))
        try:
            async with limit:
                if self.unix_path:
                    await upstream.loop.create_unix_connection(
                        lambda: connection, self.unix_path, ssl=self.ssl, server_hostname=self.server_name)
                else:
                    await upstream.loop.create_connection(
                        lambda: connection, self.host, self.port, ssl=self.ssl, server_hostname=self.server_name)
        except TimeoutError:
            reason = CONNECT_TIMEOUT
        except ssl_module.SSLError as error:
            reason = TLS_FAILED
            detail = str(error)
        except OSError as error:
            reason = CONNECT_FAILED
            detail = str(error)
        except Exception as error:                      # for example an invalid host name: the waiting request must be informed
            reason = CONNECT_FAILED
            detail = repr(error)
        finally:
            upstream.wheel.cancel_call(timer)
        self.opening -= 1
        if reason is None and connection.state == U_CLOSED:     # lost between the handshake and this step
            reason = CONNECT_FAILED
            detail = "closed at once"
        if reason is None:
            connection.adopted = True
            connection.place = len(self.open)
            self.open.append(connection)
            atomic_add_relaxed_u64(&upstream.counts.upstream_opened_total, 1)
            if self.waiters:
                self._hand_over(connection, monotonic_ns())
            else:
                self.release(connection, monotonic_ns())
            return
        connection.abort()
        self.total -= 1
        atomic_add_relaxed_u64(&upstream.counts.upstream_open, <unsigned long long>-1)
        if sink.waiting:                                # else it has given up, or was given another connection
            self.forget(sink)
            sink.on_connect_failed(reason, detail)
        self._open_for_queue()

    def __repr__(self):
        return f"Target({self.url}, total={self.total}, opening={self.opening}, idle={len(self.idle)}, waiting={len(self.waiters)})"


cdef class Upstream:
    """A named set of targets."""

    def __init__(self, str name, config, loop, TimerWheel wheel, Counters counters, int slot):
        pool = config.pool
        self.name = name
        self.config = config
        self.loop = loop
        self.wheel = wheel
        self.out = HeadWriter()
        self._counters = counters
        self.counts = counters.worker(slot)
        # The share of descriptors that is not for clients (half of them, see DataPlane.install), files or listeners.
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.budget = MOST_CONNECTIONS if descriptors == resource.RLIM_INFINITY else max(64, min(MOST_CONNECTIONS, descriptors * 3 // 8))
        self.max_connections = pool.max_connections if pool.max_connections else self.budget
        self.most_of_one = self.max_connections \
            - (self.max_connections // 10 if pool.reserve is None else min(pool.reserve, self.max_connections // 2))
        self.shares = SAME_ROUTE | SAME_LISTENER | SAME_CLIENT
        self.max_idle = pool.max_idle
        self.max_queue = pool.max_queue
        self.max_requests = pool.max_requests
        self.idle_timeout_ns = pool.idle_timeout_ns
        self.max_lifetime_ns = pool.max_lifetime_ns
        self.queue_timeout_ns = pool.queue_timeout_ns
        self.connect_timeout_ns = config.timeouts.connect_ns
        self.targets = []
        for status in config.failure_statuses:
            self.failures[status >> 6] |= <uint64_t>1 << (status & 63)

    def tell_routes_apart(self):
        """More than one route uses this upstream: none of them may take all connections."""
        self.shares |= SAME_ROUTE

    def set_targets(self, targets, TargetSet balance=None, BalanceKey key=None):
        """Set the targets, once, in the order of their set. key: chooses the key of a request. Without a set, `pick` must not be
        called."""
        cdef Target target
        self.targets = list(targets)
        for place, target in enumerate(self.targets):
            target.place = place
        self.balance = balance
        self.key = key

    cdef Py_ssize_t pick(self, RequestContext ctx, list tried, bint is_new, ticket_t* ticket) except? -3:
        """The place of the target for an attempt, see TargetSet.pick."""
        return self.balance.pick(0 if self.key is None else self.key.point(ctx), tried, is_new, ctx.now_ns, ticket)

    cdef bint is_failure(self, int status) noexcept:
        """True if a response of this status counts as a failure of the target."""
        return 0 <= status < 640 and self.failures[status >> 6] >> (status & 63) & 1

    def retire(self):
        """No longer in the plan: close idle connections now, the others when their request is over."""
        cdef Target target
        cdef H1UpstreamStream connection
        self.retired = True
        for target in self.targets:
            for connection in list(target.idle):
                connection.close()
            target.idle.clear()

    def let_go(self):
        """No request uses it any longer: drop the targets, which refer to it, and with them the rows of their health."""
        self.targets.clear()
        self.balance = None

    def __repr__(self):
        return f"Upstream({self.name}, {self.targets})"
