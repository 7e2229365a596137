"""What a reload promises: nobody waits or fails for it, all workers take it or none, the last good config
stays.
"""

from __future__ import annotations

import os
import random
import signal
import socket
from pathlib import Path

import pytest

from tests.ports import reserved_port
from tests.server.gateway_rig import PAUSE_S, Rig, Traffic, is_running, read_answer, until


def test_a_hot_reload_keeps_the_workers() -> None:
    with Rig(workers=2) as rig:
        before = rig.workers()

        outcome = rig.reload(text="two")

        assert (outcome["event"], outcome["kind"], outcome["version"]) == ("config in use", "hot", 2)
        assert {rig.get() for _ in range(20)} == {"two"}
        assert rig.workers() == before


@pytest.mark.parametrize("fault", ["refuse", "cannot_freeze"])
def test_a_bad_config_never_replaces_a_good_one(fault: str) -> None:
    with Rig(workers=2) as rig:
        for changes in ({}, {"workers": 3}):
            outcome = rig.reload(text="bad", **{fault: True}, **changes)
            assert outcome["event"] == "config refused"
            assert "expected false, got true" in outcome["problem"]
            assert {rig.get() for _ in range(20)} == {"one"}
            until(lambda: len(rig.workers()) == 2, "the workers of before, and no other")
            rig.write(workers=2)

        outcome = rig.reload(text="good", **{fault: False})

        assert outcome["event"] == "config in use"
        assert {rig.get() for _ in range(20)} == {"good"}


def test_a_worker_that_crashes_on_the_new_config_makes_the_reload_fail() -> None:
    with Rig(workers=2) as rig:
        marker = rig.directory / "crash"
        marker.touch()

        outcome = rig.reload(workers=3, crash_on_start=str(marker))

        assert outcome["event"] == "config refused"
        assert "exit 3" in outcome["problem"]
        assert {rig.get() for _ in range(20)} == {"one"}
        until(lambda: len(rig.workers()) == 2, "the workers of before, and no other")


def test_a_worker_forked_after_a_reload_takes_the_newest_good_config() -> None:
    with Rig(workers=1) as rig:
        rig.reload(text="two")
        rig.reload(text="bad", refuse=True)
        pid = rig.workers()["fastgate-w0"]

        rig.process.send_signal(signal.SIGSTOP)
        signal_worker(pid, signal.SIGKILL)
        rig.process.send_signal(signal.SIGCONT)

        assert rig.get() == "two"


def test_a_worker_killed_during_a_reload_neither_blocks_nor_misses_it() -> None:
    with Rig(workers=2) as rig:
        for round_ in range(4):
            signal_worker(rig.workers()["fastgate-w1"], signal.SIGKILL)
            outcome = rig.reload(text=f"round {round_}")
            assert outcome["event"] == "config in use"
            until(lambda: len(rig.workers()) == 2, "two workers")
            until(lambda text=f"round {round_}": {rig.get() for _ in range(10)} == {text}, "all have it")


def test_reloads_asked_for_meanwhile_become_one() -> None:
    with Rig(workers=1) as rig:
        gate = rig.directory / "gate"
        gate.touch()
        rig.write(load_gate=str(gate))
        rig.process.send_signal(signal.SIGHUP)
        until(lambda: "fastgate-load" in names(rig.children()), "the loader runs")
        for _ in range(20):
            rig.process.send_signal(signal.SIGHUP)
        rig.write(text="last")
        gate.unlink()

        until(lambda: rig.get() == "last", "the last change is seen")

        assert len(rig.events("config in use")) <= 4


def loaders(rig: Rig) -> set[int]:
    return {pid for pid in rig.children() if "fastgate-load" in names([pid])}


def kill_loader(rig: Rig, but: set[int], number: int) -> set[int]:
    """Ends the loader that runs and is none of `but`; returns all of them."""
    until(lambda: loaders(rig) - but, "a loader runs")
    running = loaders(rig) - but
    for pid in running:
        os.kill(pid, number)
    return but | running


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_loader_that_is_killed_is_started_once_more(number: int) -> None:
    with Rig(workers=1) as rig:
        gate = rig.directory / "gate"
        gate.touch()
        rig.write(load_gate=str(gate), text="two")
        rig.process.send_signal(signal.SIGHUP)
        kill_loader(rig, set(), number)
        until(lambda: rig.events("config loader killed, started again"), "it is told")
        gate.unlink()

        until(lambda: rig.get() == "two", "the config is in use")

        assert rig.events("config refused") == []


def test_a_loader_that_is_killed_twice_refuses_the_reload_and_says_how() -> None:
    with Rig(workers=1) as rig:
        gate = rig.directory / "gate"
        gate.touch()
        rig.write(load_gate=str(gate), text="two")
        rig.process.send_signal(signal.SIGHUP)
        killed = kill_loader(rig, set(), signal.SIGKILL)
        kill_loader(rig, killed, signal.SIGKILL)
        until(lambda: rig.events("config refused"), "it is told")

        assert "was ended by SIGKILL 2 times" in rig.events("config refused")[0]["problem"]
        assert rig.get() == "one"
        gate.unlink()
        assert rig.reload(text="three")["event"] == "config in use"


