"""RetryBudget: equal to exact fractions, bounded across processes and clocks, usable after any kill."""

from __future__ import annotations

import gc
import math
import os
import random
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import RetryBudget, SharedMemory
from fastgate._core.resilience.retry_budget import live_objects
from tests.core.processes import Tallies, in_processes, kill, spawn

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
SLACK_S = 60

Step = tuple[str, int]

#: Numbers for which a tick lasts exactly 1 ns, so that the budget is exact to the last decision.
EXACT = st.tuples(
    st.sampled_from([0, 0.2, 0.25, 0.5, 0.1, 0.001, 1]),
    st.sampled_from([0, 0.001, 0.1, 0.5, 1, 2.5, 4, 10, 1000]),
).filter(any)
ANY = st.tuples(
    st.one_of(st.just(0), st.floats(1e-4, 1), st.sampled_from([0.2, 1 / 3])),
    st.one_of(st.just(0), st.floats(1e-6, 1e4), st.sampled_from([3, 1 / 7, 10_000])),
).filter(any)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["deposit", "deposit", "withdraw", "withdraw", "drain"]),
        st.one_of(
            st.integers(0, 2 * SECOND),
            st.sampled_from([0, 1, SECOND, -1, -SECOND, -59 * SECOND, -500 * SECOND, 200 * SECOND]),
        ),
    ),
    max_size=80,
)


def as_meant(number: float) -> Fraction:
    """0.1 as 1/10."""
    return Fraction(number).limit_denominator(10**9)


class Oracle:
    """The budget in fractions of a retry. full_at: retries that the clock has to bring until it is full."""

    def __init__(self, ratio: float, per_s: float, burst: int) -> None:
        self.ratio = as_meant(ratio)
        self.per_s = as_meant(per_s)
        self.burst = burst
        self.full_at = Fraction(0)

    def brought(self, now_ns: int) -> Fraction:
        return self.per_s * now_ns / SECOND

    def missing(self, now_ns: int) -> Fraction:
        missing = self.full_at - self.brought(now_ns)
        if missing > self.burst + SLACK_S * self.per_s:  # written before the clock was set back
            return Fraction(self.burst)
        return max(missing, Fraction(0))

    def balance(self, now_ns: int) -> Fraction:
        return max(self.burst - self.missing(now_ns), Fraction(0))

    def deposit(self, now_ns: int) -> None:
        if missing := self.missing(now_ns):
            self.full_at = self.brought(now_ns) + max(missing - self.ratio, Fraction(0))

    def withdraw(self, now_ns: int) -> bool:
        granted = self.balance(now_ns) >= 1
        if granted or self.missing(now_ns) < self.full_at - self.brought(now_ns):
            self.full_at = self.brought(now_ns) + self.missing(now_ns) + granted
        return granted


def budget(ratio: float, per_s: float, burst: int, shared: bool = False) -> RetryBudget:
    memory = SharedMemory(RetryBudget.size()) if shared else None
    return RetryBudget(ratio, min_retries_per_s=per_s, burst=burst, shared=memory)


def drained(subject: RetryBudget, now_ns: int) -> int:
    """Retries taken until one was refused."""
    count = 0
    while subject.withdraw(now_ns):
        count += 1
    return count


@given(EXACT, st.integers(1, 40), st.booleans(), STEPS)
def test_any_history_equals_the_oracle(
    numbers: tuple[float, float], burst: int, shared: bool, history: list[Step]
) -> None:
    subject, oracle = budget(*numbers, burst, shared), Oracle(*numbers, burst)
    now_ns = NOW

    for verb, wait_ns in history:
        now_ns = max(now_ns + wait_ns, 0)
        if verb == "deposit":
            subject.deposit(now_ns)
            oracle.deposit(now_ns)
        elif verb == "withdraw":
            assert subject.withdraw(now_ns) == oracle.withdraw(now_ns)
        else:
            count = drained(subject, now_ns)
            assert [oracle.withdraw(now_ns) for _ in range(count + 1)] == [True] * count + [False]
        assert subject.balance(now_ns) == pytest.approx(float(oracle.balance(now_ns)), rel=1e-12, abs=1e-12)


