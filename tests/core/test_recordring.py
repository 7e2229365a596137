"""The ring of records: what is kept, what is refused, several writers, a writer killed in the middle."""

from __future__ import annotations

import os

import pytest

from fastgate._core import SharedMemory
from fastgate._core.shm.recordring import RecordRing


def test_the_newest_come_first_and_the_oldest_go() -> None:
    ring = RecordRing(4, 32)

    numbers = [ring.append(b"record %d" % n) for n in range(1, 7)]

    assert numbers == [1, 2, 3, 4, 5, 6]
    assert ring.recent() == [(6, b"record 6"), (5, b"record 5"), (4, b"record 4"), (3, b"record 3")]
    assert ring.recent(2) == [(6, b"record 6"), (5, b"record 5")]
    assert ring.appended == 6


def test_a_record_that_is_too_long_is_refused_and_takes_no_place() -> None:
    ring = RecordRing(2, 8)

    with pytest.raises(ValueError, match="at most 8 bytes, got 9"):
        ring.append(b"123456789")

    assert ring.recent() == []
    assert ring.append(b"12345678") == 1
    assert ring.append(b"") == 2
    assert ring.recent() == [(2, b""), (1, b"12345678")]


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="capacity"):
        RecordRing(0)
    with pytest.raises(ValueError, match="record_bytes"):
        RecordRing(1, 7)
    with pytest.raises(ValueError, match="at least"):
        RecordRing(100, 100, SharedMemory(1000))


def test_processes_see_each_others_records() -> None:
    shared = SharedMemory(RecordRing.size(64, 64))
    ring = RecordRing(64, 64, shared)
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            for n in range(2000):
                ring.append(b"%d " % child + b"x" * (n % 60))
            os._exit(0)
        children.append(pid)

    while any(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in children[-1:]):
        for _number, record in ring.recent():
            head, _, tail = record.partition(b" ")
            assert head in {b"0", b"1", b"2", b"3"} and tail == b"x" * len(tail)
    for pid in children[:-1]:
        os.waitpid(pid, 0)

    assert ring.appended == 8000
    assert len(ring.recent()) >= 60


def test_a_torn_record_is_passed_over() -> None:
    shared = SharedMemory(RecordRing.size(4, 32))
    ring = RecordRing(4, 32, shared)
    ring.append(b"first")
    ring.append(b"second")

    view = memoryview(shared)
    at = bytes(view).index(b"second")
    view[at] = ord("S")

    assert ring.recent() == [(1, b"first")]
