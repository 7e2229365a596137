"""One reload, from the wish to the answer. The first start is a reload from nothing.

    LOADING ──good──► PREPARING ──all prepared──► COMMITTING ──all serve it──► applied
       │ bad              │ one cannot, or dies
       └──────────────────┴──► refused: everything stays as it was, and the asker learns why

LOADING     a loader child parses and checks (loader.py).
PREPARING   hot (same listeners, workers and compiled settings): every worker builds the new plan beside its
old one. Otherwise a new generation: sockets are bound, workers forked, and they build the plan; nobody
accepts yet. COMMITTING  from here on there is no way back. Workers swap the plan, or start to accept; then
the old generation drains. A worker that dies now is replaced like any other, with the new config.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from fastgate.server.crew import Generation, NoSeat, Worker
from fastgate.server.loader import Answer, Loaded, LoadedConfig, Refused, load_into, open_memfd
from fastgate.server.process import fork_child
from fastgate.server.reactor import Timer
from fastgate.server.sockets import Listener
from fastgate.state.channel import Abort, Prepare, Problem, ReloadResult
from fastgate.state.host import DRAINING, READY

if TYPE_CHECKING:
    from fastgate.server.supervisor import Supervisor

__all__ = ["Reload"]

LIMIT_NS = 60_000_000_000
"""For loading, and again for preparing: far above what 100 000 routes take, short enough to be told that a
plugin hangs.
"""

COMMIT_LIMIT_NS = 10_000_000_000
"""A committed worker that does not report by then is hung; the reload ends without it."""

LOADER_NICE = 10
"""Parsing takes CPU time only when no request wants it, except at the start."""

RETRY_NS, RETRY_LIMIT_NS = 50_000_000, 3_000_000_000
"""An address that a draining generation is about to leave, or a seat that is about to be free, is waited for
this long.
"""

_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class Reload:
    """A reload under way. `request_ids` are the controller's askers; `done` is called once, at the end."""

    def __init__(
        self, supervisor: Supervisor, request_ids: Sequence[int], done: Callable[[ReloadResult], None]
    ) -> None:
        self._s = supervisor
        self.request_ids = list(request_ids)
        self._done = done
        self._started_ns = time.monotonic_ns()
        self._timer: Timer | None = None
        self._blob_fd = -1
        self._answer_fd = -1
        self._answer = b""
        self._loader_pid = 0
        self.config: LoadedConfig | None = None
        self._kind = "load"
        self._is_committing = False
        self._waiting: set[Worker] = set()
        self._generation: Generation | None = None
        self._bound: list[tuple[Listener, list[socket.socket]]] = []
        self._admin: Listener | None = None

    def start(self) -> None:
        try:
            self._fork_loader()
        except OSError as error:
            self._refuse([Problem(text=f"cannot fork the loader: {error}")], total=1)

    def _fork_loader(self) -> None:
        self._blob_fd = open_memfd()
        self._answer_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_fd, True)
        blob_fd, read = self._blob_fd, self._s.read_config
        self._s.reactor.watch(self._answer_fd, self._read_answer)
        try:
            self._loader_pid = fork_child(
                "fastgate-load",
                [blob_fd, write_fd],
                lambda: load_into(blob_fd, write_fd, read),
                nice=LOADER_NICE if self._s.generation is not None else 0,
            )
        finally:
            os.close(write_fd)
        self._limit(LIMIT_NS, self._loading_took_too_long)

    def cancel(self) -> None:
        """Gives up because the gateway stops."""
        self._refuse([Problem(text="the gateway is stopping")], total=1)

    def loader_gone(self, pid: int) -> None:
        """The loader was waited for: its number may soon be somebody else's. What it said is still in the
        pipe.
        """
        if pid == self._loader_pid:
            self._loader_pid = 0

    def owns(self, worker: Worker) -> bool:
        """True for workers of the generation that is not in use yet."""
        return (
            self._generation is not None and worker.generation is self._generation and not self._is_committing
        )

    # ---- LOADING

    def _read_answer(self) -> None:
        data = os.read(self._answer_fd, 1 << 16)
        if data:
            self._answer += data
            return
        self._close_answer()
        self._loader_pid = 0
        if not self._answer:
            self._refuse(
                [Problem(text="the loader died while it read the config; see the log above")], total=1
            )
            return
        answer = _decode_answer(self._answer)
        if isinstance(answer, Refused):
            self._refuse(answer.problems, answer.total)
            return
        self._load(answer)

    def _load(self, answer: Loaded) -> None:
        current = self._s.generation
        version = current.config.version + 1 if current is not None else 1
        self.config = LoadedConfig(version, answer, self._blob_fd, time.time_ns())
        self._blob_fd = -1
        topology = answer.topology
        if current is not None and current.config.topology.generation_key == topology.generation_key:
            self._kind = "hot"
        else:
            self._kind = "generation" if current is not None else "start"
        self._limit(LIMIT_NS, self._preparing_took_too_long)
        self._prepare(time.monotonic_ns() + RETRY_LIMIT_NS)

    def _loading_took_too_long(self) -> None:
        self._refuse([Problem(text=f"reading the config took longer than {LIMIT_NS // 10**9} s")], total=1)

    # ---- PREPARING

    def _prepare(self, retry_until_ns: int) -> None:
        assert self.config is not None
        topology = self.config.topology
        current = self._s.generation
        try:
            self._open_admin(topology.admin_listen)
            if self._kind == "hot":
                assert current is not None
                self._prepare_hot(current)
            else:
                self._prepare_generation(topology.listen, topology.workers)
        except NoSeat:
            self._retry(retry_until_ns, "too many workers are still draining")
        except ValueError as error:
            self._refuse([Problem(text=str(error), path="$.listen")], total=1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                self._retry(retry_until_ns, error.strerror or str(error))
            else:
                self._refuse([Problem(text=error.strerror or str(error), path="$.listen")], total=1)

    def _retry(self, until_ns: int, reason: str) -> None:
        self._undo()
        may_change = any(worker.state == DRAINING for worker in self._s.crew.workers.values())
        if may_change and time.monotonic_ns() < until_ns:
            self._s.reactor.after(
                RETRY_NS, lambda: self._prepare(until_ns) if self._s.reload is self else None
            )
        else:
            self._refuse([Problem(text=reason, path="$.listen")], total=1)

    def _open_admin(self, address: str | None) -> None:
        in_use = self._s.controller.listener
        if address == (in_use.address if in_use else None):
            self._admin = in_use
            return
        self._admin = None
        if address is not None:
            self._admin = Listener(address)
            self._open(self._admin, 1)

    def _open(self, listener: Listener, slots: int) -> None:
        try:
            self._bound.append((listener, listener.grow(slots)))
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen on {listener.address}: {os.strerror(error.errno or 0).lower()}"
            ) from error

    def _prepare_hot(self, current: Generation) -> None:
        assert self.config is not None
        self._waiting = {worker for worker in current.workers.values() if worker.state == READY}
        for worker in list(self._waiting):
            self._s.crew.tell(worker, Prepare(self.config.version, self.config.size), self.config.fd)
        self._proceed()

    def _prepare_generation(self, addresses: Sequence[str], workers: int) -> None:
        assert self.config is not None
        if not self._s.table.seats:
            self._s.map_memory(workers, self.config.topology.sizes)
        limit = len(self._s.table.seats) // 2
        if workers > limit:
            raise ValueError(f"workers: at most {limit} without a restart, got {workers}")
        listeners = self._s.listeners.resolve(addresses)
        for listener in listeners:
            self._open(listener, workers)
        number = self._s.table.generation + 1
        self._s.table.generation = number
        self._generation = Generation(number, self.config, listeners, workers)
        for slot in range(workers):
            worker = self._s.crew.spawn(self._generation, slot)
            self._generation.workers[slot] = worker
            self._waiting.add(worker)

    def worker_prepared(self, worker: Worker, version: int, problems: list[Problem]) -> bool:
        """False if this answer is not to this reload."""
        if self.config is None or version != self.config.version or worker not in self._waiting:
            return False
        if problems:
            self._refuse(problems, total=len(problems))
            return True
        self._waiting.discard(worker)
        self._proceed()
        return True

    def _preparing_took_too_long(self) -> None:
        self._refuse([Problem(text=f"building the plan took longer than {LIMIT_NS // 10**9} s")], total=1)

    # ---- COMMITTING

    def _proceed(self) -> None:
        if self._is_committing:
            if not self._waiting and self._every_slot_accepts():
                self._finish()
            return
        if self._waiting:
            return
        assert self.config is not None
        self._is_committing = True
        self._limit(COMMIT_LIMIT_NS, self._finish)
        if self._generation is None:
            generation = self._s.generation
            assert generation is not None
            self._s.adopt_config(self.config)
            members = [worker for worker in generation.workers.values() if worker.state == READY]
        else:
            self._s.adopt_generation(self._generation)
            members = list(self._generation.workers.values())
        self._waiting = set(members)
        for worker in members:
            self._s.crew.commit(worker)
        self._proceed()

    def _every_slot_accepts(self) -> bool:
        """True for a hot reload; a new generation may have lost a worker since, and then waits for its
        replacement.
        """
        generation = self._generation
        if generation is None:
            return True
        ready = [worker for worker in generation.workers.values() if worker.state == READY]
        return len(ready) == generation.slots

    def worker_ready(self, worker: Worker) -> None:
        if self._is_committing:
            self._waiting.discard(worker)
            self._proceed()

    def worker_gone(self, worker: Worker, status: str) -> None:
        """A worker died. Before the commit a new generation fails with it; otherwise the others decide."""
        if self.owns(worker):
            self._refuse([Problem(text=f"a new worker ended while it built the plan ({status})")], total=1)
        elif worker in self._waiting:
            self._waiting.discard(worker)
            self._proceed()

    def _finish(self) -> None:
        assert self.config is not None
        self._cancel_timer()
        self._s.adopt_admin(self._admin)
        self._done(self._result(applied=True, version=self.config.version, problems=[], total=0))

    # ---- refused

    def _refuse(self, problems: Sequence[Problem], total: int) -> None:
        self._cancel_timer()
        if self._loader_pid:
            os.kill(self._loader_pid, signal.SIGKILL)
            self._loader_pid = 0
        self._close_answer()
        if self._blob_fd >= 0:
            os.close(self._blob_fd)
            self._blob_fd = -1
        current = self._s.generation
        if self.config is not None and not self._is_committing:
            if self._generation is None and current is not None:
                for worker in current.workers.values():
                    if worker.state == READY:
                        self._s.crew.tell(worker, Abort(self.config.version))
            self._undo()
            self.config.close()
        version = current.config.version if current is not None else 0
        self._done(self._result(applied=False, version=version, problems=problems, total=total))

    def _undo(self) -> None:
        """Takes back what preparing did: workers that never accepted, sockets that never listened."""
        if self._generation is not None:
            for worker in self._generation.workers.values():
                worker.kill()
            self._generation = None
        for listener, sockets in self._bound:
            listener.forget(sockets)
        self._bound = []
        self._waiting = set()

    def _result(
        self, *, applied: bool, version: int, problems: Sequence[Problem], total: int
    ) -> ReloadResult:
        return ReloadResult(
            id=0,
            applied=applied,
            version=version,
            kind=self._kind,
            duration_ns=time.monotonic_ns() - self._started_ns,
            problems=list(problems),
            problems_total=total,
        )

    def _limit(self, limit_ns: int, call: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._s.reactor.after(limit_ns, call)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _close_answer(self) -> None:
        if self._answer_fd >= 0:
            self._s.reactor.unwatch(self._answer_fd)
            os.close(self._answer_fd)
            self._answer_fd = -1
