# cython: boundscheck=False, nonecheck=True
"""Upstreams, their targets, and the kept-alive connections to each.

WHAT     `Upstream` is a named set of targets with a balancing order; `Target` keeps the idle connections to one address and the
         requests that wait for one. Whichever connection is free first, a released or a new one, serves the longest waiter.
STATE    total = open + opening ≤ max_connections; idle ⊆ open; while a request waits, no connection is idle, and either an
         opening is under way or total is at its bound.
WHO      The worker's loop. Each worker has its own pools: max_connections is per worker and target.
COST     take and release: a list pop and append. Opening a connection takes a task.
SOURCES  Go net/http Transport (first free connection serves the first waiter); httpcore connection_pool.py.
"""

import asyncio
import logging
import ssl as ssl_module
from collections import deque

from libc.stdint cimport int64_t

from fastgate._core.atomic cimport atomic_add_relaxed_u64
from fastgate._core.balance cimport SmoothWeighted
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.context cimport Reason
from fastgate._core.counters cimport Counters
from fastgate._core.wheel cimport TimerWheel
from fastgate.upstream.connection cimport U_CLOSED, U_IDLE, ConnectionOwner, ResponseSink, UpstreamConnection

from fastgate.errors import REASONS

__all__ = ["Target", "Upstream"]

cdef Reason CONNECT_FAILED = REASONS["upstream_connect_failed"]
cdef Reason CONNECT_TIMEOUT = REASONS["upstream_connect_timeout"]
cdef Reason TLS_FAILED = REASONS["upstream_tls_failed"]

