"""The rules behind `limits:`, without a gateway: what is counted, what a reload keeps, what moves."""

from __future__ import annotations

import os
import random
import signal
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import LimiterTable, PenaltyBox, SharedMemory
from fastgate._core.gates.client_key import client_key
from fastgate._core.gates.limit_factor import Health, Usual
from fastgate._core.gates.limit_rule import RECORD_WORDS, LimitRule
from fastgate._core.limits.inflight import InflightTable
from tests.core.processes import Tallies, in_processes, spawn

S = 1_000_000_000
T0 = 1_000_000 * 86_400 * S // 1000  # far from zero, on a boundary of every window


def rule(
    amounts: dict[str, Any],
    *,
    table: LimiterTable | None = None,
    scope: str = "test",
    by: tuple[Any, ...] = ("consumer",),
    **options: Any,
) -> LimitRule:
    inflight = InflightTable(64, 1).for_seat(0)
    return LimitRule(table or LimiterTable(1000, RECORD_WORDS), inflight, scope, by, amounts, **options)


def granted(limits: LimitRule, tries: int, now_ns: int, key: bytes = b"acme") -> int:
    return sum(limits.decide([key], now_ns=now_ns)[0] for _ in range(tries))


@pytest.mark.parametrize("algorithm", ["sliding_window", "fixed_window", "token_bucket"])
@pytest.mark.parametrize(
    ("amounts", "expected", "limit_type"),
    [
        ({"per_second": 3}, 3, "per_second"),
        ({"per_minute": 7}, 7, "per_minute"),
        ({"per_hour": 11}, 11, "per_hour"),
        ({"per_day": 2}, 2, "per_day"),
        ({"per_minute": 50, "burst": 5}, 5, "burst"),
        ({"per_minute": 50, "per_hour": 9}, 9, "per_hour"),
        ({"cost_per_hour": 4}, 4, "cost_per_hour"),
        ({"per_minute": 50, "cost_per_hour": 4.5}, 4, "cost_per_hour"),
    ],
)
def test_exactly_the_tightest_limit_is_granted_at_once(
    algorithm: str, amounts: dict[str, Any], expected: int, limit_type: str
) -> None:
    limits = rule(amounts, algorithm=algorithm)

    assert granted(limits, 100, T0) == expected

    allowed, which, remaining, retry_ns, _ = limits.decide([b"acme"], now_ns=T0)
    assert not allowed
    # A token bucket takes the burst for the size of the window's own bucket.
    assert which == ("per_minute" if limit_type == "burst" and algorithm == "token_bucket" else limit_type)
    assert remaining == 0
    assert 0 < retry_ns <= 2 * 86_400 * S
    assert granted(limits, 100, T0, b"other") == expected


@pytest.mark.parametrize("algorithm", ["sliding_window", "fixed_window", "token_bucket"])
@pytest.mark.parametrize("amounts", [{"per_second": 3}, {"per_minute": 7, "burst": 2}, {"cost_per_hour": 5}])
def test_after_the_told_wait_the_next_one_is_granted_and_not_before(
    algorithm: str, amounts: dict[str, Any]
) -> None:
    limits = rule(amounts, algorithm=algorithm)
    granted(limits, 100, T0)

    wait_ns = limits.decide([b"acme"], now_ns=T0)[3]

    assert not limits.decide([b"acme"], now_ns=T0 + wait_ns - 1)[0]
    assert limits.decide([b"acme"], now_ns=T0 + wait_ns)[0]


@given(
    per_minute=st.integers(1, 5000),
    burst=st.integers(1, 300),
    gaps=st.lists(st.integers(0, 5 * S), min_size=1, max_size=60),
)
def test_a_bucket_never_grants_more_than_burst_and_rate_allow(
    per_minute: int, burst: int, gaps: list[int]
) -> None:
    limits = rule({"per_minute": per_minute, "burst": burst}, algorithm="token_bucket")
    now = T0
    times = []
    for gap in gaps:
        now += gap
        times += [now] * granted(limits, 3, now)

    for first, start in enumerate(times):
        for last in range(first, len(times)):
            span = Fraction(times[last] - start, 60 * S)
            assert last - first + 1 <= burst + span * per_minute


