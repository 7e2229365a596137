"""How a config comes into effect: one state machine for every reload, and for workers that missed one.

    IDLE ──asked──► LOADING ──loaded──► PREPARING ──prepared──► COMMITTING ──in effect──► IDLE  (applied)
                       │               ▲   │  │
                       │     try again │   │  │ no room
                       │               └ WAITING
                       └──refused──┴───────┴──► IDLE  (refused: everything stays as it was)
    any state ──stopped──► STOPPED

LOADING     A child process parses and checks the config: the file, or a requested change.
WAITING     An address or a slot is still held by a draining generation.
PREPARING   Hot (same listeners, worker count and compiled settings): every serving worker builds the new plan
            next to its old one. Otherwise a new generation of workers builds it; none of them accepts yet.
COMMITTING  Irreversible. Workers swap the plan, or start to accept.

Each attempt that reaches PREPARING has a version of its own, and no version is used twice. A worker's
response counts only if it carries the version that the worker was last told to build; all others are late
and are ignored. `Member.building` and `Member.serving` hold the version requested and the version reported.

The death of a worker alone never fails a reload: the remaining workers decide, and a replacement starts from
the newest committed version. A commit requires that at least one worker has built the plan. If workers keep
dying while they build it and none succeeds, the config is refused.

There are two kinds of reload requests. Requests to read the file again that arrive while another reload runs
are merged into one. Each request with a `change` (a version of the State document) is a separate reload, in
the order of the requests. Only the loader interprets a change; this module passes it on.

This module does no I/O and imports neither the supervisor nor the worker pool. Its effects are passed in as
`Effects`; tests/server/test_reload_machine.py drives it through random orders of events.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

from fastgate.state.channel import Abort, Commit, Message, Prepare, Problem

__all__ = [
    "TRANSITIONS",
    "CannotLoad",
    "CannotStage",
    "Effects",
    "Member",
    "NoRoomYet",
    "Outcome",
    "Phase",
    "Reload",
    "Versioned",
]

LIMIT_NS = 60_000_000_000
"""For loading, and again for preparing: far above the time for 100 000 routes, short enough to report a
plugin that hangs.
"""

COMMIT_LIMIT_NS = 10_000_000_000
"""A committed worker that has not reported by then is replaced; the reload ends without it."""

RETRY_NS, RETRY_LIMIT_NS = 50_000_000, 3_000_000_000
"""Interval and limit of retries for an address or slot that a draining generation is about to release."""

MOST_ASKERS = 1000
"""Requests for a reload that can wait for the next one; each is a call of the admin API."""

_STOPPING = "the gateway is stopping"


class Phase(Enum):
    IDLE = "idle"
    LOADING = "loading"
    WAITING = "waiting"
    PREPARING = "preparing"
    COMMITTING = "committing"
    STOPPED = "stopped"


TRANSITIONS: Final[dict[tuple[Phase, str], Phase]] = {
    (Phase.IDLE, "asked"): Phase.LOADING,
    (Phase.LOADING, "loaded"): Phase.PREPARING,
    (Phase.LOADING, "refused"): Phase.IDLE,
    (Phase.PREPARING, "no room"): Phase.WAITING,
    (Phase.PREPARING, "refused"): Phase.IDLE,
    (Phase.PREPARING, "prepared"): Phase.COMMITTING,
    (Phase.WAITING, "try again"): Phase.PREPARING,
    (Phase.WAITING, "refused"): Phase.IDLE,
    (Phase.COMMITTING, "in effect"): Phase.IDLE,
    **{(phase, "stopped"): Phase.STOPPED for phase in Phase},
}


class NoRoomYet(Exception):
    """Staging failed for a reason that may disappear when a draining generation ends. `problem` describes
    it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class CannotStage(Exception):
    """Staging failed, and a retry would not help."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class CannotLoad(Exception):
    """There is nothing to load: the change does not apply to the current config."""

    def __init__(self, kind: str, problem: Problem) -> None:
        super().__init__(problem.text)
        self.kind = kind
        self.problem = problem


class Versioned(Protocol):
    """A checked config. `size` is that of its encoded form."""

    @property
    def version(self) -> int: ...

    @property
    def size(self) -> int: ...

    def close(self) -> None: ...


class Member(Protocol):
    """A worker process. Only the state machine writes these two after the worker is forked."""

    building: int
    """The version it was last told to build; 0 after an abort."""
    serving: int
    """The version it last reported to serve; 0 before the first."""


C = TypeVar("C", bound=Versioned)
W = TypeVar("W", bound=Member)


class Outcome(Generic[C]):
    """The result of a reload. `config` is the new one if it was applied."""

    __slots__ = ("applied", "askers", "config", "duration_ns", "kind", "problems", "total", "version")

    def __init__(
        self,
        askers: Sequence[int],
        kind: str,
        version: int,
        duration_ns: int,
        config: C | None = None,
        problems: Sequence[Problem] = (),
        total: int = 0,
    ) -> None:
        self.askers = list(askers)
        self.kind = kind
        self.version = version
        self.duration_ns = duration_ns
        self.config = config
        self.applied = config is not None
        self.problems = list(problems)
        self.total = total


class Effects(Protocol[C, W]):
    """The effects of the machine. They do not raise unless documented."""

    def now_ns(self) -> int: ...

    def after(self, delay_ns: int, call: Callable[[], None]) -> Any:
        """A timer with `cancel()`."""

    def load(self, change: Any) -> None:
        """Starts the loader, which ends in `Reload.loaded` or `Reload.not_loaded`. `change` None: read the
        file. Raises OSError, CannotLoad."""

    def stop_loading(self) -> None:
        """Ends the loader if it still runs; idempotent."""

    def stage(self, config: C) -> tuple[str, Sequence[W]]:
        """Opens the resources that the config needs. Returns `("hot", members)` if the running workers can
        apply it and one of them serves, else the kind and the new workers, forked with this config. NoRoomYet
        or CannotStage leave nothing behind."""

    def restaff(self, dead: W) -> W:
        """Forks another worker into the slot of a staged one that died. Raises CannotStage."""

    def unstage(self) -> None:
        """Undoes `stage`."""

    def may_get_room(self) -> bool:
        """True while a generation drains."""

    def members(self) -> Collection[W]:
        """The living workers of the current generation that do not drain."""

    def slots(self) -> int:
        """Number of workers of the current generation, or the staged one."""

    def send(self, worker: W, message: Message, config: C | None = None) -> None:
        """Sends a message, with the config's descriptor. No effect for a worker that is gone; its death is
        reported later."""

    def adopt(self, config: C) -> None:
        """Makes this the current config, with which workers are forked."""

    def is_in_effect(self) -> bool:
        """True if every slot of the current generation has a worker that serves the current config."""

    def replace(self, worker: W) -> None:
        """Forks a worker with the current config; once it serves, the old one drains."""

    def discard(self, worker: W, problem: Problem) -> None:
        """Ends a worker that never served and cannot build the current config; it is retried later."""

    def turn_away(self, askers: Sequence[int], problem: Problem) -> None:
        """Informs askers that there is no reload for them."""

    def report(self, outcome: Outcome[C]) -> None:
        """Reports the outcome to the askers and the log. A refusal of the very first config ends the
        gateway."""


class Reload(Generic[C, W]):
    """The state machine. The supervisor reports events; the machine calls effects."""

    def __init__(self, effects: Effects[C, W]) -> None:
        self._do = effects
        self.phase = Phase.IDLE
        self.config: C | None = None
        """The current config."""
        self._newest = 0  # the last version assigned to an attempt
        self._askers: list[int] = []
        self._next: list[tuple[list[int], Any]] = []  # askers and change of the reloads that follow this one
        self._is_beginning = False
        self._started_ns = 0
        self._retry_until_ns = 0
        self._timer: Any = None
        self._forget_attempt()

    def _forget_attempt(self) -> None:
        self._attempt: C | None = None  # the config of the attempt
        self._kind = "load"
        self._waiting: set[W] = set()  # workers told to build it, without a response yet
        self._prepared: set[W] = set()
        self._is_proven = False
        self._deaths = 0

    @property
    def version(self) -> int:
        """The current version; 0 before the first."""
        return self.config.version if self.config is not None else 0

    @property
    def attempted(self) -> int:
        """The version of the attempt; 0 if there is none."""
        return self._attempt.version if self._attempt is not None else 0

    def stages(self, worker: W) -> bool:
        """True for workers of a staged generation."""
        return (
            self.phase is Phase.PREPARING
            and self._kind != "hot"
            and (worker in self._waiting or worker in self._prepared)
        )

    # ---- requests

    def ask(self, askers: Sequence[int], change: Any = None) -> None:
        """Starts a reload, or queues one after the current one: changes written in between must not be
        missed."""
        if self.phase is Phase.STOPPED:
            self._do.turn_away(askers, Problem(text=_STOPPING))
        elif self.phase is Phase.IDLE:
            self._begin(askers, change)
        elif sum(len(waiting) for waiting, _change in self._next) + len(askers) > MOST_ASKERS:
            problem = Problem(text=f"{MOST_ASKERS} requests wait for the next reload already")
            self._do.turn_away(askers, problem)
        else:
            for waiting, other in self._next:
                if change is None and other is None:
                    waiting += askers
                    return
            self._next.append((list(askers), change))

    def stop(self) -> None:
        """Cancels the operation in progress, because the gateway stops; idempotent."""
        later, self._next = self._next, []
        if self.phase is Phase.COMMITTING:
            self._finish()
        elif self.phase is not Phase.IDLE and self.phase is not Phase.STOPPED:
            self._refuse([Problem(text=_STOPPING)])
        self._move("stopped")
        for askers, _change in later:
            self._do.turn_away(askers, Problem(text=_STOPPING))

    def _begin(self, askers: Sequence[int], change: Any) -> None:
        self._move("asked")
        self._forget_attempt()
        self._askers = list(askers)
        self._started_ns = self._do.now_ns()
        self._limit(LIMIT_NS, self._loading_took_too_long)
        try:
            self._do.load(change)
        except CannotLoad as failure:
            self._kind = failure.kind
            self._refuse([failure.problem])
        except OSError as error:
            self._refuse([Problem(text=f"cannot fork the loader: {error}")])

    # ---- LOADING

    def loaded(self, keep: Callable[[int], C]) -> None:
        """The loader found the config valid; `keep(version)` creates the config with that version."""
        if self.phase is not Phase.LOADING:
            return
        self._newest += 1
        self._attempt = keep(self._newest)
        self._retry_until_ns = self._do.now_ns() + RETRY_LIMIT_NS
        self._limit(LIMIT_NS, self._preparing_took_too_long)
        self._move("loaded")
        self._stage()

    def not_loaded(self, problems: Sequence[Problem], total: int) -> None:
        if self.phase is Phase.LOADING:
            self._refuse(problems, total)

    def _loading_took_too_long(self) -> None:
        self._refuse([Problem(text=f"reading the config took longer than {LIMIT_NS // 10**9} s")])

    # ---- PREPARING

    def _stage(self) -> None:
        assert self._attempt is not None
        try:
            self._kind, workers = self._do.stage(self._attempt)
        except NoRoomYet as wait:
            self._move("no room")
            if self._do.may_get_room() and self._do.now_ns() < self._retry_until_ns:
                self._do.after(RETRY_NS, self._try_again(self._attempt))
            else:
                self._refuse([wait.problem])
            return
        except CannotStage as failure:
            self._refuse([failure.problem])
            return
        if self._kind == "hot":
            for worker in workers:
                if worker.serving:
                    self._tell(worker)
        else:
            self._waiting = set(workers)
        self.progress()

    def _try_again(self, attempt: C) -> Callable[[], None]:
        def call() -> None:
            if self.phase is Phase.WAITING and self._attempt is attempt:
                self._move("try again")
                self._stage()

        return call

    def _tell(self, worker: W) -> None:
        """Tells a serving worker to build the plan of this attempt."""
        assert self._attempt is not None
        worker.building = self._attempt.version
        self._waiting.add(worker)
        self._do.send(worker, Prepare(self._attempt.version, self._attempt.size), self._attempt)

    def _bring_up_to_date(self, worker: W) -> None:
        """Tells a worker that missed a commit to build the plan of the current config."""
        assert self.config is not None
        worker.building = self.config.version
        self._do.send(worker, Prepare(self.config.version, self.config.size), self.config)

    def prepared(self, worker: W, version: int, problems: Sequence[Problem]) -> None:
        """A worker has built the plan of this version, or failed."""
        if version != worker.building:
            return  # of an attempt that is over: ignored
        if worker in self._waiting:
            if problems:
                self._refuse(problems)
                return
            self._waiting.discard(worker)
            self._prepared.add(worker)
            self._is_proven = True
            self.progress()
        elif worker not in self._do.members():
            return  # of a generation that is about to drain
        elif version != self.version:
            self._bring_up_to_date(worker)  # forked before the last commit
        elif not problems:
            self._do.send(worker, Commit(version))
        # The other workers could build it: a file or service that the plan needs has disappeared since.
        elif worker.serving:
            self._do.replace(worker)
        elif self.phase is Phase.PREPARING and self._kind == "hot":
            self._tell(worker)  # this attempt may fix it
        else:
            self._do.discard(worker, problems[0])

    def gone(self, worker: W, how: str) -> None:
        """A worker died. The supervisor fills its slot in the current generation."""
        is_staged = self.stages(worker)
        was_building = worker in self._waiting
        self._waiting.discard(worker)
        self._prepared.discard(worker)
        if self.phase is Phase.PREPARING and (is_staged or was_building):
            self._deaths += 1
            is_needed = is_staged or not self._is_proven
            if is_needed and self._deaths > self._do.slots():
                self._refuse([Problem(text=f"a worker ended while it built the plan ({how})")])
                return
            if is_staged:
                try:
                    self._waiting.add(self._do.restaff(worker))
                except CannotStage as failure:
                    self._refuse([failure.problem])
                    return
        self.progress()

    def _preparing_took_too_long(self) -> None:
        self._refuse([Problem(text=f"building the plan took longer than {LIMIT_NS // 10**9} s")])

    # ---- COMMITTING

    def progress(self) -> None:
        """Advances the attempt if possible; called whenever something changed that it may wait for."""
        if self.phase is Phase.COMMITTING:
            if self._do.is_in_effect():
                self._finish()
        elif self.phase is Phase.PREPARING and not self._waiting and self._is_proven:
            self._commit()

    def _commit(self) -> None:
        assert self._attempt is not None
        self._move("prepared")
        self._limit(COMMIT_LIMIT_NS, self._committing_took_too_long)
        self.config = self._attempt
        self._do.adopt(self.config)
        for worker in self._prepared:
            self._do.send(worker, Commit(self.config.version))
        self.progress()

    def ready(self, worker: W, version: int) -> None:
        """A worker serves this version."""
        worker.serving = version
        if worker not in self._do.members():
            return
        if self.phase is Phase.PREPARING and self._kind == "hot":
            self._tell(worker)
        elif version != self.version:
            self._bring_up_to_date(worker)
        self.progress()

    def _committing_took_too_long(self) -> None:
        """Replaces workers that still serve another version, so that the result is true for every worker."""
        for worker in list(self._do.members()):
            if worker.serving and worker.serving != self.version:
                self._do.replace(worker)
        self._finish()

    def _finish(self) -> None:
        config, askers, kind = self.config, self._askers, self._kind
        self._cancel_timer()
        self._move("in effect")
        self._forget_attempt()
        self._end(Outcome(askers, kind, self.version, self._do.now_ns() - self._started_ns, config))

    # ---- refused

    def _refuse(self, problems: Sequence[Problem], total: int | None = None) -> None:
        """Ends the attempt. Every serving worker keeps its current plan."""
        attempt, askers, kind = self._attempt, self._askers, self._kind
        told = self._waiting | self._prepared
        self._cancel_timer()
        self._move("refused")
        self._forget_attempt()
        self._do.stop_loading()
        if attempt is not None:
            self._do.unstage()
            for worker in told if kind == "hot" else ():
                worker.building = 0
                if worker.serving:
                    self._do.send(worker, Abort(attempt.version))
                else:
                    self._do.discard(worker, problems[0])
            attempt.close()
        for worker in list(self._do.members()):
            if worker.serving and self.version not in (worker.serving, worker.building):
                self._bring_up_to_date(worker)
        self._end(
            Outcome(
                askers,
                kind,
                self.version,
                self._do.now_ns() - self._started_ns,
                problems=problems,
                total=len(problems) if total is None else total,
            )
        )

    def _end(self, outcome: Outcome[C]) -> None:
        self._do.report(outcome)
        if self._is_beginning:
            return  # of a reload that ended before it began; the loop below continues
        self._is_beginning = True
        try:
            while self._next and self.version and self.phase is Phase.IDLE:
                self._begin(*self._next.pop(0))
        finally:
            self._is_beginning = False

    # ----

    def _move(self, event: str) -> None:
        self.phase = TRANSITIONS[self.phase, event]

    def _limit(self, limit_ns: int, call: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._do.after(limit_ns, call)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
