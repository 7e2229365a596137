"""The envelope: the format of a cached response in a store that may lose, tear or mix up bytes.

It names its key, so that a store that finds it under a hash of the key can tell whose it is; carries the tags
and the number of the last purge before it was made; and has a checksum over all of it, which is checked
before anything in it is believed. Values above a size are compressed with zstd where that saves a tenth.

LAYOUT  little endian: check 8 | magic 4 | version 1 | flags 1 | key length 2 | tags length 4 | raw length 4
| stored length 4 | expires, CLOCK_REALTIME ns 8 | sequence 8 | key | tags (each length 2, text) | value.
The check is SipHash-1-3 of what follows it (13 GB/s, against 1 GB/s of zlib's CRC-32), under a fixed
key: it finds damage, it does not keep out who can write to the store.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from fastgate._core.cache.envelope import open_fields, seal_fields

__all__ = ["HEAD_BYTES", "LARGEST_BYTES", "Damaged", "Envelope", "open_envelope", "seal"]

_HEAD: Final = struct.Struct("<QIBBHIIIqq")
HEAD_BYTES: Final = _HEAD.size
_MAGIC: Final = 0x65_67_61_66  # "fage"
_VERSION: Final = 1
_ZSTD: Final = 1
LARGEST_BYTES: Final = 64 << 20
"""A value, before it is compressed: what a decompression may make at most."""
_LEVEL: Final = 1  # zstd's fastest: 0.5 GB/s, and within a tenth of level 3 on JSON and HTML


class Damaged(ValueError):
    """These bytes are not what was stored."""


class Envelope(NamedTuple):
    """The sealed contents, still compressed if they were."""

    expires_ns: int
    sequence: int
    tags: tuple[bytes, ...]
    raw_bytes: int
    stored: bytes
    is_compressed: bool

    def value(self) -> bytes:
        """The value. Damaged when it does not decompress to the length it had."""
        if not self.is_compressed:
            return self.stored
        zstd = _zstd()
        decompressor = zstd.ZstdDecompressor()
        try:
            value = decompressor.decompress(self.stored, max_length=self.raw_bytes + 1)
        except zstd.ZstdError as error:
            raise Damaged(f"zstd: {error}") from error
        if len(value) != self.raw_bytes or not decompressor.eof:
            raise Damaged(f"decompresses to {len(value)} bytes, expected {self.raw_bytes}")
        return bytes(value)


def seal(
    key: bytes,
    value: bytes,
    tags: Iterable[bytes],
    expires_ns: int,
    sequence: int,
    compress_above: int,
) -> bytes:
    """The envelope's bytes. ValueError when key, tags or value are longer than it can say."""
    if len(value) > LARGEST_BYTES or len(key) > 0xFFFF:
        raise ValueError(f"expected a key of 65535 and a value of {LARGEST_BYTES} bytes at most")
    stored, flags = value, 0
    if len(value) > compress_above:
        zstd = _zstd()
        pressed = bytes(zstd.compress(value, level=_LEVEL))
        if len(pressed) < len(value) - len(value) // 10:
            stored, flags = pressed, _ZSTD
    labels = b"".join(len(tag).to_bytes(2, "little") + tag for tag in tags)
    head = _HEAD.pack(
        0, _MAGIC, _VERSION, flags, len(key), len(labels), len(value), len(stored), expires_ns, sequence
    )
    return seal_fields(head, key, labels, stored)


def open_envelope(data: bytes | memoryview, key: bytes | None, skip: int = 0) -> Envelope | None:
    """The contents after `skip` bytes; None if they belong to another key. Damaged if they differ from what
    was sealed.
    """
    found = open_fields(data, skip, key)
    if isinstance(found, str):
        raise Damaged(found)
    return None if found is None else Envelope._make(found)


def _zstd() -> Any:
    """The module: in the standard library from Python 3.14 on (PEP 784)."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
