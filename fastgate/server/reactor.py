"""The supervisor's event loop: readiness, timers and signals in one thread, on the standard library's
selectors only.

Not asyncio, because the process that restarts all others should be small enough to be read in one sitting,
and because it forks: there must be no thread, no pending task and no loop state that a child would inherit.
"""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = ["Reactor", "Timer"]


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class Timer:
    """A scheduled call; `cancel` is idempotent."""

    __slots__ = ("call", "due_ns")

    def __init__(self, due_ns: int, call: Callable[[], None]) -> None:
        self.due_ns = due_ns
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None

    def __lt__(self, other: Timer) -> bool:
        return self.due_ns < other.due_ns


class Reactor:
    """Runs callbacks until `stop`."""

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        """`on_error` receives the exceptions that callbacks raise; the loop continues, because all traffic
        depends on it."""
        self._on_error = on_error
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._running = False
        self._signals_read, self._signals_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, source: int | _HasFileno, call: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, call)

    def unwatch(self, source: int | _HasFileno) -> None:
        self._selector.unregister(source)

    def after(self, delay_ns: int, call: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic_ns() + delay_ns, call)
        heapq.heappush(self._timers, timer)
        return timer

    def on_signals(self, numbers: Iterable[signal.Signals], call: Callable[[signal.Signals], None]) -> None:
        """Delivers these signals as calls from the loop. The C-level handler only writes a byte."""
        for number in numbers:
            signal.signal(number, _woken)
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)

        def read() -> None:
            for number in os.read(self._signals_read, 512):
                call(signal.Signals(number))

        self.watch(self._signals_read, read)

    def run(self) -> None:
        self._running = True
        while self._running:
            wait_s = None
            if self._timers:
                wait_s = max(0.0, (self._timers[0].due_ns - time.monotonic_ns()) / 1e9)
            for key, _events in self._selector.select(wait_s):
                # An earlier callback may have unwatched this one, and its descriptor number may have been
                # reused.
                if self._selector.get_map().get(key.fd) is key:
                    self._call(key.data)
            now_ns = time.monotonic_ns()
            while self._timers and self._timers[0].due_ns <= now_ns:
                call = heapq.heappop(self._timers).call
                if call is not None:
                    self._call(call)

    def _call(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._on_error(error)

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._selector.close()
        os.close(self._signals_read)
        os.close(self._signals_write)


def _woken(_number: int, _frame: object) -> None:
    """Python writes to the wakeup descriptor only for signals that have a handler."""
