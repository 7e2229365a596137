"""The keyring without a gateway: what it publishes and announces when the directory has no space."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from fastgate.auth.consumers import Consumers
from fastgate.config.load import check
from fastgate.control.keyring import Keyring
from fastgate.state.journal import Journal
from fastgate.state.memory import HostMemory
from fastgate.state.records import CONSUMERS, StoredConsumer, consumer_digest
from fastgate.state.store import Store


def test_consumers_put_before_the_directory_is_full_are_announced(tmp_path: Path) -> None:
    """A worker must not keep the identity that it cached for a consumer that is disabled by one of them."""
    text = {"store": {"path": str(tmp_path / "a.db")}, "routes": [{"path": "/", "respond": ""}]}
    config, errors = check(msgspec.json.encode(text).decode(), "json", {})
    assert config is not None, errors
    names = [f"consumer{number}" for number in range(5)]
    store = Store(config.store.file())
    for name in names:
        store.put_consumer(StoredConsumer(name=name, disabled=True))
    store.close()
    memory = HostMemory.private()
    directory = memory.directory
    for number in range(directory.capacity - 2):
        directory.put(b"%032d" % number, b"")
    watch = directory.watch(CONSUMERS)
    cached = {name: Consumers({}, directory).identity(name, method="jwt") for name in names}

    asyncio.run(Keyring(memory, Journal("test", os.open(os.devnull, os.O_WRONLY))).start(config))

    put = [name for name in names if directory.get(consumer_digest(name)) is not None]
    assert len(put) == 2
    for name in put:
        identity = cached[name]
        assert identity is not None
        assert identity.version != directory.changes(watch)
        assert Consumers({}, directory).identity(name, method="jwt") is None
