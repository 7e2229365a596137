"""The real gateway as a subprocess: `python -m fastgate run` on port 0, watched from outside.

    with Upstream() as upstream, Gateway({"routes": [{"path": "/*", "upstream": upstream.url}]}) as gateway:
        assert get(gateway.port).status == 200

A config is a dict (listen, admin, workers and access_log get test defaults, and the file is not watched: a
test says when it is read again) or the text of a YAML file, taken as it is. The block fails when it ends if
the gateway wrote an error or a traceback to stderr, kept a client connection or any descriptor it did not
have when it became ready, did not end cleanly on SIGTERM, or left a process behind. What stderr may contain
is said with `allow` (a regular expression).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tests import forkserver

__all__ = ["Gateway", "cpu_ns", "descriptors", "private_bytes", "rss_bytes"]

ROOT = Path(__file__).resolve().parent.parent
# These only ever end a hang: far above what a loaded machine needs.
START_S = 120
STOP_S = 60  # beyond the drain time
SETTLE_S = 60  # until closed connections have left the worker's descriptor table
MOMENT_S = 0.05
LISTEN, ESTABLISHED = "0A", "01"  # as /proc/net/tcp writes them
COMPLAINT = re.compile(
    r"Traceback|\berror\b|Error\b|Exception|never awaited|was never retrieved|\bcritical\b|Segmentation", re.I
)


DISK_DESCRIPTORS = 3
"""Of an open disk cache: the lock, and LMDB's descriptors for data and for meta pages."""


