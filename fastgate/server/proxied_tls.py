"""A PROXY protocol header, then TLS, on one connection: what a TCP load balancer sends to a TLS listener.

The event loop can start TLS on a connection that has begun in plain text, but only from the next byte it
reads; the client's hello mostly arrives in one piece with the header. So the bytes behind the header are
handed to the loop's own TLS protocol once it is in place. The gateway's protocol is attached when the
handshake is done and is given the header before anything else, as on a listener without TLS.

    HEADER ─ whole ─► HANDSHAKE ─ done ─► the gateway's protocol has the connection
       └─ malformed, late: cut    └─ refused, late: cut
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from fastgate.proxy.proxy_protocol import parse

__all__ = ["ProxiedTls"]


class ProxiedTls(asyncio.Protocol):
    """The protocol of such a connection until its handshake is done; then `inner` takes its place."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inner: asyncio.Protocol,
        context: ssl.SSLContext,
        timeout_s: float,
    ) -> None:
        """The header has `timeout_s` to arrive, and the handshake as long again."""
        self._loop, self._inner, self._context, self._timeout_s = loop, inner, context, timeout_s
        self._received = b""  # in plain text until the header is whole, then decrypted, ahead of `inner`
        self._header = b""
        self._transport: asyncio.Transport
        self._late: asyncio.TimerHandle
        self._handshake: asyncio.Task[None] | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._handshake is not None:
            return  # a loop may tell us of the TLS transport too; _secure has it
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        self._late = self._loop.call_later(self._timeout_s, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._handshake is not None:
            return
        try:
            parsed = parse(self._received)
        except ValueError:
            self._transport.abort()
            return
        if parsed is None:
            return
        self._late.cancel()
        end, _ = parsed
        self._header, hello, self._received = self._received[:end], self._received[end:], b""
        self._handshake = self._loop.create_task(self._secure(hello))

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._late.cancel()

    async def _secure(self, hello: bytes) -> None:
        starting = self._loop.create_task(
            self._loop.start_tls(
                self._transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._timeout_s,
            )
        )
        # One turn: start_tls has put its protocol in place and asked for its connection_made; what is asked
        # for now comes behind that, and ahead of anything read from the socket.
        await asyncio.sleep(0)
        if hello:
            self._loop.call_soon(_feed, self._transport.get_protocol(), hello)
        try:
            secured = await starting
        except OSError:  # refused, cut or late; ssl.SSLError is one
            self._transport.abort()
            return
        if self._lost or secured is None or secured.is_closing():
            self._transport.abort()
            return
        secured.set_protocol(self._inner)
        self._inner.connection_made(secured)
        self._inner.data_received(self._header + self._received)


def _feed(protocol: Any, data: bytes) -> None:
    """Gives a buffered protocol bytes that were read before it was there."""
    while data:
        room = protocol.get_buffer(len(data))
        taken = min(len(room), len(data))
        room[:taken] = data[:taken]
        protocol.buffer_updated(taken)
        data = data[taken:]