@given(
    limit=st.integers(1, 40),
    gaps=st.lists(st.tuples(st.integers(0, 40 * S), st.integers(1, 10)), min_size=1, max_size=60),
)
def test_a_sliding_window_grants_at_most_its_limit_in_each_aligned_minute(
    limit: int, gaps: list[tuple[int, int]]
) -> None:
    limits = rule({"per_minute": limit})
    now = T0
    count: dict[int, int] = {}
    for gap, tries in gaps:
        now += gap
        number = now // (60 * S)
        count[number] = count.get(number, 0) + granted(limits, tries, now)

    assert max(count.values()) <= limit
    for number, used in count.items():
        assert used + count.get(number + 1, 0) <= 2 * limit


@pytest.mark.parametrize("algorithm", ["sliding_window", "fixed_window", "token_bucket"])
def test_changed_amounts_keep_what_was_counted(algorithm: str) -> None:
    """A reload makes the rule anew: same scope, other numbers."""
    table = LimiterTable(1000, RECORD_WORDS)
    before = rule({"per_hour": 100, "burst": 50}, table=table, algorithm=algorithm)
    assert granted(before, 30, T0) == 30

    after = rule({"per_hour": 40, "burst": 40}, table=table, algorithm=algorithm)

    expected = {"sliding_window": 10, "fixed_window": 10, "token_bucket": 28}[algorithm]
    # The bucket remembers the time until it is full: 30 of 100 an hour are 12 of 40 an hour.
    assert granted(after, 100, T0) == expected
    assert after.read([b"acme"], now_ns=T0)["requests"] == 30 + expected


def test_a_limit_that_comes_or_goes_leaves_the_others_counted() -> None:
    table = LimiterTable(1000, RECORD_WORDS)
    assert granted(rule({"per_hour": 10}, table=table), 7, T0) == 7

    more = rule({"per_minute": 100, "per_hour": 10, "per_day": 50}, table=table)

    assert granted(more, 100, T0) == 3


def test_an_empty_bucket_serves_the_new_rate_soon_after_a_reload() -> None:
    table = LimiterTable(1000, RECORD_WORDS)
    slow = rule({"per_hour": 60, "burst": 60}, table=table, algorithm="token_bucket")
    assert granted(slow, 100, T0) == 60  # an hour to fill again

    fast = rule({"per_hour": 3600 * 100, "burst": 60}, table=table, algorithm="token_bucket")

    assert fast.decide([b"acme"], now_ns=T0)[3] <= 2 * S


@pytest.mark.parametrize("algorithm", ["sliding_window", "fixed_window", "token_bucket"])
def test_what_is_given_back_is_as_if_it_had_not_been_taken(algorithm: str) -> None:
    limits = rule({"per_minute": 60, "burst": 20, "per_day": 100, "cost_per_hour": 50}, algorithm=algorithm)
    granted(limits, 5, T0)
    before = limits.read([b"acme"], now_ns=T0)

    assert limits.decide([b"acme"], cost=3, now_ns=T0)[0]
    limits.refund([b"acme"], cost=3, taken_ns=T0, now_ns=T0)

    assert limits.read([b"acme"], now_ns=T0) == before


def test_a_cost_can_be_settled_up_and_down() -> None:
    limits = rule({"cost_per_hour": 10})
    assert limits.decide([b"acme"], cost=4, now_ns=T0)[0]

    limits.refund([b"acme"], amount=0, cost=-2.5, taken_ns=T0, now_ns=T0 + S)  # it was dearer
    assert limits.read([b"acme"], now_ns=T0 + S)["limits"][0]["remaining"] == 3.5
    limits.refund([b"acme"], amount=0, cost=6, taken_ns=T0, now_ns=T0 + S)  # it was cheaper
    assert limits.read([b"acme"], now_ns=T0 + S)["limits"][0]["remaining"] == 9.5
    assert limits.read([b"acme"], now_ns=T0 + S)["cost"] == 0.5


def test_a_cost_above_the_limit_is_never_granted_and_says_so() -> None:
    limits = rule({"cost_per_hour": 10})

    allowed, which, _, retry_ns, _ = limits.decide([b"acme"], cost=11, now_ns=T0)

    assert (allowed, which, retry_ns) == (False, "cost_per_hour", 2**63 - 1)


def test_a_refusal_takes_nothing_from_the_other_limits_of_the_rule() -> None:
    limits = rule({"per_minute": 5, "per_day": 100})
    granted(limits, 5, T0)

    granted(limits, 1000, T0)

    day = limits.read([b"acme"], now_ns=T0)["limits"][1]
    assert (day["limit_type"], day["remaining"]) == ("per_day", 95)


