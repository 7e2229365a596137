"""The rows of the disk tier's LMDB file, as bytes.

LAYOUT  Databases in the file:
    `answers`  SipHash of the key 16 -> place 8, length 4, envelope (state/envelope.py); a value above a page
               is split, under the hash and the piece number 2, because free pages are rarely contiguous: with
               pieces of four pages, a full file had to evict up to 7 % more than it needed to find such runs
    `order`    place 8, ascending -> hash 16, expires 8, sequence 8, bytes 4, key   eviction, sweeping, scans
    `tags`     hash of the tag 16, place 8 -> hash 16
    `meta`     "secret" -> 16 bytes for the hashes; "layout" -> LAYOUT
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from fastgate._core.hashing import siphash128
from fastgate.state.envelope import HEAD_BYTES, LARGEST_BYTES, Damaged, open_envelope

__all__ = [
    "BEFORE",
    "LAYOUT",
    "LENGTH",
    "ORDER",
    "PIECE",
    "PIECE_NUMBER",
    "PLACE",
    "Opened",
    "footprint",
    "has_tags",
    "joined",
    "pieces",
    "remove_row",
    "sequence_of",
    "tag_digest",
]

LAYOUT: Final = b"2"  # of this file; one with another layout is replaced
ORDER: Final = struct.Struct("<16sqqI")
PLACE: Final = struct.Struct(">Q")
PIECE: Final = 4096 - 32  # of a value: one page of LMDB, minus its header of 16 and that of the row
PIECE_NUMBER: Final = struct.Struct(">H")
LENGTH: Final = struct.Struct("<I")
BEFORE: Final = 12  # the place and the length, before the envelope
_TAG_KEY: Final = b"fastgate's tags\0"
_SEQUENCE: Final = struct.Struct("<q")
_TAGS_LENGTH: Final = struct.Struct("<I")


class Opened(NamedTuple):
    """One opened file."""

    env: Any
    answers: Any
    order: Any
    tags: Any
    secret: bytes
    generation: int


def tag_digest(tag: bytes) -> bytes:
    return siphash128(tag, _TAG_KEY)


def footprint(data_bytes: int, key_bytes: int, tags: int) -> int:
    """The approximate number of pages of a response: large values have separate pages, small ones share."""
    value = data_bytes + BEFORE
    rows = int((key_bytes + 60) * 1.2) + tags * 70
    if value + 24 > 2000:
        return (value + 16 + 4095) // 4096 * 4096 + 100 * pieces(data_bytes) + rows
    return int((value + 24) * 1.5) + rows


def pieces(length: int) -> int:
    return (length + PIECE - 1) // PIECE


def joined(txn: Any, answers: Any, digest: bytes, first: Any, length: int) -> bytes:
    """The envelope, joined from its pieces; shorter if one is missing, which its checksum detects."""
    if length > LARGEST_BYTES * 2:
        raise Damaged(f"a length of {length}")
    parts = [first[BEFORE:]]
    for piece in range(1, pieces(length)):
        parts.append(txn.get(digest + PIECE_NUMBER.pack(piece), b"", answers))
    return b"".join(parts)


def sequence_of(data: bytes) -> int:
    """The sequence in a stored envelope; one that is too short counts as the oldest."""
    if len(data) < BEFORE + HEAD_BYTES:
        return 0
    sequence: int = _SEQUENCE.unpack_from(data, BEFORE + HEAD_BYTES - 8)[0]
    return sequence


def has_tags(data: bytes) -> bool:
    return len(data) >= BEFORE + HEAD_BYTES and _TAGS_LENGTH.unpack_from(data, BEFORE + 16)[0] > 0


def _tags_of(envelope: bytes) -> tuple[bytes, ...]:
    """The tags in an envelope; none for a damaged one."""
    try:
        opened = open_envelope(envelope, None)
    except Damaged:
        return ()
    return opened.tags if opened is not None else ()


def remove_row(opened: Opened, txn: Any, digest: bytes, place: bytes | None) -> bool:
    """Removes the response with all its rows, if it is still the one at that place."""
    data = txn.get(digest, db=opened.answers)
    if data is None or (place is not None and data[:8] != place):
        if place is not None:
            txn.delete(place, db=opened.order)
        return False
    at = data[:8]
    length = LENGTH.unpack_from(data, 8)[0]
    if has_tags(data):
        for tag in _tags_of(joined(txn, opened.answers, digest, data, length)):
            txn.delete(tag_digest(tag) + at, db=opened.tags)
    for piece in range(1, pieces(length)):
        txn.delete(digest + PIECE_NUMBER.pack(piece), db=opened.answers)
    txn.delete(at, db=opened.order)
    txn.delete(digest, db=opened.answers)
    return True
