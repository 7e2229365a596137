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

__all__ = ["Journal", "JournalHandler"]


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


class JournalHandler(logging.Handler):
    """Writes what the data plane, plugins and libraries log with `logging` as lines of a Journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        fields = {}
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        write = self._journal.error if record.levelno >= logging.ERROR else self._journal.warning
        write(record.getMessage(), **fields)
