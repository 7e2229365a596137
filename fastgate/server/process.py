"""Forking a child that cannot outlive the supervisor.

os.fork without exec: the supervisor has one thread and no event loop, so the child starts with everything
imported and mapped, and pays only for what it changes. The child drops the supervisor's signal set-up and
descriptors before it runs its own code and leaves through os._exit, so nothing that the supervisor registered
to run at its end runs twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Never

__all__ = ["EXIT_CRASH", "exit_text", "fork_child", "name_process"]

EXIT_CRASH = 70
"""Exit status of a child whose code raised (EX_SOFTWARE of sysexits.h)."""

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)

_libc = ctypes.CDLL(None, use_errno=True)


def name_process(name: str) -> None:
    """Shows as the command in ps and top (15 characters)."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def fork_child(name: str, keep: Iterable[int], run: Callable[[], None], *, nice: int = 0) -> int:
    """Forks; returns the child's pid. The child closes every descriptor but 0, 1, 2 and `keep`, then `run` is
    all it does.

    The kernel kills the child when the supervisor dies (PR_SET_PDEATHSIG), with SIGKILL because a hung child
    would not notice anything softer: without the supervisor nobody would restart, reload or stop it.
    """
    supervisor_pid = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that reached the child before it forgot the supervisor's wakeup pipe would be reported to the
    # supervisor.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(name, supervisor_pid, keep, run, nice)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    return pid


def _be_child(
    name: str, supervisor_pid: int, keep: Iterable[int], run: Callable[[], None], nice: int
) -> Never:
    status = EXIT_CRASH
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor_pid:
            os._exit(EXIT_CRASH)  # it died between fork and prctl
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Ctrl-C reaches the whole group; the supervisor passes it on
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        name_process(name)
        os.nice(nice)
        _close_all_but({0, 1, 2, *keep})
        gc.enable()
        run()
        status = 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else EXIT_CRASH
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _close_all_but(keep: set[int]) -> None:
    """Closes the numbers, not the supervisor's objects: those stay referenced by the frames below and are
    never collected.
    """
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd not in keep:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is gone already
                os.close(fd)


def exit_text(status: int) -> str:
    """How a process ended, in words: `exit 70` or `SIGKILL`."""
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
