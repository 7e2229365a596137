"""The supervisor: owns the listening sockets and the shared memory, forks everything else, and carries no
traffic.

One thread, one `select` loop (reactor.py), standard library only. Its parts are separate modules:
worker_pool.py for the workers, reload.py for reloads, sockets.py for the listeners, loader.py for parsing.
This module combines them with signals, the controller and shutdown. docs/operations.md describes the
behavior.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fastgate._core.shm.runtime import RuntimeTableFull
from fastgate.server.controller import Controller
from fastgate.server.loader import NICE as LOADER_NICE
from fastgate.server.loader import LoadedConfig, Loader, LoadOrder, Read
from fastgate.server.process import exit_text, name_process
from fastgate.server.reactor import Reactor, Timer
from fastgate.server.reload import CannotLoad, CannotStage, Outcome, Reload
from fastgate.server.service_manager import tell_service_manager
from fastgate.server.sockets import Listeners, refuse_new
from fastgate.server.staging import Staging
from fastgate.server.worker import WorkerOrders
from fastgate.server.worker_pool import Generation, NoSeat, Worker, WorkerPool
from fastgate.state.channel import (
    Closed,
    ControllerOrders,
    Message,
    Prepared,
    Problem,
    Ready,
    ReloadRequest,
    ReloadResult,
    ReopenLogs,
    Retire,
    bounded,
)
from fastgate.state.files import Stamp, stamp_of
from fastgate.state.host import DRAINING, SERVING, STARTING_UP, STOPPING, HostTable
from fastgate.state.journal import Journal

__all__ = ["Supervisor"]

TICK_NS = 1_000_000_000
"""Interval of the checks for a changed config file and for hung workers."""

PAUSED_NS = 2_000_000_000
"""A tick this late is not explained by a busy machine: this process was stopped."""

SETTLE_NS = 200_000_000
"""A changed config file is read after it has been unchanged for this long: editors write in several steps."""

HANG_LIMIT_NS = 10_000_000_000
"""A loop that has not turned for 10 s serves no client; a plugin that blocks it for 1 s is not killed for
that.
"""

SEATS_LEAST = 16
SEATS_PER_WORKER = 4
"""Two full generations that drain, one that serves, one that starts."""

RETRY_NS = 100_000_000
CONTROLLER_STOP_NS = 3_000_000_000
CONTROLLER_PAUSE_CAP_NS = 5_000_000_000


class Supervisor:
    """Everything between `fastgate run` and its exit status."""

    def __init__(
        self,
        read_config: Read,
        work: Callable[[WorkerOrders], None],
        control: Callable[[ControllerOrders], None] | None,
        *,
        memory: Any,
        map_host: Callable[[int, Any], Any],
        watched: Sequence[Path] = (),
        ready_fd: int | None = None,
        hang_limit_ns: int = HANG_LIMIT_NS,
        on_ready: Callable[[list[str], str | None], None] | None = None,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        """`memory` is zeroed shared memory for the host table; `map_host` maps the other shared memory for a
        number of slots and the config's sizes. `read_config` runs in the loader, `work` in each worker,
        `control` in the controller: each in its own process. `warm_up` runs once here, while the first config
        is being read.
        """
        self.journal = Journal("supervisor")
        self.reactor = Reactor(self._failed)
        self.table = HostTable(memory, 0)
        self.listeners = Listeners()
        self.generation: Generation | None = None
        self.reload: Reload[LoadedConfig, Worker] = Reload(self)
        self.loader = Loader(
            self.reactor, self.journal, read_config, self.reload.loaded, self.reload.not_loaded
        )
        self.pool = WorkerPool(self.reactor, self.table, self.journal, work, self._heard, hang_limit_ns)
        self.controller = Controller(self.reactor, self.table, self.journal, control, self._asked)
        self._old: list[Generation] = []  # to be drained when the current generation is complete
        self._staging = Staging(self.pool, self.table, self.listeners, self.map_memory, self._assign)
        self._released = (0, 0)  # the oldest and the newest plan in use when runtime values were last freed
        self._memory = memory
        self._map_host = map_host
        self._watched = list(watched)
        self._seen: list[Stamp | None] = []
        self._seen = self._look()
        self._ready_fd = ready_fd
        self._on_ready = on_ready
        self._warm_up = warm_up
        self._status = 0
        self._hang_limit_ns = hang_limit_ns
        self._ticked_ns = time.monotonic_ns()

    def run(self) -> int:
        """Serves until stopped; returns the exit status: 0 after a drain, 1 if it could not start or was
        aborted."""
        name_process("fastgate")
        self.table.supervisor_pid = os.getpid()
        self.table.started_realtime_ns = time.time_ns()
        self.reactor.on_signals(
            (
                signal.SIGCHLD,
                signal.SIGTERM,
                signal.SIGINT,
                signal.SIGQUIT,
                signal.SIGHUP,
                signal.SIGUSR1,
            ),
            self._signalled,
        )
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self.reactor.after(TICK_NS, self._tick)
        self.request_reload([])
        if self._warm_up is not None:
            self._warm_up()
        gc.collect()
        gc.freeze()  # a child's collector would otherwise write to the headers of these pages and copy them
        try:
            self.reactor.run()
        finally:
            # Otherwise a signal during the interpreter's shutdown would change the exit status.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            self.reactor.close()
        return self._status

    def map_memory(self, workers: int, sizes: Any) -> None:
        """Fixes the maximum number of workers, draining ones included. Unused slots cost no memory."""
        room = (len(memoryview(self._memory)) - HostTable.size(0)) // (HostTable.size(1) - HostTable.size(0))
        seats = min(room, max(SEATS_LEAST, SEATS_PER_WORKER * max(workers, len(os.sched_getaffinity(0)))))
        self.table.add_seats(self._memory, seats)
        self.pool.memory = self.controller.memory = self._map_host(seats, sizes)

    # ---- runtime values

    def _assign(self, config: LoadedConfig) -> None:
        """Assigns slots in the runtime table to the names that this config's plan reads. Raises
        CannotStage."""
        names = config.topology.runtime_names
        runtime = getattr(self.pool.memory, "runtime", None)  # the memory of tests may have no such part
        if runtime is None:
            return
        self._released = (0, 0)
        try:
            runtime.assign(names, config.version)
        except RuntimeTableFull as error:
            self.pool.memory.metrics.counter("fastgate_runtime_table_full_total").add()
            problem = Problem(
                text=f"$.memory.runtime_slots: {error}",
                path="$.memory.runtime_slots",
                found=f"{len(names)} runtime values",
                expected=f"at most {runtime.capacity}",
                hint="raise memory.runtime_slots and restart",
            )
            raise CannotStage(problem) from error

    def _release(self) -> None:
        """Frees the runtime values that no current plan reads. Deferred while one is being written."""
        runtime = getattr(self.pool.memory, "runtime", None)
        if runtime is None or not self.reload.version:
            return
        in_use = [self.reload.version, self.reload.attempted]
        for worker in self.pool.workers.values():
            in_use += (worker.seat.oldest_version, worker.seat.config_version, worker.building)
        versions = [version for version in in_use if version]
        bounds = (min(versions), max(versions))
        if bounds != self._released and runtime.release(*bounds):
            self._released = bounds

    # ---- signals and time

    def _failed(self, error: Exception) -> None:
        """A bug, or an exhausted resource. The operation fails, and everything else continues."""
        text = "".join(traceback.format_exception(error))
        self.journal.error("supervisor: a step failed", problem=repr(error), traceback=text)

    def _signalled(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self.request_reload([])
        elif number == signal.SIGUSR1:
            for worker in list(self.pool.workers.values()):
                self.pool.tell(worker, ReopenLogs())
        elif self.table.phase != STOPPING:
            self._stop(number.name)
        elif number == signal.SIGINT:
            self.journal.warning("stopping at once", signal=number.name)
            self._kill_all()
        else:  # repeated signals repeat the notice: service managers and scripts signal twice
            self.journal.info("stopping already", signal=number.name)

    def _tick(self) -> None:
        self.reactor.after(TICK_NS, self._tick)
        self._kill_hung()
        self._release()
        config = self.generation.config if self.generation else None
        if config is not None and config.topology.watch:
            now = self._look()
            if now != self._seen:
                self._settle(now)
            else:
                self._seen = now  # unchanged, but the stamps may have settled

    def _kill_hung(self) -> None:
        now_ns = time.monotonic_ns()
        is_late = now_ns - self._ticked_ns > PAUSED_NS
        self._ticked_ns = now_ns
        # A late tick means that this process was stopped or the machine suspended, and its children with it.
        if not is_late:
            self.pool.kill_hung(now_ns)
            self.controller.kill_hung(now_ns, self._hang_limit_ns)

    def _watch(self, config: LoadedConfig) -> None:
        """Watches the config file and the sources this config names."""
        sources = [Path(name) for name in config.topology.sources]
        if self._watched[1:] != sources:
            self._watched[1:] = sources
            self._seen = self._seen[:1]
            self._seen = self._look()

    def _look(self) -> list[Stamp | None]:
        return [stamp_of(path, known) for path, known in zip_longest(self._watched, self._seen)]

    def _settle(self, before: list[Stamp | None]) -> None:
        def check() -> None:
            now = self._look()
            if now != before:
                self._settle(now)
            elif now != self._seen:
                self._seen = now
                self.request_reload([])

        self.reactor.after(SETTLE_NS, check)

    # ---- reloads: the effects of the state machine in reload.py

    def request_reload(self, ids: list[int]) -> None:
        """Starts a reload, or queues one after the current one."""
        self.reload.ask(ids)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def after(self, delay_ns: int, call: Callable[[], None]) -> Timer:
        return self.reactor.after(delay_ns, call)

    def load(self, change: ReloadRequest | None) -> None:
        config = self.reload.config
        if config is None:
            self._seen = self._look()
            self.loader.start(LoadOrder(), nice=0)
            return
        if change is None:
            self._seen = self._look()
            order = LoadOrder(None, config.state, config.store)
        elif change.base != config.state:
            text = f"state version {config.state} is in effect, not {change.base}"
            raise CannotLoad("conflict", Problem(text=text, event="state refused"))
        else:
            order = config.order(change.state)
        tell_service_manager(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.loader.start(order, nice=LOADER_NICE)

    def stop_loading(self) -> None:
        self.loader.stop()

    def stage(self, config: LoadedConfig) -> tuple[str, Sequence[Worker]]:
        return self._staging.stage(config, self.generation, self.controller.listener)

    def restaff(self, dead: Worker) -> Worker:
        return self._staging.restaff(dead)

    def unstage(self) -> None:
        self._staging.undo()

    def may_get_room(self) -> bool:
        return any(worker.state == DRAINING for worker in self.pool.workers.values())

    def members(self) -> list[Worker]:
        return list(self.pool.members(self.generation)) if self.generation is not None else []

    def slots(self) -> int:
        generation = self._staging.generation or self.generation
        return generation.slots if generation is not None else 1

    def send(self, worker: Worker, message: Message, config: LoadedConfig | None = None) -> None:
        self.pool.tell(worker, message, config.fd if config is not None else None)

    def adopt(self, config: LoadedConfig) -> None:
        """Makes this the current config, also for workers forked later."""
        staged = self._staging.release()
        self.controller.config = config
        self._watch(config)
        self.table.config_version = config.version
        if staged is None:
            assert self.generation is not None
            self.generation.config.close()
            self.generation.config = config
            return
        old, self.generation = self.generation, staged
        self.table.workers_wanted = staged.slots
        self.listeners.replace(staged.listeners)
        if old is not None:
            self._old.append(old)

    def is_in_effect(self) -> bool:
        generation = self.generation
        assert generation is not None
        return generation.is_complete() and all(
            worker.serving == generation.config.version
            for worker in self.pool.workers.values()
            if worker.accepts
        )

    def replace(self, worker: Worker) -> None:
        self._retire(worker)

    def discard(self, worker: Worker, problem: Problem) -> None:
        # Its early death delays the retries.
        self.journal.error("worker cannot build the plan", worker=worker.pid, problem=str(problem))
        worker.kill()

    def turn_away(self, askers: Sequence[int], problem: Problem) -> None:
        for request_id in askers:
            self.controller.tell(ReloadResult(request_id, False, 0, "load", 0, [problem], 1))

    def report(self, outcome: Outcome[LoadedConfig]) -> None:
        is_start = self.table.phase == STARTING_UP
        is_stopping = self.table.phase == STOPPING
        if outcome.config is not None:
            config = outcome.config
            if not is_stopping:
                self.controller.listen(self._staging.admin)
            if config.warning:
                self.journal.warning("serving without state", problem=config.warning)
            self.journal.info(
                "config in use", version=outcome.version, kind=outcome.kind,
                routes=config.topology.sizes.routes, took_ms=outcome.duration_ns // 1_000_000,
                **({"state": config.state} if config.state else {}),
            )  # fmt: skip
            self.controller.tell_config(config)
            if is_start:
                self._started()
            else:
                self.table.reloads_applied += 1
        else:
            if not is_start:
                self.table.reloads_refused += 1
            if not is_stopping:
                for problem in outcome.problems:
                    more = {"hint": problem.hint} if problem.hint and problem.hint not in str(problem) else {}
                    self.journal.error(problem.event, problem=str(problem), **more)
        self.table.last_reload_realtime_ns = time.time_ns()
        if self.table.phase != STOPPING and self.generation is not None:
            tell_service_manager("READY=1")
        for request_id in outcome.askers or [0]:
            self.controller.last_reload = ReloadResult(
                request_id,
                outcome.applied,
                outcome.version,
                outcome.kind,
                outcome.duration_ns,
                bounded(outcome.problems),
                outcome.total,
            )
            self.controller.tell(self.controller.last_reload)
        self._release()
        if self.generation is None and not is_stopping:
            self._status = 1
            self.reactor.stop()

    def _asked(self, message: Message) -> None:
        if isinstance(message, ReloadRequest):
            self.reload.ask([message.id], message if message.state else None)

    def _retire_old_generations(self) -> None:
        """Drains the previous generations, once the current one accepts in every slot."""
        if self.generation is not None and self.generation.is_complete():
            while self._old:
                self._retire_generation(self._old.pop())

    def _retire_generation(self, old: Generation) -> None:
        kept = list(self.listeners)
        closing = [index for index, listener in enumerate(old.listeners) if listener not in kept]
        limit_ns = old.config.topology.drain_timeout_ns
        for index in closing:
            refuse_new(old.listeners[index].sockets)
        for worker in [worker for worker in self.pool.workers.values() if worker.generation is old]:
            self.pool.drain(worker, limit_ns, closing)
        for index in closing:
            old.listeners[index].close()
        old.config.close()

    # ---- workers

    def _heard(self, worker: Worker, message: Message) -> None:
        match message:
            case Prepared():
                self.reload.prepared(worker, message.version, message.problems)
            case Ready():
                self.pool.ready(worker, message.version)
                if worker.replaces is not None:
                    self.pool.drain(worker.replaces, self._drain_limit_ns(), [])
                    worker.replaces = None
                self._retire_old_generations()
                self.reload.ready(worker, message.version)
            case Closed():
                worker.accepts = False
                self.reload.progress()
            case Retire():
                self._retire(worker)
            case _:
                self.journal.warning("unexpected message", worker=worker.pid, message=type(message).__name__)

    def _retire(self, worker: Worker) -> None:
        generation = self.generation
        if generation is None or generation.workers.get(worker.slot) is not worker or worker.wants_out:
            return
        if self.table.phase == STOPPING:
            return
        worker.wants_out = True
        self._fill(generation, worker.slot, worker)

    def _fill(self, generation: Generation, slot: int, replaces: Worker | None = None) -> None:
        """Forks a worker into the slot, unless the state has changed since this was scheduled."""
        is_wanted = generation is self.generation and slot < generation.slots and self.table.phase != STOPPING
        if not is_wanted or generation.workers.get(slot) not in (None, replaces):
            return
        try:
            worker = self.pool.spawn(generation, slot)
        except (NoSeat, OSError) as error:
            self.journal.warning("cannot fork a worker yet", slot=slot, problem=repr(error))
            self.reactor.after(RETRY_NS, lambda: self._fill(generation, slot, replaces))
            return
        worker.replaces = replaces
        generation.workers[slot] = worker

    def _reap(self) -> None:
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == 0:
                break
            status = os.waitstatus_to_exitcode(raw)
            if pid == self.controller.pid:
                self.controller.gone(status)
            elif (worker := self.pool.reaped(pid)) is not None:
                self._worker_gone(worker, status)
            else:
                self.loader.gone(pid, status)
        if self.table.phase == STOPPING:
            self._stop_further()

    def _worker_gone(self, worker: Worker, status: int) -> None:
        how = exit_text(status)
        if worker.state == DRAINING:
            self.journal.info("worker drained", worker=worker.pid, slot=worker.slot, status=how)
            return
        is_staged = self.reload.stages(worker)
        self.reload.gone(worker, how)
        if is_staged:
            return
        generation = worker.generation
        if self.table.phase == STOPPING or generation is not self.generation:
            return
        if generation.workers.get(worker.slot) is not None:
            return  # it was to be replaced, and has been
        self.table.worker_restarts += 1
        pause_ns = self.pool.restart_pause_ns(worker)
        pause_ms = pause_ns // 1_000_000
        self.journal.warning(
            "worker died", worker=worker.pid, slot=worker.slot, status=how, restart_in_ms=pause_ms
        )
        if pause_ns:
            self.pool.lend(generation, worker.slot)
            self.reactor.after(pause_ns, lambda: self._fill(generation, worker.slot, worker.replaces))
        else:
            self._fill(generation, worker.slot, worker.replaces)

    # ---- start and end

    def _started(self) -> None:
        assert self.generation is not None
        self.table.phase = SERVING
        self.table.ready_realtime_ns = time.time_ns()
        listen = [listener.bound_address() for listener in self.generation.listeners]
        admin = self.controller.address()
        self.journal.info("serving", listen=listen, admin=admin or "off", workers=self.generation.slots)
        if self._ready_fd is not None:
            line = json.dumps({"listen": listen, "admin": admin, "pid": os.getpid()}) + "\n"
            try:
                os.write(self._ready_fd, line.encode())
                os.close(self._ready_fd)
            except OSError as error:
                self.journal.warning("cannot write to --ready-fd", problem=str(error))
            self._ready_fd = None
        if self._on_ready is not None:
            self._on_ready(listen, admin)

    def _drain_limit_ns(self) -> int:
        return self.generation.config.topology.drain_timeout_ns if self.generation else 0

    def _stop(self, why: str) -> None:
        """Starts the shutdown: no new connections are accepted; waiting requests and requests in flight are
        finished within the drain limit."""
        self.table.phase = STOPPING
        limit_ns = self._drain_limit_ns()
        self.journal.info("stopping", reason=why, drain_limit_ms=limit_ns // 1_000_000)
        tell_service_manager("STOPPING=1")
        self.reload.stop()
        for listener in self.listeners:
            refuse_new(listener.sockets)
        for worker in list(self.pool.workers.values()):
            self.pool.drain(worker, limit_ns, range(len(worker.generation.listeners)))
        for listener in self.listeners:
            listener.close()
        self._stop_further()

    def _stop_further(self) -> None:
        """Stops the controller last, so that `/ready` and `/metrics` report the drain; then this process."""
        if self.pool.workers:
            return
        if self.controller.pid:
            self.controller.stop()
        else:
            self.controller.close()
            self.reactor.stop()

    def _kill_all(self) -> None:
        self._status = 1
        for worker in self.pool.workers.values():
            worker.kill()
        self.controller.kill()
        self._stop_further()