cdef enum:
    # A non-idempotent request takes a connection that was idle for longer than this only after a look at its socket: the
    # peer's close of an idle connection is what such a request would meet, and it must not be sent twice.
    PEEK_AFTER_NS = 1000000


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
        self.idle = []
        self.waiters = deque()
        self.tasks = set()

    cdef UpstreamConnection take(self, int64_t now_ns, bint must_be_alive):
        """An idle connection, the one used last, or None."""
        cdef UpstreamConnection connection
        while self.idle:
            connection = <UpstreamConnection>self.idle.pop()
            if connection.state != U_IDLE:
                continue
            if self._is_too_old(connection, now_ns):
                connection.close()
                continue
            if must_be_alive and now_ns - connection.released_ns > PEEK_AFTER_NS and not connection.seems_alive():
                connection.close()
                continue
            return connection
        return None

    cdef int acquire(self, ResponseSink sink) except -1:
        """Queue sink for the next free connection, opening one if the bound allows. A_OPENING, A_QUEUED or A_FULL."""
        cdef Upstream upstream = self.upstream
        cdef bint may_open = self.total < upstream.max_connections
        if not may_open and len(self.waiters) - self.opening >= upstream.max_queue:
            return A_FULL
        sink.waiting = True
        self.waiters.append(sink)
        atomic_add_relaxed_u64(&upstream.counts.upstream_waiting, 1)
        if may_open:
            self._open()
            return A_OPENING
        return A_QUEUED

    cdef int forget(self, ResponseSink sink) except -1:
        """Take sink out of the queue, if it is there."""
        if sink.waiting:
            sink.waiting = False
            self.waiters.remove(sink)
            atomic_add_relaxed_u64(&self.upstream.counts.upstream_waiting, <unsigned long long>-1)
        return 0

    cdef int release(self, UpstreamConnection connection, int64_t now_ns) except -1:
        """Take back a connection whose answer is complete and which may be used again."""
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
        if self.waiters:
            return self._hand_over(connection, now_ns)
        if len(self.idle) >= upstream.max_idle:
            connection.close()
            return 0
        self.idle.append(connection)
        idle_until_ns = now_ns + upstream.idle_timeout_ns
        if upstream.max_lifetime_ns:
            idle_until_ns = min(idle_until_ns, connection.opened_ns + upstream.max_lifetime_ns)
        upstream.wheel.arm(connection, idle_until_ns)
        return 0

    cdef bint _is_too_old(self, UpstreamConnection connection, int64_t now_ns) noexcept:
        cdef int64_t most_ns = self.upstream.max_lifetime_ns
        return most_ns != 0 and now_ns - connection.opened_ns >= most_ns

    cdef int _hand_over(self, UpstreamConnection connection, int64_t now_ns) except -1:
        cdef ResponseSink sink = self.waiters.popleft()
        sink.waiting = False
        atomic_add_relaxed_u64(&self.upstream.counts.upstream_waiting, <unsigned long long>-1)
        sink.on_connection(connection)
        return 0

    cdef int connection_closed(self, UpstreamConnection connection) except -1:
        self.total -= 1
        atomic_add_relaxed_u64(&self.upstream.counts.upstream_open, <unsigned long long>-1)
        if connection in self.idle:
            self.idle.remove(connection)
        if len(self.waiters) > self.opening and self.total < self.upstream.max_connections:
            self._open()
        return 0

    cdef int _open(self) except -1:
        self.total += 1
        self.opening += 1
        task = self.upstream.loop.create_task(self._opened())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return 0

    async def _opened(self):
        """Open one connection and give it to whoever has waited longest."""
        cdef UpstreamConnection connection = UpstreamConnection(self, self.upstream.wheel)
        cdef ResponseSink sink
        cdef Reason reason = None
        cdef Upstream upstream = self.upstream
        detail = ""
        try:
            async with asyncio.timeout(upstream.connect_timeout_ns / 1e9):
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
        except Exception as error:                      # a host that is no name, for one: whoever waits must hear of it
            reason = CONNECT_FAILED
            detail = repr(error)
        self.opening -= 1
        if reason is None and connection.state == U_CLOSED:     # lost between the handshake and this step
            reason = CONNECT_FAILED
            detail = "closed at once"
        if reason is None:
            connection.adopted = True
            atomic_add_relaxed_u64(&upstream.counts.upstream_open, 1)
            atomic_add_relaxed_u64(&upstream.counts.upstream_opened_total, 1)
            if self.waiters:
                self._hand_over(connection, monotonic_ns())
            else:
                self.release(connection, monotonic_ns())
            return
        connection.abort()
        self.total -= 1
        if self.waiters:
            sink = self.waiters.popleft()
            sink.waiting = False
            atomic_add_relaxed_u64(&upstream.counts.upstream_waiting, <unsigned long long>-1)
            sink.on_connect_failed(reason, detail)
        if len(self.waiters) > self.opening and self.total < upstream.max_connections:
            self._open()

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
        self._counters = counters
        self.counts = counters.worker(slot)
        self.max_connections = pool.max_connections
        self.max_idle = pool.max_idle
        self.max_queue = pool.max_queue
        self.max_requests = pool.max_requests
        self.idle_timeout_ns = pool.idle_timeout_ns
        self.max_lifetime_ns = pool.max_lifetime_ns
        self.queue_timeout_ns = pool.queue_timeout_ns
        self.connect_timeout_ns = config.timeouts.connect_ns
        self.targets = []

    def set_targets(self, targets, weights):
        """Bind the targets, once, in the order of their weights."""
        self.targets = list(targets)
        self.balance = SmoothWeighted(weights)

    cdef Target pick(self):
        """The next target by smooth weighted round robin."""
        if len(self.targets) == 1:
            return <Target>self.targets[0]
        return <Target>self.targets[self.balance.pick()]

    cdef Target after(self, Target target):
        """The target behind this one, and behind the last the first."""
        return <Target>self.targets[(self.targets.index(target) + 1) % len(self.targets)]

    def retire(self):
        """No longer in the plan: close what is idle now, the rest when its request is over."""
        cdef Target target
        cdef UpstreamConnection connection
        self.retired = True
        for target in self.targets:
            for connection in list(target.idle):
                connection.close()
            target.idle.clear()

    def __repr__(self):
        return f"Upstream({self.name}, {self.targets})"
