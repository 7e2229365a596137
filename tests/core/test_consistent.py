"""HashRing and Maglev against plain-Python oracles; stability, bounds and agreement between processes."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import HashRing, Maglev, siphash64
from fastgate._core.balance.consistent import live_objects

NAMES = st.lists(st.sampled_from(["a", "b", "c:80", "d", "é", "x/"]), min_size=1, max_size=6, unique=True)
PRIMES = [7, 13, 101, 251]


def point(text: str | bytes, seed: int, role: int) -> int:
    data = text if isinstance(text, bytes) else text.encode()
    return siphash64(data, seed.to_bytes(8, "little") + role.to_bytes(8, "little"))


class Bounded:
    """Who may take one more: everyone, or with a load factor those below their share."""

    def __init__(self, weights: list[int], load_factor: float | None) -> None:
        self.weights, self.load_factor = weights, load_factor
        self.in_flight = [0] * len(weights)

    def first(self, order: list[int], usable: list[bool]) -> int:
        total = sum(weight for weight, flag in zip(self.weights, usable, strict=True) if flag)
        for target in order:
            if not self.weights[target] or not usable[target]:
                continue
            if self.load_factor is None:
                return target
            share = self.load_factor * (sum(self.in_flight) + 1) * self.weights[target] / total
            if self.in_flight[target] < math.ceil(share):
                self.in_flight[target] += 1
                return target
        return -1


class RingOracle(Bounded):
    def __init__(
        self, names: list[str], weights: list[int], load_factor: float | None, seed: int, each: int
    ) -> None:
        super().__init__(weights, load_factor)
        self.seed = seed
        self.points = sorted(
            (point(f"{number} {name}", seed, 1), index)
            for index, name in enumerate(names)
            for number in range(weights[index] * each)
        )

    def pick(self, key: bytes, usable: list[bool]) -> int:
        start = bisect_left(self.points, (point(key, self.seed, 0), -1))
        return self.first([target for _, target in self.points[start:] + self.points[:start]], usable)


class MaglevOracle(Bounded):
    def __init__(
        self, names: list[str], weights: list[int], load_factor: float | None, seed: int, size: int
    ) -> None:
        super().__init__(weights, load_factor)
        self.seed = seed
        permutations = []
        for name in names:
            start, skip = point(name, seed, 2) % size, point(name, seed, 3) % (size - 1) + 1
            permutations.append(iter([(start + turn * skip) % size for turn in range(size)]))
        table: dict[int, int] = {}
        taken, turn = [0] * len(names), 0
        while len(table) < size:
            turn += 1
            for name in sorted(names):
                index = names.index(name)
                weight = weights[index]
                if weight and turn * weight >= taken[index] and len(table) < size:
                    taken[index] += max(weights)
                    table[next(entry for entry in permutations[index] if entry not in table)] = index
        self.table = [table[entry] for entry in range(size)]

    def pick(self, key: bytes, usable: list[bool]) -> int:
        start = point(key, self.seed, 0) % len(self.table)
        return self.first(self.table[start:] + self.table[:start], usable)


@given(
    NAMES,
    st.lists(st.integers(0, 5), min_size=6, max_size=6),
    st.none() | st.sampled_from([1.01, 1.25, 2.0]),
    st.integers(0, 3),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from("ppmf"), st.integers(0, 63), st.binary(max_size=9)), max_size=80),
)
def test_every_pick_equals_the_oracle(
    names: list[str],
    weights: list[int],
    load_factor: float | None,
    seed: int,
    is_ring: bool,
    steps: list[tuple[str, int, bytes]],
) -> None:
    weights = weights[: len(names)]
    weights[0] += not any(weights)
    size = PRIMES[seed]
    balancer: Any
    oracle: RingOracle | MaglevOracle
    if is_ring:
        balancer = HashRing(names, weights, points_per_weight=seed + 1, load_factor=load_factor, seed=seed)
        oracle = RingOracle(names, weights, load_factor, seed, seed + 1)
    else:
        balancer = Maglev(names, weights, table_size=size, load_factor=load_factor, seed=seed)
        oracle = MaglevOracle(names, weights, load_factor, seed, size)
    open_: list[int] = []

    for verb, number, key in steps:
        if verb == "f":
            if open_ and load_factor is not None:
                index = open_.pop(number % len(open_))
                balancer.finished(index)
                oracle.in_flight[index] -= 1
            continue
        usable = [verb == "p" or bool(number >> index & 1) for index in range(len(names))]
        index = balancer.pick(key) if verb == "p" else balancer.pick_among(key, usable)
        assert index == oracle.pick(key, usable)
        if index >= 0:
            open_.append(index)
        assert balancer.in_flight == tuple(oracle.in_flight)


KEYS = [f"user-{index}" for index in range(3000)]
MAKERS: list[Any] = [HashRing, Maglev]


@pytest.mark.parametrize("make", MAKERS)
def test_the_order_of_the_names_does_not_matter(make: Callable[..., Any]) -> None:
    names = [f"10.0.0.{index}:80" for index in range(7)]
    one, other = make(names, seed=5), make(names[::-1], seed=5)

    assert all(names[one.pick(key)] == names[::-1][other.pick(key)] for key in KEYS)


def test_removing_a_target_moves_only_its_keys_on_a_ring() -> None:
    names = [f"10.0.0.{index}:80" for index in range(7)]
    whole, without = HashRing(names), HashRing(names[:-1])

    for key in KEYS:
        if whole.pick(key) != 6:
            assert whole.pick(key) == without.pick(key)
        assert whole.pick_among(key, [True] * 6 + [False]) == without.pick(key)


def test_removing_a_target_moves_few_others_in_a_maglev_table() -> None:
    names = [f"10.0.0.{index}:80" for index in range(7)]
    whole, without = Maglev(names), Maglev(names[:-1])

    moved = sum(whole.pick(key) not in (6, without.pick(key)) for key in KEYS)
    assert moved < len(KEYS) * 0.05
    for key in KEYS:
        if whole.pick(key) != 6:
            assert whole.pick(key) == whole.pick_among(key, [1] * 6 + [0])


@pytest.mark.parametrize(("make", "error"), [(HashRing, 0.3), (Maglev, 0.12)])
def test_shares_follow_the_weights(make: Callable[..., Any], error: float) -> None:
    balancer = make(["a", "b", "c"], [1, 2, 5])
    counts = Counter(balancer.pick(f"key-{index}") for index in range(20_000))

    for index, weight in enumerate([1, 2, 5]):
        assert abs(counts[index] / 20_000 / (weight / 8) - 1) < error


@pytest.mark.parametrize("make", MAKERS)
def test_one_hot_key_spreads_when_bounded(make: Callable[..., Any]) -> None:
    balancer = make([f"t{index}" for index in range(10)], load_factor=1.25)
    for _ in range(1000):
        balancer.pick("the one key")

    assert sum(balancer.in_flight) == 1000
    assert max(balancer.in_flight) <= math.ceil(1.25 * 1000 / 10)


@pytest.mark.parametrize("name", ["HashRing", "Maglev"])
def test_other_processes_agree(name: str) -> None:
    code = f"from fastgate._core import {name} as C; print([C(['a', 'b']).pick(str(i)) for i in range(99)])"
    command = [sys.executable, "-c", code]
    first, second = (subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2))

    assert first == second
    assert b"0" in first and b"1" in first


@pytest.mark.parametrize("make", MAKERS)
def test_bad_arguments_are_refused_by_name(make: Callable[..., Any]) -> None:
    cases: list[tuple[list[Any], dict[str, Any], type[Exception], str]] = [
        ([[]], {}, ValueError, "names"),
        ([[""]], {}, ValueError, "names"),
        ([["a", "a"]], {}, ValueError, "names"),
        (["ab"], {}, TypeError, "names"),
        ([[b"a"]], {}, TypeError, "names"),
        ([["a"], [1, 2]], {}, ValueError, "weights"),
        ([["a"], [0]], {}, ValueError, "weights"),
        ([["a"], [1.5]], {}, TypeError, "weights"),
        ([["a"]], {"load_factor": 1.0}, ValueError, "load_factor"),
        ([["a"]], {"load_factor": float("nan")}, ValueError, "load_factor"),
        ([["a"]], {"load_factor": "2"}, TypeError, "load_factor"),
        ([["a"]], {"seed": -1}, ValueError, "seed"),
        ([["a"]], {"seed": 2**63}, ValueError, "seed"),
    ]
    for arguments, options, error, name in cases:
        with pytest.raises(error, match=name):
            make(*arguments, **options)


def test_sizes_out_of_range_are_refused() -> None:
    for table_size in (0, 1, 4, 65_536, 4_000_038, 10**30):
        with pytest.raises(ValueError, match="table_size"):
            Maglev(["a"], table_size=table_size)
    with pytest.raises(ValueError, match="table_size"):
        Maglev(["a", "b", "c"], table_size=2)
    for points in (0, 10_001):
        with pytest.raises(ValueError, match="points_per_weight"):
            HashRing(["a"], points_per_weight=points)
    with pytest.raises(ValueError, match="points in all"):
        HashRing(["a"], [1_000_000])


@pytest.mark.parametrize("make", MAKERS)
def test_bad_calls_leave_it_as_it_was(make: Callable[..., Any]) -> None:
    balancer = make(["a", "b"], load_factor=1.5)
    calls: list[Callable[[], object]] = [
        lambda: balancer.finished(0),
        lambda: balancer.finished(2),
        lambda: balancer.pick_among("x", [True]),
        lambda: balancer.pick("\ud800"),
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    for key in (None, 5, ["x"]):
        with pytest.raises(TypeError, match="key"):
            balancer.pick(key)

    assert balancer.in_flight == (0, 0)
    assert balancer.pick_among("x", [0, 0]) == -1


def test_nothing_is_leaked() -> None:
    def use() -> None:
        for make in MAKERS:
            balancer = make(["a", "b"], load_factor=2)
            balancer.finished(balancer.pick("k"))
            balancer.pick_among("k", [1, 0])
            for arguments in ([["a", "a"]], [["a"], [0]], [["a"], [1, 1]]):
                with pytest.raises(ValueError):
                    make(*arguments)

    use()
    gc.collect()
    blocks, live = sys.getallocatedblocks(), live_objects()
    for _ in range(20):
        use()
    gc.collect()

    assert live_objects() == live
    assert abs(sys.getallocatedblocks() - blocks) < 200
