"""Whether a file may have changed since it was last looked at.

Most looks cost one stat: size, times and inode number are as they were. That proves nothing while the last
change is recent, because the kernel stamps files with the time of its last tick, and a second write of the
same size within that tick leaves no trace (git calls such an entry racy). A file whose last change is not
RACY_NS old is therefore read, and the digest of its content is part of the stamp.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Stamp", "stamp_of"]

# The ticks of Linux are 1 to 10 ms; FAT and some network file systems store times in steps of 2 s.
RACY_NS: Final = 2_500_000_000

_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """A value that changes with the content of a file."""

    inode: tuple[int, ...]
    digest: bytes
    #: False: the file may change once more without a trace in `inode`.
    is_settled: bool = field(compare=False)


def stamp_of(path: str | os.PathLike[str], known: Stamp | None = None) -> Stamp | None:
    """The stamp of a file; None when there is no such file. `known`, its last stamp, spares the reading.

    The time of the last change of the inode is part of it: size and modification time can be the same after a
    write (`rsync --times`, `touch --reference`, `cp --preserve`), and only the kernel sets this one.
    """
    now_ns = time.time_ns()
    try:
        found = os.stat(path)
    except OSError:
        return None
    inode = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    if known is not None and known.is_settled and known.inode == inode:
        return known
    is_settled = max(found.st_mtime_ns, found.st_ctime_ns) + RACY_NS < now_ns
    return Stamp(inode, _digest(path) if stat.S_ISREG(found.st_mode) else b"", is_settled)


def _digest(path: str | os.PathLike[str]) -> bytes:
    """The digest of the content; empty when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return b""
    return digest.digest()
