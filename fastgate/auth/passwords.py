"""Password hashes: creation, parsing, verification.

Two forms, both slow and memory-hard: `scrypt$N$r$p$salt$hash` (RFC 7914, base64) and `$argon2id$…` in PHC
string format. Parameters are bounded, so that a line of the config cannot use up the memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Callable
from typing import Final

__all__ = ["hash_password", "password_checker"]

# From OWASP's Password Storage Cheat Sheet: 32 MB, and about 200 ms of one CPU.
N: Final = 1 << 15
R: Final = 8
P: Final = 3
MOST_BYTES: Final = 256 << 20
MOST_WORK: Final = 1 << 24
ARGON2: Final = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,7}),t=([0-9]{1,3}),p=([0-9]{1,2})\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,172}"
)
FORMS: Final = "scrypt$N$r$p$salt$hash or $argon2id$v=19$m=…,t=…,p=…$salt$hash"


def hash_password(password: str) -> str:
    """A new scrypt hash of this password."""
    salt = os.urandom(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=N, r=R, p=P, maxmem=2 * 128 * N * R, dklen=32)
    return f"scrypt${N}${R}${P}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def password_checker(text: str) -> tuple[str, Callable[[bytes], bool]]:
    """(the cost parameters, a function that verifies a password). ValueError has the expected format.

    The function blocks for the time of the hash, and releases the GIL.
    """
    if text.startswith("$argon2id$"):
        return _argon2(text)
    parts = text.split("$")
    if len(parts) != 6 or parts[0] != "scrypt":
        raise ValueError(FORMS)
    try:
        n, r, p = (int(part) for part in parts[1:4])
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[4:])
    except (ValueError, binascii.Error):
        raise ValueError(FORMS) from None
    if n < 1024 or n & (n - 1) or not 1 <= r <= 64 or not 1 <= p <= 64:
        raise ValueError("scrypt with N a power of two from 1024, r and p from 1 to 64")
    if 128 * n * r > MOST_BYTES or n * r * p > MOST_WORK:
        raise ValueError("scrypt that takes at most 256 MB and a few seconds")
    if len(salt) < 8 or not 16 <= len(digest) <= 128:
        raise ValueError("a salt of at least 8 bytes and a hash of 16 to 128")

    def check(password: bytes) -> bool:
        made = hashlib.scrypt(
            password, salt=salt, n=n, r=r, p=p, maxmem=2 * 128 * n * r + (p * 128 * r), dklen=len(digest)
        )
        return hmac.compare_digest(made, digest)

    return f"scrypt {n} {r} {p}", check


def _argon2(text: str) -> tuple[str, Callable[[bytes], bool]]:
    match = ARGON2.fullmatch(text)
    if match is None:
        raise ValueError(FORMS)
    memory_kib, passes, lanes = (int(part) for part in match.groups())
    if memory_kib * 1024 > MOST_BYTES or memory_kib * passes > 1 << 22 or not passes or not lanes:
        raise ValueError("argon2id that takes at most 256 MB and a few seconds")

    from cryptography.exceptions import InvalidKey
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    def check(password: bytes) -> bool:
        try:
            Argon2id.verify_phc_encoded(password, text)
        except InvalidKey:
            return False
        return True

    return f"argon2id {memory_kib} {passes} {lanes}", check
