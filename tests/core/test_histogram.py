"""Histogram against a sorted list: quantiles within the stated error, shared memory, bad input."""

from __future__ import annotations

import itertools
import math
import mmap
import os
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import Histogram, SharedMemory
from fastgate._core.stats import histogram

LAYOUTS = st.sampled_from(
    [
        (1024, 137_438_953_471, 0.0625),
        (1, 1000, 0.01),
        (0, 2**63 - 1, 0.25),
        (1000, 1_000_000, 0.001),
        (7, 8, 0.0625),
        (500, 123_456_789, 0.03),
    ]
)
VALUES = (
    st.integers(0, 2**40) | st.integers(0, 3000) | st.sampled_from([0, 1, 2**10 - 1, 2**10, 2**37 - 1, 2**37])
)


class Oracle:
    """All values, sorted."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def quantile(self, q: float) -> int:
        """Nearest rank: the smallest value with at least q * n values at or below it."""
        ordered = sorted(self.values)
        return ordered[max(1, math.ceil(q * len(ordered))) - 1]


@given(
    layout=LAYOUTS,
    values=st.lists(st.tuples(VALUES, st.integers(1, 3)), min_size=1, max_size=60),
    qs=st.lists(st.floats(0, 1), max_size=8),
)
def test_quantiles_are_within_the_stated_error(
    layout: tuple[int, int, float], values: list[tuple[int, int]], qs: list[float]
) -> None:
    lowest, highest, precision = layout
    h = Histogram(lowest, highest, precision)
    oracle = Oracle()
    for value, count in values:
        if count == 1:
            h.record(value)
        else:
            h.record_many(value, count)
        oracle.values += [value] * count

    assert h.error_ratio <= precision
    assert h.count == len(oracle.values) == sum(n for _, _, n in h.buckets())
    assert h.sum == sum(oracle.values)
    assert h.mean == sum(oracle.values) / len(oracle.values)
    for low, high, n in h.buckets():
        assert n == sum(low <= value <= high for value in oracle.values)
    for q in (0, 0.5, 0.9, 0.99, 1, *qs):
        true = oracle.quantile(q)
        if lowest <= true <= highest:
            assert abs(h.quantile(q) - true) <= max(0.5, true * h.error_ratio) + 1e-9 * true
        elif true < lowest:
            assert h.quantile(q) <= lowest * (1 + h.error_ratio)
        else:
            assert h.quantile(q) >= highest * (1 - h.error_ratio)


@given(a=st.lists(VALUES, max_size=40), b=st.lists(VALUES, max_size=40))
def test_merging_equals_recording_everything_in_one(a: list[int], b: list[int]) -> None:
    first, second, both = Histogram(), Histogram(), Histogram()
    for value in a:
        first.record(value)
        both.record(value)
    for value in b:
        second.record(value)
        both.record(value)

    first.merge(second)

    assert first.buckets() == both.buckets()
    assert (first.count, first.sum) == (both.count, both.sum)


def test_buckets_tile_the_range_without_gaps() -> None:
    h = Histogram(16, 100_000, 0.0625)
    for value in range(120_000):
        h.record(value)

    buckets = h.buckets()

    assert buckets[0][0] == 0 and len(buckets) == len(h)
    assert all(high + 1 == low for (_, high, _), (low, _, _) in itertools.pairwise(buckets))
    assert all(n == high - low + 1 for low, high, n in buckets[:-1])
    assert all((high - low) / 2 <= low * h.error_ratio for low, high, _ in buckets[1:-1])


def test_values_outside_are_counted_apart() -> None:
    h = Histogram()

    h.record(0)
    h.record_many(2**62, 2)

    assert (h.below, h.above, h.count) == (1, 2, 3)
    assert h.quantile(0) == 1024 and h.quantile(1) == 2**37 - 1


def test_an_empty_histogram_reads_as_zero() -> None:
    h = Histogram()

    assert (h.count, h.sum, h.mean, h.quantile(0.5), h.buckets()) == (0, 0, 0.0, 0.0, [])
    h.record(5000)
    h.clear()
    assert (h.count, h.sum, h.buckets()) == (0, 0, [])


def test_two_views_of_one_memory_are_one_histogram() -> None:
    size = Histogram.size()
    memory = SharedMemory(2 * size + 64)
    one = Histogram(memory=memory, offset=64)
    two = Histogram(memory=memory, offset=64)
    neighbour = Histogram(memory=memory, offset=64 + size)

    one.record(5000)
    two.record(7000)

    assert one.count == two.count == 2
    assert neighbour.count == 0
    assert bytes(memoryview(memory)[:64]) == bytes(64)


def test_no_count_is_lost_between_processes() -> None:
    memory = mmap.mmap(-1, Histogram.size())
    h = Histogram(memory=memory)
    children = []
    for seed in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                for n in range(20_000):
                    h.record(1000 + (n * 7 + seed) % 90_000)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0

    assert h.count == sum(n for _, _, n in h.buckets()) == 80_000
    assert h.sum == sum(1000 + (n * 7 + seed) % 90_000 for seed in range(4) for n in range(20_000))


def test_threads_share_a_private_histogram() -> None:
    h = Histogram()

    def work() -> None:
        for n in range(5000):
            h.record(n)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert h.count == 20_000


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((-1, 10), ValueError, "lowest"),
        ((10, 10), ValueError, "highest"),
        ((10, 2**63), ValueError, "highest"),
        ((1.0, 10), TypeError, "lowest"),
        ((1, 10, 0), ValueError, "precision"),
        ((1, 10, 0.3), ValueError, "precision"),
        ((1, 10, math.nan), ValueError, "precision"),
        ((1, 10, "x"), TypeError, "precision"),
    ],
)
def test_bad_layouts_are_named(arguments: tuple[Any, ...], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        Histogram(*arguments)
    with pytest.raises(error, match=name):
        Histogram.size(*arguments)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (-1, ValueError),
        (2**63, ValueError),
        pytest.param(1 << 20_000, ValueError, id="huge"),
        (1.5, TypeError),
        (math.nan, TypeError),
        (True, TypeError),
    ],
)
def test_bad_values_are_named_and_not_counted(bad: Any, error: type[Exception]) -> None:
    h = Histogram()

    with pytest.raises(error, match="value"):
        h.record(bad)
    with pytest.raises(error, match="value"):
        h.record_many(bad, 1)
    with pytest.raises(error, match="count"):
        h.record_many(1, bad)
    for q in (-0.1, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="q: expected"):
            h.quantile(q)

    assert h.count == 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_sum_beyond_64_bits_is_refused(shared: bool) -> None:
    h = Histogram(memory=bytearray(Histogram.size()) if shared else None)
    h.record_many(2**62, 3)

    with pytest.raises(OverflowError, match="value"):
        h.record_many(2**62, 1)
    with pytest.raises(OverflowError):
        h.merge(h)

    assert (h.count, h.sum) == (3, 3 * 2**62)


def test_memory_that_does_not_fit_is_refused() -> None:
    size = Histogram.size()
    for memory, offset, name in (
        (bytearray(size - 1), 0, "offset"),
        (bytearray(size + 8), 4, "offset"),
        (bytearray(size), 8, "offset"),
    ):
        with pytest.raises(ValueError, match=name):
            Histogram(memory=memory, offset=offset)
    with pytest.raises((TypeError, BufferError)):
        Histogram(memory=bytes(size))
    with pytest.raises(ValueError, match="offset"):
        Histogram(offset=8)
    with pytest.raises(ValueError, match="layout"):
        Histogram().merge(Histogram(1, 100))


def test_histograms_are_freed_and_let_go_of_their_memory() -> None:
    before = histogram.live_objects()
    memory = bytearray(Histogram.size())

    for _ in range(50):
        h = Histogram(memory=memory)
        Histogram().merge(h)
    with pytest.raises(BufferError):
        memory.extend(b"x")
    del h

    memory.extend(b"x")
    assert histogram.live_objects() == before
