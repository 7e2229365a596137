"""SipHash against a plain Python one and the published vectors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import siphash64, siphash128

MASK = (1 << 64) - 1
KEY = bytes(range(16))


def rotate(x: int, bits: int) -> int:
    return ((x << bits) | (x >> (64 - bits))) & MASK


def oracle(data: bytes, key: bytes, compress: int, finish: int, wide: bool) -> bytes:
    """The algorithm of the paper, word by word."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    if wide:
        v[1] ^= 0xEE

    def mix(rounds: int) -> None:
        for _ in range(rounds):
            v[0] = (v[0] + v[1]) & MASK
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[3]) & MASK
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & MASK
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & MASK
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 255])
    for i in range(0, len(padded), 8):
        word = int.from_bytes(padded[i : i + 8], "little")
        v[3] ^= word
        mix(compress)
        v[0] ^= word
    v[2] ^= 0xEE if wide else 0xFF
    mix(finish)
    out = (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
    if wide:
        v[1] ^= 0xDD
        mix(finish)
        out += (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
    return out


@given(data=st.binary(max_size=300), key=st.binary(min_size=16, max_size=16))
def test_every_length_and_key_hashes_as_the_paper_says(data: bytes, key: bytes) -> None:
    for rounds in ((2, 4), (1, 3)):
        assert siphash64(data, key, rounds).to_bytes(8, "little") == oracle(data, key, *rounds, wide=False)
        assert siphash128(data, key, rounds) == oracle(data, key, *rounds, wide=True)


def test_published_vectors() -> None:
    # Appendix A of the paper, and vectors.h of github.com/veorq/SipHash.
    assert siphash64(bytes(range(15)), KEY) == 0xA129CA6149BE45E5
    assert siphash64(b"", KEY).to_bytes(8, "little").hex() == "310e0edd47db6f72"
    assert siphash128(b"", KEY).hex() == "a3817f04ba25a8e66df67214c7550293"


def test_any_buffer_is_hashed_at_any_alignment() -> None:
    data = bytes(range(64))

    for start in range(8):
        assert siphash64(memoryview(data)[start:], KEY) == siphash64(data[start:], KEY)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((b"x", b"short"), ValueError, "key: expected 16 bytes, got 5"),
        ((b"x", "k" * 16), TypeError, "key"),
        ((b"x", KEY, (3, 3)), ValueError, "rounds"),
        (("text", KEY), TypeError, "bytes-like"),
    ],
)
def test_bad_input_is_named(arguments: tuple[Any, ...], error: type[Exception], name: str) -> None:
    for function in (siphash64, siphash128):
        with pytest.raises(error, match=name):
            function(*arguments)
