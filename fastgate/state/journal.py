"""The process log: one line per thing that happened to a process, on stderr.

On a terminal a line for people, otherwise one JSON object (set `FASTGATE_LOG=json` or `human` to choose). Not
the access log, which is about requests. A line is one `write`, so lines of several processes never
interleave.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from typing import Any

import msgspec

__all__ = ["Journal", "JournalHandler", "Throttle"]


class Journal:
    """Writes lines that carry the name of the process; `fd` is where (2 = stderr)."""

    __slots__ = ("_fd", "_human", "_name")

    def __init__(self, name: str, fd: int = 2, human: bool | None = None) -> None:
        self._name = name
        self._fd = fd
        if human is None:
            chosen = os.environ.get("FASTGATE_LOG")
            human = chosen == "human" if chosen else os.isatty(fd)
        self._human = human

    def renamed(self, name: str) -> Journal:
        return Journal(name, self._fd, self._human)

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        if self._human:
            details = " ".join(f"{key}={value}" for key, value in fields.items())
            line = f"{stamp[11:23]} {level:7} {self._name}: {event} {details}".rstrip().encode()
        else:
            record = {
                "time": stamp,
                "level": level,
                "process": self._name,
                "pid": os.getpid(),
                "event": event,
            }
            line = msgspec.json.encode(record | fields)
        try:
            os.write(self._fd, line + b"\n")
        except OSError:
            # The reader of stderr is gone (a closed terminal, a full disk): the gateway must go on without
            # its log.
            return


class Throttle:
    """Lets the first of equal things within a period through, and counts the others."""

    BURST = 20
    PERIOD_S = 10.0
    MOST_KEYS = 256

    def __init__(self, burst: int = BURST, period_s: float = PERIOD_S) -> None:
        self._burst = burst
        self._period_s = period_s
        self._seen: dict[object, tuple[float, int]] = {}  # key → (begin of its period, how often in it)

    def allow(self, key: object, now_s: float | None = None) -> int | None:
        """How many of this key were held back since the last one that passed; None: hold this one back."""
        now_s = time.monotonic() if now_s is None else now_s
        began_s, count = self._seen.get(key, (now_s, 0))
        if now_s - began_s >= self._period_s:
            self._seen[key] = now_s, 1
            return max(0, count - self._burst)
        if key not in self._seen and len(self._seen) >= self.MOST_KEYS:
            del self._seen[min(self._seen, key=lambda other: self._seen[other][0])]
        self._seen[key] = began_s, count + 1
        return 0 if count < self._burst else None


class JournalHandler(logging.Handler):
    """Writes what the data plane, plugins and libraries log with `logging` as lines of a Journal. Of equal
    messages only so many in a time: what clients can cause must not fill the disk. Messages are equal when
    their text before formatting is, and their `extra={"throttle": …}`, where they have one.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal
        self._throttle = Throttle()

    def emit(self, record: logging.LogRecord) -> None:
        held = self._throttle.allow((record.name, record.msg, getattr(record, "throttle", None)))
        if held is None:
            return
        fields: dict[str, Any] = {"held_back": held} if held else {}
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        write = self._journal.error if record.levelno >= logging.ERROR else self._journal.warning
        write(record.getMessage(), **fields)
