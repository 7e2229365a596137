"""Shared secrets as written in the config: plain text, `base64:…` or `hex:…`."""

from __future__ import annotations

import base64
import binascii
from typing import Final

__all__ = ["LEAST_SECRET_BYTES", "secret_bytes"]

# Shorter secrets can be guessed offline from one signed request. 16 bytes as required for GitHub's webhooks;
# 32 match the strength of SHA-256 (RFC 2104 §3).
LEAST_SECRET_BYTES: Final = 16


def secret_bytes(text: str) -> bytes:
    """The bytes of the secret. Raises ValueError with the text that was expected."""
    kind, colon, rest = text.partition(":")
    try:
        if colon and kind == "base64":
            raw = base64.b64decode(rest, validate=True)
        elif colon and kind == "hex":
            raw = bytes.fromhex(rest)
        else:
            raw = text.encode()
    except (binascii.Error, ValueError):
        raise ValueError(f"{kind} behind {kind}:") from None
    if len(raw) < LEAST_SECRET_BYTES:
        raise ValueError(f"at least {LEAST_SECRET_BYTES} bytes")
    return raw
