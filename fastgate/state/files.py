"""Whether a file may have changed since it was last looked at."""

from __future__ import annotations

import os

__all__ = ["Stamp", "stamp_of"]

Stamp = tuple[int, int, int, int, int]


def stamp_of(path: str | os.PathLike[str]) -> Stamp | None:
    """What changes with the content of a file, without reading it; None when there is no such file.

    The time of the last change of the inode is part of it: size and modification time can be the same after a
    write (`rsync --times`, `touch --reference`, `cp --preserve`), and only the kernel sets this one.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
