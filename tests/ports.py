"""A port for a server that must be told its number, reserved until the block ends.

A port that was only looked up with port 0 may be taken by any outgoing connection of the machine before the
server binds it. Here a bound socket holds it: Linux gives no connection a port that was bound explicitly, and
lets a second socket bind it when both have SO_REUSEADDR and the first does not listen.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

__all__ = ["reserved_port"]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that only a server with SO_REUSEADDR can bind meanwhile."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
