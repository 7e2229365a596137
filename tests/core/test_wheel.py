"""The timer wheel against a list of deadlines: never early, at most one tick late, however time goes."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from fastgate._core.pipeline.wheel import Timed, TimerWheel

TICK_NS = 20_000_000
ROUND_NS = 1024 * TICK_NS
START_NS = 7_000_000_123


class Alarm:
    """One call_at, and when it fired."""

    def __init__(self, wheel: TimerWheel, deadline_ns: int, armed_ns: int = START_NS) -> None:
        self.deadline_ns = deadline_ns
        self.due_ns = max(deadline_ns, armed_ns)  # what is armed too late is due at once
        self.fired_ns: list[int] = []
        self.handle: Timed = wheel.call_at(deadline_ns, self.fired_ns.append)
        self.is_cancelled = False


class Histories(RuleBasedStateMachine):
    """Random arming, cancelling and turning. The clock jumps ahead by up to several rounds, and back."""

    alarms = Bundle("alarms")

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = START_NS
        self.wheel = TimerWheel(TICK_NS, START_NS)
        self.waiting: list[Alarm] = []

    @rule(
        target=alarms,
        after_ns=st.one_of(
            st.integers(-3 * TICK_NS, 3 * TICK_NS),
            st.integers(0, 5 * ROUND_NS),
            st.sampled_from([0, 1, TICK_NS, TICK_NS - 1, ROUND_NS, ROUND_NS - TICK_NS, ROUND_NS + TICK_NS]),
        ),
    )
    def arm(self, after_ns: int) -> Alarm:
        alarm = Alarm(self.wheel, self.now_ns + after_ns, self.now_ns)
        self.waiting.append(alarm)
        return alarm

    @rule(alarm=consumes(alarms))
    def cancel(self, alarm: Alarm) -> None:
        self.wheel.cancel_call(alarm.handle)
        alarm.is_cancelled = True
        if alarm in self.waiting:
            self.waiting.remove(alarm)

    @rule(
        step_ns=st.one_of(
            st.integers(0, 3 * TICK_NS),
            st.sampled_from([TICK_NS, ROUND_NS, ROUND_NS + 1]),
            st.integers(0, 4 * ROUND_NS),
        )
    )
    def turn(self, step_ns: int) -> None:
        self.now_ns += step_ns

        fired = self.wheel.turn(self.now_ns)

        done = [alarm for alarm in self.waiting if alarm.fired_ns]
        assert len(done) == fired
        for alarm in done:
            assert alarm.fired_ns == [self.now_ns]
            assert alarm.deadline_ns <= self.now_ns
            assert not alarm.is_cancelled
            self.waiting.remove(alarm)
        # Late by the rest of the tick that the deadline lies in, and no more.
        overdue = [alarm for alarm in self.waiting if alarm.due_ns // TICK_NS < self.now_ns // TICK_NS]
        assert overdue == []

    @precondition(lambda self: self.now_ns > START_NS)
    @rule(back_ns=st.integers(1, ROUND_NS))
    def turn_back(self, back_ns: int) -> None:
        assert self.wheel.turn(max(START_NS, self.now_ns - back_ns)) == 0

    @invariant()
    def counts(self) -> None:
        assert self.wheel.armed == len(self.waiting)


TestHistories = Histories.TestCase


@given(st.integers(1, 3 * ROUND_NS), st.integers(1_000_000, 1_000_000_000))
def test_regular_turns_fire_within_one_tick(after_ns: int, tick_ns: int) -> None:
    wheel = TimerWheel(tick_ns, START_NS)
    alarm = Alarm(wheel, START_NS + min(after_ns, 3 * 1024 * tick_ns))
    now_ns = START_NS
    while not alarm.fired_ns:
        now_ns += tick_ns
        wheel.turn(now_ns)

    assert 0 <= alarm.fired_ns[0] - alarm.deadline_ns <= 2 * tick_ns  # one of the wheel, one of the turns


def test_a_deadline_fires_once() -> None:
    wheel = TimerWheel(TICK_NS, START_NS)
    alarm = Alarm(wheel, START_NS + TICK_NS)

    fired = [wheel.turn(START_NS + step * TICK_NS) for step in range(1, 3000)]

    assert sum(fired) == 1
    assert len(alarm.fired_ns) == 1
    assert alarm.handle.deadline_ns == 0


def test_cancelling_twice_or_after_firing_does_no_harm() -> None:
    wheel = TimerWheel(TICK_NS, START_NS)
    first, second = (wheel.call_at(START_NS + 1, lambda now_ns: None) for _ in range(2))

    wheel.cancel_call(first)
    wheel.cancel_call(first)
    fired = wheel.turn(START_NS + 5 * TICK_NS)
    wheel.cancel_call(second)

    assert fired == 1
    assert wheel.armed == 0


def test_what_fires_may_cancel_what_is_due_with_it() -> None:
    wheel = TimerWheel(TICK_NS, START_NS)
    fired: list[str] = []
    handles: dict[str, Timed] = {}

    def ring(name: str, other: str) -> None:
        fired.append(name)
        wheel.cancel_call(handles[other])

    handles["a"] = wheel.call_at(START_NS + 1, lambda now_ns: ring("a", "b"))
    handles["b"] = wheel.call_at(START_NS + 2, lambda now_ns: ring("b", "a"))
    count = wheel.turn(START_NS + 3 * TICK_NS)

    assert (fired, count, wheel.armed) == (["a"], 1, 0)


def test_what_fires_may_arm_anew() -> None:
    wheel = TimerWheel(TICK_NS, START_NS)
    times: list[int] = []

    def again(now_ns: int) -> None:
        times.append(now_ns)
        if len(times) < 5:
            wheel.call_at(now_ns, again)

    wheel.call_at(START_NS, again)
    for step in range(1, 20):
        wheel.turn(START_NS + step * TICK_NS)

    assert len(times) == 5
    assert wheel.armed == 0


def test_one_that_raises_does_not_keep_the_others_from_firing() -> None:
    wheel = TimerWheel(TICK_NS, START_NS)
    fired: list[int] = []

    def broken(now_ns: int) -> None:
        raise RuntimeError("first")

    wheel.call_at(START_NS + 1, broken)
    wheel.call_at(START_NS + 1, fired.append)

    with pytest.raises(RuntimeError, match="first"):
        wheel.turn(START_NS + 2 * TICK_NS)
    assert len(fired) == 1
    assert wheel.armed == 0


def test_a_cancelled_call_is_dropped() -> None:
    class Callback:
        def __call__(self, now_ns: int) -> None:
            raise AssertionError("cancelled")

    wheel = TimerWheel(TICK_NS, START_NS)
    callback = Callback()
    seen = weakref.ref(callback)
    handle = wheel.call_at(START_NS + 1, callback)
    wheel.cancel_call(handle)
    del callback, handle
    gc.collect()

    assert seen() is None


@pytest.mark.parametrize("tick_ns", [0, -1, 999_999, 1_000_000_001])
def test_the_tick_is_bounded(tick_ns: int) -> None:
    with pytest.raises(ValueError, match="tick_ns: expected"):
        TimerWheel(tick_ns, START_NS)
