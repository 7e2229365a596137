"""The tiers below a worker's memory: the disk of the machine, then Redis; and their purges.

`get_now` is synchronous and reads the disk. `get_later`, if `has_later`, does the lookups that must be
awaited: Redis, with its time limit, or the disk in a thread for a large response. Responses found in
Redis are also written to the disk. `put` only queues.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from fastgate._core.cache.envelope import DiskReader
from fastgate._core.cache.http_keys import url_tag
from fastgate._core.clock import realtime_ns
from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.metric import MetricTable
from fastgate.caching.disk import DiskStore
from fastgate.caching.settings import CacheStoreConfig
from fastgate.state.fleet import BUS_ROLE, SENT, Fleet

__all__ = ["PURGE_KINDS", "Tiers", "purge", "settled"]

PURGE_KINDS: Final = ("all", "url", "key", "tag", "prefix", "pattern")


class Tiers:
    """The tiers below the memory of one worker. A service: `start` and `close`."""

    def __init__(self, epochs: Epochs, disk: DiskStore | None, fleet: Fleet | None) -> None:
        self._epochs = epochs
        self.disk = disk
        self.fleet = fleet

    @classmethod
    def of(cls, settings: CacheStoreConfig, epochs: Epochs, metrics: MetricTable) -> Tiers | None:
        """The tiers of a config, or None if it has none."""
        disk = fleet = None
        if settings.disk is not None:
            disk = DiskStore(
                settings.disk.path,
                settings.disk.size_bytes,
                epochs,
                metrics,
                compress_above=settings.disk.compress_above_bytes,
            )
        if settings.redis is not None:
            redis = settings.redis
            place = settings.disk.path if settings.disk is not None else ""
            fleet = Fleet(
                redis.url,
                epochs,
                metrics,
                timeout_ns=redis.timeout_ns,
                prefix=redis.prefix,
                compress_above=redis.compress_above_bytes,
                largest_bytes=redis.largest_bytes,
                machine=redis.machine or f"{socket.gethostname()}:{place}",
                keeps_answers=disk is not None,
                secret=redis.secret,
                tls={
                    name: value
                    for name, value in (
                        ("ca_file", redis.ca_file),
                        ("certificate_file", redis.certificate_file),
                        ("key_file", redis.key_file),
                    )
                    if value
                },
            )
        return cls(epochs, disk, fleet) if disk is not None or fleet is not None else None

    async def start(self) -> None:
        if self.disk is not None:
            self.disk.start()
        if self.fleet is not None:
            await self.fleet.start()

    async def close(self) -> None:
        if self.fleet is not None:
            await self.fleet.close()
        if self.disk is not None:
            await asyncio.to_thread(self.disk.close)

    @property
    def reader(self) -> DiskReader | None:
        """Reads most responses of the disk tier without a Python frame; None without that tier."""
        return self.disk.reader if self.disk is not None else None

    @property
    def has_later(self) -> bool:
        """Whether get_later may find a response that is not on the disk."""
        return self.fleet is not None and self.fleet.is_up

    def get_now(self, key: bytes) -> bytes | object | None:
        """The response under key in the disk tier; LATER if get_later must read it."""
        return self.disk.get(key) if self.disk is not None else None

    def get_slow(self, key: bytes) -> bytes | object | None:
        """As `get_now`, for a key for which `reader` has just returned SLOW."""
        return self.disk.get_slow(key) if self.disk is not None else None

    async def get_later(self, key: bytes, is_large: bool = False) -> bytes | None:
        """The response under key from the awaited lookups; one that was purged meanwhile is dropped.

        is_large: `get_now` returned LATER.
        """
        sequence = self._epochs.sequence
        found: bytes | None = None
        tags: tuple[bytes, ...] = ()
        if is_large and self.disk is not None:
            answer = await asyncio.to_thread(self.disk.get_in_thread, key)
            if answer is not None:
                found, tags = answer.value(), answer.tags
        if found is None and self.fleet is not None:
            envelope = await self.fleet.get(key)
            if envelope is not None:
                found, tags = envelope.value(), envelope.tags
                if self.disk is not None:
                    self.disk.put(key, found, tags, envelope.expires_ns, sequence)
        if found is not None and self._epochs.concerns(key, tags, sequence):
            return None
        return found

    def put(self, key: bytes, blob: bytes, tags: Iterable[bytes], ttl_ns: int, sequence: int) -> None:
        """Queues a response whose fetch started when the purge log was at `sequence`."""
        if ttl_ns <= 0:
            return
        expires_ns = realtime_ns() + min(ttl_ns, 1 << 61)
        labels = tuple(_bytes(tag) for tag in tags)
        if self.disk is not None:
            self.disk.put(key, blob, labels, expires_ns, sequence)
        if self.fleet is not None:
            self.fleet.put(key, blob, labels, expires_ns, sequence)

    def forget(self, key: bytes) -> None:
        """Queues the removal of an evicted response. It is not a purge and is not published."""
        if self.disk is not None:
            self.disk.put(key, b"", (), 0, 0)
        if self.fleet is not None:
            self.fleet.put(key, b"", (), 0, 0)

    def when_written(self, key: bytes, then: Callable[[], Any]) -> bool:
        """True: `then` is called, in any thread, once the response under key can be read by every worker, or
        never will be. False: it can be read now, or nothing is waiting to be written."""
        return self.disk is not None and self.disk.when_written(key, then)

    def purge(self, kind: str, text: bytes | str = b"") -> int:
        """Purges, on this machine at once and on the others when they receive it; returns the sequence."""
        return purge(self._epochs, kind, text)

    def statistics(self) -> dict[str, Any]:
        return {
            name: tier.statistics()
            for name, tier in (("disk", self.disk), ("redis", self.fleet))
            if tier is not None
        }


def purge(epochs: Epochs, kind: str, text: bytes | str = b"") -> int:
    """Appends to the purge log, from any process, and returns the sequence. In effect on this machine on
    return. `url` purges all responses of a URL, `key` one entry. ValueError: an unknown kind, or an invalid
    text."""
    if kind not in PURGE_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(PURGE_KINDS)}, got {kind!r}")
    if kind == "all":
        return epochs.purge_all()
    if kind == "url":
        return epochs.purge_tag(url_tag(_bytes(text)))
    purges: dict[str, Callable[[bytes | str], int]] = {
        "key": epochs.purge_key,
        "tag": epochs.purge_tag,
        "prefix": epochs.purge_prefix,
        "pattern": epochs.purge_pattern,
    }
    return purges[kind](text)


async def settled(
    epochs: Epochs, sequence: int, *, disk: bool, redis: bool, timeout_s: float = 2.0
) -> dict[str, bool]:
    """Waits for a limited time until a purge is also applied on the disk (so that it survives a restart) and
    confirmed by Redis. Returns which of them completed."""
    until = time.monotonic() + timeout_s
    while True:
        state = {}
        if disk:
            state["disk"] = epochs.applied >= sequence
        if redis:
            state["redis"] = epochs.note(BUS_ROLE, SENT) >= sequence
        if all(state.values()) or time.monotonic() > until:
            return state
        await asyncio.sleep(0.005)


def _bytes(tag: bytes | str) -> bytes:
    return tag.encode() if isinstance(tag, str) else tag
