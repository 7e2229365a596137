"""The file of the disk tier: which one is in use, opening it, its verification and its replacement.

`<path>/answers-<n>.mdb`, n counts replacements; `<path>/instance` holds which gateway uses the directory (a
lock) and how it was left. The file is never flushed synchronously (MDB_NOSYNC), so its contents are dropped
after an unclean stop of the machine. A damaged file (an error of LMDB, a failed checksum) is abandoned, and
all workers switch to a new one. A file that may have crashed a worker is verified by a separate process
before it is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from fastgate._core.shm.epochs import Epochs
from fastgate.caching.disk_events import DiskEvents
from fastgate.caching.disk_rows import LAYOUT, Opened

__all__ = ["DISK_ROLE", "DiskFile", "OpenElsewhere", "verify"]

log = logging.getLogger(__name__)

_open_here: set[str] = set()
"""Files open in this process: LMDB's locks allow each once. After a reload the next store waits for the
previous one.
"""

DISK_ROLE: Final = 0
"""The role (_core/epochs) of the worker that cleans the file. Note 0: the number of the file in use."""
_GENERATION: Final = 0

_MAP_RATIO: Final = 1.05  # of the budget: LMDB reuses a page two transactions later
_VERIFY_S: Final = 120.0
_MAX_READERS: Final = 2046
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


class OpenElsewhere(Exception):
    """This process has the file open already, in another store."""


class DiskFile:
    """The files in one directory, as one worker sees them. Only the store's thread uses it.

    lmdb: the module. is_stopping: True ends the wait for another process that opens the directory.
    """

    def __init__(
        self,
        lmdb: Any,
        path: Path,
        size_bytes: int,
        epochs: Epochs,
        events: DiskEvents,
        is_stopping: Callable[[], bool],
        *,
        verify_in_process: bool = False,
    ) -> None:
        self._lmdb = lmdb
        self.path = path
        self.size_bytes = size_bytes
        self._epochs = epochs
        self._events = events
        self._is_stopping = is_stopping
        self._verify_in_process = verify_in_process
        self._instance = -1

    @property
    def generation(self) -> int:
        """The number of the file that all workers should use."""
        return self._epochs.note(DISK_ROLE, _GENERATION)

    def open(self) -> Opened | None:
        """The opened file; None if it is unavailable for now. Raises OpenElsewhere, OSError."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        first = self._enter()
        if first is None:
            self._events.trouble("shared", "the disk cache is in use by another gateway", str(self.path))
            return None
        try:
            return self._open_as(first)
        finally:
            if first:
                fcntl.flock(self._instance, fcntl.LOCK_SH)

    def _open_as(self, first: bool) -> Opened | None:
        epochs = self._epochs
        generation = epochs.note(DISK_ROLE, _GENERATION)
        if first or generation == 0:
            numbers = sorted(self._files())
            generation = max(generation, numbers[-1] if numbers else 1)
            epochs.set_note(DISK_ROLE, _GENERATION, generation)
            if first and self._was_torn():
                generation += 1
                epochs.set_note(DISK_ROLE, _GENERATION, generation)
            for number in numbers:
                if number < generation:
                    self._unlink(number)
            if first:
                self._write_state(clean=False)
        file = self._file(generation)
        check = first and file.exists()
        for _ in range(2):
            if check and not self._is_sound(file):
                self.damage(generation, "found while it was checked")
                generation = epochs.note(DISK_ROLE, _GENERATION)
                file = self._file(generation)
                check = False
            opened, dead = self._try_open(file, generation)
            if opened is None:
                generation = epochs.note(DISK_ROLE, _GENERATION)
                file = self._file(generation)
                check = False
                continue
            if dead and not check:
                # A worker died with this file open, possibly because of it.
                check = True
                self.shut(opened)
                continue
            self._events.over("io")
            return opened
        return None

    def _try_open(self, file: Path, generation: int) -> tuple[Opened | None, int]:
        lmdb = self._lmdb
        env = None
        if str(file) in _open_here:
            raise OpenElsewhere
        try:
            map_bytes = int(self.size_bytes * _MAP_RATIO) // 4096 * 4096
            if file.exists() and file.stat().st_size > map_bytes:
                self._give_up(
                    generation,
                    f"disk.size is smaller than the {file.stat().st_size} bytes of the file: "
                    "the disk cache starts with an empty one",
                )
                return None, 0
            env = lmdb.open(
                str(file),
                subdir=False,
                map_size=map_bytes,
                max_dbs=4,
                mode=0o600,
                sync=False,
                metasync=False,
                readahead=False,
                max_readers=_MAX_READERS,
                max_spare_txns=2,
            )
            dead = env.reader_check()
            meta = env.open_db(b"meta")
            answers, order, tags = (env.open_db(name) for name in (b"answers", b"order", b"tags"))
            with env.begin(write=True) as txn:
                secret = txn.get(b"secret", db=meta)
                if secret is None:
                    secret = os.urandom(16)
                    txn.put(b"secret", secret, db=meta)
                    txn.put(b"layout", LAYOUT, db=meta)
                layout = txn.get(b"layout", db=meta)
            if layout != LAYOUT:
                env.close()
                self._give_up(
                    generation,
                    "the file was written by another version of fastgate: the disk cache starts empty",
                )
                return None, 0
            if len(secret) != 16:
                raise lmdb.CorruptedError("secret")
            _open_here.add(str(file))
            return Opened(env, answers, order, tags, bytes(secret), generation), dead
        except (lmdb.DiskError, lmdb.ReadersFullError, lmdb.LockError, lmdb.MemoryError) as error:
            if env is not None:
                env.close()
            raise OSError(str(error)) from error
        except lmdb.Error as error:
            if env is not None:
                env.close()
            if "No space" in str(error) or "Permission" in str(error) or "Read-only" in str(error):
                raise OSError(str(error)) from error
            self.damage(generation, str(error))
            return None, 0

    def _enter(self) -> bool | None:
        """Joins the users of the directory. True: this is the first; None: another gateway uses it."""
        if self._instance >= 0:
            return False
        fd = os.open(self.path / "instance", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._instance = fd
            return True
        except BlockingIOError:
            pass
        # Another process opens it (briefly exclusive) or uses it. The first one writes its identity.
        for _ in range(int(_VERIFY_S / 0.05)):
            if self._is_stopping():
                break
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        if self._state(fd).get("run") != self._epochs.start:
            os.close(fd)
            return None
        self._instance = fd
        return False

    def _state(self, fd: int) -> dict[str, Any]:
        try:
            state = json.loads(os.pread(fd, 4096, 0) or b"{}")
        except ValueError:
            return {}
        return state if isinstance(state, dict) else {}

    def _write_state(self, *, clean: bool) -> None:
        text = json.dumps({"run": self._epochs.start, "boot": _boot_id(), "clean": clean}).encode()
        os.pwrite(self._instance, text.ljust(256), 0)
        os.ftruncate(self._instance, 256)

    def _was_torn(self) -> bool:
        """True if the machine stopped while the file was open: its contents are then undefined."""
        state = self._state(self._instance)
        return bool(state) and not state.get("clean") and state.get("boot") != _boot_id()

    def _file(self, generation: int) -> Path:
        return self.path / f"answers-{generation}.mdb"

    def _files(self) -> Iterator[int]:
        for file in self.path.glob("answers-*.mdb"):
            with contextlib.suppress(ValueError):
                yield int(file.stem.removeprefix("answers-"))

    def _unlink(self, number: int) -> None:
        for name in (f"answers-{number}.mdb", f"answers-{number}.mdb-lock"):
            (self.path / name).unlink(missing_ok=True)

    def _is_sound(self, file: Path) -> bool:
        """True if the file can be read to its end: in a separate process, since damage may crash it."""
        if self._verify_in_process:
            return verify(str(file))
        command = [sys.executable, "-m", "fastgate.caching.disk_file", str(file)]
        here = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": paths}
        try:
            done = subprocess.run(command, capture_output=True, timeout=_VERIFY_S, check=False, env=env)
        except (OSError, subprocess.TimeoutExpired) as error:
            self._events.trouble("verify", "the disk cache could not be checked", str(error))
            return False
        return done.returncode == 0

    def damage(self, generation: int, detail: str) -> None:
        """Abandons a damaged file."""
        self._give_up(generation, f"the disk cache is damaged and starts with an empty file: {detail}")

    def _give_up(self, generation: int, why: str) -> None:
        """Abandons the file of that number, for all workers; the first worker counts and logs it."""
        if self._epochs.change_note(DISK_ROLE, _GENERATION, generation, generation + 1):
            self._events.count("rebuilt")
            log.warning("%s", why)
        self._unlink(generation)

    @staticmethod
    def shut(opened: Opened) -> None:
        """Closes a file that `open` returned."""
        _open_here.discard(opened.env.path())
        opened.env.close()

    def leave(self) -> None:
        """Gives up the role and the directory; the last process notes that the contents are complete."""
        self._epochs.leave(DISK_ROLE)
        if self._instance < 0:
            return
        with contextlib.suppress(OSError):
            fcntl.flock(self._instance, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # No other process has it open, so the contents are complete.
            for number in self._files():
                fd = os.open(self._file(number), os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
            self._write_state(clean=True)
        os.close(self._instance)
        self._instance = -1


def _boot_id() -> str:
    try:
        return Path(_BOOT_ID).read_text().strip()
    except OSError:
        return ""


def verify(file: str) -> bool:
    """True if every row of every database of the file can be reached and has the right shape, or if the file
    has another layout: it is replaced when it is opened."""
    import lmdb

    try:
        env = lmdb.open(file, subdir=False, readonly=True, max_dbs=4, max_readers=_MAX_READERS)
    except lmdb.Error:
        return False
    try:
        with env.begin() as txn:
            if txn.get(b"layout", db=env.open_db(b"meta", txn, create=False)) != LAYOUT:
                return True
        databases = [env.open_db(name, create=False) for name in (b"answers", b"order", b"tags")]
        shapes = ((16, 18), (8,), (24,))
        with env.begin() as txn:
            for db, lengths in zip(databases, shapes, strict=True):
                left = int(txn.stat(db)["entries"])
                last = b""
                with txn.cursor(db) as cursor:
                    for key in cursor.iternext(keys=True, values=False):
                        left -= 1
                        if len(key) not in lengths or key <= last or left < 0:
                            return False
                        last = key
                if left:
                    return False
    except lmdb.Error:
        return False
    finally:
        env.close()
    return True


if __name__ == "__main__":
    raise SystemExit(0 if verify(sys.argv[1]) else 1)