class Gateway:
    """One running gateway. Values about processes are read from /proc at the time of asking."""

    def __init__(
        self,
        config: Mapping[str, Any] | str,
        *,
        workers: int = 1,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        allow: str | None = None,
        check_descriptors: bool = True,
        fork: bool = True,
    ) -> None:
        """fork: begin after the imports of an interpreter that others have begun from (tests/forkserver.py);
        False for what measures a process from its start.
        """
        self._config = config
        self._workers = workers
        self._arguments = list(arguments)
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environ or {})}
        self._forks = fork and "PYTHONPATH" not in (environ or {})
        self._allow = re.compile(allow) if allow else None
        self._check_descriptors = check_descriptors
        self._directory = tempfile.TemporaryDirectory(prefix="fastgate-")
        self.path = Path(self._directory.name) / (
            "gateway.yaml" if isinstance(config, str) else "gateway.json"
        )
        self.ready: dict[str, Any] = {}
        self._is_told = False

    def __enter__(self) -> Gateway:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except AssertionError as problem:
            if error is None:
                raise
            error.add_note(f"gateway: {problem}")
        if error is not None:
            error.add_note(f"gateway stderr:\n{self.stderr_text[-4000:]}")

    def write_config(self, config: Mapping[str, Any] | str) -> None:
        """Replaces the config file in one step; the gateway takes it when it is told to."""
        if isinstance(config, str):
            text = config
        else:
            filled = {
                "listen": "127.0.0.1:0",
                "workers": self._workers,
                "admin": {"listen": "127.0.0.1:0"},
                "access_log": {"output": "off"},
                "watch_config": False,  # a change that it sees is a reload more, or one at the wrong moment
                **config,
            }
            text = json.dumps(filled, indent=1)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def start(self) -> None:
        """Runs until every worker accepts. Raises AssertionError with stderr if it does not get there."""
        self.write_config(self._config)
        ready_read, ready_write = os.pipe()
        self.started_ns = time.monotonic_ns()
        with (Path(self._directory.name) / "stderr").open("wb") as log:
            self.process = self._begin(log, ready_write)
        os.close(ready_write)
        try:
            line = self._read_line(ready_read)
        finally:
            os.close(ready_read)
        if not line:
            with contextlib.suppress(OSError):
                self.process.kill()
            self.process.wait()
            text = self.stderr_text
            self._directory.cleanup()
            raise AssertionError(
                f"the gateway did not become ready (exit {self.process.returncode}):\n{text}"
            )
        self.ready = json.loads(line)
        self.seen = {self.process.pid, *self.children()}
        self.settle()

    def _begin(self, log: BinaryIO, ready: int) -> subprocess.Popen[bytes] | forkserver.Forked:
        arguments = ["run", "-c", str(self.path), "--ready-fd", "{ready}", *self._arguments]
        if self._forks:
            return forkserver.start(
                arguments,
                environ=self._environ,
                directory=self._directory.name,
                output=log.fileno(),
                ready=ready,
            )
        return subprocess.Popen(
            [sys.executable, "-m", "fastgate", *(each.replace("{ready}", str(ready)) for each in arguments)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[ready],
            env=self._environ,
            cwd=self._directory.name,
        )

    def settle(self) -> None:
        """Takes what the workers hold now, besides connections, for what they may hold."""
        self.settled = {pid: descriptors(pid, self.ports) for pid in self.worker_pids()}

    def terminate(self) -> None:
        """Sends SIGTERM and returns; the end of the block waits for the end of the drain."""
        self._is_told = True
        self.process.send_signal(signal.SIGTERM)

    def stop(self, *, timeout_s: float = STOP_S) -> None:
        """Checks descriptors, sends SIGTERM, waits, and checks how it ended. Does nothing when it has ended
        already.
        """
        problems: list[str] = []
        if self.process.poll() is None:
            self.seen |= set(self.children())
            if not self._is_told:
                if self._check_descriptors:
                    problems += self.leaks()
                self.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            problems.append(f"still running {timeout_s} s after SIGTERM")
            for pid in [*self.children(), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        if self.process.returncode != 0:
            problems.append(f"exit status {self.process.returncode}, expected 0")
        problems += [f"process {pid} is left behind" for pid in sorted(self.seen) if _is_running(pid)]
        problems += self.complaints()
        text = self.stderr_text
        self._directory.cleanup()
        self._final_text = text
        if problems:
            raise AssertionError("; ".join(problems) + f"\nstderr:\n{text[-4000:]}")

    @property
    def stderr_text(self) -> str:
        """Everything written to stdout and stderr so far."""
        path = Path(self._directory.name) / "stderr"
        return path.read_text(errors="replace") if path.exists() else getattr(self, "_final_text", "")

    def complaints(self) -> list[str]:
        """The lines of stderr that tell of an error, without those that the test allows."""
        lines = [line for line in self.stderr_text.splitlines() if COMPLAINT.search(line)]
        return [f"stderr: {line}" for line in lines if not (self._allow and self._allow.search(line))]

    @property
    def port(self) -> int:
        """The port of the first listener."""
        return int(self.ready["listen"][0].rpartition(":")[2])

    @property
    def ports(self) -> list[int]:
        """The ports of all TCP listeners of the data plane."""
        return [
            int(address.rpartition(":")[2])
            for address in self.ready["listen"]
            if not address.startswith("unix:")
        ]

    @property
    def admin(self) -> str:
        """host:port of the admin listener."""
        return str(self.ready["admin"])

    @property
    def pid(self) -> int:
        """The supervisor."""
        return self.process.pid

    def children(self) -> list[int]:
        """The supervisor's children: controller and workers."""
        try:
            return [
                int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            ]
        except OSError:
            return []

    def worker_pids(self) -> list[int]:
        """The workers alive now, known by the name they give themselves."""
        return [pid for pid in self.children() if _name(pid).startswith("fastgate-w")]

    def leaks(self) -> list[str]:
        """What the workers hold that they should not, after giving closed connections time to go."""
        began = time.monotonic()
        while True:
            # To tell which sockets are connections takes long, and mostly no new one is left in a moment.
            new = {
                pid: settled
                for pid, settled in self.settled.items()
                if _is_running(pid) and Counter(_descriptor_names(pid)) - settled.lasting
            }
            if new and time.monotonic() - began < MOMENT_S:
                time.sleep(0.002)
                continue
            found = []
            for pid, settled in new.items():
                held = descriptors(pid, self.ports)
                is_disk_twice = held.disk > DISK_DESCRIPTORS
                if held.clients or held.half_closed or held.others > settled.others or is_disk_twice:
                    found.append(
                        f"worker {pid} holds {held.clients} clients, {held.half_closed} half-closed,"
                        f" {held.disk} of the disk cache"
                        f" and {held.others} other descriptors ({settled.others} when ready): {held.names}"
                    )
            if not found or time.monotonic() - began > SETTLE_S:
                return found
            time.sleep(0.01)

    def _read_line(self, descriptor: int) -> bytes:
        line = b""
        deadline = time.monotonic() + START_S
        while not line.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return b""
            data = os.read(descriptor, 4096)
            if not data:
                return b""
            line += data
        return line


class Descriptors:
    """What a worker holds: connections of clients, connections whose peer has gone, the file of its disk
    cache, which a thread opens at some time, and everything else.
    """

    def __init__(self) -> None:
        self.disk = 0
        self.clients = 0
        self.upstreams = 0
        self.half_closed = 0
        self.others = 0
        self.names: list[str] = []
        self.lasting: Counter[str] = Counter()  # the names of listeners and of everything else


def descriptors(pid: int, listener_ports: Sequence[int]) -> Descriptors:
    """Sorts the open descriptors of a process by what /proc/net says about their sockets."""
    sockets = _tcp_sockets(pid)
    held = Descriptors()
    for name in _descriptor_names(pid):
        port, state = sockets.get(name[8:-1], (0, ""))
        if state == LISTEN:
            held.lasting[name] += 1
        elif port in listener_ports:
            held.clients += 1
        elif state == ESTABLISHED:
            held.upstreams += 1
        elif state:
            held.half_closed += 1
        elif name.partition(" ")[0].endswith((".mdb", ".mdb-lock")):
            held.disk += 1
            held.names.append(name)
        else:
            held.others += 1
            held.names.append(name)
            held.lasting[name] += 1
    return held


def _tcp_sockets(pid: int) -> dict[str, tuple[int, str]]:
    sockets: dict[str, tuple[int, str]] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                if " 06 " in line:  # TIME_WAIT belongs to nobody, and there are thousands after many tests
                    continue
                columns = line.split()
                sockets[columns[9]] = (int(columns[1].rpartition(":")[2], 16), columns[3])
    return sockets


def _descriptor_names(pid: int) -> list[str]:
    names = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.append(os.readlink(entry))
    return names


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def rss_bytes(pid: int) -> int:
    """The resident set of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int) -> int:
    """The memory of a process that it shares with no other."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(
        int(line.split()[1]) * 1024
        for line in text.splitlines()
        if line.startswith(("Private_Clean", "Private_Dirty"))
    )


def cpu_ns(pid: int) -> int:
    """Nanoseconds on a CPU of all threads of a process, from the scheduler's own account."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
    )


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
