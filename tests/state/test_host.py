"""The table of processes in shared memory: what one process writes, the others read."""

from __future__ import annotations

import os

from fastgate._core.shm.shm import SharedMemory
from fastgate.state.host import EMPTY, READY, SERVING, STARTING, STOPPING, HostTable


def table(seats: int = 4) -> HostTable:
    return HostTable(SharedMemory(HostTable.size(seats)), seats)


def test_a_new_table_is_empty_and_not_ready() -> None:
    host = table()

    assert list(host.occupied()) == []
    assert not host.is_ready()


def test_ready_needs_the_serving_phase_and_a_ready_worker() -> None:
    host = table()
    seat = host.seats[2]
    seat.occupy(slot=0, generation=1, config_version=1, started_realtime_ns=5)
    host.phase = SERVING
    assert (seat.state, host.is_ready()) == (STARTING, False)

    seat.state = READY
    assert host.is_ready()

    host.phase = STOPPING
    assert not host.is_ready()


def test_a_vacated_seat_is_empty_and_a_new_one_has_no_heartbeat() -> None:
    seat = table().seats[0]
    seat.occupy(1, 2, 3, 4)
    seat.heartbeat_ns = 99
    seat.vacate()
    assert (seat.state, seat.pid) == (EMPTY, 0)

    seat.occupy(1, 2, 3, 4)

    assert seat.heartbeat_ns == 0


def test_words_do_not_overlap() -> None:
    host = table(3)
    fields = ("pid", "slot", "generation", "state", "heartbeat_ns", "config_version", "loop_lag_ns")
    for seat in host.seats:
        for number, name in enumerate(fields):
            setattr(seat, name, seat.index * 100 + number + 1)
    host.reloads_applied, host.last_reload_realtime_ns = 7, 2**62

    for seat in host.seats:
        assert [getattr(seat, name) for name in fields] == [seat.index * 100 + i + 1 for i in range(7)]
    assert (host.reloads_applied, host.last_reload_realtime_ns) == (7, 2**62)


def test_a_forked_process_writes_where_the_other_reads() -> None:
    host = table()
    pid = os.fork()
    if pid == 0:
        host.seats[1].heartbeat_ns = 12345
        os._exit(0)
    os.waitpid(pid, 0)

    assert host.seats[1].heartbeat_ns == 12345
