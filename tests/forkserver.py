"""Starts gateways by fork from a process that has imported what each of them imports.

A new interpreter takes half a second of CPU until a gateway serves, most of it for imports, and the suite
starts a thousand. The forked child is what `python -m fastgate run …` is after its imports: one thread, its
own environment, directory and descriptors, and it ends as an interpreter does. One server for each test
process; the kernel gives it EOF when that ends, and it ends too.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Forked", "start"]

ROOT = Path(__file__).resolve().parent.parent
MESSAGE_BYTES = 1 << 17
STATUS = struct.Struct("i")
# What a plain `run` imports, in the supervisor, the loader, the workers or the controller.
IMPORTS = (
    "fastgate.cli.main",
    "fastgate.server.launch",
    "fastgate.server.runtime",
    "fastgate.control.process",
)


class Forked:
    """A process that the server forked; what `subprocess.Popen` is for one of our own."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status  # a pipe: the exit status comes through it

    def __del__(self) -> None:
        if self._status >= 0:
            os.close(self._status)

    def poll(self) -> int | None:
        """The exit status, or None while it runs; negative for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. TimeoutExpired when it still runs after so many seconds."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            said = os.read(self._status, STATUS.size)
            assert said, "the fork server has ended"
            self.returncode = os.waitstatus_to_exitcode(STATUS.unpack(said)[0])
            os.close(self._status)
            self._status = -1
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Does nothing when it is known to have ended, as Popen does."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_server: tuple[int, socket.socket, subprocess.Popen[bytes]] | None = None
"""The process that it belongs to, the way to it, and itself."""


def start(
    arguments: Sequence[str], *, environ: Mapping[str, str], directory: str, output: int, ready: int
) -> Forked:
    """`fastgate` with these arguments. stdout and stderr go to `output`; `{ready}` in an argument is the
    number that `ready` has in the child.
    """
    global _server
    if _server is None or _server[0] != os.getpid():
        _server = os.getpid(), *_serve()
    control = _server[1]
    read, write = os.pipe()
    try:
        job = {"arguments": list(arguments), "environ": dict(environ), "directory": directory}
        socket.send_fds(control, [json.dumps(job).encode()], [output, ready, write])
        pid = int(control.recv(64))
    finally:
        os.close(write)
    return Forked(pid, read)


def _serve() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )
    return ours, process


def main() -> None:
    """Serves the test process at the other end of the socket with the number in the first argument."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a child's collector does not copy every page
    job = _next_job(socket.socket(fileno=int(sys.argv[1])))
    if job is not None:
        _become(job)


def _next_job(control: socket.socket) -> dict[str, Any] | None:
    """Returns in each child with what it is to do, and in the server at its end."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    before = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    waiting: dict[int, int] = {}  # pid → where its exit status goes
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
                _reap(waiting)
            if control not in ready:
                continue
            message, descriptors, _flags, _address = socket.recv_fds(control, MESSAGE_BYTES, 3)
            if not message:
                return None
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, before)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
                return {**json.loads(message), "output": descriptors[0], "ready": descriptors[1]}
            waiting[pid] = descriptors[2]
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            os.close(descriptors[0])
            os.close(descriptors[1])
            control.send(str(pid).encode())


def _reap(waiting: dict[int, int]) -> None:
    while waiting:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        place = waiting.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(place, STATUS.pack(status))
        os.close(place)


def _become(job: dict[str, Any]) -> None:
    for stream in (1, 2):
        os.dup2(job["output"], stream)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != job["ready"]:
            with contextlib.suppress(OSError):
                os.close(int(name))
    os.set_inheritable(job["ready"], True)
    os.chdir(job["directory"])
    os.environ.clear()
    os.environ.update(job["environ"])
    time.tzset()
    sys.path[0] = job["directory"]
    sys.argv = [
        "fastgate",
        *(argument.replace("{ready}", str(job["ready"])) for argument in job["arguments"]),
    ]

    from fastgate.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
