"""Messages between the supervisor and the processes it forked.

One `SOCK_SEQPACKET` socketpair per child: message borders are the kernel's, the end of a process is an end of
file, and a descriptor (the memfd with a config) travels along with SCM_RIGHTS. Messages are small msgpack
structs; nothing large is ever sent by value, so a send never has to wait. When it would, the other side has
stopped reading and is treated as hung.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fastgate.state.host import HostTable

__all__ = [
    "MAX_PROBLEMS",
    "Abort",
    "Channel",
    "ChannelClosed",
    "Closed",
    "Commit",
    "ConfigInstalled",
    "ControllerOrders",
    "Drain",
    "Lend",
    "Message",
    "Prepare",
    "Prepared",
    "Problem",
    "Ready",
    "ReloadRequest",
    "ReloadResult",
    "ReopenLogs",
    "Retire",
    "Return",
    "Stop",
    "bounded",
]

_MESSAGE_BYTES = 160 * 1024
"""Below the usual socket buffer (net.core.wmem_default, 208 KiB), which bounds one packet."""

MAX_PROBLEMS = 50
"""How many config errors travel in one message; the number of all goes with them."""


class Problem(msgspec.Struct, frozen=True):
    """One reason why a config was refused: where, what was found, what was expected, what might help; `text`
    says it all.
    """

    text: str
    path: str = ""
    found: str = ""
    expected: str = ""
    hint: str = ""
    where: str = ""
    event: str = "config refused"
    """What the log line says: not everything that keeps a config from coming into effect is its fault."""

    def __str__(self) -> str:
        return self.text


def bounded(problems: Sequence[Problem]) -> list[Problem]:
    """The first MAX_PROBLEMS of them, each cut to what fits into a message and can be encoded: what a plugin
    raises may be of any length, and may hold lone surrogates."""
    return [
        msgspec.structs.replace(
            problem, **{name: _cut(getattr(problem, name), limit) for name, limit in _FIELD_BYTES.items()}
        )
        for problem in problems[:MAX_PROBLEMS]
    ]


_FIELD_BYTES = {"text": 1200, "path": 300, "found": 500, "expected": 300, "hint": 400, "where": 300}


def _cut(text: str, limit: int) -> str:
    data = text.encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"


class Prepare(msgspec.Struct, tag=True, frozen=True):
    """To a worker: build the plan of the config in the attached memfd, but do not use it yet."""

    version: int
    size: int


class Prepared(msgspec.Struct, tag=True, frozen=True):
    """From a worker: the plan stands (no problems), or why it does not."""

    version: int
    problems: list[Problem] = []


class Commit(msgspec.Struct, tag=True, frozen=True):
    """To a worker: use the prepared plan from now on (and start to accept, when it does not yet)."""

    version: int


class Abort(msgspec.Struct, tag=True, frozen=True):
    """To a worker: drop the prepared plan."""

    version: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """From a worker: it serves this version."""

    version: int


class Drain(msgspec.Struct, tag=True, frozen=True):
    """To a worker: finish what is in flight within `limit_ns` and exit.
    `closing` are the indices of listeners that no worker serves afterwards: their accept queues are emptied
    first."""

    limit_ns: int
    closing: list[int] = []


class Closed(msgspec.Struct, tag=True, frozen=True):
    """From a worker that drains: it accepts nothing more from listeners that others serve."""


class Retire(msgspec.Struct, tag=True, frozen=True):
    """From a worker that got SIGTERM itself: let another take this slot, then drain me."""


class Lend(msgspec.Struct, tag=True, frozen=True):
    """To a worker: accept from the attached socket of `slot` too, until `Return`; its own worker is away for
    longer.
    """

    slot: int
    listener: int


class Return(msgspec.Struct, tag=True, frozen=True):
    """To a worker: stop accepting from the sockets of `slot`; its own worker is back."""

    slot: int


class ReopenLogs(msgspec.Struct, tag=True, frozen=True):
    """To a worker: reopen the log files, which were rotated."""


class ConfigInstalled(msgspec.Struct, tag=True, frozen=True):
    """To the controller: the config in the attached memfd is now in use."""

    version: int
    size: int
    digest: str
    realtime_ns: int
    state: int = 0
    """The version of the State document in it."""


class ReloadRequest(msgspec.Struct, tag=True, frozen=True):
    """From the controller: reload, and respond with this id. `state` 0: read the config file again. Else: put
    this version of the State document in place of version `base` and leave the file as it was read.
    """

    id: int
    state: int = 0
    base: int = 0


class ReloadResult(msgspec.Struct, tag=True, frozen=True):
    """To the controller: the result of a reload. `id` 0: the reload was not requested through the controller,
    and the message is informational.
    """

    id: int
    applied: bool
    version: int
    kind: str
    duration_ns: int
    problems: list[Problem] = []
    problems_total: int = 0


class Stop(msgspec.Struct, tag=True, frozen=True):
    """To the controller: end."""


Message = (
    Prepare
    | Prepared
    | Commit
    | Abort
    | Ready
    | Drain
    | Closed
    | Retire
    | Lend
    | Return
    | ReopenLogs
    | ConfigInstalled
    | ReloadRequest
    | ReloadResult
    | Stop
)


@dataclass(slots=True, frozen=True)
class ControllerOrders:
    """The arguments of the forked controller process, which closes the descriptors."""

    channel: Channel
    listening: socket.socket
    table: HostTable
    memory: Any  # what all processes share (fastgate.state.memory.HostMemory)
    version: int
    digest: str
    size: int
    config_fd: int
    config_realtime_ns: int
    last_reload: ReloadResult | None
    state: int = 0


_decode = msgspec.msgpack.Decoder(Message).decode
_encode = msgspec.msgpack.Encoder().encode


class ChannelClosed(Exception):
    """The process at the other end is gone."""


class Channel:
    """One end of the pair. Never blocks."""

    __slots__ = ("_socket",)

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, fd: int | None = None) -> bool:
        """False if the message could not be handed over: the other side is gone or does not read, or this end
        is closed. Never raises OSError, so that a sender to several processes reaches all of them.
        """
        try:
            if fd is None:
                self._socket.send(_encode(message))
            else:
                socket.send_fds(self._socket, [_encode(message)], [fd])
        except OSError:
            return False
        return True

    def receive(self) -> tuple[Message, int | None] | None:
        """The next message and the descriptor that came with it (now the caller's), or None if none is
        waiting.
        Raises ChannelClosed when the other end is gone."""
        try:
            data, fds, _flags, _address = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1)
        except BlockingIOError:
            return None
        except OSError:
            raise ChannelClosed from None
        for fd in fds[1:]:
            os.close(fd)
        try:
            return _decode(data), fds[0] if fds else None
        except msgspec.DecodeError:  # the end, or nothing that this version says
            for fd in fds[:1]:
                os.close(fd)
            raise ChannelClosed from None

    def close(self) -> None:
        self._socket.close()
