"""Consumers: the owners of keys, tokens and certificates, and their properties.

A consumer is in the config file, in the store (run-time changes), or in both; run-time values take
precedence, field by field. The controller publishes the result in the directory, where a change is in effect
on every worker at once. Without a controller (no admin listener) only the config file is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastgate._core.pipeline.identity import Identity
from fastgate._core.shm.directory import Directory
from fastgate.auth.section import ConsumerConfig
from fastgate.state.records import (
    CONSUMERS,
    ConsumerRecord,
    StoredConsumer,
    StoredKey,
    consumer_digest,
    decode_consumer,
)

__all__ = ["NAME_PATTERN", "Consumers", "effective", "tier_and_limits"]

NAME_PATTERN = r"^[!-~]([ -~]{0,253}[!-~])?$(?!\n)"
"""Printable ASCII: the name is used in headers, logs and metric labels. Long enough for a certificate's
subject.
"""


UNDECLARED = -2
"""An identity whose consumer is not in the directory has the record UNDECLARED - watch; its version is the
number of changes of all consumers.
"""


class Consumers:
    """The consumers as seen by a worker: the directory first, then the config file."""

    def __init__(self, config: Mapping[str, ConsumerConfig], directory: Directory | None) -> None:
        self._config = config
        self._directory = directory
        self._watch = directory.watch(CONSUMERS) if directory is not None else 0

    def find(self, name: str) -> ConsumerRecord | None:
        """The current record of this consumer; None for an undeclared one."""
        return self._look(name)[0]

    def identity(
        self,
        name: str,
        *,
        method: str,
        key_id: str | None = None,
        tier: str = "",
        default_tier: str = "",
        scopes: Iterable[str] | None = None,
        roles: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        claims: Mapping[str, Any] | None = None,
        expires_ns: int = 0,
        must_exist: bool = False,
        shared: bool = False,
    ) -> Identity | None:
        """The identity of this consumer and the properties of the credential. None if the consumer is
        disabled, or undeclared with `must_exist`.

        tier: of the credential, or the consumer's, or `default_tier`. scopes: replace the consumer's. roles:
        are added. metadata: overrides single entries. shared: the identity is shared by many clients.
        """
        record, index, version = self._look(name)
        if record is None:
            if must_exist:
                return None
            record = _NOBODY
        elif record.disabled:
            return None
        return Identity(
            name,
            tier=tier or record.tier or default_tier,
            method=method,
            key_id=key_id,
            scopes=record.scopes if scopes is None else scopes,
            roles={*record.roles, *roles},
            metadata={**record.metadata, **metadata} if metadata else record.metadata,
            claims=claims,
            limits=record.limits,
            expires_ns=expires_ns,
            record=index,
            version=version,
            shared=shared,
        )

    def _look(self, name: str) -> tuple[ConsumerRecord | None, int, int]:
        index, version = -1, 0
        if self._directory is not None:
            # Before the lookup: a concurrent write makes the result outdated.
            index, version = UNDECLARED - self._watch, self._directory.changes(self._watch)
            found = self._directory.get(consumer_digest(name))
            if found is not None:
                index, version, blob = found
                return decode_consumer(blob), index, version
        config = self._config.get(name)
        return (None if config is None else effective(config, None)), index, version


_NOBODY = ConsumerRecord()


def effective(config: ConsumerConfig | None, stored: StoredConsumer | None) -> ConsumerRecord:
    """The effective values of a consumer in the config file, in the store, or in both."""
    base = config or _NO_CONFIG
    said = stored or _NOTHING_SAID
    limits = {**base.limits, **(said.limits or {})}
    return ConsumerRecord(
        tier=(base.tier or "") if said.tier is None else said.tier,
        scopes=base.scopes if said.scopes is None else said.scopes,
        roles=base.roles if said.roles is None else said.roles,
        metadata=base.metadata if said.metadata is None else {**base.metadata, **said.metadata},
        limits=limits or None,
        disabled=base.disabled if said.disabled is None else said.disabled,
    )


_NO_CONFIG = ConsumerConfig()
_NOTHING_SAID = StoredConsumer(name="")


def tier_and_limits(key: StoredKey, consumer: ConsumerRecord | None) -> tuple[str, dict[str, Any] | None]:
    """The tier of a key, and the limits in place of the tier's: its own over its consumer's."""
    consumer = consumer or _NOBODY
    limits = {**(consumer.limits or {}), **(key.limits or {})}
    return key.tier or consumer.tier, limits or None
