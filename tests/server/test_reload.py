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
from tests.server.gateway_harness import PAUSE_S, Harness, Traffic, is_running, read_answer, until


def test_a_hot_reload_keeps_the_workers() -> None:
    with Harness(workers=2) as harness:
        before = harness.workers()

        outcome = harness.reload(text="two")

        assert (outcome["event"], outcome["kind"], outcome["version"]) == ("config in use", "hot", 2)
        assert {harness.get() for _ in range(20)} == {"two"}
        assert harness.workers() == before


@pytest.mark.parametrize("fault", ["refuse", "cannot_freeze"])
def test_a_bad_config_never_replaces_a_good_one(fault: str) -> None:
    with Harness(workers=2) as harness:
        for changes in ({}, {"workers": 3}):
            outcome = harness.reload(text="bad", **{fault: True}, **changes)
            assert outcome["event"] == "config refused"
            assert "expected false, got true" in outcome["problem"]
            assert {harness.get() for _ in range(20)} == {"one"}
            until(lambda: len(harness.workers()) == 2, "the workers of before, and no other")
            harness.write(workers=2)

        outcome = harness.reload(text="good", **{fault: False})

        assert outcome["event"] == "config in use"
        assert {harness.get() for _ in range(20)} == {"good"}


def test_a_worker_that_crashes_on_the_new_config_makes_the_reload_fail() -> None:
    with Harness(workers=2) as harness:
        marker = harness.directory / "crash"
        marker.touch()

        outcome = harness.reload(workers=3, crash_on_start=str(marker))

        assert outcome["event"] == "config refused"
        assert "exit 3" in outcome["problem"]
        assert {harness.get() for _ in range(20)} == {"one"}
        until(lambda: len(harness.workers()) == 2, "the workers of before, and no other")


def test_a_worker_forked_after_a_reload_takes_the_newest_good_config() -> None:
    with Harness(workers=1) as harness:
        harness.reload(text="two")
        harness.reload(text="bad", refuse=True)
        pid = harness.workers()["fastgate-w0"]

        harness.process.send_signal(signal.SIGSTOP)
        signal_worker(pid, signal.SIGKILL)
        harness.process.send_signal(signal.SIGCONT)

        assert harness.get() == "two"


def test_a_worker_killed_during_a_reload_neither_blocks_nor_misses_it() -> None:
    with Harness(workers=2) as harness:
        for round_ in range(4):
            signal_worker(harness.workers()["fastgate-w1"], signal.SIGKILL)
            outcome = harness.reload(text=f"round {round_}")
            assert outcome["event"] == "config in use"
            until(lambda: len(harness.workers()) == 2, "two workers")
            until(lambda text=f"round {round_}": {harness.get() for _ in range(10)} == {text}, "all have it")


def test_reloads_asked_for_meanwhile_become_one() -> None:
    with Harness(workers=1) as harness:
        gate = harness.directory / "gate"
        gate.touch()
        harness.write(load_gate=str(gate))
        harness.process.send_signal(signal.SIGHUP)
        until(lambda: "fastgate-load" in names(harness.children()), "the loader runs")
        for _ in range(20):
            harness.process.send_signal(signal.SIGHUP)
        harness.write(text="last")
        gate.unlink()

        until(lambda: harness.get() == "last", "the last change is seen")

        assert len(harness.events("config in use")) <= 4


def loaders(harness: Harness) -> set[int]:
    return {pid for pid in harness.children() if "fastgate-load" in names([pid])}


def kill_loader(harness: Harness, but: set[int], number: int) -> set[int]:
    """Ends the loader that runs and is none of `but`; returns all of them."""
    until(lambda: loaders(harness) - but, "a loader runs")
    running = loaders(harness) - but
    for pid in running:
        os.kill(pid, number)
    return but | running


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_loader_that_is_killed_is_started_once_more(number: int) -> None:
    with Harness(workers=1) as harness:
        gate = harness.directory / "gate"
        gate.touch()
        harness.write(load_gate=str(gate), text="two")
        harness.process.send_signal(signal.SIGHUP)
        kill_loader(harness, set(), number)
        until(lambda: harness.events("config loader killed, started again"), "it is told")
        gate.unlink()

        until(lambda: harness.get() == "two", "the config is in use")

        assert harness.events("config refused") == []


def test_a_loader_that_is_killed_twice_refuses_the_reload_and_says_how() -> None:
    with Harness(workers=1) as harness:
        gate = harness.directory / "gate"
        gate.touch()
        harness.write(load_gate=str(gate), text="two")
        harness.process.send_signal(signal.SIGHUP)
        killed = kill_loader(harness, set(), signal.SIGKILL)
        kill_loader(harness, killed, signal.SIGKILL)
        until(lambda: harness.events("config refused"), "it is told")

        assert "was ended by SIGKILL 2 times" in harness.events("config refused")[0]["problem"]
        assert harness.get() == "one"
        gate.unlink()
        assert harness.reload(text="three")["event"] == "config in use"