@given(ANY, st.sampled_from([1, 7, 100, 1_000_000]), STEPS)
def test_any_numbers_follow_the_oracle_closely(
    numbers: tuple[float, float], burst: int, history: list[Step]
) -> None:
    subject, oracle = budget(*numbers, burst), Oracle(*numbers, burst)
    now_ns, error = NOW, 1e-9 + numbers[1] * 6 / SECOND  # three ticks of at most 2 ns

    for verb, wait_ns in history:
        now_ns += abs(wait_ns)
        if verb == "deposit":
            subject.deposit(now_ns)
            oracle.deposit(now_ns)
            error += 1e-5  # at the highest rate a retry has 10**5 ticks
        else:
            granted = subject.withdraw(now_ns)
            if abs(oracle.balance(now_ns) - 1) < error:
                oracle.full_at = oracle.brought(now_ns) + oracle.missing(now_ns) + granted
            else:
                assert oracle.withdraw(now_ns) == granted
        assert subject.balance(now_ns) == pytest.approx(float(oracle.balance(now_ns)), abs=error)


@given(
    ANY,
    st.integers(1, 20),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, SECOND), st.integers(-20 * SECOND, 20 * SECOND)), max_size=80
    ),
)
def test_retries_are_bounded_however_far_the_clocks_are_apart(
    numbers: tuple[float, float], burst: int, history: list[tuple[bool, int, int]]
) -> None:
    ratio, per_s = numbers
    subject = budget(ratio, per_s, burst, shared=True)
    deposits = retries = 0
    times = []
    base_ns = NOW

    for is_request, wait_ns, apart_ns in history:
        base_ns += wait_ns
        times.append(base_ns + apart_ns)
        if is_request:
            subject.deposit(times[-1])
            deposits += 1
        else:
            retries += subject.withdraw(times[-1])
        most = burst + as_meant(per_s) * (max(times) - min(times) + 2) / SECOND
        assert retries <= most + (as_meant(ratio) + Fraction(1, 10**5)) * deposits + Fraction(1, 2**40)


@pytest.mark.parametrize("per_s", [0, 1e-6, 0.7, 3, 10_000])
@pytest.mark.parametrize(
    ("ratio", "deposits", "retries"),
    [(0.2, 5, 1), (0.1, 10, 1), (1 / 3, 3, 1), (0.3, 10, 3), (1, 1, 1), (0.0001, 10_000, 1), (0.15, 40, 6)],
)
def test_deposits_pay_for_whole_retries_exactly(
    ratio: float, per_s: float, deposits: int, retries: int
) -> None:
    subject = budget(ratio, per_s, 100)
    drained(subject, NOW)

    for _ in range(deposits - 1):
        subject.deposit(NOW)
    before = drained(subject, NOW)
    subject.deposit(NOW)

    assert (before, drained(subject, NOW)) == (retries - 1, 1)
    assert subject.balance(NOW) == 0


@pytest.mark.parametrize("per_s", [1, 3, 7, 0.3, 10_000, 1 / 3])
@pytest.mark.parametrize("now_ns", [0, 1, NOW + 123_456_789])
def test_time_brings_exactly_its_rate(per_s: float, now_ns: int) -> None:
    subject = budget(0.2, per_s, 400_000)
    drained(subject, now_ns)

    assert drained(subject, now_ns + 30 * SECOND - 3) == round(per_s * 30) - 1
    assert drained(subject, now_ns + 30 * SECOND) == 1


def test_without_a_rate_time_brings_nothing() -> None:
    subject = budget(0.5, 0, 10)

    assert drained(subject, NOW) == 10
    assert subject.balance(2**62 - 1) == 0
    subject.deposit(0)
    assert subject.balance(NOW) == 0.5


def test_a_new_budget_has_burst_retries_and_never_more() -> None:
    subject = RetryBudget()
    for index in range(1000):
        subject.deposit(NOW + index * SECOND)

    assert subject.balance(NOW + 1000 * SECOND) == 100
    assert drained(subject, NOW + 1000 * SECOND) == 100
    assert subject.balance(NOW + 1000 * SECOND) == 0


