"""The connections of the admin listener, bounded: in number, in time and in bytes.

Probes and revocations must succeed even if a client opens connections and sends nothing. At the limit, the
oldest connection without a complete request is closed for a new one. A client that sends its request at once,
as every probe does, is never affected.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fastgate._core.shm.metric import MetricTable

__all__ = ["AdminConnection", "AdminConnections"]

MOST = 512
"""Open connections: an operator's tools, scrapers and probes are a few dozen. Half of the 1 024 descriptors
that a process has where the limit cannot be raised."""

HEAD_LIMIT_S = 10.0
"""From the first byte that may be one of a request (or from the connection) to the end of its head."""

HEAD_BYTES = 64 * 1024
"""Heads longer than this are cut off; nginx takes 32 kB, and a token is some hundred bytes."""

log = logging.getLogger(__name__)


class AdminConnections:
    """All of them, oldest first. One per controller."""

    def __init__(self, metrics: MetricTable, most: int = MOST, head_limit_s: float = HEAD_LIMIT_S) -> None:
        self.most = most
        self.head_limit_s = head_limit_s
        self._closed = metrics.counter("fastgate_admin_connections_closed_total")
        self._open: dict[AdminConnection, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: AdminConnection) -> None:
        if len(self._open) >= self.most:
            self._closed.add()
            victim = next((other for other in self._open if not other.is_served()), None)
            log.warning(
                "the admin listener has %d connections; closing the oldest one without a request", self.most
            )
            (victim or next(iter(self._open))).cut()
        self._open[connection] = None

    def remove(self, connection: AdminConnection) -> None:
        self._open.pop(connection, None)


class AdminConnection(HttpToolsProtocol):
    """uvicorn's connection, with these bounds."""

    def __init__(self, *args: Any, among: AdminConnections, **named: Any) -> None:
        super().__init__(*args, **named)
        self._among = among
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def is_served(self) -> bool:
        """True while a request is worked on or its response is being taken."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete and not self.flow.write_paused

    def cut(self) -> None:
        self._among.remove(self)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._among.add(self)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._among.remove(self)
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and not self._is_in_request():
            self._expect_head()
        super().data_received(data)
        # Only what did not end the head: the body may have come with it, and has a bound of its own.
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.cut()

    def on_headers_complete(self) -> None:
        self._forget_head()
        super().on_headers_complete()

    def _is_in_request(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and (cycle.more_body or not cycle.response_complete)

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._among.head_limit_s, self.cut)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
