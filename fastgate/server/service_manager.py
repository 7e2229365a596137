"""Notifies systemd (the owner of NOTIFY_SOCKET) of the gateway's state: sd_notify(3) without its library."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["tell_service_manager"]


def tell_service_manager(state: str) -> None:
    """Sends `READY=1`, `STOPPING=1` and the like; nothing happens without NOTIFY_SOCKET or with an empty
    state.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not state or not path.startswith(("/", "@")):
        return
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        contextlib.suppress(OSError),
    ):
        sock.setblocking(False)
        sock.sendto(state.encode(), path.replace("@", "\0", 1))
