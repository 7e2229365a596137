"""The reload as a state machine, driven through random orders of events without a process.

`World` stands for the supervisor and its workers: messages wait in queues and are delivered when the draw
says so, workers build slowly, refuse, die at any moment (their death is noticed later), timers fire early or
late, and further reloads are asked for in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgate.server.reload import (
    TRANSITIONS,
    CannotLoad,
    CannotStage,
    NoRoomYet,
    Outcome,
    Phase,
    Reload,
)
from fastgate.state.channel import Abort, Commit, Message, Prepare, Prepared, Problem, Ready

SLOTS = 3


class FakeConfig:
    def __init__(self, version: int, kind: str, good: bool) -> None:
        self.version = version
        self.size = 1
        self.kind = kind  # hot, generation, crowded (no room at first), taken (cannot be staged)
        self.good = good  # whether workers can build it
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed, "a config is closed twice"
        self.is_closed = True


class FakeWorker:
    """Follows the protocol of worker.py."""

    def __init__(self, slot: int, generation: int, config: FakeConfig) -> None:
        self.slot = slot
        self.generation = generation
        self.building = config.version
        self.serving = 0
        self.config: FakeConfig | None = config  # what it is building
        self.built: FakeConfig | None = None
        self.actual: FakeConfig | None = None  # what it serves, whatever the machine believes
        self.inbox: deque[tuple[Message, FakeConfig | None]] = deque()
        self.outbox: deque[Message] = deque()
        self.is_dead = False
        self.is_ready = False  # as the supervisor knows it

    def hear(self) -> None:
        message, config = self.inbox.popleft()
        match message:
            case Prepare():
                assert config is not None
                self.config, self.built = config, None
            case Abort(version=version):
                if self.config is not None and self.config.version == version:
                    self.config = self.built = None
            case Commit(version=version):
                assert self.built is not None and self.built.version == version, "nothing was prepared"
                self.actual, self.built, self.config = self.built, None, None
                self.outbox.append(Ready(version))

    def finish_building(self, succeeds: bool) -> None:
        assert self.config is not None
        if succeeds:
            self.built = self.config
            self.outbox.append(Prepared(self.config.version))
        else:
            self.outbox.append(Prepared(self.config.version, [Problem(text="cannot build")]))
            self.config = None

    @property
    def is_building(self) -> bool:
        return not self.is_dead and self.config is not None and self.built is None


class FakeTimer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class World:
    """The effects, and everything the machine may hear of."""

    def __init__(self) -> None:
        self.machine: Reload[FakeConfig, FakeWorker] = Reload(self)
        self.clock_ns = 0
        self.timers: list[FakeTimer] = []
        self.workers: list[FakeWorker] = []
        self.generation = 0
        self.staged = 0
        self.in_use: FakeConfig | None = None
        self.committed: set[int] = set()
        self.is_loading = False
        self.is_stale = False  # changes do not apply to what is in use
        self.fault: Exception | None = None  # raised by the next load
        self.loaded: list[int | None] = []  # the changes, None for the file
        self.may_draw_room = True
        self.asked = 0
        self.told: list[tuple[int, Outcome[FakeConfig] | None]] = []
        self.ended: list[Outcome[FakeConfig]] = []
        self.versions: list[int] = []

    # effects

    def now_ns(self) -> int:
        return self.clock_ns

    def after(self, delay_ns: int, call: Callable[[], None]) -> FakeTimer:
        self.timers.append(FakeTimer(call))
        return self.timers[-1]

    def load(self, change: Any) -> None:
        assert not self.is_loading
        self.loaded.append(change)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if change is not None and self.is_stale:
            raise CannotLoad("conflict", Problem(text="stale"))
        self.is_loading = True

    def stop_loading(self) -> None:
        self.is_loading = False

    def stage(self, config: FakeConfig) -> tuple[str, Sequence[FakeWorker]]:
        if config.kind == "taken":
            raise CannotStage(Problem(text="cannot listen"))
        if config.kind == "crowded" and self.may_draw_room:
            raise NoRoomYet(Problem(text="no seat"))
        if config.kind == "hot" and any(worker.is_ready for worker in self.members()):
            return "hot", self.members()
        self.staged = self.generation + 1
        new = [FakeWorker(slot, self.staged, config) for slot in range(SLOTS)]
        self.workers += new
        return "generation", new

    def restaff(self, dead: FakeWorker) -> FakeWorker:
        attempt = self.machine._attempt
        assert attempt is not None and dead.generation == self.staged
        worker = FakeWorker(dead.slot, self.staged, attempt)
        self.workers.append(worker)
        return worker

    def unstage(self) -> None:
        for worker in self.workers:
            if worker.generation == self.staged != self.generation:
                assert worker.actual is None, "a worker that serves is killed"
                worker.is_dead = True
        self.staged = 0

    def may_get_room(self) -> bool:
        return True

    def members(self) -> list[FakeWorker]:
        return [worker for worker in self.workers if worker.generation == self.generation]

    def slots(self) -> int:
        return SLOTS

    def send(self, worker: FakeWorker, message: Message, config: FakeConfig | None = None) -> None:
        if isinstance(message, Commit):
            assert message.version == self.machine.version
            self.committed.add(message.version)
        if isinstance(message, Prepare):
            assert config is not None and not config.is_closed
            assert config.version == message.version
        if worker in self.workers:
            worker.inbox.append((message, config))

    def adopt(self, config: FakeConfig) -> None:
        before, self.in_use = self.in_use, config
        if before is not None:
            before.close()
        if self.staged:
            # The old generation drains at once; that it waits for the new one is the supervisor's affair.
            self.workers = [worker for worker in self.workers if worker.generation == self.staged]
            self.generation, self.staged = self.staged, 0

    def is_in_effect(self) -> bool:
        assert self.in_use is not None
        ready = {worker.slot for worker in self.members() if worker.is_ready}
        return ready == set(range(SLOTS)) and all(
            worker.serving == self.in_use.version for worker in self.members() if worker.is_ready
        )

    def replace(self, worker: FakeWorker) -> None:
        self.spawn(worker.slot)
        self.workers.remove(worker)  # drains

    def discard(self, worker: FakeWorker, problem: Problem) -> None:
        assert worker.actual is None, "a worker that serves is killed"
        worker.is_dead = True

    def turn_away(self, askers: Sequence[int], problem: Problem) -> None:
        self.told += [(asker, None) for asker in askers]

    def report(self, outcome: Outcome[FakeConfig]) -> None:
        assert outcome.version == self.machine.version == (self.in_use.version if self.in_use else 0)
        if outcome.applied:
            assert outcome.config is self.in_use
        self.ended.append(outcome)
        self.told += [(asker, outcome) for asker in outcome.askers]

    # events

    def ask(self) -> None:
        self.asked += 1
        self.machine.ask([self.asked])

    def ask_change(self) -> None:
        self.asked += 1
        self.machine.ask([self.asked], self.asked)

    def loads(self, kind: str, good: bool) -> None:
        self.is_loading = False

        def keep(version: int) -> FakeConfig:
            self.versions.append(version)
            return FakeConfig(version, kind, good)

        self.machine.loaded(keep)

    def spawn(self, slot: int) -> None:
        assert self.in_use is not None
        self.workers.append(FakeWorker(slot, self.generation, self.in_use))

    def empty_slots(self) -> list[int]:
        if self.in_use is None:
            return []
        return [slot for slot in range(SLOTS) if slot not in {worker.slot for worker in self.members()}]

    def speak(self, worker: FakeWorker) -> None:
        message = worker.outbox.popleft()
        if isinstance(message, Prepared):
            self.machine.prepared(worker, message.version, message.problems)
        elif isinstance(message, Ready):
            worker.is_ready = True
            self.machine.ready(worker, message.version)

    def reap(self, worker: FakeWorker) -> None:
        self.workers.remove(worker)
        while worker.outbox:
            self.speak(worker)
        self.machine.gone(worker, "SIGKILL")

    def fire(self, timer: FakeTimer) -> None:
        self.timers.remove(timer)
        self.clock_ns += 1_000_000_000
        if timer.call is not None:
            timer.call()

    def check(self) -> None:
        assert self.versions == sorted(set(self.versions)), "a version is used twice"
        applied = {outcome.version for outcome in self.ended if outcome.applied}
        for worker in self.workers:
            if worker.actual is not None:
                assert worker.actual.version in self.committed
                assert worker.actual.version in applied | {self.machine.version}, "a refused config is served"
        if self.in_use is not None:
            assert not self.in_use.is_closed

    # the end: no more faults

    def settle(self) -> None:
        """Everything that waits happens; good configs can be built, and time passes only when nothing else
        is left.
        """
        self.may_draw_room = False
        for _ in range(5000):
            if self.is_loading:
                self.loads("hot", good=True)
            elif dead := [worker for worker in self.workers if worker.is_dead]:
                self.reap(dead[0])
            elif empty := self.empty_slots():
                self.spawn(empty[0])
            elif hearing := [worker for worker in self.workers if worker.inbox]:
                hearing[0].hear()
            elif building := [worker for worker in self.workers if worker.is_building]:
                config = building[0].config
                assert config is not None
                # What is in use was built by one worker, so another can build it when nothing fails.
                building[0].finish_building(config.good or config is self.in_use)
            elif speaking := [worker for worker in self.workers if worker.outbox]:
                self.speak(speaking[0])
            elif self.machine.phase is not Phase.IDLE and self.timers:
                self.fire(self.timers[0])
            else:
                return
            self.check()
        raise AssertionError(f"does not come to rest: {self.machine.phase}")


def started() -> World:
    world = World()
    world.ask()
    world.loads("generation", good=True)
    world.settle()
    assert world.ended[-1].applied
    return world


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_in_any_order_of_events_a_reload_ends_and_all_workers_agree(data: st.DataObject) -> None:
    world = started()

    def draw(options: Sequence[Any]) -> Any:
        return options[data.draw(st.integers(0, len(options) - 1))]

    for _ in range(data.draw(st.integers(1, 60))):
        world.may_draw_room = data.draw(st.booleans())
        world.is_stale = data.draw(st.booleans())
        steps: list[Callable[[], None]] = []
        if world.asked < 12:
            steps += [world.ask, world.ask_change]
        if world.is_loading:
            kind = draw(["hot", "hot", "generation", "crowded", "taken"])
            good = data.draw(st.booleans())
            steps += [lambda kind=kind, good=good: world.loads(kind, good)] * 3  # type: ignore[misc]
            steps.append(lambda: world.machine.not_loaded([Problem(text="bad")], 1))
        for worker in world.workers:
            if worker.is_dead:
                steps.append(lambda worker=worker: world.reap(worker))  # type: ignore[misc]
                continue
            steps.append(lambda worker=worker: setattr(worker, "is_dead", True))  # type: ignore[misc]
            if worker.inbox:
                steps += [worker.hear] * 3
            if worker.outbox:
                steps += [lambda worker=worker: world.speak(worker)] * 3  # type: ignore[misc]
            if worker.is_building:
                good = worker.config is not None and (worker.config.good or data.draw(st.booleans()))
                steps += [lambda worker=worker, good=good: worker.finish_building(good)] * 3  # type: ignore[misc]
        for slot in world.empty_slots():
            steps += [lambda slot=slot: world.spawn(slot)] * 2  # type: ignore[misc]
        for timer in world.timers:
            steps.append(lambda timer=timer: world.fire(timer))  # type: ignore[misc]
        draw(steps)()
        world.check()
    world.settle()

    assert world.machine.phase is Phase.IDLE
    assert sorted(asker for asker, _ in world.told) == list(range(1, world.asked + 1))
    changes = [change for change in world.loaded if change is not None]
    assert changes == sorted(set(changes)), "a change was loaded twice, or after a later one"
    assert world.in_use is not None
    assert {worker.slot for worker in world.members()} == set(range(SLOTS))
    for worker in world.members():
        assert worker.actual is world.in_use
        assert worker.serving == world.machine.version


def test_the_table_is_what_the_machine_follows() -> None:
    world = started()
    phases = [world.machine.phase]

    world.ask()
    phases.append(world.machine.phase)
    world.loads("hot", good=True)
    phases.append(world.machine.phase)
    for worker in world.members():
        worker.hear()
        worker.finish_building(True)
        world.speak(worker)
    phases.append(world.machine.phase)
    world.settle()
    phases.append(world.machine.phase)

    assert phases == [Phase.IDLE, Phase.LOADING, Phase.PREPARING, Phase.COMMITTING, Phase.IDLE]
    assert all(phase in set(TRANSITIONS.values()) for phase in phases)


def test_a_late_response_to_a_refused_attempt_does_not_count_for_the_next() -> None:
    world = started()
    world.ask()
    world.loads("hot", good=True)
    first, second, third = world.members()
    for worker in (first, second, third):
        worker.hear()
    second.finish_building(True)  # said, not heard yet
    first.finish_building(False)
    world.speak(first)
    assert not world.ended[-1].applied

    world.ask()
    world.loads("hot", good=True)
    world.speak(second)

    assert world.machine.phase is Phase.PREPARING
    assert world.machine.version == 1
    world.settle()
    assert [outcome.version for outcome in world.ended] == [1, 1, 3]


def test_a_change_is_a_reload_of_its_own_and_requests_to_read_the_file_become_one() -> None:
    world = started()

    for ask in (world.ask, world.ask_change, world.ask, world.ask_change, world.ask, world.ask):
        ask()
    world.settle()

    assert world.loaded == [None, None, 3, None, 5]
    assert [outcome.askers for outcome in world.ended] == [[1], [2], [3], [4, 6, 7], [5]]


def test_a_change_that_does_not_apply_is_refused_and_the_next_begins() -> None:
    world = started()
    world.is_stale = True
    world.ask()
    for _ in range(900):
        world.ask_change()
    world.ask()

    world.settle()

    assert len(world.ended) == 903
    refused = [outcome for outcome in world.ended if not outcome.applied]
    assert {outcome.kind for outcome in refused} == {"conflict"}
    assert len(refused) == 900


def test_an_unexpected_error_at_the_start_of_a_queued_reload_does_not_block_the_following() -> None:
    world = started()
    for ask in (world.ask, world.ask_change, world.ask_change):
        ask()
    world.fault = MemoryError()

    with pytest.raises(MemoryError):
        world.settle()
    world.settle()

    assert [outcome.askers for outcome in world.ended] == [[1], [2], [3], [4]]
    assert [outcome.applied for outcome in world.ended] == [True, True, False, True]


def test_several_refusals_of_one_attempt_end_it_once_and_kill_nobody() -> None:
    world = started()
    world.ask()
    world.loads("hot", good=False)
    for worker in world.members():
        worker.hear()
        worker.finish_building(False)

    for worker in world.members():
        world.speak(worker)

    assert [outcome.applied for outcome in world.ended] == [True, False]
    assert not any(worker.is_dead for worker in world.members())


@pytest.mark.parametrize("deaths", range(1, SLOTS + 1))
def test_workers_that_die_while_they_build_do_not_fail_the_reload(deaths: int) -> None:
    world = started()
    world.ask()
    world.loads("hot", good=True)

    for worker in world.members()[:deaths]:
        worker.is_dead = True
    world.settle()

    assert world.ended[-1].applied
    assert {worker.actual for worker in world.members()} == {world.in_use}


def test_a_config_that_kills_every_worker_is_refused() -> None:
    world = started()
    world.ask()
    world.loads("hot", good=True)

    for _ in range(2 * SLOTS):
        for worker in [worker for worker in world.members() if worker.building == 2]:
            worker.is_dead = True
            world.reap(worker)
        for slot in world.empty_slots():
            world.spawn(slot)
        for worker in world.members():
            while worker.inbox and worker.building != 2:
                worker.hear()
            if worker.is_building and worker.building != 2:
                worker.finish_building(True)
            while worker.outbox:
                world.speak(worker)

    assert world.machine.phase is Phase.IDLE
    assert not world.ended[-1].applied
    assert world.machine.version == 1


def test_one_worker_alone_that_died_is_no_proof_for_a_config() -> None:
    world = started()
    world.ask()
    world.loads("hot", good=False)
    for worker in world.members():
        worker.is_dead = True
    for worker in list(world.members()):
        world.reap(worker)

    world.settle()

    assert not world.ended[-1].applied
    assert {worker.actual for worker in world.members()} == {world.in_use}


def test_everybody_who_asked_is_told_when_the_gateway_stops() -> None:
    for steps in range(4):
        world = started()
        world.ask()
        world.ask()
        if steps > 0:
            world.loads("hot", good=True)
        if steps > 1:
            for worker in world.members():
                worker.hear()
                worker.finish_building(True)
                world.speak(worker)

        world.machine.stop()
        world.machine.stop()
        world.ask()

        assert sorted(asker for asker, _ in world.told) == [1, 2, 3, 4]
        assert world.machine.phase is Phase.STOPPED
        outcome = next(outcome for asker, outcome in world.told if asker == 2)
        assert outcome is not None
        assert outcome.applied == (steps > 1)
