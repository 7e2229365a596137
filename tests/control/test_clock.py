"""A realtime clock that is set forward and back: what was decided by it is decided again."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest

from fastgate.config.load import check
from fastgate.control import keyring as keyring_module
from fastgate.control.clockwatch import ClockWatch
from fastgate.control.keyring import Keyring
from fastgate.state.journal import Journal
from fastgate.state.memory import HostMemory
from fastgate.state.records import StoredKey

HOUR_NS = 3_600_000_000_000


class Clock:
    def __init__(self) -> None:
        self.realtime = 1_800_000_000 * 10**9
        self.monotonic = 5 * 10**9

    def watch(self, offset_ns: int = 0) -> ClockWatch:
        return ClockWatch(offset_ns, lambda: self.realtime, lambda: self.monotonic)

    def pass_ns(self, span_ns: int) -> None:
        self.realtime += span_ns
        self.monotonic += span_ns


def test_a_step_is_told_once_with_its_size_and_direction() -> None:
    clock = Clock()
    watch = clock.watch()
    clock.pass_ns(HOUR_NS)
    assert watch.look() == 0

    clock.realtime += 2 * HOUR_NS
    assert (watch.look(), watch.look()) == (2 * HOUR_NS, 0)
    clock.realtime -= 2 * HOUR_NS
    assert (watch.look(), watch.look()) == (-2 * HOUR_NS, 0)


def test_slewing_is_no_step() -> None:
    clock = Clock()
    watch = clock.watch()

    for _ in range(10_000):
        clock.pass_ns(500_000_000)
        clock.realtime += 250_000
        assert watch.look() == 0


def test_a_step_while_there_was_no_controller_is_noticed_by_the_next() -> None:
    clock = Clock()
    offset_ns = clock.watch().offset_ns
    clock.realtime -= HOUR_NS

    assert clock.watch(offset_ns).look() == -HOUR_NS


def test_a_key_that_ended_by_a_wrong_clock_is_good_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(_key_and_clock(tmp_path, monkeypatch))


async def _key_and_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step_ns = 0
    monkeypatch.setattr(keyring_module.time, "time_ns", lambda: time.clock_gettime_ns(0) + step_ns)
    text = msgspec.json.encode(
        {"store": {"path": str(tmp_path / "keys.db")}, "routes": [{"path": "/", "respond": ""}]}
    )
    config, errors = check(text.decode(), "json", {})
    assert config is not None, errors
    memory = HostMemory.private()
    keyring = Keyring(memory, Journal("test", os.open(os.devnull, os.O_WRONLY)))
    await keyring.start(config)
    ends_ns = time.time_ns() + HOUR_NS
    made = keyring.create(
        StoredKey(key_id="", digest=b"", hint="", consumer="ann", created_ns=1, expires_ns=ends_ns)
    )
    running = asyncio.create_task(keyring.run())

    async def until(holds: bool) -> None:
        async with asyncio.timeout(30):
            while (memory.directory.get(made.stored.digest) is not None) != holds:
                await asyncio.sleep(0.01)

    step_ns = 2 * HOUR_NS
    keyring.clock_stepped()
    await until(False)
    step_ns = 0
    keyring.clock_stepped()
    await until(True)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await keyring.close()