def test_reset_forgets_one_key_only() -> None:
    limits = rule({"per_minute": 5})
    granted(limits, 5, T0)
    granted(limits, 5, T0, b"other")

    assert limits.reset([b"acme"])

    assert granted(limits, 9, T0) == 5
    assert granted(limits, 9, T0, b"other") == 0
    assert not limits.reset([b"nobody"])


def test_keys_of_several_parts_do_not_meet() -> None:
    table = LimiterTable(1000, RECORD_WORDS)
    pair = rule({"per_minute": 1}, table=table, by=("consumer", ("header", "X-Tenant")))

    assert pair.decide([b"ab", b"c"], now_ns=T0)[0]
    assert pair.decide([b"a", b"bc"], now_ns=T0)[0]
    assert pair.decide([b"ab", None], now_ns=T0)[0]
    assert not pair.decide([b"ab", b"c"], now_ns=T0)[0]
    assert not pair.decide([b"ab", None], now_ns=T0)[0]


def test_a_consumer_named_like_an_address_is_not_that_address() -> None:
    limits = rule({"per_minute": 1})
    packed = client_key("1.2.3.4")

    assert limits.decide([packed], now_ns=T0)[0]
    assert limits.decide([("ip", packed)], now_ns=T0)[0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::2", True),  # one /64 is one client
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("2001:0db8::1", "2001:db8:0:0::1", True),
    ],
)
def test_addresses_are_counted_by_network(one: str, other: str, same: bool) -> None:
    assert (client_key(one) == client_key(other)) is same


def test_prefixes_of_other_lengths() -> None:
    assert client_key("10.1.2.3", 24) == client_key("10.1.2.77", 24)
    assert client_key("10.1.2.3", 23) == client_key("10.1.3.77", 23)
    assert client_key("10.1.2.3", 24) != client_key("10.1.3.3", 24)
    assert client_key("2001:db8:1:2::", 32, 48) == client_key("2001:db8:1:3::", 32, 48)


@pytest.mark.parametrize(("when_full", "expected"), [("deny", (False, "full")), ("evict", (True, "per_day"))])
def test_a_full_table_does_what_was_chosen(when_full: str, expected: tuple[bool, str]) -> None:
    table = LimiterTable(8, RECORD_WORDS)
    limits = rule({"per_day": 5}, table=table, when_full=when_full)
    said = {limits.decide([b"key %d" % number], now_ns=T0)[:2] for number in range(500)}

    assert expected in said
    assert (False, "full") not in said or when_full == "deny"


