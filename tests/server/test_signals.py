"""What signals, closed descriptors and quotas do to the gateway as a program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastgate.server.process import usable_cpus
from tests.gateway import ROOT, Gateway
from tests.server.gateway_harness import Harness, connected, read_answer, until

HELLO = {"path": "/*", "respond": {"status": 200, "body": "hello"}}


def write_config(directory: Path) -> Path:
    path = directory / "gateway.json"
    admin = {"listen": "127.0.0.1:0"}
    path.write_text(json.dumps({"listen": "127.0.0.1:0", "workers": 1, "admin": admin, "routes": [HELLO]}))
    return path


def test_a_repeated_sigterm_does_not_cut_the_drain_short() -> None:
    with Harness(workers=2) as harness, connected(harness.port) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(20):
            harness.process.send_signal(signal.SIGTERM)
            time.sleep(0.005)

        assert read_answer(sock) == "one"
        assert harness.process.wait(60) == 0


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """A shell has what it runs in the background ignore two signals, and the gateway would inherit that."""
    ignored = [n for n in (signal.SIGINT, signal.SIGQUIT) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("after_ms", [60, 120, 180, 250, 350, 500])
def test_a_signal_in_the_first_moments_ends_the_gateway_silently(
    number: signal.Signals, after_ms: int, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgate", "run", "-c", str(write_config(tmp_path))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    started = time.monotonic()
    until(lambda: _has_own_code(process.pid) or process.poll() is not None, "the interpreter runs our code")
    until(lambda: time.monotonic() - started > after_ms / 1000, "the moment")

    process.send_signal(number)
    output = process.communicate(timeout=60)[0].decode()

    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "refused" not in output


def _has_own_code(pid: int) -> bool:
    """True when the process handles SIGTERM: from then on it ends as it says."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_every_child_ends_none(number: signal.Signals) -> None:
    with Gateway({"routes": [HELLO]}, workers=2) as gateway:
        before = sorted(until(lambda: len(gateway.children()) == 3 and gateway.children(), "all children"))

        for pid in before:
            os.kill(pid, number)
        if number != signal.SIGINT:
            os.kill(gateway.pid, number)

        until(lambda: _handled(before, number), "the signal is taken")
        assert sorted(gateway.children())[:1] != []
        assert set(before) <= set(gateway.children())


def _handled(pids: list[int], number: signal.Signals) -> bool:
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("SigPnd", "ShdPnd")) and int(line.split()[1], 16) >> (number - 1) & 1:
                return False
    return True


@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_do_not_matter(closing: str, tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    os.set_inheritable(write_fd, True)
    program = f'exec "{sys.executable}" -m fastgate run -c "{write_config(tmp_path)}"'
    command = f"{program} --ready-fd {write_fd} {closing}"
    process = subprocess.Popen(
        ["sh", "-c", command], close_fds=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    os.close(write_fd)
    try:
        with open(read_fd, "rb") as ready:
            line = ready.readline()
        assert line, process.wait(60)
        port = int(json.loads(line)["listen"][0].rpartition(":")[2])
        with connected(port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(sock) == "hello"
        for fd in range(3):
            assert os.readlink(f"/proc/{process.pid}/fd/{fd}")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_stopped_controller_is_replaced() -> None:
    with Harness(workers=1, admin="127.0.0.1:0", hang_ms=1500) as harness:
        controller = until(
            lambda: set(harness.children()) - set(harness.workers().values()), "the controller"
        ).pop()
        time_until = time.monotonic() + 1
        until(lambda: time.monotonic() > time_until, "its first heartbeats")

        os.kill(controller, signal.SIGSTOP)

        until(
            lambda: set(harness.children()) - set(harness.workers().values()) - {controller},
            "another controller",
        )
        assert [event["controller"] for event in harness.events("controller hangs, killed")] == [controller]
        assert harness.get() == "one"


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"a/cpu.max": "100000 100000"}, "0::/a", 1),
        ({"a/cpu.max": "50000 100000", "cpu.max": "max 100000"}, "0::/a", 1),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, "0::/a/b", 1),
        ({"cpu,cpuacct/d/cpu.cfs_quota_us": "100000", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
         "4:cpu,cpuacct:/d", 1),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
         "4:cpu,cpuacct:/", None),
        ({"cpu.max": "nonsense"}, "0::/gone", None),
        ({}, "", None),
    ],
)  # fmt: skip
def test_auto_workers_follow_the_quota_of_the_control_group(
    files: dict[str, str], own: str, expected: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")

    found = usable_cpus(tmp_path, tmp_path / "own")

    assert found == (expected or len(os.sched_getaffinity(0)))


def test_a_quota_of_one_and_a_half_cpus_is_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "own").write_text("0::/\n")

    assert usable_cpus(tmp_path, tmp_path / "own") == 2
