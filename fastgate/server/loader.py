"""The loader: a short-lived child that reads and checks the config, so that the supervisor never parses
anything.

It sends one msgpack record on a pipe (the topology for the supervisor, or the problems) and leaves the
encoded config in a memfd that the supervisor passes on unread. Faults of a config or plugin during the check
(exception, leak, hang, crash) are confined to this process.

A signal that kills a loader (the kernel out of memory, an operator) is no verdict on the config, so the
loader is restarted once. A loader that exits is not, because it would exit the same way again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import time
from collections.abc import Callable

import msgspec

from fastgate.server.process import exit_text, fork_child
from fastgate.server.reactor import Reactor
from fastgate.settings import ConfigError
from fastgate.state.channel import Problem, bounded
from fastgate.state.journal import Journal
from fastgate.state.memory import Sizes
from fastgate.state.versions import NEWEST

__all__ = [
    "Answer",
    "LoadOrder",
    "Loaded",
    "LoadedConfig",
    "Loader",
    "Read",
    "Reading",
    "Refused",
    "Topology",
    "load_into",
    "open_memfd",
    "problem_of",
]

NICE = 10
"""Parsing takes only CPU time that no request needs, except at the start."""

MOST_TRIES = 2
"""Loaders for one reload: the first, and one more if a signal ended it."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


class LoadOrder(msgspec.Struct, frozen=True):
    """The config to read."""

    source: bytes | None = None
    """The file as it was read before; None: read it now."""
    state: int = NEWEST
    """The version of the State document that belongs to it; NEWEST: the newest in the store that the config
    names."""
    store: str = ""
    """The store of this version. If the config names another one, NEWEST applies."""


class Reading(msgspec.Struct, frozen=True):
    """A valid config."""

    topology: Topology
    blob: bytes
    source: bytes = b""
    state: int = 0
    store: str = ""
    warning: str = ""
    """Why the State document is missing: the store cannot be read, and no document was in use before."""


Read = Callable[[LoadOrder], "Reading | list[Problem]"]


