"""Counters by name: one series for all processes, bounded, and named as the exposition format wants it."""

from __future__ import annotations

import os

import pytest

from fastgate._core.shm.metric import MetricTable
from fastgate._core.shm.shm import SharedMemory


def test_every_process_counts_on_the_same_series() -> None:
    memory = SharedMemory(MetricTable.size(64))
    table = MetricTable(64, memory)
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            mine = MetricTable(64, memory)
            for n in range(1000):
                mine.counter("seen_total", kind=str(n % 3)).add()
            os._exit(0)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)

    rows = {(name, labels): value for name, labels, _, value in table.read()}

    assert rows.pop(("fastgate_metrics_overflow_total", "")) == 0
    assert rows == {("seen_total", f'kind="{n}"'): 4 * len(range(n, 1000, 3)) for n in range(3)}


def test_labels_are_sorted_and_escaped_and_gauges_are_gauges() -> None:
    table = MetricTable(8)
    table.counter("a_total", z="1", b='say "\\"\n').add(2)
    table.gauge("open").set(7)

    assert table.read()[:1] == [("a_total", 'b="say \\"\\\\\\"\\n",z="1"', "counter", 2)]
    assert ("open", "", "gauge", 7) in table.read()


def test_what_finds_no_place_is_counted_together() -> None:
    table = MetricTable(4)
    for n in range(10):
        table.counter(f"series_{n}").add()
    table.counter("too_long", label="x" * 200).add()

    rows = {name: value for name, _, _, value in table.read()}

    assert len(rows) == 4
    assert rows["fastgate_metrics_overflow_total"] == 10 - 3 + 1


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="capacity"):
        MetricTable(1)
    with pytest.raises(ValueError, match="at least"):
        MetricTable(64, SharedMemory(100))
