"""Changes that are in effect but not stored yet, because the store could not be written.

A removal (a revoked key, a removed secret, a disabled consumer) is in effect on every worker before it is
stored. If storing fails, the write is kept here until it succeeds. It must survive the process, and on a full
disk no file can grow, so `<store>.pending` is preallocated when the store is opened, and written in place.

LAYOUT  records, one after another: length 4 bytes, CRC-32 of the payload 4 bytes, payload (a `Write` as
        msgpack). A length of 0, or a record that does not match its CRC (a write that was torn), is the end.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from fastgate.state.records import StoredConsumer

__all__ = [
    "Backlog",
    "Change",
    "ForgetKey",
    "PutConsumer",
    "RemoveDocument",
    "RemoveSecret",
    "RevokeKey",
    "Write",
]

FILE_BYTES = 256 * 1024
"""Room for some 3 000 revocations."""

_HEAD = struct.Struct("<II")
_END = bytes(_HEAD.size)


class RevokeKey(msgspec.Struct, tag=True, frozen=True):
    key_id: str
    revoked_ns: int


class ForgetKey(msgspec.Struct, tag=True, frozen=True):
    """A key that was stored and could not be published, so that its maker was told that there is none."""

    key_id: str


class PutConsumer(msgspec.Struct, tag=True, frozen=True):
    consumer: StoredConsumer


class RemoveSecret(msgspec.Struct, tag=True, frozen=True):
    name: str


class RemoveDocument(msgspec.Struct, tag=True, frozen=True):
    name: str


Write = RevokeKey | ForgetKey | PutConsumer | RemoveSecret | RemoveDocument


class Change(msgspec.Struct, frozen=True):
    """A write that waits, as it is shown."""

    change: str
    name: str
    survives_restart: bool
    """False: there was no room for it in the file either."""


_WORDS: Final[dict[type[Write], Callable[[Any], tuple[str, str]]]] = {
    RevokeKey: lambda write: ("revoke key", write.key_id),
    ForgetKey: lambda write: ("forget key", write.key_id),
    PutConsumer: lambda write: ("disable consumer", write.consumer.name),
    RemoveSecret: lambda write: ("remove secret", write.name),
    RemoveDocument: lambda write: ("remove document", write.name),
}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Write).decode


class Backlog:
    """The writes that wait, in order. In memory they are always; in the file when there is room."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._end = 0  # where the next record goes
        self._writes: list[Write] = []
        self._in_memory: set[int] = set()  # indexes of those that are not in the file

    def open(self) -> None:
        """Allocates the file and reads what an earlier process has left in it. OSError."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < FILE_BYTES:
            os.posix_fallocate(self._fd, 0, FILE_BYTES)
            os.fsync(self._fd)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # the name of the file must outlive a power failure, too
            finally:
                os.close(folder)
        content = os.pread(self._fd, FILE_BYTES, 0)
        while True:
            head = content[self._end : self._end + _HEAD.size]
            if len(head) < _HEAD.size:
                break
            length, checksum = _HEAD.unpack(head)
            payload = content[self._end + _HEAD.size : self._end + _HEAD.size + length]
            if length == 0 or len(payload) < length or zlib.crc32(payload) != checksum:
                break
            try:
                self._writes.append(_decode(payload))
            except msgspec.DecodeError:  # of a newer version
                break
            self._end += _HEAD.size + length

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def add(self, write: Write) -> bool:
        """Keeps the write; False if only in memory, so that it ends with this process."""
        is_kept = self._keep(write)
        if not is_kept:
            self._in_memory.add(len(self._writes))
        self._writes.append(write)
        return is_kept

    def _keep(self, write: Write) -> bool:
        payload = _encode(write)
        record = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        if self._fd < 0 or self._end + len(record) + len(_END) > FILE_BYTES:
            return False
        try:
            # The new end first: until the record itself is there, its place says that nothing follows.
            os.pwrite(self._fd, _END, self._end + len(record))
            if os.pwrite(self._fd, record, self._end) != len(record):
                return False
            os.fdatasync(self._fd)
        except OSError:
            return False
        self._end += len(record)
        return True

    def clear(self) -> None:
        """Forgets all, because all of it is in the store. OSError leaves the file: making the writes again
        changes nothing.
        """
        self._writes.clear()
        self._in_memory.clear()
        self._end = 0
        if self._fd >= 0:
            os.pwrite(self._fd, _END, 0)
            os.fdatasync(self._fd)

    def changes(self) -> list[Change]:
        """Descriptions of the pending writes."""
        return [
            Change(*_WORDS[type(write)](write), survives_restart=index not in self._in_memory)
            for index, write in enumerate(self._writes)
        ]

    def __len__(self) -> int:
        return len(self._writes)

    def __iter__(self) -> Iterator[Write]:
        return iter(self._writes)
