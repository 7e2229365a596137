"""KeyedLimiter: equal to a dictionary of oracles, one decision for all limits, exact across processes."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import (
    Decision,
    FixedWindow,
    KeyedLimiter,
    Limit,
    LimiterTable,
    Reservation,
    SharedMemory,
    SlidingWindow,
    TokenBucket,
)
from fastgate._core.limits import keyed, limits
from fastgate._core.shm import table
from tests.core.limit_oracles import KeyedOracle
from tests.core.processes import Tallies, in_processes, kill, spawn
from tests.core.test_limits import NOW, SECOND, any_limit

RULES = [TokenBucket(10, 20), SlidingWindow(100, 60), FixedWindow(1000, 3600)]

histories = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "peek", "charge", "reserve", "settle", "forget"]),
        st.sampled_from(["a", "b", "c"]),
        st.lists(st.integers(0, 55), min_size=4, max_size=4).filter(any),
        st.booleans(),
        st.one_of(
            st.integers(0, 2 * SECOND),
            st.sampled_from([0, 1, -1, -SECOND, -59 * SECOND, -500 * SECOND, 200 * SECOND]),
        ),
    ),
    max_size=60,
)


def limiter_of(limits: list[Limit], capacity: int, shared: bool, **more: Any) -> KeyedLimiter:
    memory = SharedMemory(KeyedLimiter.size(limits, capacity)) if shared else None
    return KeyedLimiter(limits, capacity=capacity, shared=memory, **more)


@given(st.lists(any_limit, min_size=1, max_size=4), histories, st.booleans())
def test_any_history_equals_the_oracle(
    limits: list[Limit], history: list[tuple[str, str, list[int], bool, int]], shared: bool
) -> None:
    limiter = limiter_of(limits, 10, shared)
    oracle = KeyedOracle(limits)
    open_reservations: list[tuple[str, list[int], int, Reservation]] = []
    now_ns = NOW

    for verb, key, raw, is_same_amount, wait_ns in history:
        now_ns = max(now_ns + wait_ns, 0)
        amounts = [max(raw[0], 1)] * len(limits) if is_same_amount else raw[: len(limits)]
        if not any(amounts):
            amounts = [1] * len(limits)
        amount = amounts[0] if is_same_amount else tuple(amounts)
        if verb == "charge":
            assert limiter.charge(key, amount, now_ns)
            oracle.adjust(key, amounts, now_ns, now_ns)
        elif verb == "forget":
            limiter.forget(key)
            oracle.entries.pop(key, None)
        elif verb == "settle":
            if open_reservations:
                key, reserved, taken_ns, reservation = open_reservations.pop()
                assert reservation.settle(amount, now_ns)
                assert not reservation.settle(amount, now_ns)
                used = [used - held if held else 0 for used, held in zip(amounts, reserved, strict=True)]
                oracle.adjust(key, used, taken_ns, now_ns)
        elif verb == "peek":
            before = [dict(vars(each)) for each in oracle.at(key)]
            expected = oracle.take(key, amounts, now_ns)
            assert fields(limiter.peek(key, amount, now_ns)) == expected
            for each, state in zip(oracle.at(key), before, strict=True):
                vars(each).update(state)
        elif verb == "reserve":
            expected = oracle.take(key, amounts, now_ns)
            answer = limiter.reserve(key, amount, now_ns)
            if isinstance(answer, Reservation):
                assert expected[0]
                open_reservations.append((key, amounts, now_ns, answer))
            else:
                assert fields(answer) == expected
        else:
            assert fields(limiter.take(key, amount, now_ns)) == oracle.take(key, amounts, now_ns)
    assert limiter.table.audit() == []


def fields(decision: Decision) -> tuple[bool, int, int, int, int]:
    return (
        decision.allowed,
        decision.limit,
        decision.remaining,
        decision.retry_after_ns,
        decision.reset_ns,
    )


def test_a_refusal_by_one_limit_takes_from_none() -> None:
    limiter = KeyedLimiter([FixedWindow(100, 60), FixedWindow(5, 3600)], capacity=10)
    for _ in range(5):
        limiter.take("a", 1, NOW)

    refused = [limiter.take("a", 1, NOW) for _ in range(50)]

    assert not any(refused)
    assert {decision.limit for decision in refused} == {1}
    assert limiter.take("a", (95, 0), NOW).remaining == 0


def test_the_tightest_limit_is_reported() -> None:
    limiter = KeyedLimiter([FixedWindow(10, 60), FixedWindow(8, 3600), TokenBucket(1, 9)], capacity=10)

    granted = limiter.take("a", 1, NOW)
    refused = limiter.take("a", 9, NOW)

    assert (granted.limit, granted.remaining) == (1, 7)
    assert (refused.limit, refused.retry_after_ns) == (1, Decision.NEVER)


def test_keys_do_not_meet() -> None:
    limiter = KeyedLimiter(FixedWindow(1, 1e6), capacity=50_000)

    first = sum(bool(limiter.take(f"key {number}", 1, NOW)) for number in range(50_000))
    second = sum(bool(limiter.take(f"key {number}".encode(), 1, NOW)) for number in range(50_000))

    assert first == 50_000
    assert second == 0
    assert limiter.statistics()["entries"] == 50_000


def test_idle_entries_are_reused_without_a_sweeper() -> None:
    limiter = KeyedLimiter([TokenBucket(1, 1), FixedWindow(10, 1)], capacity=1000)

    allowed = 0
    for number in range(100_000):
        allowed += bool(limiter.take(f"key {number}", 1, NOW + number * 10_000_000))

    assert allowed == 100_000
    counts = limiter.statistics()
    assert counts["refused"] == counts["evicted"] == 0
    assert counts["reused"] > 90_000
    assert counts["entries"] < 2000
    assert limiter.table.audit() == []


def test_a_full_table_refuses_new_keys_keeps_the_old_ones_and_counts() -> None:
    limiter = KeyedLimiter(FixedWindow(2, 1e6), capacity=100)
    keys = [f"key {number}" for number in range(1000)]

    first = {key: limiter.take(key, 1, NOW) for key in keys}
    kept = [key for key in keys if first[key]]
    turned_away = [key for key in keys if not first[key]]

    assert len(kept) >= 100
    assert all(first[key].limit == -1 and first[key].retry_after_ns > 0 for key in turned_away)
    assert limiter.statistics()["refused"] == len(turned_away)
    assert all(limiter.take(key, 1, NOW) for key in kept)
    assert not any(limiter.take(key, 1, NOW) for key in kept)
    after = turned_away[0], NOW + first[turned_away[0]].retry_after_ns + 1100
    assert limiter.take(after[0], 1, after[1])


def test_a_full_table_may_evict_instead() -> None:
    limiter = KeyedLimiter(FixedWindow(2, 1e6), capacity=100, when_full="evict")

    allowed = sum(bool(limiter.take(f"key {number}", 1, NOW)) for number in range(1000))

    counts = limiter.statistics()
    assert allowed == 1000
    assert counts["evicted"] == 1000 - counts["entries"]
    assert limiter.table.audit() == []


def test_a_peek_makes_no_entry() -> None:
    limiter = KeyedLimiter(RULES, capacity=10)

    assert limiter.peek("a", 1, NOW).allowed
    assert limiter.statistics()["entries"] == 0


def test_a_reservation_is_settled_once() -> None:
    limiter = KeyedLimiter(TokenBucket(1, 1000), capacity=10)
    reservation = limiter.reserve("a", 600, NOW)
    assert isinstance(reservation, Reservation)

    answers = [reservation.settle(100, NOW), reservation.settle(0, NOW), reservation.refund(NOW)]

    assert answers == [True, False, False]
    assert not reservation.is_open
    assert limiter.peek("a", 900, NOW).allowed
    assert not limiter.peek("a", 901, NOW).allowed


def test_settling_on_more_than_reserved_charges_the_rest() -> None:
    limiter = KeyedLimiter(FixedWindow(1000, 60), capacity=10)
    reservation = limiter.reserve("a", 600, NOW)
    assert isinstance(reservation, Reservation)

    reservation.settle(1500, NOW)

    assert limiter.peek("a", 1, NOW).remaining == 0
    assert limiter.statistics()["entries"] == 1


def test_a_refused_reservation_says_why() -> None:
    limiter = KeyedLimiter(FixedWindow(10, 60), capacity=10)

    answer = limiter.reserve("a", 11, NOW)

    assert isinstance(answer, Decision)
    assert not answer


def test_limiters_of_one_table_keep_apart_and_a_reload_finds_its_counts() -> None:
    table = LimiterTable(1000, 5)
    per_user = KeyedLimiter(FixedWindow(5, 3600), table=table, scope="user")
    per_route = KeyedLimiter(FixedWindow(5, 3600), table=table, scope="route")
    per_user.take("a", 5, NOW)

    after_reload = KeyedLimiter(FixedWindow(7, 3600), table=table, scope="user")

    assert per_route.take("a", 5, NOW).allowed
    assert after_reload.take("a", 2, NOW).allowed
    assert not after_reload.take("a", 1, NOW).allowed


def test_four_processes_are_granted_exactly_100_000_by_the_tightest_of_three() -> None:
    limits: list[Limit] = [TokenBucket(1e-3, 120_000), SlidingWindow(100_000, 1e6), FixedWindow(110_000, 1e6)]
    limiter = limiter_of(limits, 100, True)

    granted = in_processes(4, lambda _: sum(bool(limiter.take("a", 1, NOW)) for _ in range(35_000)))

    assert sum(granted) == 100_000
    assert limiter.take("a", (1, 0, 1), NOW).remaining == 9_999
    assert limiter.table.audit() == []


def test_four_processes_that_meet_on_new_keys_never_make_one_twice() -> None:
    limiter = limiter_of([FixedWindow(1, 1e6)], 20_000, True)

    granted = in_processes(
        4, lambda _: sum(bool(limiter.take(f"key {number}", 1, NOW)) for number in range(20_000))
    )

    assert sum(granted) == 20_000
    assert limiter.table.audit() == []


def test_four_processes_that_fight_for_few_slots_never_over_admit() -> None:
    limiter = limiter_of([FixedWindow(1, 1)], 16, True)

    def work(number: int) -> int:
        randomly = random.Random(number)
        return sum(
            bool(limiter.take(f"key {randomly.randrange(200)}", 1, NOW + index * 1_000_000))
            for index in range(20_000)
        )

    granted = in_processes(4, work)

    # 20 windows of one second, and at most one grant per key and window
    assert 0 < sum(granted) <= 21 * 200
    assert limiter.table.audit() == []


def test_four_threads_are_granted_exactly_the_limit() -> None:
    limiter = limiter_of([FixedWindow(30_000, 1e6)], 10, True)
    granted = [0] * 4

    def work(number: int) -> None:
        granted[number] = sum(bool(limiter.take("a", 1, NOW)) for _ in range(10_000))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(granted) == 30_000


def hammer_and_kill(rounds: int, seed: int) -> None:
    """Three children take from a few keys for ever; one of them at a time is killed and replaced."""
    randomly = random.Random(seed)
    limits: list[Limit] = [TokenBucket(100, 2**30), SlidingWindow(2**30, 1e8), FixedWindow(2**30, 1e8)]
    memory = SharedMemory(LimiterTable.size(64, 5, 8))
    limiter = KeyedLimiter(limits, table=LimiterTable(64, 5, memory, 8))
    # Keys that are idle a millisecond later: their slots are taken over again and again.
    passing = KeyedLimiter(TokenBucket(1000, 1), table=limiter.table)
    tallies = Tallies(rounds + 3)

    def work(child: int) -> None:
        mine = random.Random(child)
        now_ns = NOW
        while True:
            if limiter.take(f"hot {mine.randrange(2)}", 1, NOW):
                tallies.words[child] += 1
            now_ns += 1_000_000
            passing.take(f"passing {mine.randrange(100_000)}", 1, now_ns)

    children = [spawn(lambda child=child: work(child)) for child in range(3)]  # type: ignore[misc]
    for child in range(3, rounds + 3):
        threading.Event().wait(randomly.random() * 0.004)
        kill(children.pop(randomly.randrange(3)))
        children.append(spawn(lambda child=child: work(child)))  # type: ignore[misc]
    for pid in children:
        kill(pid)

    used = sum(2**30 - limiter.peek(f"hot {number}", 1, NOW).remaining - 1 for number in range(2))
    counted = tallies.total()
    # A kill between the grant and the count loses one count: never the other way round, and never more.
    assert counted <= used <= counted + rounds + 3
    assert used > 0
    assert limiter.table.audit() == []
    assert limiter.statistics()["reused"] > rounds
    print(limiter.statistics())
    assert limiter.take("hot 0", 1, NOW).allowed
    same = KeyedLimiter(limits, table=LimiterTable(64, 5, memory, 8))
    assert same.take("hot 1", 1, NOW).allowed


def test_a_process_killed_anywhere_leaves_counts_and_table_right() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    hammer_and_kill(3000 if os.environ.get("FASTGATE_SOAK") else 120, seed)


@pytest.mark.soak
def test_thousands_of_kills_leave_counts_and_table_right() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    hammer_and_kill(5000, seed)


def test_an_unrelated_process_uses_the_same_table(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    size = KeyedLimiter.size(RULES, 100)
    limiter = KeyedLimiter(RULES, capacity=100, shared=SharedMemory(size, path))
    limiter.take("a", 18, NOW)

    code = (
        "import sys\n"
        "from fastgate._core import *\n"
        "rules = [TokenBucket(10, 20), SlidingWindow(100, 60), FixedWindow(1000, 3600)]\n"
        f"limiter = KeyedLimiter(rules, capacity=100, shared=SharedMemory({size}, sys.argv[1]))\n"
        f"print(limiter.take('a', 1, {NOW}).remaining)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert found.stdout == "1\n"
    assert limiter.take("a", 1, NOW).remaining == 0


def test_a_forked_child_has_its_own_private_limiter() -> None:
    limiter = KeyedLimiter(FixedWindow(10, 60), capacity=10)
    limiter.take("a", 5, NOW)

    in_child = in_processes(1, lambda _: limiter.take("a", 5, NOW).remaining)

    assert in_child == [0]
    assert limiter.take("a", 1, NOW).remaining == 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KeyedLimiter([], capacity=1), ValueError, "limits: expected 1 to 16, got 0"),
        (lambda: KeyedLimiter([TokenBucket(1, 1)] * 17, capacity=1), ValueError, "limits: .* got 17"),
        (lambda: KeyedLimiter([5], capacity=1), TypeError, "limits: expected TokenBucket"),  # type: ignore[list-item]
        (lambda: KeyedLimiter(RULES), TypeError, "capacity: expected an int, or table"),
        (lambda: KeyedLimiter(RULES, capacity=0), ValueError, "capacity: expected 1 to 9000000, got 0"),
        (lambda: KeyedLimiter(RULES, capacity=10**7), ValueError, "capacity"),
        (lambda: KeyedLimiter(RULES, capacity=1.5), TypeError, "capacity"),  # type: ignore[arg-type]
        (
            lambda: KeyedLimiter(RULES, capacity=9, shared=SharedMemory(9)),
            ValueError,
            "shared: expected at least",
        ),
        (
            lambda: KeyedLimiter(RULES, capacity=9, when_full="panic"),
            ValueError,
            "when_full: expected 'refuse'",
        ),
        (lambda: KeyedLimiter(RULES, capacity=9, scope=3), TypeError, "scope: expected str"),  # type: ignore[arg-type]
        (
            lambda: KeyedLimiter(RULES * 3, table=LimiterTable(9)),
            ValueError,
            "state_words of at least 15, got 5",
        ),
        (
            lambda: KeyedLimiter(RULES, capacity=9, table=LimiterTable(9)),
            TypeError,
            "table: expected without",
        ),
    ],
)
def test_bad_construction_names_argument_value_and_range(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5,), TypeError, "key: expected str or bytes, got 5"),
        (("\ud800",), ValueError, "key: expected text without lone surrogates"),
        (("a", 0), ValueError, "amount: expected 1 to 549755813887, got 0"),
        (("a", -1), ValueError, "amount"),
        (("a", 2**39), ValueError, "amount"),
        (("a", math.nan), TypeError, "amount"),
        (("a", (1, 2)), ValueError, "amount: expected one int or 3, one per limit, got 2"),
        (("a", (0, 0, 0)), ValueError, "amount: expected at least one above 0"),
        (("a", (1, 1, -1)), ValueError, "amount"),
        (("a", 1, -1), ValueError, "now_ns: expected 0 to"),
        (("a", 1, 2**62), ValueError, "now_ns"),
        (("a", 1, 0.5), TypeError, "now_ns"),
    ],
)
@pytest.mark.parametrize("verb", ["take", "peek", "reserve"])
def test_bad_calls_change_nothing(
    verb: str, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    limiter = KeyedLimiter(RULES, capacity=10)
    limiter.take("a", 7, NOW)

    with pytest.raises(error, match=message):
        getattr(limiter, verb)(*arguments)

    assert limiter.peek("a", 1, NOW).remaining == 12
    assert limiter.statistics()["entries"] == 1


def test_no_table_or_reservation_outlives_its_use() -> None:
    before = keyed.live_objects(), table.live_objects(), limits.live_objects()

    for _ in range(100):
        limiter = KeyedLimiter([TokenBucket(1, 1)], capacity=10)
        reservation = limiter.reserve("a", 1, NOW)
    del limiter, reservation

    assert (keyed.live_objects(), table.live_objects(), limits.live_objects()) == before


def test_many_takes_leave_no_memory_behind() -> None:
    limiter = KeyedLimiter(RULES, capacity=10)
    for _ in range(1000):
        limiter.take("a")
    before = sys.getallocatedblocks()

    for _ in range(100_000):
        limiter.take("a")
        limiter.peek(b"b", (1, 0, 2), NOW)

    assert sys.getallocatedblocks() - before < 100
