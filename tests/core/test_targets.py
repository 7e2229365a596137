"""TargetSet and its strategies: which target an attempt goes to, in which state of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from fastgate._core import CircuitBreaker
from fastgate._core.balance.strategies import (
    KeyHash,
    LatencyWeighted,
    P2cEwma,
    P2cRequests,
    Random,
    RoundRobin,
    Scored,
)
from fastgate._core.balance.targets import Strategy, TargetSet
from fastgate._core.resilience.health import HealthTable

MS, S = 1_000_000, 1_000_000_000
START = 100 * S


def targets(
    count: int,
    strategy: Strategy | None = None,
    weights: Sequence[int] | None = None,
    *,
    table: HealthTable | None = None,
    slot: int = 0,
    **how: Any,
) -> TargetSet:
    table = HealthTable(4096, 2) if table is None else table
    names = [f"http://10.0.0.{i}:80" for i in range(count)]
    return TargetSet(
        names,
        [table.hold(f"target/orders/{name}", slot) for name in names],
        table.hold("upstream/orders", slot),
        RoundRobin() if strategy is None else strategy,
        weights,
        seed=7,
        **how,
    )


def picks(
    balance: TargetSet, count: int, *, now_ns: int = START, key: Callable[[int], int] | None = None
) -> list[int]:
    """So many picks of requests that are over at once."""
    found = []
    for i in range(count):
        index, ticket = balance.choose(None if key is None else key(i), now_ns=now_ns)
        found.append(index)
        if ticket is not None:
            balance.finished(index, ticket, None, now_ns=now_ns)
    return found


def fail(balance: TargetSet, index: int, *, now_ns: int = START) -> None:
    """A failed attempt at this target."""
    others = [i for i in range(len(balance)) if i != index]
    chosen, ticket = balance.choose(tried=others, now_ns=now_ns)
    assert chosen == index and ticket is not None
    balance.finished(index, ticket, False, now_ns=now_ns)


class TestRoundRobin:
    def test_equal_weights_take_turns_in_listed_order(self) -> None:
        assert picks(targets(3), 7) == [0, 1, 2, 0, 1, 2, 0]

    def test_weights_are_exact_and_spread_out(self) -> None:
        found = picks(targets(3, weights=[5, 1, 1]), 700)

        assert Counter(found) == {0: 500, 1: 100, 2: 100}
        for light in (1, 2):
            places = [i for i, index in enumerate(found) if index == light]
            assert all(6 <= b - a <= 8 for a, b in pairwise(places))

    def test_a_thousand_targets_each_get_their_turn(self) -> None:
        assert sorted(picks(targets(1000), 1000)) == list(range(1000))

    def test_a_target_that_fails_and_returns_disturbs_no_turns(self) -> None:
        balance = targets(3, ejection=CircuitBreaker(failure_threshold=1, recovery_timeout_s=1.0))
        assert picks(balance, 2) == [0, 1]
        fail(balance, 2)

        assert picks(balance, 4) == [0, 1, 0, 1]
        assert Counter(picks(balance, 300, now_ns=START + 2 * S)) == {0: 100, 1: 100, 2: 100}


def test_random_follows_the_weights() -> None:
    found = Counter(picks(targets(3, Random(), [5, 3, 2]), 10_000))

    for index, share in enumerate((0.5, 0.3, 0.2)):
        assert found[index] / 10_000 == pytest.approx(share, abs=0.02)


class TestChoices:
    def test_the_target_with_fewer_requests_in_flight_is_taken(self) -> None:
        balance = targets(2, P2cRequests())
        held = [balance.choose(now_ns=START) for _ in range(10)]

        assert Counter(index for index, _ in held) == {0: 5, 1: 5}
        for index, ticket in held:
            if index == 0 and ticket is not None:
                balance.finished(index, ticket, now_ns=START)
        assert [balance.choose(now_ns=START)[0] for _ in range(5)] == [0] * 5

    def test_requests_of_other_processes_count(self) -> None:
        table = HealthTable(16, 2)
        balance = targets(2, P2cRequests(), table=table)
        other = targets(2, P2cRequests(), table=table, slot=1)
        for _ in range(6):
            other.healths[0].started()

        assert [balance.choose(now_ns=START)[0] for _ in range(6)] == [1] * 6

    def test_weights_divide_what_is_in_flight(self) -> None:
        balance = targets(2, P2cRequests(), [3, 1])

        found = Counter(balance.choose(now_ns=START)[0] for _ in range(40))

        assert found[0] == pytest.approx(30, abs=2)

    def test_the_faster_target_gets_more_but_not_everything(self) -> None:
        balance = targets(3, P2cEwma())
        for index, latency in enumerate((10 * MS, 100 * MS, 10 * MS)):
            balance.healths[index].finished(True, latency, now_ns=START)

        found = Counter(picks(balance, 3000))

        assert found[1] == 0
        assert min(found[0], found[2]) > 1000

    def test_a_slow_target_is_tried_again_when_its_latency_is_forgotten(self) -> None:
        balance = targets(2, P2cEwma(), half_life_s=1)
        balance.healths[0].finished(True, 10 * MS, now_ns=START)
        balance.healths[1].finished(True, 100 * MS, now_ns=START)
        for second in range(10):  # the fast one is used and stays what it is
            balance.healths[0].finished(True, 10 * MS, now_ns=START + second * S)

        assert 1 in picks(balance, 10, now_ns=START + 10 * S)

    def test_a_target_that_has_not_responded_yet_gets_one_request_first(self) -> None:
        balance = targets(2, P2cEwma())
        balance.healths[0].finished(True, 10 * MS, now_ns=START)

        first = [balance.choose(now_ns=START)[0] for _ in range(4)]

        assert first == [1, 0, 0, 0]


def test_latency_weighted_shares_are_inverse_to_latency() -> None:
    balance = targets(3, LatencyWeighted())
    for index, latency in enumerate((10 * MS, 20 * MS, 40 * MS)):
        balance.healths[index].finished(True, latency, now_ns=START)

    found = Counter(picks(balance, 14_000))

    for index, share in enumerate((4 / 7, 2 / 7, 1 / 7)):
        assert found[index] / 14_000 == pytest.approx(share, abs=0.02)


class TestScored:
    def test_each_term_decides_when_the_others_are_equal(self) -> None:
        cheap = targets(2, Scored(), costs=[0.2, 0.1])
        good = targets(2, Scored([0.5, 1.0]))
        healthy = targets(2, Scored())
        for balance in (cheap, good, healthy):
            for health in balance.healths:
                health.finished(True, 10 * MS, now_ns=START)
        fail(healthy, 0)

        for balance in (cheap, good, healthy):
            assert set(picks(balance, 50)) == {1}

    def test_explain_lists_the_terms_that_sum_up_to_the_score(self) -> None:
        strategy = Scored([0.5, 1.0], latency=2.0, cost=0.5)
        balance = targets(2, strategy, costs=[0.1, 0.3])
        balance.healths[0].finished(True, 10 * MS, now_ns=START)
        balance.healths[1].finished(True, 20 * MS, now_ns=START)

        best, worst = strategy.explain(balance, now_ns=START)

        assert (best["target"], best["quality"], best["score"]) == ("http://10.0.0.0:80", 0.5, 0.5)
        assert best["latency"] == best["cost"] == best["health"] == 0
        assert worst["latency"] == pytest.approx(2.0)
        assert worst["cost"] == pytest.approx(1.0)
        assert worst["score"] == pytest.approx(3.0)


class TestHash:
    def test_a_key_stays_when_others_come_and_go(self) -> None:
        names = [f"http://10.0.0.{i}:80" for i in range(10)]
        strategy = KeyHash(names)
        balance = targets(10, strategy, ejection=CircuitBreaker(failure_threshold=1), max_ejected=1.0)
        keys = [strategy.point(f"user {i}") for i in range(500)]
        before = [balance.choose(key, now_ns=START)[0] for key in keys]
        fail(balance, 3)

        after = [balance.choose(key, now_ns=START)[0] for key in keys]

        assert len(set(before)) == 10
        assert all(b == a for b, a in zip(before, after, strict=True) if b != 3)
        assert 3 not in after

    def test_no_target_exceeds_its_bound(self) -> None:
        names = [f"http://10.0.0.{i}:80" for i in range(4)]
        strategy = KeyHash(names, load_factor=1.25)
        balance = targets(4, strategy)
        hot = strategy.point("everybody's favourite")

        found = Counter()
        for _ in range(400):
            found[balance.choose(hot, now_ns=START)[0]] += 1

        assert max(found.values()) <= 1.25 * 400 / 4 + 1
        assert min(found.values()) > 0

    def test_without_a_key_targets_are_drawn(self) -> None:
        balance = targets(3, KeyHash([f"http://10.0.0.{i}:80" for i in range(3)]))

        assert set(picks(balance, 100)) == {0, 1, 2}


class TestTiers:
    def test_the_first_tier_keeps_everything_while_it_is_healthy_enough(self) -> None:
        balance = targets(
            8,
            tiers=[0, 0, 0, 0, 1, 1, 1, 1],
            ejection=CircuitBreaker(failure_threshold=1, recovery_timeout_s=60),
            max_ejected=1.0,
        )

        assert set(picks(balance, 40)) == {0, 1, 2, 3}
        fail(balance, 0)
        assert set(picks(balance, 300)) == {1, 2, 3}  # 75 % of 1.4 is enough
        fail(balance, 1)
        found = Counter(picks(balance, 10_000))
        assert balance.shares() == pytest.approx((0.7, 0.3))
        assert (found[2] + found[3]) / 10_000 == pytest.approx(0.7, abs=0.02)
        fail(balance, 2)
        fail(balance, 3)
        assert set(picks(balance, 100)) == {4, 5, 6, 7}

    def test_a_strict_tier_keeps_everything_while_one_target_is_left(self) -> None:
        balance = targets(
            3,
            tiers=[0, 0, 1],
            spill_factor=1000.0,
            ejection=CircuitBreaker(failure_threshold=1, recovery_timeout_s=60),
            max_ejected=1.0,
        )
        fail(balance, 0)

        assert set(picks(balance, 1000)) == {1}

    def test_a_retry_goes_down_the_tiers(self) -> None:
        balance = targets(3, tiers=[0, 1, 2])

        assert balance.choose(tried=[0], now_ns=START)[0] == 1
        assert balance.choose(tried=[0, 1], now_ns=START)[0] == 2
        assert balance.choose(tried=[0, 1, 2], now_ns=START)[0] == 0


class TestEjection:
    def ejecting(self, count: int, **how: Any) -> TargetSet:
        breaker = CircuitBreaker(
            failure_threshold=2,
            recovery_timeout_s=10,
            max_recovery_timeout_s=60,
            backoff="linear",
            half_open_permits=4000,
            success_threshold=3,
        )
        return targets(count, ejection=breaker, **how)

    def test_a_target_that_fails_returns_after_its_time_and_stays_away_longer_each_time(self) -> None:
        balance = self.ejecting(3)
        fail(balance, 1)
        assert balance.usable(now_ns=START) == (1, 1, 1)
        fail(balance, 1)
        assert balance.usable(now_ns=START) == (1, 0, 1)
        assert balance.usable(now_ns=START + 10 * S - 1000) == (1, 0, 1)
        assert balance.usable(now_ns=START + 10 * S) == (1, 1, 1)

        fail(balance, 1, now_ns=START + 10 * S)  # at once: it has not recovered

        assert balance.usable(now_ns=START + 29 * S) == (1, 0, 1)
        assert balance.usable(now_ns=START + 31 * S) == (1, 1, 1)

    @pytest.mark.parametrize(
        ("count", "share", "ejected"), [(2, 0.5, 1), (3, 0.5, 1), (10, 0.3, 3), (4, 0.01, 1)]
    )
    def test_no_more_than_the_largest_share_is_ejected(self, count: int, share: float, ejected: int) -> None:
        balance = self.ejecting(count, max_ejected=share)

        for index in range(count):
            if balance.usable(now_ns=START)[index]:
                fail(balance, index)
                fail(balance, index)

        assert balance.usable(now_ns=START).count(0) == ejected

    def test_processes_agree(self) -> None:
        table = HealthTable(16, 2)
        one, two = self.ejecting(3, table=table), self.ejecting(3, table=table, slot=1)
        assert set(picks(two, 6)) == {0, 1, 2}

        fail(one, 0)
        fail(two, 0)

        assert set(picks(one, 6)) == set(picks(two, 6)) == {1, 2}

    def test_when_none_is_left_all_are_used(self) -> None:
        balance = self.ejecting(2, max_ejected=1.0)
        for index in (0, 0, 1, 1):
            fail(balance, index)

        assert set(picks(balance, 10)) == {0, 1}
        assert balance.is_panicking

    def test_a_target_that_returns_starts_slowly(self) -> None:
        balance = self.ejecting(2, slow_start_s=10)
        fail(balance, 0)
        fail(balance, 0)
        back = START + 10 * S
        picks(balance, 4, now_ns=back)  # it gets its first request

        assert balance.usable(now_ns=back + S) == (pytest.approx(0.1), 1)
        assert balance.usable(now_ns=back + 5 * S) == (pytest.approx(0.5), 1)
        assert balance.usable(now_ns=back + 10 * S) == (1, 1)


class TestBreaker:
    def guarded(self, count: int, **how: Any) -> TargetSet:
        breaker = CircuitBreaker(
            failure_threshold=1,
            recovery_timeout_s=10,
            half_open_permits=1,
            success_threshold=2,
            permit_timeout_s=5,
        )
        return targets(count, breaker=breaker, **how)

    def test_others_take_the_requests_of_a_target_whose_breaker_is_open(self) -> None:
        balance = self.guarded(3)
        fail(balance, 1)

        assert set(picks(balance, 10)) == {0, 2}

    def test_all_open_refuses(self) -> None:
        balance = self.guarded(2)
        fail(balance, 0)
        fail(balance, 1)

        assert balance.choose(now_ns=START) == (-2, None)

    @pytest.mark.parametrize("processes", [1, 2])
    def test_probes_are_admitted_once_for_all_processes(self, processes: int) -> None:
        table = HealthTable(16, 2)
        sets = [self.guarded(1, table=table, slot=slot) for slot in range(processes)]
        fail(sets[0], 0)
        later = START + 11 * S

        held = [balance.choose(now_ns=later) for balance in sets for _ in range(5)]

        admitted = [(index, ticket) for index, ticket in held if ticket is not None]
        assert len(admitted) == 1
        sets[-1].finished(0, admitted[0][1], True, MS, now_ns=later)
        again = [balance.choose(now_ns=later + S) for balance in sets]
        assert sum(ticket is not None for _, ticket in again) == 1
        for index, ticket in again:
            if ticket is not None:
                sets[0].finished(index, ticket, True, MS, now_ns=later + S)
        assert all(balance.choose(now_ns=later + 2 * S)[0] == 0 for balance in sets)

    def test_a_probe_that_is_never_heard_of_again_does_not_block_for_ever(self) -> None:
        balance = self.guarded(1)
        fail(balance, 0)
        probe = balance.choose(now_ns=START + 11 * S)

        assert probe[0] == 0
        assert balance.choose(now_ns=START + 12 * S)[1] is None
        assert balance.choose(now_ns=START + 17 * S)[0] == 0

    def test_a_cancelled_probe_gives_its_permit_back(self) -> None:
        balance = self.guarded(1)
        fail(balance, 0)
        index, ticket = balance.choose(now_ns=START + 11 * S)
        assert ticket is not None

        balance.finished(index, ticket, None, now_ns=START + 11 * S)

        assert balance.choose(now_ns=START + 11 * S)[0] == 0


def test_an_attempt_without_evidence_counts_for_nothing() -> None:
    balance = targets(2, ejection=CircuitBreaker(failure_threshold=1))
    index, ticket = balance.choose(now_ns=START)
    assert ticket is not None

    balance.finished(index, ticket, None, MS, now_ns=START)

    assert balance.usable(now_ns=START) == (1, 1)
    assert balance.healths[index].failures == 0


def test_a_retry_never_takes_the_same_target_while_another_is_usable() -> None:
    for strategy in (RoundRobin(), Random(), P2cRequests(), P2cEwma(), LatencyWeighted(), Scored()):
        balance = targets(4, strategy)
        for _ in range(50):
            first = balance.choose(now_ns=START)[0]
            second = balance.choose(tried=[first], now_ns=START)[0]
            third = balance.choose(tried=[first, second], now_ns=START)[0]
            assert len({first, second, third}) == 3


def test_a_weight_of_zero_is_never_picked() -> None:
    assert set(picks(targets(3, weights=[1, 0, 2]), 30)) == {0, 2}
    assert targets(2, weights=[0, 0]).choose(now_ns=START) == (-1, None)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"weights": [1]}, r"weights: expected 2, one per name, got 1"),
        ({"weights": [1, -1]}, r"weights\[1\]: expected"),
        ({"tiers": [0]}, "names: expected as many"),
        ({"max_ejected": 1.5}, "max_ejected: expected"),
        ({"spill_factor": 0.5}, "spill_factor: expected"),
    ],
)
def test_bad_arguments_are_named(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets(2, **how)
