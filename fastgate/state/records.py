"""Stored and published records of keys and consumers, and their digests in the directory.

Stored* are the contents of the store. The *Record structs are published by the controller from the store and
the config, for every worker to read. A key's record is complete: it includes the tier, scopes, roles and
limits of its consumer, so that a request needs one lookup. A change of a consumer rewrites the records of its
keys.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

__all__ = [
    "CONSUMERS",
    "KEY_STATES",
    "ConsumerRecord",
    "KeyRecord",
    "KeyState",
    "StoredConsumer",
    "StoredKey",
    "consumer_digest",
    "decode_consumer",
    "decode_key",
    "document_digest",
    "encode_record",
    "key_digest",
    "secret_digest",
]


KeyState = Literal["active", "rotating", "pending", "expired", "revoked"]
KEY_STATES: tuple[KeyState, ...] = ("active", "rotating", "pending", "expired", "revoked")


class KeyRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An API key that is good between `not_before_ns` and `expires_ns` (realtime; 0 = no bound)."""

    key_id: str
    consumer: str
    tier: str = ""
    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    limits: dict[str, Any] | None = None
    expires_ns: int = 0
    not_before_ns: int = 0
    replaced_by: str = ""


class ConsumerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A consumer, from the config file and from what was changed at run time together."""

    tier: str = ""
    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    limits: dict[str, Any] | None = None
    disabled: bool = False


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as it was made. Times are realtime ns, 0 = never."""

    key_id: str
    digest: bytes
    hint: str
    name: str = ""
    consumer: str
    tier: str = ""
    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    limits: dict[str, Any] | None = None
    created_ns: int
    not_before_ns: int = 0
    expires_ns: int = 0
    revoked_ns: int = 0
    replaces: str = ""
    replaced_by: str = ""
    used: int = 0
    last_used_ns: int = 0

    def state(self, now_ns: int) -> KeyState:
        if self.revoked_ns:
            return "revoked"
        if self.expires_ns and self.expires_ns <= now_ns:
            return "expired"
        if self.not_before_ns > now_ns:
            return "pending"
        return "rotating" if self.replaced_by else "active"

    def is_good(self, now_ns: int) -> bool:
        """False for a key that no request may use again."""
        return not self.revoked_ns and not (self.expires_ns and self.expires_ns <= now_ns)


class StoredConsumer(msgspec.Struct, frozen=True, kw_only=True):
    """The run-time values of a consumer. None: no value, the config file applies."""

    name: str
    tier: str | None = None
    scopes: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None
    metadata: dict[str, Any] | None = None
    limits: dict[str, Any] | None = None
    disabled: bool | None = None
    created_ns: int = 0
    updated_ns: int = 0


encode_record = msgspec.msgpack.Encoder().encode
decode_key = msgspec.msgpack.Decoder(KeyRecord).decode
decode_consumer = msgspec.msgpack.Decoder(ConsumerRecord).decode


def key_digest(key: bytes) -> bytes:
    """Where the record of an API key lies; all that is ever kept of the key."""
    return hashlib.sha256(key).digest()


def consumer_digest(name: str) -> bytes:
    return hashlib.sha256(b"consumer:" + name.encode()).digest()


CONSUMERS = hashlib.sha256(b"consumers").digest()
"""All consumers together: no entry, but watched by identities whose consumer was not published when they were
made. The controller announces it when a consumer is published or removed.
"""


def document_digest(name: str) -> bytes:
    """Of a named document, such as policies made at run time."""
    return hashlib.sha256(b"document:" + name.encode()).digest()


def secret_digest(name: str) -> bytes:
    """Of a secret of the store; its record is the secret itself, in memory that only this gateway's processes
    have.
    """
    return hashlib.sha256(b"secret:" + name.encode()).digest()
