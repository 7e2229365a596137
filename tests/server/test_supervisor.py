"""What the supervisor promises about its processes: they come back, they end, and none outlives it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

from tests.server.gateway_rig import Rig, Traffic, is_running, read_answer, until


def test_a_killed_worker_is_back_within_a_second_and_only_its_own_requests_fail() -> None:
    with Rig(workers=2) as rig:
        before = rig.workers()
        held = {}
        for _ in range(32):
            sock = socket.create_connection(("127.0.0.1", rig.port))
            sock.sendall(b"GET /pid HTTP/1.1\r\nHost: a\r\n\r\n")
            held[sock] = int(read_answer(sock))
        victim = before["fastgate-w0"]
        for sock, pid in held.items():
            path = b"/never" if pid == victim else b"/slow"
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)

        os.kill(victim, signal.SIGKILL)
        back = until(
            lambda: rig.workers().get("fastgate-w0", victim) != victim and rig.workers(), "the worker is back"
        )
        until(lambda: rig.get("/pid") == str(back["fastgate-w0"]), "the new worker answers")

        assert set(held.values()) == set(before.values())
        for sock, pid in held.items():
            if pid == victim:
                assert _is_cut(sock)
            else:
                assert read_answer(sock) == "one"
            sock.close()
        died = rig.events("worker died")
        # No pause: how long the fork and the start then take is the machine's part.
        assert [(event["status"], event["restart_in_ms"]) for event in died] == [("SIGKILL", 0)]


def test_connections_that_wait_for_a_dead_worker_are_answered_by_the_next() -> None:
    with Rig(workers=1) as rig:
        for _ in range(5):
            os.kill(until(rig.workers, "a worker")["fastgate-w0"], signal.SIGKILL)

            assert rig.get("/late") == "one"


def test_a_worker_that_keeps_dying_is_restarted_with_growing_pauses_and_for_ever() -> None:
    with Rig(workers=1) as rig:
        marker = rig.directory / "crash"
        rig.reload(crash_on_start=str(marker))
        marker.touch()

        os.kill(rig.workers()["fastgate-w0"], signal.SIGKILL)
        until(lambda: len(rig.events("worker died")) >= 5, "five deaths")
        marker.unlink()

        assert [event["restart_in_ms"] for event in rig.events("worker died")][:5] == [0, 100, 200, 400, 800]
        assert rig.get() == "one"


def test_connections_of_a_slot_whose_worker_cannot_come_back_are_answered_by_another() -> None:
    with Rig(workers=2) as rig:
        marker = rig.directory / "crash"
        rig.reload(crash_on_start=str(marker))
        marker.touch()
        survivor = rig.workers()["fastgate-w1"]
        os.kill(rig.workers()["fastgate-w0"], signal.SIGKILL)
        until(lambda: len(rig.events("worker died")) >= 5, "pauses of most of a second")

        answers = {rig.get("/pid") for _ in range(64)}

        assert answers == {str(survivor)}
        marker.unlink()
        until(lambda: len(rig.workers()) == 2, "it comes back")
        until(lambda: rig.get("/pid") != str(survivor), "it serves again")
        until(lambda: len(_sockets(survivor)) == 4, "the other has given its socket back")


def test_a_hung_worker_is_killed_and_replaced() -> None:
    with Rig(workers=1, hang_ms=4000) as rig:  # a worker of a loaded machine shows life within this time
        hung = rig.workers()["fastgate-w0"]
        with socket.create_connection(("127.0.0.1", rig.port)) as sock:
            sock.sendall(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")

            until(lambda: rig.workers().get("fastgate-w0", hung) != hung, "the worker is replaced")

        assert [event["worker"] for event in rig.events("worker hangs, killed")] == [hung]
        assert rig.get() == "one"


def test_a_stopped_gateway_does_not_take_its_workers_for_hung_when_it_goes_on() -> None:
    with Rig(workers=1, hang_ms=4000) as rig:
        pids = [rig.process.pid, *rig.children()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        until(lambda: time.monotonic() - stopped_at > 5, "longer than the limit")

        for pid in pids:
            os.kill(pid, signal.SIGCONT)

        assert rig.get() == "one"
        assert rig.events("worker hangs, killed") == []


def test_no_process_survives_a_killed_supervisor() -> None:
    with Rig(workers=3, admin="127.0.0.1:0") as rig:
        until(lambda: len(rig.children()) == 4, "three workers and the controller")
        children = rig.children()

        rig.process.kill()
        rig.process.wait()

        until(lambda: not any(is_running(pid) for pid in children), "all children are gone")


def test_the_controllers_death_does_not_touch_traffic_and_it_comes_back() -> None:
    with Rig(workers=2, admin="127.0.0.1:0") as rig:
        controller = until(lambda: set(rig.children()) - set(rig.workers().values()), "the controller").pop()
        with Traffic(rig.port) as traffic:
            until(lambda: traffic.answers > 50, "traffic")
            os.kill(controller, signal.SIGKILL)
            until(
                lambda: set(rig.children()) - set(rig.workers().values()) - {controller},
                "the controller is back",
            )
            seen = traffic.answers
            until(lambda: traffic.answers > seen + 50, "traffic goes on")

        assert traffic.failures == []
        assert len(rig.workers()) == 2
        assert rig.events("worker died") == []


def test_sigterm_answers_what_is_in_flight_and_what_waits_then_ends_in_time() -> None:
    with Rig(workers=2, drain_ms=50_000) as rig:
        socks = [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(16)]
        idle = socket.create_connection(("127.0.0.1", rig.port))
        for sock in socks:
            sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")

        rig.process.send_signal(signal.SIGTERM)
        answers = [read_answer(sock) for sock in socks]

        assert answers == ["one"] * 16
        assert rig.process.wait(60) == 0
        assert rig.events("drain limit reached") == []
        assert _is_cut(idle)
        for sock in [*socks, idle]:
            sock.close()


def test_no_connection_that_the_kernel_accepted_is_lost_on_sigterm() -> None:
    with Rig(workers=1) as rig:
        refused: list[str] = []
        lost: list[str] = []
        answered = [0]

        def ask() -> None:
            while not refused:
                try:
                    sock = socket.create_connection(("127.0.0.1", rig.port), 60)
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
        rig.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()

        assert lost == []
        assert rig.process.wait(60) == 0


def test_the_drain_is_cut_at_its_limit() -> None:
    with Rig(workers=1, drain_ms=400) as rig, socket.create_connection(("127.0.0.1", rig.port)) as sock:
        sock.sendall(b"GET /pid HTTP/1.1\r\nHost: a\r\n\r\n")
        read_answer(sock)
        sock.sendall(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")

        rig.process.send_signal(signal.SIGTERM)

        assert rig.process.wait(60) == 0
        assert _is_cut(sock)
        assert len(rig.events("drain limit reached")) == 1


def test_a_hung_worker_does_not_delay_the_end_beyond_the_limit() -> None:
    hang_ms = 600_000  # it ends by the limit of the drain, not because the worker hangs
    with (
        Rig(workers=1, drain_ms=300, hang_ms=hang_ms) as rig,
        socket.create_connection(("127.0.0.1", rig.port)) as sock,
    ):
        sock.sendall(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")

        rig.process.send_signal(signal.SIGTERM)

        rig.process.wait(60)


def test_the_second_signal_ends_at_once() -> None:
    with Rig(workers=1, drain_ms=60_000) as rig, socket.create_connection(("127.0.0.1", rig.port)) as sock:
        sock.sendall(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        rig.process.send_signal(signal.SIGTERM)
        until(lambda: rig.events("stopping"), "the drain has begun")

        rig.process.send_signal(signal.SIGINT)

        assert rig.process.wait(60) == 1


def test_a_worker_told_to_end_is_replaced_before_it_drains() -> None:
    with Rig(workers=1) as rig, Traffic(rig.port) as traffic:
        first = rig.workers()["fastgate-w0"]
        until(lambda: traffic.answers > 50, "traffic")

        os.kill(first, signal.SIGTERM)

        until(lambda: not is_running(first), "the worker has drained")
        assert len(rig.workers()) == 1
        assert rig.get("/pid") != str(first)
        assert traffic.failures == []


def test_sigusr1_reopens_the_logs_of_every_worker() -> None:
    with Rig(workers=2) as rig:
        rig.process.send_signal(signal.SIGUSR1)

        for pid in rig.workers().values():
            line = f"logs opened anew by {pid}"
            until(lambda line=line: line in rig.stderr, "the worker reopens its logs")


def test_a_second_gateway_cannot_take_the_same_port_unnoticed() -> None:
    with Rig() as first:
        second = Rig(listen=[f"127.0.0.1:{first.port}"])

        second.start(expect_ready=False)

        second.end(1)
        assert "address already in use" in second.failures[0]["problem"]


def test_a_bad_config_at_the_start_ends_with_status_1_and_says_why() -> None:
    for changes in ({"refuse": True}, {"cannot_freeze": True}):
        rig = Rig(**changes)

        rig.start(expect_ready=False)

        rig.end(1)
        assert "expected false, got true" in rig.failures[0]["problem"]


def test_unix_listeners_are_served_and_removed_at_the_end() -> None:
    rig = Rig(workers=2)
    path = rig.directory / "socket"
    rig.config["listen"] = [f"unix:{path}"]
    with rig:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET /text HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(sock) == "one"

        rig.process.send_signal(signal.SIGTERM)
        rig.process.wait(60)

        assert not path.exists()


def test_workers_share_no_socket_that_is_not_theirs() -> None:
    with Rig(workers=2, admin="127.0.0.1:0") as rig:
        first, second = (_sockets(pid) for pid in rig.workers().values())

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
