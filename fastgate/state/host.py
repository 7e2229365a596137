"""The table of the gateway's processes on this host and their state, read by every process.

One header and one row per worker process, in anonymous shared memory that the supervisor maps before it
forks. A row (`seat` in the code) belongs to one live worker and is also the index of its counters; a slot is
a place in the listening group. While an old generation drains, two rows serve one slot.

STATE   word 0..31 header, then 16 words for each row; a word is an aligned 64-bit integer.
WRITERS every word has one writer: `heartbeat_ns`, `loop_lag_ns` and `oldest_version` (of the plans that its
requests in flight began with) the worker of the row, once it runs;
`controller_heartbeat_ns` and `clock_offset_ns` the controller, everything else the supervisor. An aligned
8-byte store is one instruction, so readers see old or new, never half. Nothing here needs a lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = [
    "DRAINING",
    "EMPTY",
    "READY",
    "SERVING",
    "STARTING",
    "STARTING_UP",
    "STOPPING",
    "WORKER_STATES",
    "HostTable",
    "Seat",
]

EMPTY, STARTING, READY, DRAINING = range(4)
WORKER_STATES = ("empty", "starting", "ready", "draining")

STARTING_UP, SERVING, STOPPING = range(3)
"""Phases of the whole gateway (header word `phase`): the second begins when every worker accepts."""

_HEADER_WORDS = 32
_SEAT_WORDS = 16


class _Word:
    """A 64-bit integer of the table as an attribute."""

    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, owner: Any, _type: type | None = None) -> int:
        value: int = owner._words[owner._offset + self._index]
        return value

    def __set__(self, owner: Any, value: int) -> None:
        owner._words[owner._offset + self._index] = value


class Seat:
    """One worker process: who sits here and when it last showed life."""

    __slots__ = ("_offset", "_words", "index")

    pid = _Word(0)
    slot = _Word(1)
    generation = _Word(2)
    state = _Word(3)
    heartbeat_ns = _Word(4)
    config_version = _Word(5)
    started_realtime_ns = _Word(6)
    loop_lag_ns = _Word(7)
    oldest_version = _Word(8)

    def __init__(self, words: memoryview, index: int) -> None:
        self._words = words
        self._offset = _HEADER_WORDS + index * _SEAT_WORDS
        self.index = index

    def occupy(self, slot: int, generation: int, config_version: int, started_realtime_ns: int) -> None:
        self.heartbeat_ns = 0
        self.loop_lag_ns = 0
        self.slot = slot
        self.generation = generation
        self.config_version = self.oldest_version = config_version
        self.started_realtime_ns = started_realtime_ns
        self.state = STARTING

    def vacate(self) -> None:
        self.pid = 0
        self.state = EMPTY


class HostTable:
    """The header, and the rows as a sequence."""

    __slots__ = ("_offset", "_words", "seats")

    phase = _Word(0)
    supervisor_pid = _Word(1)
    started_realtime_ns = _Word(2)
    generation = _Word(3)
    config_version = _Word(4)
    workers_wanted = _Word(5)
    controller_pid = _Word(6)
    reloads_applied = _Word(8)
    reloads_refused = _Word(9)
    worker_restarts = _Word(10)
    worker_hangs = _Word(11)
    controller_restarts = _Word(12)
    last_reload_realtime_ns = _Word(13)
    ready_realtime_ns = _Word(14)
    controller_heartbeat_ns = _Word(15)
    controller_hangs = _Word(16)
    clock_offset_ns = _Word(17)

    def __init__(self, memory: Any, seats: int) -> None:
        """`memory` is any writable buffer of at least `size(seats)` zeroed bytes that all the processes
        share.
        """
        self._offset = 0
        self.seats: tuple[Seat, ...] = ()
        self.add_seats(memory, seats)

    def add_seats(self, memory: Any, seats: int) -> None:
        """Fixes the number of rows; before the first fork, so that all processes agree."""
        self._words = memoryview(memory).cast("B")[: self.size(seats)].cast("q")
        self.seats = tuple(Seat(self._words, i) for i in range(seats))

    @staticmethod
    def size(seats: int) -> int:
        return 8 * (_HEADER_WORDS + seats * _SEAT_WORDS)

    def occupied(self) -> Iterator[Seat]:
        return (seat for seat in self.seats if seat.state != EMPTY)

    def count(self, state: int) -> int:
        return sum(1 for seat in self.seats if seat.state == state)

    def is_ready(self) -> bool:
        """True while new requests are welcome: not stopping, and at least one worker accepts."""
        return self.phase == SERVING and self.count(READY) > 0
