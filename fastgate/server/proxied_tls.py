"""A PROXY protocol header, then TLS, on one connection: what a TCP load balancer sends to a TLS listener.

The event loop can start TLS on a connection that has begun in plain text, but only from the next byte it
reads; the ClientHello mostly arrives in one piece with the header. The bytes after the header are therefore
passed to the loop's own TLS protocol once it is installed. The gateway's protocol is attached when the
handshake is complete and receives the header first, as on a listener without TLS.

    HEADER ─ complete ─► HANDSHAKE ─ complete ─► the gateway's protocol takes over the connection
       └─ malformed, late: cut       └─ refused, late: cut
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
        """The header must arrive within `timeout_s`, and the handshake within the same time again."""
        self._loop, self._inner, self._context, self._timeout_s = loop, inner, context, timeout_s
        self._received = b""  # plain text until the header is complete, then decrypted bytes for `inner`
        self._header = b""
        self._transport: asyncio.Transport
        self._late: asyncio.TimerHandle
        self._handshake: asyncio.Task[None] | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._handshake is not None:
            return  # some loops call this for the TLS transport too; _secure handles it
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not derive from it
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
        self._transport.pause_reading()  # until start_tls has installed its protocol, which then reads
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
        # One iteration of the loop: start_tls has installed its protocol and scheduled its connection_made;
        # calls scheduled now run after that, and before any bytes read from the socket.
        await asyncio.sleep(0)
        if hello:
            self._loop.call_soon(_feed, self._transport.get_protocol(), hello)
        try:
            secured = await starting
        except OSError:  # refused, cut or late; ssl.SSLError is an OSError
            self._transport.abort()
            return
        if self._lost or secured is None or secured.is_closing():
            self._transport.abort()
            return
        secured.set_protocol(self._inner)
        self._inner.connection_made(secured)
        self._inner.data_received(self._header + self._received)


def _feed(protocol: Any, data: bytes) -> None:
    """Passes bytes to a buffered protocol that were read before it was installed."""
    while data:
        room = protocol.get_buffer(len(data))
        taken = min(len(room), len(data))
        room[:taken] = data[:taken]
        protocol.buffer_updated(taken)
        data = data[taken:]
