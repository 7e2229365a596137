"""Memory, CPU time and descriptors of a process, from /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

__all__ = ["ProcessFigures", "figures_of"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessFigures(msgspec.Struct, frozen=True):
    """One look at a process."""

    resident_bytes: int
    private_bytes: int
    cpu_s: float
    descriptors: int
    threads: int


def figures_of(pid: int) -> ProcessFigures | None:
    """The figures of this process now; None when it has ended."""
    place = Path("/proc") / str(pid)
    try:
        # The name in parentheses may hold anything; what follows it is split by spaces, beginning with field
        # 3.
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        private_kb = sum(
            int(line.split()[1])
            for line in (place / "smaps_rollup").read_text().splitlines()
            if line.startswith("Private_")
        )
        descriptors = len(os.listdir(place / "fd"))
    except (OSError, IndexError):
        return None
    return ProcessFigures(
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        private_bytes=private_kb * 1024,
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        descriptors=descriptors,
        threads=int(fields[17]),
    )
