"""How an API key is made, and what the workers are told of one."""

from __future__ import annotations

import secrets
import time

import msgspec

from fastgate.auth.consumers import tier_and_limits
from fastgate.state.records import ConsumerRecord, KeyRecord, StoredKey, key_digest

__all__ = ["UNDECLARED", "NewKey", "new_key", "record_of"]

PREFIX = "fg_"
KEY_BYTES = 32
KEY_CHARACTERS = 43
"""62**43 > 2**256: every key has this length, and no character that breaks a double click or a URL."""

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
HINT_CHARACTERS = 4
"""Of a key that may be shown for people to recognise it by: 24 of its 256 bits."""


UNDECLARED = ConsumerRecord()


class NewKey(msgspec.Struct, frozen=True):
    """A key that was just made, and the only time that the key itself is told."""

    secret: str
    stored: StoredKey


def record_of(key: StoredKey, consumer: ConsumerRecord) -> KeyRecord | None:
    """The published record of a key; None if its consumer is disabled."""
    if consumer.disabled:
        return None
    tier, limits = tier_and_limits(key, consumer)
    return KeyRecord(
        key_id=key.key_id,
        consumer=key.consumer,
        tier=tier,
        scopes=key.scopes or consumer.scopes,
        roles=tuple(dict.fromkeys((*consumer.roles, *key.roles))),
        metadata={**consumer.metadata, **key.metadata},
        limits=limits,
        expires_ns=key.expires_ns,
        not_before_ns=key.not_before_ns,
        replaced_by=key.replaced_by,
    )


def new_key(properties: StoredKey) -> NewKey:
    secret = PREFIX + _base62(secrets.token_bytes(KEY_BYTES), KEY_CHARACTERS)
    return NewKey(
        secret,
        msgspec.structs.replace(
            properties,
            key_id="key_" + _base62(secrets.token_bytes(9), 13)[1:],
            digest=key_digest(secret.encode()),
            hint=secret[: len(PREFIX) + HINT_CHARACTERS],
            created_ns=time.time_ns(),
            revoked_ns=0,
            replaced_by="",
        ),
    )


def _base62(data: bytes, characters: int) -> str:
    number = int.from_bytes(data, "big")
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