def test_a_loader_that_ends_without_a_result_is_not_tried_again() -> None:
    with Rig(workers=1) as rig:
        outcome = rig.reload(text="two", load_exit=3)

        assert outcome["event"] == "config refused"
        assert "ended without a result (exit 3)" in outcome["problem"]
        assert rig.events("config loader killed, started again") == []
        assert rig.get() == "one"


def test_a_changed_file_is_noticed() -> None:
    with Rig(workers=1, watch=True) as rig:
        rig.write(text="two")

        until(lambda: rig.get() == "two", "the change is taken")


def test_fewer_workers_still_serve_every_socket() -> None:
    with Rig(workers=4) as rig, Traffic(rig.port, keep_alive=False) as traffic:
        until(lambda: traffic.answers > 50, "traffic")

        rig.reload(workers=1)
        until(lambda: len(rig.workers()) == 1, "one worker is left")
        # 64 connections land on all four sockets of the group (the chance to miss one is 4 * 0.75 ** 64)
        assert {rig.get() for _ in range(64)} == {"one"}
        rig.reload(workers=3)
        until(lambda: len(rig.workers()) == 3, "three workers")
        assert {rig.get() for _ in range(64)} == {"one"}

    assert traffic.failures == []


def test_a_new_listener_serves_and_a_removed_one_is_closed_without_loss() -> None:
    with (
        reserved_port() as extra,
        Rig(workers=2, listen=["127.0.0.1:0"]) as rig,
        Traffic(rig.port) as traffic,
    ):
        until(lambda: traffic.answers > 50, "traffic")

        rig.reload(listen=["127.0.0.1:0", f"127.0.0.1:{extra}"])
        assert rig.get(port=extra) == "one"
        lost = []
        with Traffic(extra, keep_alive=False) as on_extra:
            until(lambda: on_extra.answers > 50, "traffic on the second")
            rig.reload(listen=["127.0.0.1:0"])
            until(lambda: on_extra.failures, "the second is closed")
            lost = [text for text in on_extra.failures if "ConnectionRefused" not in text]

        assert lost == []
    assert traffic.failures == []


def test_a_listener_that_cannot_be_opened_refuses_the_reload() -> None:
    with Rig(workers=2) as rig, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        outcome = rig.reload(listen=["127.0.0.1:0", f"127.0.0.1:{port}"])

        assert outcome["event"] == "config refused"
        assert f"127.0.0.1:{port}" in outcome["problem"]
        assert rig.get() == "one"


def test_an_old_generation_that_does_not_finish_is_cut_at_the_drain_limit() -> None:
    with Rig(workers=1, drain_ms=400) as rig, socket.create_connection(("127.0.0.1", rig.port)) as sock:
        old = rig.workers()["fastgate-w0"]
        sock.sendall(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: rig.get("/pid") == str(old), "the worker has seen the first connection too")

        rig.reload(workers=2)

        assert {rig.get() for _ in range(10)} == {"one"}
        until(lambda: not is_running(old), "the old worker is gone")


def test_a_request_in_flight_is_answered_by_the_generation_that_took_it() -> None:
    with Rig(workers=1) as rig, socket.create_connection(("127.0.0.1", rig.port)) as sock:
        sock.sendall(b"GET /text HTTP/1.1\r\nHost: a\r\n\r\n")
        read_answer(sock)
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")

        rig.reload(workers=2, text="two")

        assert read_answer(sock) == "one"
        assert rig.get() == "two"


def test_a_hundred_reloads_of_every_kind_fail_no_request() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    with (
        reserved_port() as extra,
        Rig(workers=2) as rig,
        Traffic(rig.port, pause_s=PAUSE_S) as kept,
        Traffic(rig.port, pause_s=PAUSE_S, keep_alive=False) as fresh,
    ):
        for number in range(100):
            change = draw.choice(["text", "text", "workers", "listen", "bad"])
            if change == "workers":
                rig.reload(workers=draw.randint(1, 3), refuse=False)
            elif change == "listen":
                other = [f"127.0.0.1:{extra}"] if draw.random() < 0.5 else []
                rig.reload(listen=["127.0.0.1:0", *other], refuse=False)
            else:
                rig.reload(text=f"text {number}", refuse=change == "bad")

        assert kept.answers > 100
        assert fresh.answers > 100
    assert kept.failures == []
    assert fresh.failures == []


@pytest.mark.soak
def test_a_thousand_reloads_leave_memory_flat() -> None:
    with Rig(workers=1) as rig:
        for number in range(100):
            rig.reload(text=f"warm {number}")
        before = {pid: resident_kb(pid) for pid in [rig.process.pid, *rig.workers().values()]}

        for number in range(1000):
            rig.reload(text=f"text {number}")

        after = {pid: resident_kb(pid) for pid in before}
        assert all(after[pid] - before[pid] < 1024 for pid in before), (before, after)


def signal_worker(pid: int, number: signal.Signals) -> None:

    os.kill(pid, number)


def names(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        try:
            found.add(Path(f"/proc/{pid}/comm").read_text().strip())
        except OSError:
            continue
    return found


def resident_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")
