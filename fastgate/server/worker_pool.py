"""The workers as the supervisor sees them: forked, assigned to slots, monitored, restarted, drained.

    STARTING ──Prepared──► PREPARED ──Commit──► (listens) ──Ready──► READY ──Drain──► DRAINING ──► gone
        any state ──► gone: if it held a slot of the generation in use, another takes the slot

A worker that dies after it has served for a while is replaced immediately; one that dies soon after its start
is replaced after a pause that doubles up to `RESTART_CAP_NS`, without a limit on retries: a gateway that gave
up would need a person to notice. A worker whose event loop has not turned for `hang_limit_ns` is killed and
replaced like one that died.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastgate.server.loader import LoadedConfig
from fastgate.server.process import fork_child
from fastgate.server.reactor import Reactor, Timer
from fastgate.server.sockets import Listener
from fastgate.server.worker import WorkerOrders
from fastgate.state.channel import Channel, ChannelClosed, Drain, Lend, Message, Return
from fastgate.state.host import DRAINING, READY, STARTING, HostTable, Seat
from fastgate.state.journal import Journal

__all__ = ["Generation", "NoSeat", "Worker", "WorkerPool"]

YOUNG_NS = 1_000_000_000
"""A worker that accepted for this long had started properly: its death is not counted as a failed start."""

RESTART_FIRST_NS = 100_000_000
RESTART_CAP_NS = 5_000_000_000
RESTART_CAP_SERVED_NS = 400_000_000
"""Pauses 0, 0.1, 0.2, 0.4 … 5 s: the first death has no pause, a worker that cannot start causes 12 forks a
minute. One that did accept (and is killed by a request) is always restarted within a second, because it may
serve other requests.
"""

START_LIMIT_NS = 60_000_000_000
"""From fork to accepting. 10 000 routes take about a second; a machine that swaps takes longer."""

ABORT_GRACE_NS = 1_000_000_000
"""After the drain limit a worker closes its remaining connections and exits; after this grace period it is
killed.
"""


class NoSeat(Exception):
    """All slots are taken; the longest draining worker was killed, so one becomes free shortly."""


class Generation:
    """Workers with the same listeners, number of slots and compiled settings. `config` changes with every hot
    reload."""

    def __init__(self, number: int, config: LoadedConfig, listeners: Sequence[Listener], slots: int) -> None:
        self.number = number
        self.config = config
        self.listeners = list(listeners)
        self.slots = slots
        self.workers: dict[int, Worker] = {}
        self.lent: dict[int, Worker] = {}  # slot without a worker → worker that accepts in its place
        self.deaths: dict[int, int] = {}  # slot → consecutive deaths of its worker soon after start

    def is_complete(self) -> bool:
        """True while a worker accepts in every slot."""
        return all(slot in self.workers and self.workers[slot].state == READY for slot in range(self.slots))


class Worker:
    """One worker process."""

    __slots__ = (
        "accepts",
        "building",
        "channel",
        "forked_ns",
        "generation",
        "is_reaped",
        "kill_timer",
        "pid",
        "ready_ns",
        "replaces",
        "seat",
        "serving",
        "slot",
        "state",
        "wants_out",
    )

    def __init__(self, pid: int, channel: Channel, seat: Seat, slot: int, generation: Generation) -> None:
        self.pid = pid
        self.channel = channel
        self.seat = seat
        self.slot = slot
        self.generation = generation
        self.building = generation.config.version
        self.serving = 0
        self.accepts = False
        self.state = STARTING
        self.forked_ns = time.monotonic_ns()
        self.ready_ns = 0
        self.kill_timer: Timer | None = None
        self.replaces: Worker | None = None
        self.wants_out = False
        self.is_reaped = False

    def __repr__(self) -> str:
        return f"Worker(pid={self.pid}, slot={self.slot}, generation={self.generation.number})"

    def kill(self) -> None:
        if not self.is_reaped:  # otherwise the pid may be another process's
            os.kill(self.pid, signal.SIGKILL)


class WorkerPool:
    """Every worker of every generation that still lives."""

    def __init__(
        self,
        reactor: Reactor,
        table: HostTable,
        journal: Journal,
        work: Callable[[WorkerOrders], None],
        on_message: Callable[[Worker, Message], None],
        hang_limit_ns: int,
    ) -> None:
        self._reactor = reactor
        self._table = table
        self._journal = journal
        self._work = work
        self._on_message = on_message
        self._hang_limit_ns = hang_limit_ns
        self.memory: Any = None  # shared, mapped when the first config gives the number of workers
        self.workers: dict[int, Worker] = {}

    def spawn(self, generation: Generation, slot: int) -> Worker:
        """Forks a worker for this slot; it prepares the generation's config and reports back. Raises NoSeat,
        OSError (fork)."""
        seat = self._free_seat()
        config = generation.config
        sockets = [
            (index, listening)
            for index, listener in enumerate(generation.listeners)
            for listening in listener.served_by(slot, generation.slots)
        ]
        ours, theirs = Channel.pair()
        seat.occupy(slot, generation.number, config.version, time.time_ns())
        orders = WorkerOrders(
            channel=theirs,
            seat=seat,
            sockets=sockets,
            memory=self.memory,
            seats=len(self._table.seats),
            version=config.version,
            config_fd=config.fd,
            config_size=config.size,
            journal=self._journal.renamed(f"worker {slot}"),
        )
        keep = [theirs.fileno(), config.fd, *(listening.fileno() for _index, listening in sockets)]
        try:
            pid = fork_child(f"fastgate-w{slot}", keep, lambda: self._work(orders))
        except OSError:
            seat.vacate()
            ours.close()
            raise
        finally:
            theirs.close()
        seat.pid = pid
        worker = Worker(pid, ours, seat, slot, generation)
        self.workers[pid] = worker
        self._reactor.watch(ours, lambda: self.read(worker))
        return worker

    def read(self, worker: Worker) -> None:
        """Handles the messages that the worker has sent so far."""
        while worker.channel.fileno() != -1:
            try:
                received = worker.channel.receive()
            except ChannelClosed:
                self._close_channel(worker)
                if worker.state != DRAINING:
                    worker.kill()  # it has died; one that still runs could not receive messages any more
                return
            if received is None:
                return
            self._on_message(worker, received[0])

    def members(self, generation: Generation) -> Iterator[Worker]:
        """The living workers of this generation that do not drain, including those that are being
        replaced."""
        return (
            worker
            for worker in self.workers.values()
            if worker.generation is generation and worker.state != DRAINING
        )

    def tell(self, worker: Worker, message: Message, fd: int | None = None) -> None:
        """Sends a message; a worker that does not read is killed, which its death handler then treats like
        any other death. No effect if it is gone already."""
        if self.workers.get(worker.pid) is worker and not worker.channel.send(message, fd):
            worker.kill()

    def ready(self, worker: Worker, version: int) -> None:
        worker.seat.config_version = version
        worker.accepts = True
        worker.ready_ns = worker.ready_ns or time.monotonic_ns()
        if worker.state != DRAINING:
            worker.state = worker.seat.state = READY
            self._take_back(worker)

    def drain(self, worker: Worker, limit_ns: int, closing: Sequence[int]) -> None:
        """Drains a worker. `closing`: listeners whose queue it must empty, because no other worker does."""
        if worker.state == DRAINING or self.workers.get(worker.pid) is not worker:
            return
        if worker.state != READY:
            worker.kill()  # it has not accepted any connection yet
        worker.state = worker.seat.state = DRAINING
        worker.kill_timer = self._reactor.after(limit_ns + ABORT_GRACE_NS, worker.kill)
        self.tell(worker, Drain(limit_ns, list(closing)))

    def lend(self, generation: Generation, slot: int) -> None:
        """Makes another worker accept for a slot that stays empty for a while: a connection that the kernel
        put into its queue should not wait until its worker can start."""
        ready = [worker for worker in generation.workers.values() if worker.state == READY]
        if slot in generation.lent or not ready:
            return
        stand_in = min(ready, key=lambda worker: (worker.slot - slot) % generation.slots)
        generation.lent[slot] = stand_in
        for index, listener in enumerate(generation.listeners):
            if not listener.is_unix:
                for sock in listener.served_by(slot, generation.slots):
                    self.tell(stand_in, Lend(slot, index), sock.fileno())

    def _take_back(self, worker: Worker) -> None:
        """The worker of this slot accepts connections again."""
        stand_in = worker.generation.lent.pop(worker.slot, None)
        if stand_in is not None and self.workers.get(stand_in.pid) is stand_in:
            self.tell(stand_in, Return(worker.slot))

    def reaped(self, pid: int) -> Worker | None:
        """Removes the worker with this pid, after reading its last messages; None if the pid is not a
        worker's."""
        worker = self.workers.get(pid)
        if worker is None:
            return None
        worker.is_reaped = True
        del self.workers[pid]  # first: its last messages must not cause actions for a process that is gone
        self.read(worker)
        self._close_channel(worker)
        self._clear(worker.seat)
        worker.seat.vacate()
        if worker.kill_timer is not None:
            worker.kill_timer.cancel()
        generation = worker.generation
        if generation.workers.get(worker.slot) is worker:
            del generation.workers[worker.slot]
        for slot in [slot for slot, stand_in in generation.lent.items() if stand_in is worker]:
            del generation.lent[slot]
            self.lend(generation, slot)
        return worker

    def restart_pause_ns(self, worker: Worker) -> int:
        """Pause before the dead worker's slot is filled again."""
        deaths = worker.generation.deaths
        has_served = worker.ready_ns > 0
        if has_served and time.monotonic_ns() - worker.ready_ns >= YOUNG_NS:
            deaths[worker.slot] = 0
        count = deaths[worker.slot] = deaths.get(worker.slot, 0) + 1
        if count == 1:
            return 0
        cap_ns = RESTART_CAP_SERVED_NS if has_served else RESTART_CAP_NS
        return min(RESTART_FIRST_NS << min(count - 2, 20), cap_ns)

    def kill_hung(self, now_ns: int) -> None:
        """Kills every worker without a recent heartbeat. Called once a second."""
        for worker in self.workers.values():
            limit_ns = START_LIMIT_NS if worker.state == STARTING else self._hang_limit_ns
            if now_ns - max(worker.seat.heartbeat_ns, worker.forked_ns) > limit_ns:
                self._table.worker_hangs += 1
                self._journal.warning("worker hangs, killed", worker=worker.pid, slot=worker.slot)
                worker.kill()

    def _clear(self, seat: Seat) -> None:
        """Releases the shared resources that the process in this slot held when it died."""
        clear = getattr(self.memory, "clear_seat", None)  # the memory of tests may have no such part
        if clear is not None:
            clear(seat.index)

    def _free_seat(self) -> Seat:
        for seat in self._table.seats:
            if seat.state == 0:
                return seat
        draining = [worker for worker in self.workers.values() if worker.state == DRAINING]
        if draining:
            min(draining, key=lambda worker: worker.forked_ns).kill()
        raise NoSeat

    def _close_channel(self, worker: Worker) -> None:
        if worker.channel.fileno() != -1:
            self._reactor.unwatch(worker.channel)
            worker.channel.close()
