"""What Redis says of a purge is believed only when it is what Redis says: a proxy in front of a real one puts
garbage in the place of single replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from fastgate.caching.tiers import purge
from fastgate.state.fleet import BUS_ROLE, SENT
from tests.caching.redis_server import RedisServer
from tests.caching.test_fleet import machines, run, until


class Liar:
    """Passes commands on, but for those that begin with `command`, which it answers with `reply`."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.command = b""
        self.reply = b""
        self.lies = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(str(self.target))

        async def replies() -> None:
            with suppress(ConnectionError):
                while data := await back.read(65536):
                    writer.write(data)
                    await writer.drain()

        task = asyncio.create_task(replies())
        try:
            while data := await reader.read(65536):
                if self.command and b"\r\n" + self.command + b"\r\n" in data[:64]:
                    self.lies += 1
                    writer.write(self.reply)
                    await writer.drain()
                    continue
                forth.write(data)
                await forth.drain()
        except ConnectionError:
            pass
        finally:
            task.cancel()
            forth.close()
            writer.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def lying(redis: RedisServer, tmp_path: Path) -> AsyncIterator[tuple[Liar, str]]:
    liar = Liar(redis.socket)
    path = tmp_path / "liar.sock"
    server = await asyncio.start_unix_server(liar.serve, str(path))
    try:
        yield liar, f"unix://{path}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (b"XADD", b"+OK\r\n"),
        (b"XADD", b"$-1\r\n"),
        (b"XADD", b":7\r\n"),
        (b"XADD", b"$5\r\nabc-1\r\n"),
        (b"XADD", b"*0\r\n"),
        (b"EVAL", b"$-1\r\n"),
        (b"EVAL", b":0\r\n"),
        (b"EVAL", b"+OK\r\n"),
        (b"EVAL", b"*1\r\n:1\r\n"),
        (b"UNLINK", b"+OK\r\n"),
    ],
)
def test_a_purge_that_redis_did_not_confirm_is_sent_again(
    redis: RedisServer, tmp_path: Path, command: bytes, reply: bytes
) -> None:
    async def test() -> None:
        async with lying(redis, tmp_path) as (liar, url), machines(url, "a") as (a,):
            a.put(b"k", b"old")
            await a.written()
            liar.command, liar.reply = command, reply

            sequence = purge(a.epochs, "key", b"k")
            await until(lambda: liar.lies >= 1)

            assert a.epochs.note(BUS_ROLE, SENT) < sequence
            await until(lambda: a.bus("error") >= 1)
            liar.command = b""
            await until(lambda: a.epochs.note(BUS_ROLE, SENT) >= sequence)
            async with machines(redis.url, "b") as (b,):
                assert await b.get(b"k") is None

    run(test())


@pytest.mark.parametrize(
    "reply", [b":7\r\n", b"$3\r\nabc\r\n", b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n0-0\r\n*0\r\n"]
)
def test_garbage_in_the_stream_of_purges_is_survived(
    redis: RedisServer, tmp_path: Path, reply: bytes
) -> None:
    async def test() -> None:
        async with (
            lying(redis, tmp_path) as (liar, url),
            machines(url, "a") as (a,),
            machines(redis.url, "b") as (b,),
        ):
            liar.command, liar.reply = b"XREAD", reply
            await until(lambda: liar.lies >= 2)
            liar.command = b""

            sequence = a.epochs.sequence
            purge(b.epochs, "tag", b"t")

            await until(lambda: a.epochs.concerns(b"k", (b"t",), sequence))

    run(test())
