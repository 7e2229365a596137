"""A PROXY header, then TLS: however the two are cut, the gateway's protocol sees header and plain text."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from fastgate.config import CertificateConfig, TlsConfig
from fastgate.server.proxied_tls import ProxiedTls
from fastgate.server.tls import TlsContexts
from tests.authority import Authority

HEADER = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LIMIT_S = 60  # only ever ends a hang

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine to its end on each kind of loop; what a loop would log fails the test."""

    def runner(main: Coroutine[Any, Any, None]) -> None:
        problems: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as loop:
            loop.get_loop().set_exception_handler(lambda _, problem: problems.append(problem))
            loop.run(main)
        assert not problems

    return runner


class Recorder(asyncio.Protocol):
    """Stands for the gateway's protocol: keeps what it gets and sends it back behind the header."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert transport.get_extra_info("ssl_object") is not None
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(b"\n") and len(self.received) > len(HEADER):
            self.transport.write(self.received[len(HEADER) :])

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


class Client:
    """A client whose bytes are sent by hand, so that the header and the hello can be cut anywhere."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: Authority
    ) -> None:
        self.reader, self.writer = reader, writer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=authority.certificate)
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="www.test")

    def hello(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    async def call(self, operation: Callable[[], Any]) -> Any:
        while True:
            try:
                done = operation()
            except ssl.SSLWantReadError:
                self.writer.write(self.outgoing.read())
                data = await asyncio.wait_for(self.reader.read(65536), LIMIT_S)
                if not data:
                    raise ConnectionResetError("closed") from None
                self.incoming.write(data)
            else:
                self.writer.write(self.outgoing.read())
                return done

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(
    authority: Authority, timeout_s: float = LIMIT_S
) -> AsyncIterator[tuple[list[Recorder], Callable[[], Coroutine[Any, Any, Client]]]]:
    pair = authority.issue("www", ["www.test"])
    contexts = TlsContexts(
        TlsConfig(certificates=(CertificateConfig(certificate=pair.certificate, key=pair.key),))
    )
    loop = asyncio.get_running_loop()
    recorders: list[Recorder] = []

    def protocol() -> ProxiedTls:
        recorders.append(Recorder())
        return ProxiedTls(loop, recorders[-1], contexts.context, timeout_s)

    server = await loop.create_server(protocol, "127.0.0.1", 0)

    async def connect() -> Client:
        port = server.sockets[0].getsockname()[1]
        return Client(*await asyncio.open_connection("127.0.0.1", port), authority)

    try:
        yield recorders, connect
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("cut", ["together", "apart", "inside the header", "inside the hello", "bytewise"])
def test_header_and_request_arrive_however_they_are_cut(tmp_path: Path, run: Run, cut: str) -> None:
    async def main() -> None:
        async with serving(Authority(tmp_path)) as (recorders, connect):
            client = await connect()
            sent = HEADER + client.hello()
            cuts = {
                "together": [],
                "apart": [len(HEADER)],
                "inside the header": [7],
                "inside the hello": [len(HEADER) + 3],
                "bytewise": list(range(1, len(HEADER) + 20)),
            }[cut]
            for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                client.writer.write(sent[start:end])
                await client.writer.drain()
                for _ in range(5):  # lets the other side, on the same loop, read what is there
                    await asyncio.sleep(0)

            await client.call(client.tls.do_handshake)
            await client.call(lambda: client.tls.write(b"GET / HTTP/1.1\n"))
            answer = await client.call(lambda: client.tls.read(100))
            await client.close()
            await asyncio.wait_for(recorders[0].ended, LIMIT_S)

            assert recorders[0].received == HEADER + b"GET / HTTP/1.1\n"
            assert answer == b"GET / HTTP/1.1\n"

    run(main())


@pytest.mark.parametrize("rounds", range(7))
def test_a_hello_that_arrives_while_tls_is_being_started_is_not_lost(
    tmp_path: Path, run: Run, rounds: int
) -> None:
    async def main() -> None:
        async with serving(Authority(tmp_path)) as (recorders, connect):
            client = await connect()
            client.writer.write(HEADER)
            for _ in range(rounds):
                await asyncio.sleep(0)
            client.writer.write(client.hello())

            await client.call(client.tls.do_handshake)
            await client.call(lambda: client.tls.write(b"GET / HTTP/1.1\n"))
            assert await client.call(lambda: client.tls.read(100)) == b"GET / HTTP/1.1\n"
            await client.close()
            await asyncio.wait_for(recorders[0].ended, LIMIT_S)

    run(main())


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", HEADER + b"GET / HTTP/1.1\r\n\r\n", HEADER[:10]])
def test_what_is_no_header_or_no_tls_is_cut(tmp_path: Path, run: Run, sent: bytes) -> None:
    async def main() -> None:
        async with serving(Authority(tmp_path)) as (recorders, connect):
            client = await connect()
            client.writer.write(sent)
            client.writer.write_eof()
            with contextlib.suppress(OSError):
                await asyncio.wait_for(client.reader.read(), LIMIT_S)
            await client.close()

            assert recorders[0].received == b""

    run(main())


def test_a_client_that_says_nothing_is_cut_in_time(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(Authority(tmp_path), timeout_s=0.05) as (_, connect):
            for sent in (b"", HEADER):
                client = await connect()
                client.writer.write(sent)
                with contextlib.suppress(OSError):
                    await asyncio.wait_for(client.reader.read(), LIMIT_S)
                await client.close()

    run(main())