class Topology(msgspec.Struct, frozen=True):
    """The part of a config that the supervisor needs. With an equal `generation_key` the running workers can
    apply the config.
    """

    listen: list[str]
    workers: int
    admin_listen: str | None
    drain_timeout_ns: int
    watch: bool
    generation_key: bytes
    sizes: Sizes = Sizes()
    runtime_names: list[str] = []  # names in the runtime table that its plan reads
    sources: list[str] = []  # files of plugin code to watch with the config file


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """The config is valid; the memfd contains it, followed by the file that it was read from."""

    topology: Topology
    size: int
    digest: str
    source_size: int = 0
    state: int = 0
    store: str = ""
    warning: str = ""


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The config is invalid. `total` counts all problems, including those beyond MAX_PROBLEMS."""

    problems: list[Problem]
    total: int


Answer = Loaded | Refused


class LoadedConfig:
    """A valid config: its version, topology, State, and the memfd with its encoded form."""

    __slots__ = (
        *("digest", "fd", "realtime_ns", "size", "source_size", "state", "store"),
        *("topology", "version", "warning"),
    )

    def __init__(self, version: int, answer: Loaded, fd: int, realtime_ns: int) -> None:
        self.version = version
        self.topology = answer.topology
        self.size = answer.size
        self.digest = answer.digest
        self.source_size = answer.source_size
        self.state = answer.state
        self.store = answer.store
        self.warning = answer.warning
        self.fd = fd
        self.realtime_ns = realtime_ns

    def close(self) -> None:
        os.close(self.fd)

    def order(self, state: int) -> LoadOrder:
        """The order to read the same file with this version of the State document. Raises OSError."""
        return LoadOrder(os.pread(self.fd, self.source_size, self.size), state, self.store)


def open_memfd() -> int:
    return os.memfd_create("fastgate-config", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def load_into(blob_fd: int, answer_fd: int, read: Read, order: LoadOrder) -> None:
    """Runs in the loader: reads the config and sends the result."""
    found = read(order)
    answer: Answer
    if isinstance(found, list):
        answer = Refused(problems=bounded(found), total=len(found))
    else:
        blob = found.blob
        with open(blob_fd, "wb", closefd=False) as file:
            file.write(blob)
            file.write(found.source)
        fcntl.fcntl(blob_fd, fcntl.F_ADD_SEALS, _SEALS)
        answer = Loaded(
            topology=found.topology,
            size=len(blob),
            digest=hashlib.sha256(blob).hexdigest()[:12],
            source_size=len(found.source),
            state=found.state,
            store=found.store,
            warning=found.warning,
        )
    with open(answer_fd, "wb") as pipe:
        pipe.write(msgspec.msgpack.encode(answer))


class Loader:
    """The child that reads the config, as the supervisor sees it. One at a time."""

    def __init__(
        self,
        reactor: Reactor,
        journal: Journal,
        read: Read,
        on_loaded: Callable[[Callable[[int], LoadedConfig]], None],
        on_refused: Callable[[list[Problem], int], None],
    ) -> None:
        self._reactor = reactor
        self._journal = journal
        self._read = read
        self._on_loaded = on_loaded
        self._on_refused = on_refused
        self._pid = 0
        self._blob_fd = -1
        self._answer_fd = -1
        self._answer = b""
        self._nice = 0
        self._order = LoadOrder()
        self._tries = 0
        self._status: int | None = None  # exit status of the child, after it was reaped
        self._is_silent = False  # it closed the pipe without a result: its exit status decides

    def start(self, order: LoadOrder, *, nice: int) -> None:
        """Forks; ends in `on_loaded`, with a function that creates the config of a version, or in
        `on_refused`. Raises OSError."""
        self._nice = nice
        self._order = order
        self._tries = 0
        self._fork()

    def _fork(self) -> None:
        self.stop()
        self._tries += 1
        self._answer = b""
        self._status = None
        self._blob_fd = open_memfd()
        self._answer_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_fd, True)
        blob_fd, read, order = self._blob_fd, self._read, self._order
        self._reactor.watch(self._answer_fd, self._receive)
        try:
            self._pid = fork_child(
                "fastgate-load",
                [blob_fd, write_fd],
                lambda: load_into(blob_fd, write_fd, read, order),
                nice=self._nice,
            )
        finally:
            os.close(write_fd)

    def stop(self) -> None:
        """Ends the child if there is one, and discards its result; idempotent."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._pid = 0
        self._is_silent = False
        self._close_answer()
        if self._blob_fd >= 0:
            os.close(self._blob_fd)
            self._blob_fd = -1

    def gone(self, pid: int, status: int) -> None:
        """A child was reaped: its pid may be reused. Its result is still in the pipe."""
        if pid == self._pid:
            self._pid = 0
            self._status = status
            if self._is_silent:
                self._died(status)

    def _receive(self) -> None:
        data = os.read(self._answer_fd, 1 << 16)
        if data:
            self._answer += data
            return
        self._close_answer()
        try:
            answer = _decode_answer(self._answer)
        except msgspec.DecodeError:  # no record, or the beginning of one
            self._is_silent = True
            if self._status is not None:
                self._died(self._status)
            return
        self._pid = 0  # the child has finished
        if isinstance(answer, Refused):
            self._on_refused(answer.problems, answer.total)
            return
        fd, self._blob_fd = self._blob_fd, -1
        self._on_loaded(lambda version: LoadedConfig(version, answer, fd, time.time_ns()))

    def _died(self, status: int) -> None:
        """The child ended without a result."""
        how = exit_text(status)
        if status < 0 and self._tries < MOST_TRIES:
            self._journal.warning("config loader killed, started again", status=how)
            try:
                self._fork()
            except OSError as error:
                self._on_refused([Problem(text=f"cannot fork the loader: {error}")], 1)
            return
        if status < 0:
            text = f"the process that reads the config was ended by {how} {self._tries} times"
        else:
            text = f"the process that reads the config ended without a result ({how}); see the log above"
        self.stop()
        self._on_refused([Problem(text=text)], 1)

    def _close_answer(self) -> None:
        if self._answer_fd >= 0:
            self._reactor.unwatch(self._answer_fd)
            os.close(self._answer_fd)
            self._answer_fd = -1


_decode_answer = msgspec.msgpack.Decoder(Answer).decode


def problem_of(error: ConfigError) -> Problem:
    return Problem(
        text=str(error),
        path=error.path,
        found=error.found,
        expected=error.expected,
        hint=error.hint,
        where=error.where,
    )
