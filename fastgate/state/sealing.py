"""Secrets at rest: AES-256-GCM with a key in the directory of the store, or in the environment.

The key is 32 bytes: `FASTGATE_STORE_KEY` (base64 or hex), else the file `<store>.key`, made with mode 0600
when the first secret is stored. A copy of the database alone tells nothing. The name of a secret is
authenticated with it, so sealed values cannot be swapped. NIST SP 800-38D: 96-bit
random nonces are good for 2**32 values.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from pathlib import Path

__all__ = ["KEY_VARIABLE", "SealError", "Sealer", "masked"]

KEY_VARIABLE = "FASTGATE_STORE_KEY"
KEY_BYTES = 32
NONCE_BYTES = 12
FORMAT = b"\x01"


class SealError(Exception):
    """A secret cannot be sealed or opened; the text says why and never what."""


class Sealer:
    """Seals and opens. The key is read, or made, when it is first needed."""

    def __init__(self, key_file: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._key_file = key_file
        self._environ = environ
        self._key: bytes | None = None

    def seal(self, name: str, secret: str) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(NONCE_BYTES)
        sealed: bytes = AESGCM(self._load(make=True)).encrypt(nonce, secret.encode(), name.encode())
        return FORMAT + nonce + sealed

    def open(self, name: str, sealed: bytes) -> str:
        """The secret. SealError: no key, another key, or a value that was changed."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if sealed[:1] != FORMAT:
            raise SealError(f"the secret {name!r} was sealed by a newer fastgate")
        nonce, rest = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            return AESGCM(self._load(make=False)).decrypt(nonce, rest, name.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise SealError(
                f"the secret {name!r} does not open with the key of {self._source()}: it was sealed with "
                "another key, or changed"
            ) from error

    def _source(self) -> str:
        return f"${KEY_VARIABLE}" if self._environ.get(KEY_VARIABLE) else str(self._key_file)

    def _load(self, *, make: bool) -> bytes:
        if self._key is None:
            text = self._environ.get(KEY_VARIABLE)
            self._key = _key_of(text, f"${KEY_VARIABLE}") if text else self._load_file(make=make)
        return self._key

    def _load_file(self, *, make: bool) -> bytes:
        path = self._key_file
        try:
            if make and not path.exists():
                _create(path)
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise SealError(
                    f"{path}: expected a file that only its owner can read (mode 0600), got {mode:04o}"
                )
            return _key_of(path.read_text("ascii", "replace"), str(path))
        except FileNotFoundError:
            raise SealError(f"{path}: not found; secrets were sealed with this key, restore it") from None
        except OSError as error:
            raise SealError(f"{path}: {error.strerror}") from None


def masked(secret: str) -> str:
    """The end of a secret, for display, if enough of it stays hidden."""
    return f"…{secret[-4:]}" if len(secret) >= 20 else "…"


def _create(path: Path) -> None:
    """Under another name first, so that a full disk or a kill leaves no half key."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(fresh, path)  # fails, rather than replaces, when there is one by now
    except FileExistsError:
        return
    finally:
        fresh.unlink(missing_ok=True)


def _key_of(text: str, source: str) -> bytes:
    text = text.strip()
    try:
        key = (
            bytes.fromhex(text)
            if len(text) == 2 * KEY_BYTES
            else base64.b64decode(text, "-_" if set("-_") & set(text) else None, validate=True)
        )
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise SealError(
            f"{source}: expected {KEY_BYTES} bytes in base64 or hex, such as `openssl rand -base64 32` makes"
        )
    return key
