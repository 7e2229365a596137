"""The listening sockets: opened by the supervisor, inherited by the workers, closed only when a listener
leaves the config.

TCP: one `SO_REUSEPORT` socket for each worker slot, so the kernel spreads connections and no two workers race
for one. When workers shrink, the sockets of the missing slots stay in the group (closing one would reset what
waits in it) and the remaining workers serve them too. A new socket is only bound at first: it joins the
group, and gets connections, when a worker that is about to accept calls listen(2), so a reload that fails
loses no connections. Unix: one socket for all workers; there is no group to spread over.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence

from fastgate.config import parse_address

__all__ = ["BACKLOG", "Listener", "Listeners", "bind_target", "has_waiting", "refuse_new"]

BACKLOG = 4096
"""Accept queue of each socket; the kernel caps it at net.core.somaxconn, which is 4096 by default since Linux
5.4.
"""

_SO_ATTACH_FILTER = 26

# Classic BPF over the TCP header: drop a segment with SYN set, pass the rest (linux/filter.h; the offsets
# count from the TCP header because tcp_filter() runs after the IP header was pulled).
_DROP_SYN = struct.pack(
    "=" + "HBBI" * 4,
    *(0x30, 0, 0, 13),  # A = byte 13, the flags
    *(0x45, 0, 1, 0x02),  # SYN set? next, otherwise skip one
    *(0x06, 0, 0, 0),  # drop
    *(0x06, 0, 0, 0xFFFFFFFF),  # pass whole
)


def bind_target(address: str) -> tuple[socket.AddressFamily, tuple[str, int] | str]:
    """The family and the address to bind for a configured address. Raises ValueError if it is malformed,
    OSError if the host is unknown. No host means every IPv4 interface; `[::]` every IPv6 one."""
    parsed = parse_address(address)
    if parsed.unix_path:
        return socket.AF_UNIX, parsed.unix_path
    if ":" in parsed.host:
        return socket.AF_INET6, (parsed.host, parsed.port)
    try:
        found = socket.getaddrinfo(
            parsed.host or "0.0.0.0", parsed.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OSError(error.errno, f"cannot listen on {address}: {reason}") from error
    family, _kind, _proto, _name, sockaddr = found[0]
    return family, (str(sockaddr[0]), int(sockaddr[1]))


def refuse_new(sockets: Iterable[socket.socket]) -> None:
    """Refuse new connections on these TCP sockets; those that are established for the client can still be
    accepted.

    Between the last accept and close(2) a completed handshake would be reset. With the first packet of
    handshakes dropped, the queue can be emptied and stays empty; the client's retry, a second later, reaches
    a closed port and is refused.
    """
    program = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    for sock in sockets:
        if sock.family != socket.AF_UNIX:
            # A kernel without socket filters (gVisor) leaves a window of microseconds: that does not prevent
            # the drain.
            with contextlib.suppress(OSError):
                sock.setsockopt(
                    socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 4, ctypes.addressof(program))
                )


def has_waiting(sockets: Sequence[socket.socket]) -> bool:
    """True if a connection waits in the accept queue of one of them."""
    poll = select.poll()
    for sock in sockets:
        poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class Listener:
    """One configured address and its sockets, one for each slot (Unix: one in all)."""

    __slots__ = ("_bind_to", "_family", "address", "owned_inode", "sockets")

    def __init__(self, address: str) -> None:
        self.address = address
        self.sockets: list[socket.socket] = []
        self._family, self._bind_to = bind_target(address)
        self.owned_inode = 0

    @property
    def is_unix(self) -> bool:
        return self._family == socket.AF_UNIX

    def grow(self, slots: int) -> list[socket.socket]:
        """Binds the missing sockets for `slots` workers; returns the new sockets. An OSError leaves the
        listener unchanged."""
        new: list[socket.socket] = []
        wanted = 1 if self.is_unix else slots
        try:
            while len(self.sockets) + len(new) < wanted:
                is_first = not self.sockets and not new
                new.append(self._open_unix() if self.is_unix else self._open_tcp(is_first))
        except OSError:
            for sock in new:
                sock.close()
            raise
        self.sockets += new
        return new

    def served_by(self, slot: int, slots: int) -> list[socket.socket]:
        """The sockets that the worker in `slot` of `slots` accepts from."""
        return self.sockets if self.is_unix else self.sockets[slot::slots]

    def bound_address(self) -> str:
        """The address with the port the kernel chose."""
        if self.is_unix:
            return self.address
        host, port = self.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if self._family == socket.AF_INET6 else f"{host}:{port}"

    def forget(self, sockets: Sequence[socket.socket]) -> None:
        """Closes sockets that never listened (a reload that failed)."""
        for sock in sockets:
            self.sockets.remove(sock)
            sock.close()

    def close(self) -> None:
        """Closes this process's handles. The accept queues live until the last worker has closed its own."""
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
        self._unlink()

    def _open_tcp(self, is_first: bool) -> socket.socket:
        if is_first:
            self._check_free()
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self._family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind(self._bind_to)
        except OSError:
            sock.close()
            raise
        if is_first:
            host, port = sock.getsockname()[:2]
            self._bind_to = (host, port)
        return sock

    def _check_free(self) -> None:
        """OSError if another process listens here. With SO_REUSEPORT alone a second gateway would silently
        share the port.
        """
        with socket.socket(self._family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(self._bind_to)

    def _open_unix(self) -> socket.socket:
        path = str(self._bind_to)
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)  # left behind by a killed process
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(path)
        except OSError:
            sock.close()
            raise
        self.owned_inode = os.stat(path).st_ino
        return sock

    def _unlink(self) -> None:
        if self.owned_inode:
            with contextlib.suppress(OSError):
                if os.stat(str(self._bind_to)).st_ino == self.owned_inode:
                    os.unlink(str(self._bind_to))
            self.owned_inode = 0


class Listeners:
    """The listeners in use, by address and how often the address occurred before it (`127.0.0.1:0` twice is
    two ports).
    """

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, int], Listener] = {}

    def resolve(self, addresses: Sequence[str]) -> list[Listener]:
        """A listener for each address: the one in use, or a new one without sockets. ValueError, OSError
        (unknown host).
        """
        seen: dict[str, int] = {}
        found = []
        for address in addresses:
            nth = seen.get(address, 0)
            seen[address] = nth + 1
            found.append(self._by_key.get((address, nth)) or Listener(address))
        return found

    def replace(self, listeners: Sequence[Listener]) -> list[Listener]:
        """Makes these the listeners in use; returns those that no longer are."""
        removed = [old for old in self._by_key.values() if old not in listeners]
        seen: dict[str, int] = {}
        self._by_key = {}
        for listener in listeners:
            nth = seen.get(listener.address, 0)
            seen[listener.address] = nth + 1
            self._by_key[listener.address, nth] = listener
        return removed

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._by_key.values())
