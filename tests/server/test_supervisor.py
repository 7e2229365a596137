"""What the supervisor promises about its processes: they come back, they end, and none outlives it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

from tests.server.gateway_harness import Harness, Traffic, is_running, read_answer, until


def test_a_killed_worker_is_back_within_a_second_and_only_its_own_requests_fail() -> None:
    with Harness(workers=2) as harness:
        before = harness.workers()
        held = {}
        for _ in range(32):
            sock = socket.create_connection(("127.0.0.1", harness.port))
            sock.sendall(b"GET /pid HTTP/1.1\r\nHost: a\r\n\r\n")
            held[sock] = int(read_answer(sock))
        victim = before["fastgate-w0"]
        for sock, pid in held.items():
            path = b"/never" if pid == victim else b"/slow"
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)

        os.kill(victim, signal.SIGKILL)
        back = until(
            lambda: harness.workers().get("fastgate-w0", victim) != victim and harness.workers(),
            "the worker is back",
        )
        until(lambda: harness.get("/pid") == str(back["fastgate-w0"]), "the new worker answers")

        assert set(held.values()) == set(before.values())
        for sock, pid in held.items():
            if pid == victim:
                assert _is_cut(sock)
            else:
                assert read_answer(sock) == "one"
            sock.close()
        died = harness.events("worker died")
        # No pause: how long the fork and the start then take is the machine's part.
        assert [(event["status"], event["restart_in_ms"]) for event in died] == [("SIGKILL", 0)]


def test_connections_that_wait_for_a_dead_worker_are_answered_by_the_next() -> None:
    with Harness(workers=1) as harness:
        for _ in range(5):
            os.kill(until(harness.workers, "a worker")["fastgate-w0"], signal.SIGKILL)

            assert harness.get("/late") == "one"


def test_a_worker_that_keeps_dying_is_restarted_with_growing_pauses_and_for_ever() -> None:
    with Harness(workers=1) as harness:
        marker = harness.directory / "crash"
        harness.reload(crash_on_start=str(marker))
        marker.touch()

        os.kill(harness.workers()["fastgate-w0"], signal.SIGKILL)
        until(lambda: len(harness.events("worker died")) >= 5, "five deaths")
        marker.unlink()

        assert [event["restart_in_ms"] for event in harness.events("worker died")][:5] == [
            0,
            100,
            200,
            400,
            800,
        ]
        assert harness.get() == "one"


def test_connections_of_a_slot_whose_worker_cannot_come_back_are_answered_by_another() -> None:
    with Harness(workers=2) as harness:
        marker = harness.directory / "crash"
        harness.reload(crash_on_start=str(marker))
        marker.touch()
        survivor = harness.workers()["fastgate-w1"]
        os.kill(harness.workers()["fastgate-w0"], signal.SIGKILL)
        until(lambda: len(harness.events("worker died")) >= 5, "pauses of most of a second")

        answers = {harness.get("/pid") for _ in range(64)}

        assert answers == {str(survivor)}
        marker.unlink()
        until(lambda: len(harness.workers()) == 2, "it comes back")
        until(lambda: harness.get("/pid") != str(survivor), "it serves again")
        until(lambda: len(_sockets(survivor)) == 4, "the other has given its socket back")


def test_a_hung_worker_is_killed_and_replaced() -> None:
    with Harness(
        workers=1, hang_ms=4000
    ) as harness:  # a worker of a loaded machine shows life within this time
        hung = harness.workers()["fastgate-w0"]
        with socket.create_connection(("127.0.0.1", harness.port)) as sock:
            sock.sendall(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")

            until(lambda: harness.workers().get("fastgate-w0", hung) != hung, "the worker is replaced")

        assert [event["worker"] for event in harness.events("worker hangs, killed")] == [hung]
        assert harness.get() == "one"


def test_a_stopped_gateway_does_not_take_its_workers_for_hung_when_it_goes_on() -> None:
    with Harness(workers=1, hang_ms=4000) as harness:
        pids = [harness.process.pid, *harness.children()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        until(lambda: time.monotonic() - stopped_at > 5, "longer than the limit")

        for pid in pids:
            os.kill(pid, signal.SIGCONT)

        assert harness.get() == "one"
        assert harness.events("worker hangs, killed") == []


def test_no_process_survives_a_killed_supervisor() -> None:
    with Harness(workers=3, admin="127.0.0.1:0") as harness:
        until(lambda: len(harness.children()) == 4, "three workers and the controller")
        children = harness.children()

        harness.process.kill()
        harness.process.wait()

        until(lambda: not any(is_running(pid) for pid in children), "all children are gone")


def test_the_controllers_death_does_not_touch_traffic_and_it_comes_back() -> None:
    with Harness(workers=2, admin="127.0.0.1:0") as harness:
        controller = until(
            lambda: set(harness.children()) - set(harness.workers().values()), "the controller"
        ).pop()
        with Traffic(harness.port) as traffic:
            until(lambda: traffic.answers > 50, "traffic")
            os.kill(controller, signal.SIGKILL)
            until(
                lambda: set(harness.children()) - set(harness.workers().values()) - {controller},
                "the controller is back",
            )
            seen = traffic.answers
            until(lambda: traffic.answers > seen + 50, "traffic goes on")

        assert traffic.failures == []
        assert len(harness.workers()) == 2
        assert harness.events("worker died") == []


def test_sigterm_answers_what_is_in_flight_and_what_waits_then_ends_in_time() -> None:
    with Harness(workers=2, drain_ms=50_000) as harness:
        socks = [socket.create_connection(("127.0.0.1", harness.port)) for _ in range(16)]
        idle = socket.create_connection(("127.0.0.1", harness.port))
        for sock in socks:
            sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")

        harness.process.send_signal(signal.SIGTERM)
        answers = [read_answer(sock) for sock in socks]

        assert answers == ["one"] * 16
        assert harness.process.wait(60) == 0
        assert harness.events("drain limit reached") == []
        assert _is_cut(idle)
        for sock in [*socks, idle]:
            sock.close()


def test_no_connection_that_the_kernel_accepted_is_lost_on_sigterm() -> None:
    with Harness(workers=1) as harness:
        refused: list[str] = []
        lost: list[str] = []
        answered = [0]

        def ask() -> None:
            while not refused:
                try:
                    sock = socket.create_connection(("127.0.0.1", harness.port), 60)
                except OSError as error:
                    refused.append(repr(error))
                    return
                with sock:
                    try:
                        sock.sendall(b"GET /text HTTP/1.1\r\nHost: a\r\n\r\n")
                        assert read_answer(sock) == "one"
                        answered[0] += 1
                    except Exception as error:
                        lost.append(repr(error))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: answered[0] > 200, "traffic")
        harness.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()

        assert lost == []
        assert harness.process.wait(60) == 0


def test_the_drain_is_cut_at_its_limit() -> None:
    with (
        Harness(workers=1, drain_ms=400) as harness,
        socket.create_connection(("127.0.0.1", harness.port)) as sock,
    ):
        sock.sendall(b"GET /pid HTTP/1.1\r\nHost: a\r\n\r\n")
        read_answer(sock)
        sock.sendall(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")

        harness.process.send_signal(signal.SIGTERM)

        assert harness.process.wait(60) == 0
        assert _is_cut(sock)
        assert len(harness.events("drain limit reached")) == 1


def test_a_hung_worker_does_not_delay_the_end_beyond_the_limit() -> None:
    hang_ms = 600_000  # it ends by the limit of the drain, not because the worker hangs
    with (
        Harness(workers=1, drain_ms=300, hang_ms=hang_ms) as harness,
        socket.create_connection(("127.0.0.1", harness.port)) as sock,
    ):
        sock.sendall(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")

        harness.process.send_signal(signal.SIGTERM)

        harness.process.wait(60)


def test_the_second_signal_ends_at_once() -> None:
    with (
        Harness(workers=1, drain_ms=60_000) as harness,
        socket.create_connection(("127.0.0.1", harness.port)) as sock,
    ):
        sock.sendall(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        harness.process.send_signal(signal.SIGTERM)
        until(lambda: harness.events("stopping"), "the drain has begun")

        harness.process.send_signal(signal.SIGINT)

        assert harness.process.wait(60) == 1


def test_a_worker_told_to_end_is_replaced_before_it_drains() -> None:
    with Harness(workers=1) as harness, Traffic(harness.port) as traffic:
        first = harness.workers()["fastgate-w0"]
        until(lambda: traffic.answers > 50, "traffic")

        os.kill(first, signal.SIGTERM)

        until(lambda: not is_running(first), "the worker has drained")
        assert len(harness.workers()) == 1
        assert harness.get("/pid") != str(first)
        assert traffic.failures == []


def test_sigusr1_reopens_the_logs_of_every_worker() -> None:
    with Harness(workers=2) as harness:
        harness.process.send_signal(signal.SIGUSR1)

        for pid in harness.workers().values():
            line = f"logs opened anew by {pid}"
            until(lambda line=line: line in harness.stderr, "the worker reopens its logs")


def test_a_second_gateway_cannot_take_the_same_port_unnoticed() -> None:
    with Harness() as first:
        second = Harness(listen=[f"127.0.0.1:{first.port}"])

        second.start(expect_ready=False)

        second.end(1)
        assert "address already in use" in second.failures[0]["problem"]


def test_a_bad_config_at_the_start_ends_with_status_1_and_says_why() -> None:
    for changes in ({"refuse": True}, {"cannot_freeze": True}):
        harness = Harness(**changes)

        harness.start(expect_ready=False)

        harness.end(1)
        assert "expected false, got true" in harness.failures[0]["problem"]


def test_unix_listeners_are_served_and_removed_at_the_end() -> None:
    harness = Harness(workers=2)
    path = harness.directory / "socket"
    harness.config["listen"] = [f"unix:{path}"]
    with harness:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET /text HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(sock) == "one"

        harness.process.send_signal(signal.SIGTERM)
        harness.process.wait(60)

        assert not path.exists()


def test_workers_share_no_socket_that_is_not_theirs() -> None:
    with Harness(workers=2, admin="127.0.0.1:0") as harness:
        first, second = (_sockets(pid) for pid in harness.workers().values())

        # The channel to the supervisor, the loop's own pair for signals, and one listening socket.
        assert len(first) == len(second) == 4
        assert first.isdisjoint(second)


def _sockets(pid: int) -> set[str]:
    targets = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return {target for target in targets if target.startswith("socket:")}


def _is_cut(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
