"""PenaltyBox: equal to plain Python, exact across processes, and bans that always end."""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import FixedWindow, KeyedLimiter, LimiterTable, PenaltyBox, SharedMemory
from tests.core.processes import in_processes, kill, spawn

SECOND = 1_000_000_000
NOW = 1_000_000 * SECOND


class Oracle:
    def __init__(self, strikes: int, within_ns: int, bans_ns: list[int], forget_ns: int) -> None:
        self.needed, self.within_ns, self.bans_ns, self.forget_ns = strikes, within_ns, bans_ns, forget_ns
        self.until = self.first = self.strikes = self.step = self.last = 0

    def banned(self, now_ns: int) -> int:
        if self.until - now_ns > self.bans_ns[-1]:  # the clock was set back
            self.until = self.last = now_ns + self.bans_ns[-1]
        return max(self.until - now_ns, 0)

    def strike(self, now_ns: int) -> int:
        if self.banned(now_ns):
            return self.banned(now_ns)
        if now_ns - self.last >= self.forget_ns:
            self.strikes = self.step = 0
        if self.strikes == 0 or now_ns - self.first >= self.within_ns:
            self.strikes, self.first = 0, now_ns
        self.strikes += 1
        self.last = now_ns
        if self.strikes >= self.needed:
            self.until = self.last = now_ns + self.bans_ns[min(self.step, len(self.bans_ns) - 1)]
            self.step = min(self.step + 1, len(self.bans_ns))
            self.strikes = 0
        return self.banned(now_ns)


@given(
    st.integers(1, 4),
    st.integers(1, 20),
    st.lists(st.integers(1, 50), min_size=1, max_size=4).map(sorted),
    st.integers(1, 200),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["strike", "strike", "strike", "banned", "pardon"]),
            st.sampled_from(["a", "b"]),
            st.one_of(
                st.integers(0, 10 * SECOND), st.sampled_from([0, 1, 300 * SECOND, -SECOND, -500 * SECOND])
            ),
        ),
        max_size=80,
    ),
)
def test_any_history_equals_the_oracle(
    strikes: int,
    within_s: int,
    bans_s: list[int],
    forget_s: int,
    shared: bool,
    history: list[tuple[str, str, int]],
) -> None:
    memory = SharedMemory(PenaltyBox.size(10)) if shared else None
    box = PenaltyBox(strikes, within_s, bans_s, forget_s, capacity=10, shared=memory)
    bans_ns = [ban_s * SECOND for ban_s in bans_s]
    oracles: dict[str, Oracle] = {}
    now_ns = NOW

    for verb, key, wait_ns in history:
        now_ns += wait_ns
        oracle = oracles.setdefault(key, Oracle(strikes, within_s * SECOND, bans_ns, forget_s * SECOND))
        if verb == "strike":
            assert box.strike(key, now_ns) == oracle.strike(now_ns)
        elif verb == "banned":
            assert box.banned(key, now_ns) == oracle.banned(now_ns)
        else:
            box.pardon(key)
            del oracles[key]


def test_each_ban_is_longer_and_the_last_repeats() -> None:
    box = PenaltyBox(2, 60, (10, 100, 1000), 10**6, capacity=10)
    now_ns = NOW
    bans = []

    for _ in range(5):
        assert box.strike("a", now_ns) == 0
        bans.append(box.strike("a", now_ns) // SECOND)
        now_ns += bans[-1] * SECOND

    assert bans == [10, 100, 1000, 1000, 1000]
    assert box.banned("b", now_ns) == 0


def test_good_behaviour_clears_the_record() -> None:
    box = PenaltyBox(1, 60, (10, 100), 500, capacity=10)
    box.strike("a", NOW)

    soon = box.strike("a", NOW + 509 * SECOND)
    later = box.strike("a", NOW + (509 + 100 + 500) * SECOND)

    assert soon == 100 * SECOND
    assert later == 10 * SECOND


def test_a_pardon_ends_a_ban() -> None:
    box = PenaltyBox(1, capacity=10)
    box.strike("a", NOW)

    answers = [box.pardon("a"), box.pardon("a")]

    assert answers == [True, False]
    assert box.banned("a", NOW) == 0


def test_records_are_reused_when_they_say_nothing_any_more() -> None:
    box = PenaltyBox(5, 1, (1,), 1, capacity=100)

    for number in range(10_000):
        box.strike(f"key {number}", NOW + number * SECOND // 50)

    assert box.statistics()["refused"] == 0
    assert box.statistics()["entries"] < 300
    assert box.table.audit() == []


def test_four_processes_count_every_strike() -> None:
    box = PenaltyBox(10_000, 1e6, capacity=10, shared=SharedMemory(PenaltyBox.size(10)))

    unbanned = in_processes(4, lambda _: sum(box.strike("a", NOW) == 0 for _ in range(4_000)))

    assert sum(unbanned) == 9_999
    assert box.banned("a", NOW) == 60 * SECOND


def test_a_process_killed_anywhere_leaves_the_box_usable() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    randomly = random.Random(seed)
    box = PenaltyBox(3, 1, (1, 2), 1, capacity=20, shared=SharedMemory(PenaltyBox.size(20)))

    def work() -> None:
        now_ns = NOW
        while True:
            now_ns += SECOND // 10
            box.strike(f"key {now_ns % 37}", now_ns)

    for _ in range(2000 if os.environ.get("FASTGATE_SOAK") else 60):
        pid = spawn(work)
        threading.Event().wait(randomly.random() * 0.003)
        kill(pid)

    assert box.table.audit() == []
    assert [box.strike("new", NOW + 10**18 + number) for number in range(3)] == [0, 0, SECOND]


def test_a_box_and_a_limiter_share_a_table() -> None:
    table = LimiterTable(100)
    box = PenaltyBox(1, table=table)
    limiter = KeyedLimiter(FixedWindow(1, 60), table=table)

    box.strike("a", NOW)

    assert limiter.take("a", 1, NOW).allowed
    assert box.banned("a", NOW) == 60 * SECOND


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PenaltyBox(0, capacity=1), ValueError, "strikes: expected 1 to 1000000, got 0"),
        (lambda: PenaltyBox(1, 0, capacity=1), ValueError, "within_s"),
        (lambda: PenaltyBox(1, math.nan, capacity=1), ValueError, "within_s"),
        (lambda: PenaltyBox(1, 1, (), capacity=1), ValueError, "bans_s: expected 1 to 16 lengths, got 0"),
        (lambda: PenaltyBox(1, 1, (5, 4), capacity=1), ValueError, "bans_s: expected 5.0 to"),
        (lambda: PenaltyBox(1, 1, (5,), -1, capacity=1), ValueError, "forget_s"),
        (lambda: PenaltyBox(), TypeError, "capacity: expected an int, or table"),
        (lambda: PenaltyBox(capacity=5, when_full="x"), ValueError, "when_full"),
    ],
)
def test_bad_construction_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("key", "now_ns", "error"),
    [
        (5, NOW, TypeError),
        ("\ud800", NOW, ValueError),
        ("a", -1, ValueError),
        ("a", 2**62, ValueError),
        ("a", 1.0, TypeError),
    ],
)
def test_bad_calls_change_nothing(key: Any, now_ns: Any, error: type[Exception]) -> None:
    box = PenaltyBox(1, capacity=10)

    with pytest.raises(error):
        box.strike(key, now_ns)

    assert box.statistics()["entries"] == 0
