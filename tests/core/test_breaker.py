"""The circuit breaker against its plain-Python oracle, and what it promises otherwise."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import CircuitBreaker, CircuitOpen
from fastgate._core.resilience.breaker import live_objects
from tests.core.breaker_oracle import Oracle, Period

MS = 1_000_000
S = 1_000 * MS

CONFIGS = st.fixed_dictionaries(
    {"recovery_timeout_s": st.sampled_from([0.001, 0.05, 1, 2.5])},
    optional={
        "failure_threshold": st.integers(1, 4),
        "success_threshold": st.integers(1, 3),
        "half_open_permits": st.integers(1, 3),
        "permit_timeout_s": st.sampled_from([0.001, 0.03, 4.0]),
        "backoff": st.sampled_from(["constant", "linear", "exponential", "fibonacci"]),
        "max_recovery_timeout_s": st.sampled_from([2.5, 7.0, 100.0]),
        "jitter_ratio": st.sampled_from([0.0, 0.1, 1.0]),
        "failure_ratio": st.sampled_from([0.01, 0.3, 0.5, 1.0]),
        "window_s": st.sampled_from([0.01, 0.1, 1.0, 10.0]),
        "min_calls": st.integers(1, 6),
        "seed": st.integers(0, 2**63 - 1),
    },
)
SLOW: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"slow_call_s": st.sampled_from([0.001, 0.01]), "slow_ratio": st.just(0.4)}),
    st.fixed_dictionaries(
        {"adaptive": st.just(True), "adaptive_calls": st.integers(10, 14)},
        optional={
            "adaptive_factor": st.sampled_from([1.0, 2.0]),
            "adaptive_floor_ratio": st.sampled_from([0.0, 0.2]),
            "slow_call_s": st.just(0.004),
        },
    ),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "record", "record", "record", "forget", "trip", "reset"]),
        st.sampled_from([0, 1, 100, MS, 7 * MS, 60 * MS, S, 3 * S, 11 * S, 400 * S, -1, -5 * MS, -40 * S]),
        st.booleans(),
        st.sampled_from([0, MS - 1, MS, MS + 1, 5 * MS, 20 * MS]),
        st.integers(0, 5),
    ),
    max_size=120,
)


@given(CONFIGS, SLOW, STEPS, st.sampled_from([0, 10 * S, 10**15 + 7]))
def test_every_decision_equals_the_oracle(
    config: dict[str, Any], slow: dict[str, Any], steps: list[tuple[str, int, bool, int, int]], now_ns: int
) -> None:
    moves: list[tuple[str, str]] = []
    options = {"seed": 1, **config, **slow}
    breaker = CircuitBreaker(**options, on_transition=lambda _, old, new: moves.append((old, new)))
    oracle = Oracle(**options)
    tickets: list[tuple[int, Period | None]] = [(0, None)]

    for verb, step_ns, ok, latency_ns, pick in steps:
        now_ns = max(0, now_ns + step_ns)
        ours, theirs = tickets[-1 - pick % len(tickets)]
        if verb == "acquire":
            ours, theirs = breaker.acquire(now_ns), oracle.acquire(now_ns)
            assert bool(ours) == bool(theirs)
            if ours:
                tickets.append((ours, theirs))
        elif verb == "record":
            breaker.record(ok, latency_ns, ticket=ours, now_ns=now_ns)
            oracle.record(ok, latency_ns, theirs, now_ns)
        elif verb == "forget":
            breaker.forget(ours)
            oracle.forget(theirs)
        elif verb == "trip" and pick == 0:
            breaker.trip(now_ns)
            oracle.open(now_ns)
        elif verb == "reset" and pick == 0:
            breaker.reset(now_ns)
            oracle.close(now_ns)

        assert (breaker.state, breaker.trips) == (oracle.state, oracle.trips)
        assert breaker.window(now_ns) == oracle.window(now_ns)
        assert breaker.retry_after_ns(now_ns) == oracle.retry_after_ns(now_ns)
        assert breaker.limits == oracle.limits()
    assert moves == oracle.transitions
    assert breaker.opened_total == sum(new == "open" for _, new in moves)


# --- promises


def test_results_of_an_older_period_do_not_count() -> None:
    breaker = CircuitBreaker(failure_threshold=2, recovery_timeout_s=1)
    hanging = breaker.acquire(0)
    for _ in range(2):
        breaker.record(False, now_ns=10)
    probe = breaker.acquire(2 * S)
    assert breaker.state == "half_open"

    breaker.record(False, ticket=hanging, now_ns=2 * S)
    assert breaker.state == "half_open"

    breaker.record(True, ticket=probe, now_ns=2 * S)
    assert breaker.state == "closed"


def test_permits_expire_when_their_holder_never_reports() -> None:
    options: dict[str, Any] = {"recovery_timeout_s": 1, "half_open_permits": 2, "permit_timeout_s": 5}
    breaker = CircuitBreaker(failure_threshold=1, **options)
    breaker.record(False, now_ns=0)

    assert [breaker.allow(2 * S) for _ in range(3)] == [True, True, False]
    assert breaker.retry_after_ns(2 * S) == 5 * S
    assert not breaker.allow(7 * S - 1)
    assert [breaker.allow(7 * S) for _ in range(3)] == [True, True, False]


def test_a_clock_set_far_back_does_not_keep_it_open() -> None:
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout_s=1, max_recovery_timeout_s=10)
    breaker.record(False, now_ns=10**15)
    assert not breaker.allow(10**15 - 1)

    assert breaker.retry_after_ns(0) == 0
    assert breaker.allow(0)


def test_the_latest_time_is_not_an_overflow() -> None:
    latest = 2**63 - 1
    breaker = CircuitBreaker(failure_threshold=1, failure_ratio=0.5, backoff="exponential", jitter_ratio=1)
    for _ in range(3):
        breaker.record(False, latest, now_ns=latest)
        assert breaker.retry_after_ns(latest) == 0
        assert breaker.allow(latest)
    breaker.trip(latest)
    breaker.reset(latest)

    assert breaker.state == "closed"


def test_sixty_four_trips_in_a_row_stay_at_the_longest_open_time() -> None:
    breaker = CircuitBreaker(
        failure_threshold=1, recovery_timeout_s=1, backoff="exponential", max_recovery_timeout_s=3600
    )
    now_ns = 0
    breaker.record(False, now_ns=now_ns)
    for _ in range(100):
        now_ns += 3601 * S
        assert breaker.allow(now_ns)
        breaker.record(False, now_ns=now_ns)

    assert breaker.trips == 63
    assert 3600 * S <= breaker.retry_after_ns(now_ns) < 3600 * S + 128


def test_a_full_bucket_keeps_its_ratio() -> None:
    breaker = CircuitBreaker(failure_threshold=None, failure_ratio=0.9, min_calls=500_000)
    for index in range(200_000):
        breaker.record(index % 4 != 0, now_ns=5)

    calls, failures, slow = breaker.window(5)
    assert 32_767 <= calls <= 65_535 and slow == 0
    assert abs(failures / calls - 0.25) < 1e-3


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("failure_threshold", [0, -1, 10**6 + 1, 10**30]),
        ("success_threshold", [0, 4001]),
        ("half_open_permits", [0, 4001]),
        ("recovery_timeout_s", [0, -1, 1e7, float("nan"), float("inf"), 10**400]),
        ("permit_timeout_s", [0, float("nan")]),
        ("max_recovery_timeout_s", [29.9, float("inf")]),
        ("jitter_ratio", [-0.1, 1.1, float("nan")]),
        ("failure_ratio", [0, -1, 1.01, float("nan")]),
        ("window_s", [0, 86_401, float("nan")]),
        ("min_calls", [0, 10**6]),
        ("backoff", ["never"]),
        ("seed", [-1, 2**64]),
        ("slow_ratio", [0.5]),
        ("slow_call_s", [0.5]),
    ],
)
def test_values_out_of_range_are_refused_by_name(argument: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=argument):
            CircuitBreaker(**{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("failure_threshold", 1.5),
        ("failure_threshold", True),
        ("recovery_timeout_s", "30"),
        ("recovery_timeout_s", None),
        ("adaptive", 1),
        ("on_transition", 1),
        ("name", 1),
        ("failures", "ValueError"),
        ("failures", (ValueError, 1)),
        ("ignore", int),
        ("memory", b"read only"),
        ("memory", 1),
    ],
)
def test_wrong_types_are_refused(argument: str, value: Any) -> None:
    with pytest.raises((TypeError, BufferError)):
        CircuitBreaker(**{argument: value})


def test_a_breaker_that_could_never_open_is_refused() -> None:
    with pytest.raises(ValueError, match="failure_threshold"):
        CircuitBreaker(failure_threshold=None)
    for options in ({"adaptive_calls": 9}, {"adaptive_factor": 0.5}, {"adaptive_floor_ratio": 2}):
        with pytest.raises(ValueError, match=next(iter(options))):
            CircuitBreaker(adaptive=True, **options)


def test_bad_calls_leave_the_breaker_as_it_was() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    calls: list[tuple[Any, dict[str, Any], type[Exception]]] = [
        (breaker.allow, {"now_ns": -1}, ValueError),
        (breaker.allow, {"now_ns": 2**63}, ValueError),
        (breaker.allow, {"now_ns": 1.5}, TypeError),
        (breaker.record, {"ok": False, "latency_ns": -1}, ValueError),
        (breaker.record, {"ok": False, "latency_ns": 2**63}, ValueError),
        (breaker.record, {"ok": False, "latency_ns": float("nan")}, TypeError),
        (breaker.record, {"ok": False, "ticket": "x"}, TypeError),
        (breaker.record, {"ok": False, "ticket": -1}, ValueError),
        (breaker.record, {"ok": False, "ticket": 2**64}, ValueError),
        (breaker.record, {"ok": False, "now_ns": -5}, ValueError),
        (breaker.trip, {"now_ns": -5}, ValueError),
        (breaker.reset, {"now_ns": "x"}, TypeError),
        (breaker.window, {"now_ns": -5}, ValueError),
        (breaker.retry_after_ns, {"now_ns": -5}, ValueError),
        (breaker.forget, {"ticket": -1}, ValueError),
    ]
    for call, arguments, error in calls:
        with pytest.raises(error):
            call(**arguments)

    assert breaker.state == "closed" and breaker.opened_total == 0


# --- with, decorator, hook


class Declined(Exception):
    pass


def open_one() -> CircuitBreaker:
    breaker = CircuitBreaker(failure_threshold=1, name="orders", ignore=Declined)
    breaker.trip()
    return breaker


def test_with_records_the_outcome() -> None:
    breaker = CircuitBreaker(failure_threshold=2, ignore=Declined, name="orders")

    for error in (ValueError, Declined, ValueError, ValueError):
        with pytest.raises(error), breaker:
            raise error

    assert breaker.state == "open"
    with pytest.raises(CircuitOpen, match="orders") as caught, breaker:
        raise AssertionError("the body must not run")
    assert 0 < caught.value.retry_after_ns <= 30 * S


def test_nested_and_interleaved_with_settle_their_own_tickets() -> None:
    outer, inner = CircuitBreaker(failure_threshold=1), CircuitBreaker(failure_threshold=1)

    with outer, pytest.raises(ValueError), inner:
        raise ValueError

    assert (outer.state, inner.state) == ("closed", "open")

    shared = CircuitBreaker(failure_threshold=1)

    async def call(fail: bool, gate: asyncio.Event) -> None:
        with shared:
            await gate.wait()
            if fail:
                raise ValueError

    async def both() -> None:
        gate = asyncio.Event()
        tasks = [asyncio.create_task(call(fail, gate)) for fail in (False, True, False)]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), ValueError, type(None)]

    asyncio.run(both())
    assert shared.state == "open"


def test_the_decorator_guards_functions_and_coroutine_functions() -> None:
    breaker = CircuitBreaker(failure_threshold=1)

    @breaker
    def twice(x: int) -> int:
        """Doubles."""
        return 2 * x

    @breaker
    async def fail() -> None:
        raise KeyError("no")

    assert twice(4) == 8
    assert (twice.__name__, twice.__doc__) == ("twice", "Doubles.")
    assert asyncio.iscoroutinefunction(fail)
    with pytest.raises(KeyError):
        asyncio.run(fail())
    with pytest.raises(CircuitOpen):
        twice(4)
    with pytest.raises(CircuitOpen):
        asyncio.run(fail())
    with pytest.raises(TypeError):
        breaker(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="generator"):

        @breaker
        def numbers() -> Any:
            yield 1


def test_a_cancelled_probe_gives_its_permit_back() -> None:
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout_s=0.001, permit_timeout_s=1000)
    breaker.record(False, now_ns=0)

    @breaker
    async def hang() -> None:
        await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(hang())
        await asyncio.sleep(0)
        assert breaker.state == "half_open" and not breaker.allow()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())

    assert breaker.state == "half_open"
    assert breaker.allow()


def test_what_the_hook_raises_does_not_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_value))

    def hook(breaker: CircuitBreaker, old: str, new: str) -> None:
        raise KeyError(breaker.state)

    breaker = CircuitBreaker(failure_threshold=1, on_transition=hook)
    breaker.record(False, now_ns=0)

    assert breaker.state == "open"
    assert [repr(error) for error in raised] == ["KeyError('open')"]


def test_threads_trip_it_once_and_never_hold_more_than_the_permits() -> None:
    breaker = CircuitBreaker(
        failure_threshold=10,
        recovery_timeout_s=0.001,
        half_open_permits=3,
        success_threshold=4000,
        permit_timeout_s=100,
    )
    granted: list[int] = []

    def fail() -> None:
        for _ in range(1000):
            breaker.record(False, now_ns=0)

    def probe() -> None:
        granted.extend(1 for _ in range(1000) if breaker.allow(S))

    for work in (fail, probe):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert breaker.opened_total == 1
    assert len(granted) == 3


def test_nothing_is_leaked() -> None:
    def use() -> None:
        breaker = CircuitBreaker(failure_threshold=1, failure_ratio=0.5, on_transition=lambda *_: None)
        for now_ns in range(0, 300 * S, 10 * S):
            if breaker.allow(now_ns):
                breaker.record(False, 5, now_ns=now_ns)
        breaker.reset()
        with breaker:
            pass
        memory = bytearray(CircuitBreaker.SIZE + 8)
        CircuitBreaker(memory=memory)
        memory.extend(b"x")  # not exported any more

    use()
    gc.collect()
    blocks, live = sys.getallocatedblocks(), live_objects()
    for _ in range(50):
        use()
    gc.collect()

    assert live_objects() == live
    assert abs(sys.getallocatedblocks() - blocks) < 200


def test_random_bytes_as_a_slot_are_survived() -> None:
    rng = random.Random(7)
    for _ in range(300):
        memory = bytearray(rng.randbytes(CircuitBreaker.SIZE))
        breaker = CircuitBreaker(memory=memory, adaptive=True, slow_call_s=1.0)
        for _ in range(20):
            now_ns = rng.choice([0, S, 10**15, 2**62])
            if breaker.allow(now_ns):
                breaker.record(rng.random() < 0.5, 1000, now_ns=now_ns)
            assert breaker.state in ("closed", "open", "half_open")
        breaker.reset(0)
        assert breaker.allow(0)
