"""Starts the harness as a process, changes its config, and asks it things."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["PAUSE_S", "Harness", "Traffic", "until"]

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60
DRAIN_IDLE_S = 0.5
PAUSE_S = 0.005
"""Of each of eight clients: they leave CPU to the processes of low priority that reload."""
"""How long a draining worker waits for the next request of an idle connection (its DRAIN_IDLE_NS)."""


def until(holds: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `holds`, asked again and again; AssertionError when it takes too long."""
    deadline = time.monotonic() + deadline_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {deadline_s} s in vain: {what}"
        time.sleep(0.005)


class Harness:
    """One supervisor with its children."""

    def __init__(self, **config: Any) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fastgate-")
        self.directory = Path(self._directory.name)
        self.path = self.directory / "config.json"
        self.config: dict[str, Any] = {"listen": ["127.0.0.1:0"], "workers": 2, "text": "one", **config}
        self.stderr_path = self.directory / "stderr"
        self.seen: set[int] = set()

    def __enter__(self) -> Harness:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.seen |= set(self.children())
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if error is not None:
            error.add_note(f"stderr:\n{self.stderr}")
        text = self.stderr
        left = [pid for pid in self.seen if is_running(pid)]
        self._directory.cleanup()
        if error is None:
            assert not left, f"left behind: {left}\n{text}"
            assert "Traceback" not in text, text

    def end(self, status: int) -> None:
        """Waits for a supervisor that ends by itself with this status."""
        assert self.process.wait(DEADLINE_S) == status, self.stderr
        self.failures = self.events("config refused")
        self._directory.cleanup()

    def write(self, **changes: Any) -> None:
        self.config |= changes
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.config))
        fresh.replace(self.path)

    def start(self, expect_ready: bool = True) -> None:
        self.write()
        ready_read, ready_write = os.pipe()
        with self.stderr_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.server.harness", str(self.path), str(ready_write)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ready_write],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "FASTGATE_LOG": "json"},
            )
        os.close(ready_write)
        with open(ready_read, "rb") as ready:
            line = ready.readline()
        if not expect_ready:
            assert not line
            return
        assert line, f"did not become ready: {self.stderr}"
        self.ready = json.loads(line)
        self.seen = set(self.children())

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the process log about this."""
        records = []
        for line in self.stderr.splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record["event"] == name:
                    records.append(record)
        return records

    @property
    def port(self) -> int:
        return int(self.ready["listen"][0].rpartition(":")[2])

    def children(self) -> list[int]:
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def workers(self) -> dict[str, int]:
        """Pid by process name, of the living workers."""
        found = {}
        for pid in self.children():
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if name.startswith("fastgate-w") and state != "Z":
                    found[name] = pid
        return found

    def get(self, path: str = "/text", port: int | None = None) -> str:
        """The body of one answer, over a connection of its own."""
        with socket.create_connection(("127.0.0.1", port or self.port), DEADLINE_S) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            return read_answer(sock)

    def reload(self, **changes: Any) -> dict[str, Any]:
        """Changes the config, sends SIGHUP, and returns the line that tells how it ended."""
        before = len(self.events("config in use")) + len(self.events("config refused"))
        self.write(**changes)
        self.process.send_signal(signal.SIGHUP)
        until(
            lambda: len(self.events("config in use")) + len(self.events("config refused")) > before,
            "the end of the reload",
        )
        return max(self.events("config in use") + self.events("config refused"), key=lambda e: str(e["time"]))


def read_answer(sock: socket.socket) -> str:
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    body = answer.read().decode()
    answer.close()
    return body


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Traffic:
    """Requests from several threads, without a pause unless one is given; every one that is not answered with
    200 is kept.
    """

    def __init__(
        self,
        port: int,
        threads: int = 4,
        path: str = "/text",
        keep_alive: bool = True,
        pause_s: float = 0.0,
    ) -> None:
        self.port = port
        self.path = path
        self.keep_alive = keep_alive
        self.pause_s = pause_s
        self.answers = 0
        self.failures: list[str] = []
        self.tried_again = 0
        self.texts: set[str] = set()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._connection()
            except OSError as error:
                self.failures.append(repr(error))

    def _connection(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), DEADLINE_S) as sock:
            answered_here = 0
            sent_before = 0.0
            while not self._end.is_set():
                answer = None
                sending = time.monotonic()
                sent = 0.0
                try:
                    sock.sendall(f"GET {self.path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                    sent = time.monotonic()
                    answer = http.client.HTTPResponse(sock)
                    answer.begin()
                    self.texts.add(answer.read().decode())
                except (OSError, http.client.RemoteDisconnected):
                    # A kept-alive connection may be closed just as the next request is sent (RFC 9112 9.3.1);
                    # a client tries again on a new one. What is never allowed is to lose the first request of
                    # a connection. A client that got no CPU between two requests was idle, whatever it meant.
                    if answered_here:
                        if (sent or time.monotonic()) - sent_before < DRAIN_IDLE_S:
                            self.tried_again += 1
                        return
                    raise
                finally:
                    if answer is not None:
                        answer.close()
                sent_before = sending
                self.answers += 1
                answered_here += 1
                if self.pause_s:
                    self._end.wait(self.pause_s)
                if not self.keep_alive or answer.getheader("Connection") == "close":
                    return


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
        yield sock
