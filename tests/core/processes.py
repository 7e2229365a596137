"""Forked children that hammer one object, and children that are killed while they do."""

from __future__ import annotations

import os
import signal
import struct
import traceback
from collections.abc import Callable

from fastgate._core import SharedMemory


def spawn(work: Callable[[], object]) -> int:
    """The pid of a child that runs `work` and exits 0, or 1 with a traceback."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def in_processes(count: int, work: Callable[[int], int]) -> list[int]:
    """What work(number) returned in each of `count` children that run at the same time."""
    results = memoryview(SharedMemory(8 * count)).cast("q")
    gate_read, gate_write = os.pipe()

    def child(number: int) -> None:
        os.close(gate_write)
        os.read(gate_read, 1)  # returns for all at once when the parent closes its end
        results[number] = work(number)

    pids = []
    for number in range(count):
        pids.append(spawn(lambda number=number: child(number)))  # type: ignore[misc]
    os.close(gate_read)
    os.close(gate_write)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * count
    return results.tolist()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Tallies:
    """One counter per child in shared memory, so that a killed child's count is not lost."""

    def __init__(self, count: int) -> None:
        self.words = memoryview(SharedMemory(8 * count)).cast("q")

    def total(self) -> int:
        return sum(struct.unpack(f"{len(self.words)}q", self.words.tobytes()))
