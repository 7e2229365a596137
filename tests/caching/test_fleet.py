"""Redis: what it says is used when it is right and in time, and nothing else waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.metric import MetricTable
from fastgate._core.shm.shm import SharedMemory
from fastgate.caching.disk import LATER
from fastgate.caching.tiers import Tiers, purge, settled
from fastgate.state import fleet as module
from fastgate.state.fleet import BUS_ROLE, POSITION, SENT, Fleet
from fastgate.state.redis_url import check_url, masked
from tests.authority import Authority
from tests.caching.redis_server import RedisServer
from tests.ports import reserved_port

HOUR = 3_600_000_000_000


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


class Machine:
    def __init__(self, url: str, name: str, **options: Any) -> None:
        self.epochs = Epochs(64, 1024, SharedMemory(Epochs.size(64, 1024)))
        self.metrics = MetricTable(1024, SharedMemory(MetricTable.size(1024)))
        options = {"machine": name, "timeout_ns": 5_000_000_000} | options
        self.fleet = Fleet(url, self.epochs, self.metrics, **options)

    def put(self, key: bytes, value: bytes, *tags: bytes, sequence: int = -1) -> None:
        if sequence < 0:
            sequence = self.epochs.sequence
        assert self.fleet.put(key, value, tags, time.time_ns() + HOUR, sequence)

    async def get(self, key: bytes) -> bytes | None:
        found = await self.fleet.get(key)
        return None if found is None else found.value()

    def count(self, event: str) -> int:
        return self.metrics.counter("fastgate_cache_tier_total", tier="redis", event=event).value

    def bus(self, event: str) -> int:
        return self.metrics.counter("fastgate_purge_bus_total", event=event).value

    async def ready(self) -> None:
        await until(lambda: self.fleet.is_up and self.epochs.note(BUS_ROLE, POSITION))

    async def written(self, count: int = 1) -> None:
        await until(lambda: self.count("stored") + self.count("dropped") >= count)


async def until(what: Callable[[], Any], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        now = what()
        if asyncio.iscoroutine(now):
            now = await now
        if now:
            return
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def machines(url: str, *names: str, **options: Any) -> AsyncIterator[list[Machine]]:
    made = [Machine(url, name, **options) for name in names]
    try:
        for each in made:
            await each.fleet.start()
        for each in made:
            await each.ready()
        yield made
    finally:
        for each in made:
            await each.fleet.close()


def run(test: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(test, 200))  # type: ignore[arg-type]


def test_an_answer_stored_by_one_machine_is_found_by_another(redis: RedisServer) -> None:
    async def test() -> None:
        async with machines(redis.url, "a", "b") as (a, b):
            large = b"text " * 100_000
            a.put(b"small", b"value", b"tag")
            a.put(b"large", large)
            await a.written(2)

            assert await b.get(b"small") == b"value"
            assert await b.get(b"large") == large
            assert await b.get(b"other") is None
            assert (b.count("hit"), b.count("miss")) == (2, 1)

    run(test())


@pytest.mark.parametrize(
    ("kind", "text", "left"),
    [
        ("key", b"k1", [b"k2", b"k3"]),
        ("tag", b"t", [b"k1", b"k3"]),
        ("all", b"", []),
        ("prefix", b"k1", []),  # Redis has no index: a prefix and a pattern purge it whole
    ],
)
def test_a_purge_reaches_redis_and_the_other_machine(
    redis: RedisServer, kind: str, text: bytes, left: list[bytes]
) -> None:
    async def test() -> None:
        async with machines(redis.url, "a", "b") as (a, b):
            for key, tags in ((b"k1", ()), (b"k2", (b"t", b"u")), (b"k3", (b"u",))):
                a.put(key, b"old", *tags)
            await a.written(3)
            began = b.epochs.sequence

            sequence = purge(a.epochs, kind, text)
            # At once here, before Redis has heard of anything.
            assert [
                key for key in (b"k1", b"k2", b"k3") if await a.get(key) is not None
            ] == left or kind == "prefix"
            assert await settled(a.epochs, sequence, disk=False, redis=True) == {"redis": True}

            assert [key for key in (b"k1", b"k2", b"k3") if await b.get(key) is not None] == left
            await until(lambda: b.epochs.sequence > began)
            (record,) = b.epochs.since(began) or ()
            assert (record.kind, record.text, record.is_far) == (kind, text, True)
            # It does not come back to who sent it, nor go round: the next one would come after it.
            purge(b.epochs, "key", b"later")
            await until(lambda: a.bus("received") and b.bus("sent"))  # it is counted after it was sent
            assert a.epochs.sequence == sequence + 1
            assert (a.bus("sent"), b.bus("sent"), a.bus("received"), b.bus("received")) == (1, 1, 1, 1)
            # What is made after it is kept.
            await until(lambda: a.epochs.note(BUS_ROLE, POSITION) >= b.epochs.note(BUS_ROLE, POSITION))
            b.put(b"k1", b"new", b"t")
            await b.written()
            assert await a.get(b"k1") == b"new"

    run(test())


def test_a_purge_that_is_sent_while_redis_answers_is_not_missed(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with machines(redis.url, "a") as (a,):
            a.put(b"k", b"old")
            await a.written()
            ask = a.fleet._many

            async def late(commands: list[tuple[Any, ...]]) -> list[Any]:
                answers = await ask(commands)
                sequence = purge(a.epochs, "all", b"")
                await until(lambda: a.epochs.note(BUS_ROLE, SENT) >= sequence)
                return answers

            monkeypatch.setattr(a.fleet, "_many", late)
            assert await a.get(b"k") is None

    run(test())


def test_an_answer_made_before_a_purge_and_written_after_it_is_not_used(redis: RedisServer) -> None:
    async def test() -> None:
        async with machines(redis.url, "a", "b") as (a, b):
            began = b.epochs.sequence
            purge(a.epochs, "key", b"k")
            await until(lambda: b.epochs.sequence > began)

            b.put(b"k", b"old", sequence=began)
            await b.written()

            assert b.count("stored") == 0
            assert await a.get(b"k") is None

    run(test())


def test_a_late_answer_of_a_machine_that_has_not_heard_is_dead_on_arrival(redis: RedisServer) -> None:
    async def test() -> None:
        async with machines(redis.url, "a", "b") as (a, b):
            before = b.epochs.note(BUS_ROLE, POSITION)
            sequence = purge(a.epochs, "tag", b"t")
            await settled(a.epochs, sequence, disk=False, redis=True)
            await until(lambda: b.epochs.note(BUS_ROLE, POSITION) > before)

            # As if b had read the stream no further than this when it wrote.
            from fastgate.state.envelope import seal

            data = seal(b"k", b"old", (b"t",), time.time_ns() + HOUR, before, 1 << 20)
            await b.fleet._client.set(b.fleet._name(b"k") + b"v", data)

            assert await a.get(b"k") is None
            assert a.count("purged") == 1

    run(test())


def test_a_machine_hears_on_its_return_what_was_purged_meanwhile(redis: RedisServer) -> None:
    async def test() -> None:
        async with machines(redis.url, "a") as (a,):
            async with machines(redis.url, "b", keeps_answers=True):
                pass
            purge(a.epochs, "tag", b"missed")
            await until(lambda: a.bus("sent") == 1)
            async with machines(redis.url, "b", keeps_answers=True) as (b,):
                await until(lambda: b.bus("received"))
                (record,) = b.epochs.since(b.epochs.start) or ()
                assert (record.kind, record.text) == ("tag", b"missed")
                assert b.bus("resync") == 0

    run(test())


def test_a_machine_that_cannot_know_what_it_missed_drops_all_it_holds(redis: RedisServer) -> None:
    async def test() -> None:
        async with machines(redis.url, "a", keeps_answers=True) as (a,):
            # The first time: it may hold answers of whatever age.
            assert [record.kind for record in a.epochs.since(a.epochs.start) or ()] == ["all"]
            began = a.epochs.sequence

            redis.command("FLUSHALL")
            await until(lambda: a.epochs.sequence > began)
            assert [record.kind for record in a.epochs.since(began) or ()] == ["all"]
            await asyncio.sleep(0.2)
            assert a.bus("resync") == 2
            a.put(b"k", b"v")
            await a.written()
            assert await a.get(b"k") == b"v"

    run(test())


# ── faults


def test_redis_that_is_not_there_costs_nothing_and_is_found_when_it_comes(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        redis.stop()
        a = Machine(redis.url, "a")
        await a.fleet.start()
        await until(lambda: warnings())
        for _ in range(1000):
            assert await a.get(b"k") is None
        assert not a.fleet.put(b"k", b"v", (), time.time_ns() + HOUR, 0)
        assert a.count("skipped") == 1000

        redis.start()
        await a.ready()
        a.put(b"k", b"v")
        await a.written(2)
        assert await a.get(b"k") == b"v"
        await a.fleet.close()

    def warnings() -> list[str]:
        return [record.message for record in caplog.records if "the bus" not in record.message]

    with caplog.at_level(logging.WARNING):
        run(test())
    assert len(warnings()) == 1


def test_redis_that_stops_is_noticed_after_three_requests_and_purges_are_sent_later(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with machines(redis.url, "a", "b") as (a, b):
            a.put(b"k", b"v")
            await a.written()
            redis.stop()
            for _ in range(5):
                assert await a.get(b"k") is None
            assert not a.fleet.is_up
            sequence = purge(a.epochs, "key", b"k")
            assert await settled(a.epochs, sequence, disk=False, redis=True, timeout_s=0.1) == {
                "redis": False
            }
            began = b.epochs.sequence

            redis.start()
            assert await settled(a.epochs, sequence, disk=False, redis=True, timeout_s=60) == {"redis": True}
            await until(lambda: b.epochs.sequence > began)
            assert a.bus("resync") >= 1

    with caplog.at_level(logging.WARNING):
        run(test())
    for kind in ("Connection", "the bus"):
        assert len([r for r in caplog.records if kind in r.message]) <= 4


def test_a_slow_redis_costs_three_requests_the_limit_and_the_others_nothing(redis: RedisServer) -> None:
    async def test() -> None:
        # Long enough for a Redis that is well on a loaded machine.
        async with machines(redis.url, "a", timeout_ns=500_000_000) as (a,):
            a.put(b"k", b"v")
            await a.written()
            redis.pause()
            for _ in range(50):
                assert await a.get(b"k") is None
            assert a.count("timeout") == 3
            assert a.count("skipped") == 47  # they asked nobody
            assert not a.fleet.is_up

            redis.resume()
            await until(lambda: a.fleet.is_up)
            assert await a.get(b"k") == b"v"

    run(test())


def test_a_server_that_speaks_garbage_is_left_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1000):
                writer.write(os.urandom(100) + b"\r\n")
                await writer.drain()
            writer.close()

        path = tmp_path / "garbage.sock"
        server = await asyncio.start_unix_server(answer, path)
        a = Machine(f"unix://{path}", "a")
        await a.fleet.start()
        for _ in range(20):
            assert await a.get(b"k") is None
            await asyncio.sleep(0.02)
        assert not a.fleet.is_up
        assert a.count("error") > 0
        await a.fleet.close()
        server.close()

    run(test())


def test_damaged_and_foreign_values_are_not_used(redis: RedisServer) -> None:
    async def test() -> None:
        async with machines(redis.url, "a") as (a,):
            a.put(b"k", b"value" * 100)
            await a.written()
            name = a.fleet._name(b"k") + b"v"
            data = await a.fleet._client.get(name)
            for wrong in (b"", b"x", data[:-1], data[:60] + b"!" + data[61:]):
                await a.fleet._client.set(name, wrong)
                assert await a.get(b"k") is None
            assert a.count("damaged") == 4
            await a.fleet._client.delete(name)
            await a.fleet._client.rpush(name, b"a list")
            assert await a.get(b"k") is None
            await a.fleet._client.set(a.fleet._name(b"j") + b"v", data)
            assert await a.get(b"j") is None

    run(test())


def test_the_queue_is_bounded(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with machines(redis.url, "a") as (a,):
            monkeypatch.setattr(module, "_QUEUE_BYTES", 100_000)
            taken = [a.fleet.put(b"%d" % i, b"x" * 30_000, (), time.time_ns() + HOUR, 0) for i in range(10)]
            assert taken.count(True) == 3
            assert not a.fleet.put(b"k", b"x" * (9 << 20), (), time.time_ns() + HOUR, 0)
            assert (a.count("dropped"), a.count("refused")) == (7, 1)

    run(test())


def test_a_killed_bus_holders_work_goes_on_in_another_worker(redis: RedisServer) -> None:
    async def test() -> None:
        async with machines(redis.url, "a") as (a,):
            sibling = Fleet(redis.url, a.epochs, a.metrics, machine="a")
            await sibling.start()
            await a.fleet.close()  # leaves the role
            sequence = purge(a.epochs, "key", b"k")
            assert await settled(a.epochs, sequence, disk=False, redis=True, timeout_s=60) == {"redis": True}
            await sibling.close()

    run(test())


# ── the tiers together


def test_what_redis_knew_is_on_the_disk_afterwards(redis: RedisServer, tmp_path: Path) -> None:
    from fastgate.caching.disk import DiskStore

    async def test() -> None:
        async with machines(redis.url, "a") as (a,):
            a.put(b"k", b"value", b"tag")
            await a.written()
            b = Machine(redis.url, "b", keeps_answers=True)
            disk = DiskStore(tmp_path / "disk", 64 << 20, b.epochs, b.metrics, verify_in_process=True)
            tiers = Tiers(b.epochs, disk, b.fleet)
            await tiers.start()
            assert disk.wait_ready()
            await b.ready()
            await until(lambda: b.epochs.applied == b.epochs.sequence)

            assert tiers.get_now(b"k") is None
            assert tiers.has_later
            assert await tiers.get_later(b"k") == b"value"
            await until(lambda: tiers.get_now(b"k") == b"value")
            # And a purge of its tag reaches it there.
            purge(a.epochs, "tag", b"tag")
            await until(lambda: tiers.get_now(b"k") is None)
            large = b"large " * 100_000
            tiers.put(b"large", large, (), HOUR, b.epochs.sequence)
            await until(lambda: tiers.get_now(b"large") is LATER)
            assert await tiers.get_later(b"large", is_large=True) == large
            assert set(tiers.statistics()) == {"disk", "redis"}
            await tiers.close()

    run(test())


def test_a_purge_while_redis_is_asked_wins(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with machines(redis.url, "a") as (a,):
            tiers = Tiers(a.epochs, None, a.fleet)
            a.put(b"k", b"old")
            await a.written()
            ask = a.fleet.get

            async def slow(key: bytes) -> Any:
                found = await ask(key)
                tiers.purge("key", b"k")
                return found

            monkeypatch.setattr(a.fleet, "get", slow)
            assert await tiers.get_later(b"k") is None

    run(test())


# ── Sentinel and Cluster


async def works(url: str) -> None:
    """An answer, a purge by tag, and one by key, from one machine to another."""
    async with machines(url, "a", "b") as (a, b):
        a.put(b"k", b"v", b"t")
        a.put(b"j", b"w")
        await a.written(2)
        assert await b.get(b"k") == b"v"
        for kind, text in (("tag", b"t"), ("key", b"j")):
            began = b.epochs.sequence
            sequence = purge(a.epochs, kind, text)
            assert await settled(a.epochs, sequence, disk=False, redis=True) == {"redis": True}
            await until(lambda began=began: b.epochs.sequence > began)  # type: ignore[misc]
        assert await b.get(b"k") is None
        assert await b.get(b"j") is None


def test_a_cluster_works_as_one_server_does(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    with contextlib.ExitStack() as stack:
        port, bus_port = (stack.enter_context(reserved_port()) for _ in range(2))
        stack.callback(server.stop)
        server.start(
            *("--port", str(port), "--cluster-enabled", "yes"),
            *("--bind", "127.0.0.1", "--cluster-port", str(bus_port)),
        )
        assert server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == b"+OK\r\n"
        end = time.monotonic() + 60
        while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
            assert time.monotonic() < end
            time.sleep(0.05)
        run(works(f"redis+cluster://127.0.0.1:{port}"))


def test_sentinel_names_the_server(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    with contextlib.ExitStack() as stack:
        port, watcher_port = (stack.enter_context(reserved_port()) for _ in range(2))
        stack.callback(server.stop)
        server.start("--port", str(port), "--bind", "127.0.0.1")
        settings = tmp_path / "sentinel.conf"
        settings.write_text(
            f"port {watcher_port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {port} 1\n"
        )
        assert server.program is not None
        watcher = subprocess.Popen([server.program, str(settings), "--sentinel"], stdout=subprocess.DEVNULL)
        stack.callback(watcher.wait)
        stack.callback(watcher.kill)
        run(works(f"redis+sentinel://127.0.0.1:{watcher_port}/main/0"))


def test_tls_and_a_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("redis", ["localhost"])
    server = RedisServer(tmp_path / "redis")
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(reserved_port())
        stack.callback(server.stop)
        server.start(
            *("--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "no"),
            *(
                "--tls-cert-file",
                pair.certificate,
                "--tls-key-file",
                pair.key,
                "--tls-ca-cert-file",
                authority.certificate,
            ),
        )
        server.command("CONFIG", "SET", "requirepass", "a-secret")

        async def test() -> None:
            options = {"tls": {"ca_file": authority.certificate}}
            async with machines(f"rediss://:a-secret@localhost:{port}/0", "a", **options) as (a,):
                a.put(b"k", b"v")
                await a.written()
                assert await a.get(b"k") == b"v"
            for url, tls in (
                (f"rediss://:wrong@localhost:{port}", options["tls"]),
                (f"rediss://:a-secret@localhost:{port}", {}),
            ):
                b = Machine(url, "b", tls=tls)
                await b.fleet.start()
                await until(lambda b=b: b.count("error"))  # type: ignore[misc]
                assert not b.fleet.is_up
                await b.fleet.close()

        with caplog.at_level(logging.WARNING):
            run(test())
        assert caplog.records
        assert "a-secret" not in caplog.text


# ── addresses


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("redis://localhost", True),
        ("rediss://user:secret@host:6380/1", True),
        ("unix:///tmp/redis.sock", True),
        ("redis+sentinel://a:26379,b:26379/main/0", True),
        ("redis+cluster://a:7000", True),
        ("http://localhost", False),
        ("redis://host:port", False),
        ("redis+sentinel://a:26379", False),
        ("unix://", False),
    ],
)
def test_urls_are_checked(url: str, right: bool) -> None:
    assert (check_url(url) is None) == right


def test_a_password_is_not_shown() -> None:
    assert masked("rediss://user:secret@host:6380/1") == "rediss://***@host:6380/1"
    assert masked("redis://host") == "redis://host"


@pytest.mark.parametrize(
    "url", ["redis+sentinel://:pw@127.0.0.1:1,127.0.0.1:2/main/0", "redis+cluster://127.0.0.1:1"]
)
def test_sentinel_and_cluster_that_are_down_are_only_down(url: str) -> None:
    async def test() -> None:
        a = Machine(url, "a")
        await a.fleet.start()
        await until(lambda: a.count("error") > 0)
        assert await a.get(b"k") is None
        await a.fleet.close()

    run(test())
