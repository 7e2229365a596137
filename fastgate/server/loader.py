"""The loader: a short-lived child that reads and checks the config, so that the supervisor never parses
anything.

It answers with one msgpack record on a pipe (the topology, which is all the supervisor has to know, or the
problems) and leaves the encoded config in a memfd that the supervisor passes on unread. Whatever a config or
a plugin does while it is checked (raise, leak, hang, die) happens here and costs one process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable

import msgspec

from fastgate.settings import ConfigError
from fastgate.state.channel import MAX_PROBLEMS, Problem
from fastgate.state.memory import Sizes

__all__ = ["Answer", "Loaded", "LoadedConfig", "Refused", "Topology", "load_into", "open_memfd", "problem_of"]

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


class Topology(msgspec.Struct, frozen=True):
    """What the supervisor needs of a config. Equal `generation_key`s mean: the running workers can take it as
    they are.
    """

    listen: list[str]
    workers: int
    admin_listen: str | None
    drain_timeout_ns: int
    watch: bool
    generation_key: bytes
    sizes: Sizes = Sizes()
    sources: list[str] = []  # files of plugin code to watch with the config file


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """The config is good; it lies in the memfd."""

    topology: Topology
    size: int
    digest: str


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The config is bad. `total` counts all problems, also those beyond MAX_PROBLEMS."""

    problems: list[Problem]
    total: int


Answer = Loaded | Refused


class LoadedConfig:
    """A good config: its version, topology and the memfd with its encoded form."""

    __slots__ = ("digest", "fd", "realtime_ns", "size", "topology", "version")

    def __init__(self, version: int, answer: Loaded, fd: int, realtime_ns: int) -> None:
        self.version = version
        self.topology = answer.topology
        self.size = answer.size
        self.digest = answer.digest
        self.fd = fd
        self.realtime_ns = realtime_ns

    def close(self) -> None:
        os.close(self.fd)


def open_memfd() -> int:
    return os.memfd_create("fastgate-config", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def load_into(
    blob_fd: int, answer_fd: int, read: Callable[[], tuple[Topology, bytes] | list[Problem]]
) -> None:
    """Runs in the loader: reads the config and answers."""
    found = read()
    answer: Answer
    if isinstance(found, list):
        answer = Refused(problems=found[:MAX_PROBLEMS], total=len(found))
    else:
        topology, blob = found
        with open(blob_fd, "wb", closefd=False) as file:
            file.write(blob)
        fcntl.fcntl(blob_fd, fcntl.F_ADD_SEALS, _SEALS)
        answer = Loaded(topology=topology, size=len(blob), digest=hashlib.sha256(blob).hexdigest()[:12])
    with open(answer_fd, "wb") as pipe:
        pipe.write(msgspec.msgpack.encode(answer))


def problem_of(error: ConfigError) -> Problem:
    return Problem(
        text=str(error),
        path=error.path,
        found=error.found,
        expected=error.expected,
        hint=error.hint,
        where=error.where,
    )