def test_a_loader_that_ends_without_a_result_is_not_tried_again() -> None:
    with Harness(workers=1) as harness:
        outcome = harness.reload(text="two", load_exit=3)

        assert outcome["event"] == "config refused"
        assert "ended without a result (exit 3)" in outcome["problem"]
        assert harness.events("config loader killed, started again") == []
        assert harness.get() == "one"


def test_a_changed_file_is_noticed() -> None:
    with Harness(workers=1, watch=True) as harness:
        harness.write(text="two")

        until(lambda: harness.get() == "two", "the change is taken")


def test_fewer_workers_still_serve_every_socket() -> None:
    with Harness(workers=4) as harness, Traffic(harness.port, keep_alive=False) as traffic:
        until(lambda: traffic.answers > 50, "traffic")

        harness.reload(workers=1)
        until(lambda: len(harness.workers()) == 1, "one worker is left")
        # 64 connections land on all four sockets of the group (the chance to miss one is 4 * 0.75 ** 64)
        assert {harness.get() for _ in range(64)} == {"one"}
        harness.reload(workers=3)
        until(lambda: len(harness.workers()) == 3, "three workers")
        assert {harness.get() for _ in range(64)} == {"one"}

    assert traffic.failures == []


def test_a_new_listener_serves_and_a_removed_one_is_closed_without_loss() -> None:
    with (
        reserved_port() as extra,
        Harness(workers=2, listen=["127.0.0.1:0"]) as harness,
        Traffic(harness.port) as traffic,
    ):
        until(lambda: traffic.answers > 50, "traffic")

        harness.reload(listen=["127.0.0.1:0", f"127.0.0.1:{extra}"])
        assert harness.get(port=extra) == "one"
        lost = []
        with Traffic(extra, keep_alive=False) as on_extra:
            until(lambda: on_extra.answers > 50, "traffic on the second")
            harness.reload(listen=["127.0.0.1:0"])
            until(lambda: on_extra.failures, "the second is closed")
            lost = [text for text in on_extra.failures if "ConnectionRefused" not in text]

        assert lost == []
    assert traffic.failures == []


def test_a_listener_that_cannot_be_opened_refuses_the_reload() -> None:
    with Harness(workers=2) as harness, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        outcome = harness.reload(listen=["127.0.0.1:0", f"127.0.0.1:{port}"])

        assert outcome["event"] == "config refused"
        assert f"127.0.0.1:{port}" in outcome["problem"]
        assert harness.get() == "one"


def test_an_old_generation_that_does_not_finish_is_cut_at_the_drain_limit() -> None:
    with (
        Harness(workers=1, drain_ms=400) as harness,
        socket.create_connection(("127.0.0.1", harness.port)) as sock,
    ):
        old = harness.workers()["fastgate-w0"]
        sock.sendall(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: harness.get("/pid") == str(old), "the worker has seen the first connection too")

        harness.reload(workers=2)

        assert {harness.get() for _ in range(10)} == {"one"}
        until(lambda: not is_running(old), "the old worker is gone")


def test_a_request_in_flight_is_answered_by_the_generation_that_took_it() -> None:
    with Harness(workers=1) as harness, socket.create_connection(("127.0.0.1", harness.port)) as sock:
        sock.sendall(b"GET /text HTTP/1.1\r\nHost: a\r\n\r\n")
        read_answer(sock)
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")

        harness.reload(workers=2, text="two")

        assert read_answer(sock) == "one"
        assert harness.get() == "two"


def test_a_hundred_reloads_of_every_kind_fail_no_request() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    with (
        reserved_port() as extra,
        Harness(workers=2) as harness,
        Traffic(harness.port, pause_s=PAUSE_S) as kept,
        Traffic(harness.port, pause_s=PAUSE_S, keep_alive=False) as fresh,
    ):
        for number in range(100):
            change = draw.choice(["text", "text", "workers", "listen", "bad"])
            if change == "workers":
                harness.reload(workers=draw.randint(1, 3), refuse=False)
            elif change == "listen":
                other = [f"127.0.0.1:{extra}"] if draw.random() < 0.5 else []
                harness.reload(listen=["127.0.0.1:0", *other], refuse=False)
            else:
                harness.reload(text=f"text {number}", refuse=change == "bad")

        assert kept.answers > 100
        assert fresh.answers > 100
    assert kept.failures == []
    assert fresh.failures == []


@pytest.mark.soak
def test_a_thousand_reloads_leave_memory_flat() -> None:
    with Harness(workers=1) as harness:
        for number in range(100):
            harness.reload(text=f"warm {number}")
        before = {pid: resident_kb(pid) for pid in [harness.process.pid, *harness.workers().values()]}

        for number in range(1000):
            harness.reload(text=f"text {number}")

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