@pytest.mark.parametrize(
    ("amounts", "algorithm"),
    [
        ({"per_day": 1, "burst": 1_000_000_000}, "sliding_window"),
        ({"per_second": 0}, "sliding_window"),
        ({"per_second": 1 << 40}, "fixed_window"),
    ],
)
def test_amounts_that_cannot_be_counted_are_refused(amounts: dict[str, Any], algorithm: str) -> None:
    with pytest.raises(ValueError, match=r"per_|burst"):
        rule(amounts, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["sliding_window", "fixed_window", "token_bucket"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_processes_together_are_granted_exactly_the_limit(algorithm: str, workers: int) -> None:
    table = LimiterTable(1000, RECORD_WORDS, SharedMemory(LimiterTable.size(1000, RECORD_WORDS)))
    limits = rule({"per_day": 500, "per_hour": 400}, table=table, algorithm=algorithm)

    total = in_processes(workers, lambda _: granted(limits, 1000, T0))

    assert sum(total) == 400


@pytest.mark.parametrize("algorithm", ["sliding_window", "fixed_window", "token_bucket"])
def test_killed_processes_leave_the_count_right(algorithm: str) -> None:
    """Each grant is told in shared memory before the next: a kill loses at most one telling per child."""
    table = LimiterTable(1000, RECORD_WORDS, SharedMemory(LimiterTable.size(1000, RECORD_WORDS)))
    limits = rule({"per_day": 100_000}, table=table, algorithm=algorithm)
    tallies = Tallies(30)
    rng = random.Random(1)

    def work(number: int) -> None:
        while True:
            if limits.decide([b"acme"], now_ns=T0)[0]:
                tallies.words[number] += 1

    running: list[int] = []
    for number in range(30):
        running.append(spawn(lambda number=number: work(number)))  # type: ignore[misc]
        time.sleep(0.005 + rng.random() * 0.02)
        if len(running) > 2:
            victim = running.pop(rng.randrange(len(running)))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    counted = limits.read([b"acme"], now_ns=T0)["requests"]
    assert 0 <= counted - tallies.total() <= 30
    assert granted(limits, 200_000, T0) == 100_000 - counted
    assert table.audit() == []


def test_health_lowers_and_raises_the_factor_between_its_bounds() -> None:
    table = LimiterTable(100, RECORD_WORDS)
    health = Health(table, "r", 0.2, 2.0, 0.1, 0)
    now = T0
    health.see(0, 0, now)

    for _ in range(20):
        now += S
        health.see(100, 50, now)
    assert health.factor == pytest.approx(0.2, abs=0.001)

    for _ in range(10):
        now += S
        health.see(100, 1, now)
    assert 0.2 < health.factor < 2.0
    for _ in range(20):
        now += S
        health.see(100, 1, now)
    assert health.factor == pytest.approx(2.0, abs=0.001)


def test_few_failures_say_nothing_of_health() -> None:
    health = Health(LimiterTable(100, RECORD_WORDS), "r", 0.2, 1.0, 0.1, 0)
    health.see(0, 0, T0)

    health.see(5, 5, T0 + S)

    assert health.factor == 1.0


def test_workers_share_one_health() -> None:
    table = LimiterTable(100, RECORD_WORDS)
    one, other = (Health(table, "r", 0.2, 1.0, 0.1, 0) for _ in range(2))
    one.see(0, 0, T0)
    other.see(0, 0, T0)

    one.see(50, 50, T0 + S)
    other.see(0, 0, T0 + S + S // 5)

    assert other.factor == one.factor == pytest.approx(0.7, abs=0.001)


def test_a_lowered_factor_lowers_every_limit_and_never_to_nothing() -> None:
    limits = rule({"per_minute": 100, "per_day": 1000})

    assert sum(limits.decide([b"a"], now_ns=T0, factor=0.5)[0] for _ in range(200)) == 50
    assert sum(limits.decide([b"b"], now_ns=T0, factor=0.0001)[0] for _ in range(200)) == 1


def test_what_is_usual_follows_the_client_slowly() -> None:
    usual = Usual(LimiterTable(100, RECORD_WORDS), "r", 3.0, 0.2)
    minute = 60 * S
    now = T0
    assert usual.see(b"acme", now) == 0

    for _ in range(60):
        now += minute
        for _ in range(20):
            allowed = usual.see(b"acme", now)

    assert allowed == pytest.approx(60, rel=0.05)  # three times 20 a minute
    assert usual.see(b"acme", now + 600 * minute) == pytest.approx(60, rel=0.05)  # a pause is no pattern


def test_bans_set_by_hand_last_as_long_as_told_and_can_be_ended() -> None:
    box = PenaltyBox(3, 60, (10, 100), 1000, capacity=100)

    assert box.ban("acme", 5000, now_ns=T0)

    assert box.banned("acme", now_ns=T0) == 5000 * S
    assert box.banned("acme", now_ns=T0 + 4999 * S) == S
    assert box.banned("acme", now_ns=T0 + 5000 * S) == 0
    assert box.pardon("acme")
    assert box.banned("acme", now_ns=T0) == 0


def test_a_ban_by_hand_counts_as_the_first_step() -> None:
    box = PenaltyBox(2, 60, (10, 100), 1000, capacity=100)
    box.ban("acme", 5, now_ns=T0)

    later = T0 + 6 * S
    box.strike("acme", now_ns=later)

    assert box.strike("acme", now_ns=later) == 100 * S


def test_fixed_windows_are_cut_at_utc() -> None:
    """The one table has one idea of how far UTC is from the monotonic clock, whatever process asks."""
    limits = rule({"per_day": 5}, algorithm="fixed_window")
    day = 86_400 * S
    into_the_day = time.time_ns() % day
    now = time.monotonic_ns()
    granted(limits, 5, now)

    _, _, _, retry_ns, _ = limits.decide([b"acme"], now_ns=now)

    assert retry_ns == pytest.approx(day - into_the_day, abs=5 * S)


def test_the_wait_is_told_for_the_limit_that_takes_longest() -> None:
    limits = rule({"per_second": 1, "per_day": 1}, algorithm="fixed_window")
    granted(limits, 1, T0)

    _, which, _, retry_ns, _ = limits.decide([b"acme"], now_ns=T0)

    assert which == "per_day"
    assert retry_ns > S
