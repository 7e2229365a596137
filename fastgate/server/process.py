"""Forking a child that cannot outlive the supervisor.

os.fork without exec: the supervisor has one thread and no event loop, so the child starts with everything
imported and mapped, and uses memory only for the pages it changes. The child drops the supervisor's signal
handlers and descriptors before it runs its own code and exits through os._exit, so exit handlers of the
supervisor do not run twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Never

__all__ = [
    "EXIT_CRASH",
    "exit_text",
    "fork_child",
    "name_process",
    "occupy_standard_descriptors",
    "usable_cpus",
]

EXIT_CRASH = 70
"""Exit status of a child whose code raised (EX_SOFTWARE of sysexits.h)."""

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)

_IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals to the whole group (Ctrl-C, a closed terminal, `pkill -USR1 fastgate`) are handled by the
supervisor, which passes them on; a child that needs one sets its own handler.
"""

_libc = ctypes.CDLL(None, use_errno=True)


def name_process(name: str) -> None:
    """Shows as the command in ps and top (15 characters)."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def occupy_standard_descriptors() -> None:
    """Opens /dev/null in place of descriptors 0, 1 and 2 that the caller has closed (`run >&-`). Otherwise a
    socket or the store would get the number, and the output of a library would be written to it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            os.set_inheritable(fd, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def usable_cpus(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """How many CPUs this process may use at once: those of its affinity, and no more than the CPU quota of
    its control group and of those above allows, rounded up (cgroups(7); cpu.max of version 2,
    cpu.cfs_quota_us of version 1). A container with a limit of 2 on a machine of 64 CPUs has 2.
    """
    quotas = [float(len(os.sched_getaffinity(0)))]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if not controllers:
            base, read = cgroups, _quota_of_version_2
        elif "cpu" in controllers.split(","):
            base, read = cgroups / controllers, _quota_of_version_1
        else:
            continue
        group = Path(place.lstrip("/"))
        for part in (group, *group.parents):
            quota = read(base / part)
            if quota is not None:
                quotas.append(quota)
    return max(1, math.ceil(min(quotas)))


def _quota_of_version_2(group: Path) -> float | None:
    try:
        quota, _, period = (group / "cpu.max").read_text().strip().partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_of_version_1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else quota / int((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


def fork_child(name: str, keep: Iterable[int], run: Callable[[], None], *, nice: int = 0) -> int:
    """Forks; returns the child's pid. The child closes every descriptor except 0, 1, 2 and `keep`, then
    executes only `run`.

    The kernel kills the child when the supervisor dies (PR_SET_PDEATHSIG), with SIGKILL because a hung child
    would ignore other signals: without the supervisor no process could restart, reload or stop it.
    """
    supervisor_pid = os.getpid()
    _flush()
    # A signal that reached the child before it closed the supervisor's wakeup pipe would be reported to the
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
            os._exit(EXIT_CRASH)  # the supervisor died between fork and prctl
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
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
        _flush()
        os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the descriptor was closed when the interpreter started
            with contextlib.suppress(OSError, ValueError):  # a full disk, or a closed pipe
                stream.flush()


def _close_all_but(keep: set[int]) -> None:
    """Closes the numbers, not the supervisor's objects: those stay referenced by the frames below and are
    never collected.
    """
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd not in keep:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is already closed
                os.close(fd)


def exit_text(status: int) -> str:
    """How a process ended, in words: `exit 70` or `SIGKILL`."""
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
