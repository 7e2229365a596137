"""The sockets and workers of one reload attempt, until it is committed or undone.

Owns the sockets that are bound but do not listen, and the new generation's workers. `undo` releases them;
`Supervisor.adopt` takes them over. reload.py decides when.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from fastgate.server.loader import LoadedConfig
from fastgate.server.reload import CannotStage, NoRoomYet
from fastgate.server.sockets import Listener, Listeners
from fastgate.server.worker_pool import Generation, NoSeat, Worker, WorkerPool
from fastgate.state.channel import Problem
from fastgate.state.host import READY, HostTable

__all__ = ["Staging"]


class Staging:
    """One attempt's sockets and workers at a time."""

    def __init__(
        self,
        pool: WorkerPool,
        table: HostTable,
        listeners: Listeners,
        map_memory: Callable[[int, Any], None],
        assign: Callable[[LoadedConfig], None],
    ) -> None:
        """`map_memory(workers, sizes)` is called before the first fork and may raise OSError or
        MemoryError. `assign(config)` is called before a worker builds the plan of this config and may
        raise CannotStage."""
        self._pool = pool
        self._table = table
        self._listeners = listeners
        self._map_memory = map_memory
        self._assign = assign
        self.generation: Generation | None = None
        self.admin: Listener | None = None
        self._bound: list[tuple[Listener, list[socket.socket]]] = []

    def stage(
        self, config: LoadedConfig, current: Generation | None, admin_in_use: Listener | None
    ) -> tuple[str, list[Worker]]:
        """See Effects.stage. The kind is `hot`, `generation` or, if nothing runs yet, `start`."""
        try:
            self._open_admin(config.topology.admin_listen, admin_in_use)
            if current is not None and current.config.topology.generation_key == (
                config.topology.generation_key
            ):
                members = list(self._pool.members(current))
                # Without a serving worker the hot reload could not verify that the plan can be built: workers
                # forked with the new config can.
                if any(worker.state == READY for worker in members):
                    self._assign(config)
                    return "hot", members
            return "start" if current is None else "generation", self._new_generation(config)
        except BaseException:
            self.undo()
            raise

    def restaff(self, dead: Worker) -> Worker:
        """See Effects.restaff."""
        assert self.generation is not None
        try:
            worker = self._pool.spawn(self.generation, dead.slot)
        except NoSeat:
            raise CannotStage(Problem(text="too many workers are still draining")) from None
        except OSError as error:
            raise CannotStage(Problem(text=f"cannot fork a worker: {_reason(error)}")) from error
        self.generation.workers[dead.slot] = worker
        return worker

    def undo(self) -> None:
        """Undoes the staging: ends workers that never accepted, closes sockets that never listened."""
        if self.generation is not None:
            for worker in self.generation.workers.values():
                worker.kill()
            self.generation = None
        for listener, sockets in self._bound:
            listener.forget(sockets)
        self._bound = []
        self.admin = None

    def release(self) -> Generation | None:
        """Releases ownership of the staged resources, which are in use from now on; returns the new
        generation, if there is one."""
        generation, self.generation = self.generation, None
        self._bound = []
        return generation

    def _new_generation(self, config: LoadedConfig) -> list[Worker]:
        topology = config.topology
        if not self._table.seats:
            self._map(topology.workers, topology.sizes)
        limit = len(self._table.seats) // 2
        if topology.workers > limit:
            text = f"workers: at most {limit} without a restart, got {topology.workers}"
            raise CannotStage(Problem(text=text, path="$.workers"))
        try:
            listeners = self._listeners.resolve(topology.listen)
        except (ValueError, OSError) as error:
            raise CannotStage(Problem(text=_reason(error), path="$.listen")) from error
        for listener in listeners:
            self._open(listener, topology.workers, "$.listen")
        self._assign(config)
        number = self._table.generation + 1
        self._table.generation = number
        self.generation = Generation(number, config, listeners, topology.workers)
        try:
            for slot in range(topology.workers):
                self.generation.workers[slot] = self._pool.spawn(self.generation, slot)
        except NoSeat:
            raise NoRoomYet(Problem(text="too many workers are still draining", path="$.workers")) from None
        except OSError as error:
            raise CannotStage(Problem(text=f"cannot fork a worker: {_reason(error)}")) from error
        return list(self.generation.workers.values())

    def _map(self, workers: int, sizes: Any) -> None:
        try:
            self._map_memory(workers, sizes)
        except (MemoryError, OSError) as error:
            raise CannotStage(_no_memory(error)) from error

    def _open_admin(self, address: str | None, in_use: Listener | None) -> None:
        if address == (in_use.address if in_use else None):
            self.admin = in_use
            return
        self.admin = None
        if address is None:
            return
        try:
            self.admin = Listener(address)
        except (ValueError, OSError) as error:
            raise CannotStage(Problem(text=_reason(error), path="$.admin.listen")) from error
        self._open(self.admin, 1, "$.admin.listen")

    def _open(self, listener: Listener, slots: int, path: str) -> None:
        try:
            self._bound.append((listener, listener.grow(slots)))
        except OSError as error:
            hint = (
                "another process listens there: ss -ltnp shows which"
                if error.errno == errno.EADDRINUSE
                else ""
            )
            text = f"cannot listen on {listener.address}: {_reason(error)}"
            problem = Problem(text=text, path=path, hint=hint)
            if error.errno == errno.EADDRINUSE:
                raise NoRoomYet(problem) from error
            raise CannotStage(problem) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower() if error.strerror else str(error)
    return str(error)


def _no_memory(error: Exception) -> Problem:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return Problem(
            text=f"the shared memory cannot be mapped: {_reason(error)}",
            event="not enough memory",
            hint="lower the sizes in the section memory, or see vm.overcommit_memory and vm.max_map_count",
        )
    return Problem(
        text=f"the shared memory does not fit into the limit of {limit // 1_000_000} MB of address space",
        event="not enough address space",
        hint="raise ulimit -v (RLIMIT_AS), or lower the sizes in the section memory. Pages that are not "
        "used take no memory",
    )