def test_without_now_ns_the_monotonic_clock_is_read() -> None:
    subject = RetryBudget(0.2, min_retries_per_s=0, burst=2)

    assert [subject.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(5):
        subject.deposit()
    assert subject.balance() == 1


def test_a_clock_set_back_a_little_gains_nothing() -> None:
    subject = budget(0.2, 3, 10)
    drained(subject, NOW)

    assert not any(subject.withdraw(NOW - back_ns) for back_ns in (1, 10**6, SECOND, 30 * SECOND))
    assert subject.balance(NOW - SECOND) == 0
    assert drained(subject, NOW + SECOND) == 3


@pytest.mark.parametrize("verb", ["deposit", "withdraw"])
def test_a_clock_set_back_far_empties_the_budget_once(verb: str) -> None:
    subject = budget(0.2, 4, 10)
    subject.withdraw(10**6 * SECOND)

    assert subject.balance(NOW) == 0
    assert not getattr(subject, verb)(NOW)
    assert drained(subject, NOW + SECOND) == 4


@given(st.integers(0, 2**64 - 1), ANY, st.integers(1, 1_000_000), st.integers(0, 2**62 - 1 - 200 * SECOND))
def test_any_word_in_memory_is_a_budget(
    word: int, numbers: tuple[float, float], burst: int, now_ns: int
) -> None:
    memory = SharedMemory(RetryBudget.size())
    subject = RetryBudget(numbers[0], min_retries_per_s=numbers[1], burst=burst, shared=memory)
    memoryview(memory).cast("Q")[1] = word

    assert 0 <= subject.balance(now_ns) <= burst
    subject.deposit(now_ns)
    granted = subject.withdraw(now_ns)
    assert 0 <= subject.balance(now_ns) <= burst - granted
    now_ns += SLACK_S * SECOND  # from here on not even a little ahead
    if numbers[0]:
        for _ in range(10_001):
            subject.deposit(now_ns)
        assert subject.withdraw(now_ns)
    else:
        assert subject.balance(now_ns + 100 * SECOND) >= min(1, 100 * numbers[1]) - 1e-6


@pytest.mark.parametrize("now_ns", [0, 1, 2**62 - 1])
@pytest.mark.parametrize("per_s", [0, 1e-6, 3, 10_000])
def test_the_ends_of_the_clock_work(per_s: float, now_ns: int) -> None:
    subject = budget(1, per_s, 1_000)

    assert drained(subject, now_ns) == 1_000
    subject.deposit(now_ns)
    assert subject.balance(now_ns) == 1
    assert subject.withdraw(now_ns)


# --- several processes


def test_four_processes_are_granted_exactly_the_burst() -> None:
    subject = budget(0.2, 1e-6, 100_000, shared=True)

    granted = in_processes(4, lambda _: sum(subject.withdraw(NOW) for _ in range(40_000)))

    assert sum(granted) == 100_000
    assert not subject.withdraw(NOW)


@pytest.mark.parametrize("per_s", [0, 3])
def test_four_processes_lose_no_deposit_and_no_withdrawal(per_s: float) -> None:
    subject = budget(0.2, per_s, 500_000, shared=True)
    drained(subject, NOW)

    def work(_: int) -> int:
        granted = 0
        for _ in range(500_000):
            subject.deposit(NOW)
            granted += subject.withdraw(NOW)
        return granted

    granted = in_processes(4, work)

    assert sum(granted) + drained(subject, NOW) == 4 * 500_000 // 5
    assert subject.balance(NOW) == 0


def test_four_processes_with_clocks_apart_stay_within_the_bound() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    subject = budget(0.1, 50, 20, shared=True)
    steps, step_ns, apart_ns = 10_000, 1_000_000, 5_000_000

    def work(number: int) -> int:
        randomly = random.Random(seed + number)
        granted = 0
        for index in range(steps):
            now_ns = NOW + index * step_ns + randomly.randrange(apart_ns)
            subject.deposit(now_ns)
            granted += subject.withdraw(now_ns)
        return granted

    granted = sum(in_processes(4, work))
    elapsed_s = Fraction((steps - 1) * step_ns + apart_ns, SECOND)

    assert granted <= 20 + 4 * steps / 10 + 50 * elapsed_s
    assert granted >= 50 * Fraction((steps - 1) * step_ns - apart_ns, SECOND)


def test_a_budget_is_usable_after_any_kill() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    randomly = random.Random(seed)
    subject = budget(0.2, 0, 8, shared=True)
    rounds = 2000 if os.environ.get("FASTGATE_SOAK") == "1" else 60
    deposits, retries = Tallies(rounds + 3), Tallies(rounds + 3)

    def work(number: int) -> None:
        while True:
            deposits.words[number] += 1  # before the deposit and after the retry: a kill between can only
            subject.deposit(NOW)  # make the bound wider
            retries.words[number] += subject.withdraw(NOW)

    children = [spawn(lambda number=number: work(number)) for number in range(3)]  # type: ignore[misc]
    for number in range(3, rounds + 3):
        threading.Event().wait(randomly.random() * 0.003)
        kill(children.pop(randomly.randrange(3)))
        children.append(spawn(lambda number=number: work(number)))  # type: ignore[misc]
        assert 0 <= subject.balance(NOW) <= 8
    for pid in children:
        kill(pid)

    assert 5 * retries.total() <= 5 * 8 + deposits.total()
    drained(subject, NOW)
    left = subject.balance(NOW)
    assert 0 <= left < 1
    for _ in range(5):
        subject.deposit(NOW)
    assert subject.withdraw(NOW)
    assert subject.balance(NOW) == pytest.approx(left)


def test_a_private_budget_is_copied_by_a_fork() -> None:
    subject = budget(0.2, 0, 5)
    subject.withdraw(NOW)

    in_child = in_processes(1, lambda _: drained(subject, NOW))

    assert in_child == [4]
    assert subject.balance(NOW) == 4


# --- arguments


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RetryBudget(-0.1), ValueError, "ratio: expected 0.0 to 1.0, got -0.1"),
        (lambda: RetryBudget(1.1), ValueError, "ratio: .* got 1.1"),
        (lambda: RetryBudget(1e-5), ValueError, "ratio: expected 0 or 0.0001 to 1, got 1e-05"),
        (lambda: RetryBudget(math.nan), ValueError, "ratio: .* got nan"),
        (lambda: RetryBudget("0.2"), TypeError, "ratio: expected a number"),  # type: ignore[arg-type]
        (lambda: RetryBudget(True), TypeError, "ratio: expected a number"),
        (lambda: RetryBudget(min_retries_per_s=-1), ValueError, "min_retries_per_s: expected 0.0 to 10000.0"),
        (lambda: RetryBudget(min_retries_per_s=10_001), ValueError, "min_retries_per_s: .* got 10001"),
        (
            lambda: RetryBudget(min_retries_per_s=1e-7),
            ValueError,
            "min_retries_per_s: expected 0 or 1e-06 to 10000, got 1e-07",
        ),
        (lambda: RetryBudget(min_retries_per_s=None), TypeError, "min_retries_per_s"),  # type: ignore[arg-type]
        (lambda: RetryBudget(0, min_retries_per_s=0), ValueError, "ratio, min_retries_per_s: expected at"),
        (lambda: RetryBudget(burst=0), ValueError, "burst: expected 1 to 1000000, got 0"),
        (lambda: RetryBudget(burst=10**6 + 1), ValueError, "burst"),
        (lambda: RetryBudget(burst=2**70), ValueError, "burst"),
        (lambda: RetryBudget(burst=1.0), TypeError, "burst: expected an int"),  # type: ignore[arg-type]
        (lambda: RetryBudget(shared=bytearray(16)), TypeError, "shared"),  # type: ignore[arg-type]
        (
            lambda: RetryBudget(shared=SharedMemory(8)),
            ValueError,
            "shared: expected at least 16 bytes, got 8",
        ),
    ],
)
def test_bad_construction_names_argument_value_and_range(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("verb", ["deposit", "withdraw", "balance"])
@pytest.mark.parametrize(
    ("now_ns", "error", "message"),
    [
        (-1, ValueError, "now_ns: expected 0 to 4611686018427387903, got -1"),
        (2**62, ValueError, "now_ns"),
        (2**200, ValueError, "now_ns"),
        (1.0, TypeError, "now_ns"),
        (True, TypeError, "now_ns"),
    ],
)
def test_bad_calls_change_nothing(verb: str, now_ns: Any, error: type[Exception], message: str) -> None:
    subject = budget(0.2, 3, 10)
    subject.withdraw(NOW)

    with pytest.raises(error, match=message):
        getattr(subject, verb)(now_ns)

    assert subject.balance(NOW) == 9


@pytest.mark.parametrize(
    "other",
    [{"ratio": 0.1}, {"min_retries_per_s": 4}, {"burst": 99}, {"min_retries_per_s": 0}],
    ids=lambda other: next(iter(other)),
)
def test_another_budget_in_the_same_memory_is_refused(other: dict[str, Any]) -> None:
    memory = SharedMemory(4096)
    first = RetryBudget(shared=memory)

    with pytest.raises(ValueError, match="shared: the memory holds another budget"):
        RetryBudget(shared=memory, **other)
    second = RetryBudget(shared=memory)

    first.withdraw(NOW)
    assert second.balance(NOW) == 99


def test_it_keeps_its_memory_mapped() -> None:
    subject = RetryBudget(shared=SharedMemory(RetryBudget.size()))
    gc.collect()

    assert subject.withdraw(NOW)
    assert subject.balance(NOW) == 99


def test_no_budget_outlives_its_use() -> None:
    before = live_objects()

    for _ in range(1000):
        subject = RetryBudget(shared=SharedMemory(RetryBudget.size()))
    del subject
    gc.collect()

    assert live_objects() == before


def test_its_numbers_are_readable() -> None:
    subject = RetryBudget(0.25, min_retries_per_s=5, burst=50)

    assert (subject.ratio, subject.min_retries_per_s, subject.burst) == (0.25, 5.0, 50)
    assert repr(subject) == "RetryBudget(0.25, min_retries_per_s=5, burst=50)"
