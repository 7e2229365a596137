"""TokenBucket, FixedWindow, SlidingWindow: equal to plain Python, exact across processes, strict."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import Decision, FixedWindow, Limit, SharedMemory, SlidingWindow, TokenBucket
from tests.core.limit_oracles import BucketOracle, oracle_of
from tests.core.processes import in_processes

SECOND = 1_000_000_000
NOW = 1_000 * SECOND

buckets = st.builds(
    TokenBucket,
    st.one_of(st.integers(1, 1000), st.floats(0.01, 1e6), st.sampled_from([1e9, 1 / 3, 0.1, 1e-3])),
    st.integers(1, 50),
)
windows = st.one_of(
    st.builds(FixedWindow, st.integers(1, 50), st.one_of(st.integers(1, 100), st.floats(0.001, 100))),
    st.builds(SlidingWindow, st.integers(1, 50), st.one_of(st.integers(1, 100), st.floats(0.001, 100))),
)
any_limit = st.one_of(buckets, windows)
steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "peek", "decide", "charge", "refund"]),
        st.integers(1, 60),
        st.one_of(
            st.integers(0, 2 * SECOND),
            st.sampled_from([0, 1, SECOND, -1, -SECOND, -59 * SECOND, -500 * SECOND, 200 * SECOND]),
        ),
    ),
    max_size=60,
)


def shared_twin(limit: Limit) -> Limit:
    if isinstance(limit, TokenBucket):
        return TokenBucket(limit.rate_per_s, limit.burst, SharedMemory(4096), 64)
    assert isinstance(limit, FixedWindow | SlidingWindow)
    return type(limit)(limit.limit, limit.window_s, SharedMemory(type(limit).SHARED_BYTES))


@given(any_limit, steps, st.booleans())
def test_any_history_equals_the_oracle(
    limit: Limit, history: list[tuple[str, int, int]], shared: bool
) -> None:
    oracle = oracle_of(limit)
    if shared:
        limit = shared_twin(limit)
    now_ns, taken_ns = NOW, NOW

    for verb, amount, wait_ns in history:
        now_ns = max(now_ns + wait_ns, 0)
        if verb == "charge":
            assert limit.charge(amount, now_ns) == oracle.charge(amount, now_ns)
        elif verb == "refund":
            assert limit.refund(amount, taken_ns, now_ns) == oracle.refund(amount, taken_ns, now_ns)
        else:
            before = dict(vars(oracle))
            expected = oracle.take(amount, now_ns)
            reset_ns = oracle.reset_ns(now_ns)
            if verb == "take":
                assert limit.take(amount, now_ns) == expected.allowed
            else:
                found = limit.decide(amount, now_ns) if verb == "decide" else limit.peek(amount, now_ns)
                assert (found.allowed, found.remaining, found.retry_after_ns, found.reset_ns) == (
                    expected.allowed,
                    expected.remaining,
                    expected.retry_after_ns,
                    reset_ns,
                )
            if verb == "peek":
                vars(oracle).update(before)
            elif expected.allowed:
                taken_ns = now_ns


@given(any_limit, st.lists(st.tuples(st.integers(1, 10), st.integers(0, SECOND)), min_size=1, max_size=40))
def test_retry_after_is_the_first_moment_that_grants(limit: Limit, history: list[tuple[int, int]]) -> None:
    now_ns = NOW

    for amount, wait_ns in history:
        now_ns += wait_ns
        refused = limit.decide(amount, now_ns)
        if refused.allowed or refused.retry_after_ns == Decision.NEVER:
            continue
        assert limit.peek(amount, now_ns + refused.retry_after_ns).allowed
        assert not limit.peek(amount, now_ns + refused.retry_after_ns - 1).allowed


@given(buckets, st.lists(st.tuples(st.integers(1, 10), st.integers(0, SECOND)), min_size=1, max_size=60))
def test_no_span_admits_more_than_burst_and_rate(bucket: TokenBucket, history: list[tuple[int, int]]) -> None:
    now_ns = NOW
    grants: list[tuple[int, int]] = []

    for amount, wait_ns in history:
        now_ns += wait_ns
        if bucket.take(amount, now_ns):
            grants.append((now_ns, amount))

    for index, (start_ns, _) in enumerate(grants):
        admitted = 0
        for at_ns, amount in grants[index:]:
            admitted += amount
            # + 2 ticks: a tick is at most 2 ns of the rate
            assert admitted <= bucket.burst + bucket.rate_per_s * (at_ns - start_ns + 2) / SECOND + 1e-9


@pytest.mark.parametrize("rate_per_s", [1e9, 1e6 / 3, 7, 0.1, 1 / 86_400])
def test_a_bucket_gains_exactly_its_rate(rate_per_s: float) -> None:
    bucket = TokenBucket(rate_per_s, 1)
    now_ns = NOW

    for _ in range(1000):
        now_ns += bucket.decide(1, now_ns).retry_after_ns
        bucket.take(1, now_ns)

    expected_s = 999 / rate_per_s
    assert (now_ns - NOW) / SECOND == pytest.approx(expected_s, rel=1e-9, abs=3000e-9)


def test_a_full_bucket_grants_exactly_its_burst_at_once() -> None:
    bucket = TokenBucket(1 / 7, 100_000)

    granted = sum(bucket.take(1, NOW) for _ in range(100_010))

    assert granted == 100_000


def test_a_fixed_window_starts_again_at_its_border() -> None:
    window = FixedWindow(3, 10)

    inside = [window.take(1, 19 * SECOND + 999_999_999) for _ in range(4)]
    after = window.take(3, 20 * SECOND)

    assert inside == [True, True, True, False]
    assert after


def test_a_sliding_window_remembers_the_window_before() -> None:
    window = SlidingWindow(10, 10)
    window.take(10, 15 * SECOND)

    at_border = window.peek(1, 20 * SECOND)
    half_way = window.peek(5, 25 * SECOND)
    too_much = window.peek(6, 25 * SECOND)

    assert not at_border.allowed
    assert half_way.allowed
    assert not too_much.allowed


@pytest.mark.parametrize("make", [FixedWindow, SlidingWindow])
def test_an_amount_above_the_limit_is_never_granted(make: Callable[[int, float], Limit]) -> None:
    decision = make(10, 1).decide(11, NOW)

    assert not decision
    assert decision.retry_after_ns == Decision.NEVER
    assert decision.retry_after_s == math.inf


@pytest.mark.parametrize(
    "limit",
    [TokenBucket(10, 10), FixedWindow(10, 1), SlidingWindow(10, 1)],
    ids=lambda limit: type(limit).__name__,
)
def test_a_clock_set_back_by_days_costs_at_most_two_periods(limit: Limit) -> None:
    far = 30 * 86_400 * SECOND
    while limit.take(1, far):
        pass

    first = limit.decide(1, NOW)
    later = limit.decide(1, NOW + 2 * SECOND)

    assert not first.allowed
    assert later.allowed


@pytest.mark.parametrize(
    "limit",
    [TokenBucket(10, 10), FixedWindow(10, 1), SlidingWindow(10, 1)],
    ids=lambda limit: type(limit).__name__,
)
def test_a_clock_set_back_a_little_frees_nothing(limit: Limit) -> None:
    while limit.take(1, NOW):
        pass

    assert not any(limit.take(1, NOW - back_ns) for back_ns in (1, 10**6, SECOND, 30 * SECOND))


def test_a_charge_stops_one_limit_below_zero() -> None:
    bucket = TokenBucket(10, 10)

    charged = bucket.charge(10**9, NOW)

    assert charged == 20
    assert bucket.decide(1, NOW).retry_after_s == pytest.approx(1.1)


def test_a_refund_of_a_past_window_gives_nothing() -> None:
    window = FixedWindow(10, 1)
    window.take(10, NOW)

    assert window.refund(10, NOW, NOW + SECOND) == 0
    assert window.refund(10, NOW + SECOND, NOW + SECOND) == 0
    assert window.take(10, NOW + SECOND)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenBucket(1e-3, 100_000, SharedMemory(16)),
        lambda: FixedWindow(100_000, 1e6, SharedMemory(FixedWindow.SHARED_BYTES)),
        lambda: SlidingWindow(100_000, 1e6, SharedMemory(SlidingWindow.SHARED_BYTES)),
    ],
    ids=["TokenBucket", "FixedWindow", "SlidingWindow"],
)
def test_four_processes_are_granted_exactly_100_000(make: Callable[[], Limit]) -> None:
    limit = make()

    granted = in_processes(4, lambda _: sum(limit.take(1, NOW) for _ in range(40_000)))

    assert sum(granted) == 100_000
    assert not limit.take(1, NOW)


def test_four_processes_spend_a_budget_to_the_last_unit() -> None:
    budget = FixedWindow(5_000_000, 86_400, SharedMemory(FixedWindow.SHARED_BYTES))

    spent = in_processes(
        4,
        lambda number: sum(
            amount for index in range(3_000) if budget.take(amount := 137 + (index + number) % 700, NOW)
        ),
    )
    rest = budget.peek(1, NOW)

    assert sum(spent) + (rest.remaining + 1 if rest.allowed else 0) == 5_000_000


def test_four_threads_are_granted_exactly_the_burst() -> None:
    bucket = TokenBucket(1e-3, 50_000)
    granted = [0] * 4

    def work(number: int) -> None:
        granted[number] = sum(bucket.take(1, NOW) for _ in range(20_000))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(granted) == 50_000


def test_two_buckets_at_one_place_are_one_bucket() -> None:
    shared = SharedMemory(4096)
    first = TokenBucket(1, 5, shared, 16)
    second = TokenBucket(1, 5, shared, 16)

    first.take(5, NOW)

    assert not second.take(1, NOW)


def test_another_bucket_at_a_taken_place_is_refused() -> None:
    shared = SharedMemory(4096)
    TokenBucket(1, 5, shared)

    with pytest.raises(ValueError, match="shared: the memory at offset 0 holds another bucket"):
        TokenBucket(2, 5, shared)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TokenBucket(0, 1), ValueError, "rate_per_s: expected .* got 0"),
        (lambda: TokenBucket(-1, 1), ValueError, "rate_per_s: .* got -1"),
        (lambda: TokenBucket(math.nan, 1), ValueError, "rate_per_s: .* got nan"),
        (lambda: TokenBucket(math.inf, 1), ValueError, "rate_per_s: .* got inf"),
        (lambda: TokenBucket(1e10, 1), ValueError, "rate_per_s"),
        (lambda: TokenBucket("1", 1), TypeError, "rate_per_s: expected a number"),  # type: ignore[arg-type]
        (lambda: TokenBucket(1, 0), ValueError, "burst: expected 1 to 549755813887, got 0"),
        (lambda: TokenBucket(1, 2**70), ValueError, "burst"),
        (lambda: TokenBucket(1, 1.5), TypeError, "burst: expected an int"),  # type: ignore[arg-type]
        (
            lambda: TokenBucket(1e-9, 100),
            ValueError,
            "burst: expected at most .* rate_per_s = 1, got 100",
        ),
        (lambda: TokenBucket(1, 1, SharedMemory(16), 8), ValueError, "offset: expected a multiple of 8"),
        (lambda: TokenBucket(1, 1, SharedMemory(64), 3), ValueError, "offset"),
        (lambda: TokenBucket(1, 1, b"12345678"), TypeError, "shared"),  # type: ignore[arg-type]
        (lambda: FixedWindow(0, 1), ValueError, "limit: .* got 0"),
        (lambda: FixedWindow(1, 0), ValueError, "window_s: expected 0.001 to"),
        (lambda: SlidingWindow(1, math.nan), ValueError, "window_s"),
        (lambda: SlidingWindow(True, 1), TypeError, "limit"),
        (lambda: SlidingWindow(1, 1, SharedMemory(16)), ValueError, "shared: expected at least"),
        (lambda: Limit(), TypeError, "make a TokenBucket"),
    ],
)
def test_bad_construction_names_argument_value_and_range(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("limit", [TokenBucket(1, 5), FixedWindow(5, 10), SlidingWindow(5, 10)])
@pytest.mark.parametrize("verb", ["take", "decide", "peek", "charge", "refund"])
@pytest.mark.parametrize(
    ("amount", "now_ns", "error", "message"),
    [
        (0, NOW, ValueError, "amount: expected 1 to 549755813887, got 0"),
        (-1, NOW, ValueError, "amount"),
        (2**200, NOW, ValueError, "amount"),
        (1.0, NOW, TypeError, "amount"),
        (True, NOW, TypeError, "amount"),
        ("1", NOW, TypeError, "amount"),
        (1, -1, ValueError, "now_ns: expected 0 to 4611686018427387903, got -1"),
        (1, 2**62, ValueError, "now_ns"),
        (1, 1e9, TypeError, "now_ns"),
        (1, math.nan, TypeError, "now_ns"),
    ],
)
def test_bad_calls_change_nothing(
    limit: Limit, verb: str, amount: Any, now_ns: Any, error: type[Exception], message: str
) -> None:
    before = repr(limit.peek(1, NOW))

    with pytest.raises(error, match=message):
        if verb == "refund":
            limit.refund(amount, NOW, now_ns)
        else:
            getattr(limit, verb)(amount, now_ns)

    assert repr(limit.peek(1, NOW)) == before


@pytest.mark.parametrize("now_ns", [0, 1, 2**62 - 1])
def test_the_ends_of_the_clock_work(now_ns: int) -> None:
    for limit in (
        TokenBucket(1000, 2**39 - 1),
        TokenBucket(1e9, 1),
        FixedWindow(1, 1e9),
        SlidingWindow(1, 0.001),
    ):
        assert limit.decide(1, now_ns).allowed
        assert limit.decide(2**39 - 1, now_ns) is not None


def test_the_shift_makes_a_tick_last_one_to_two_ns() -> None:
    for rate_per_s in (1e9, 6e8, 1.0, 1e-6):
        oracle = BucketOracle(rate_per_s, 1)
        assert 2**61 <= oracle.ratio <= 2**62
