"""Which certificate a handshake gets, and what a change of files does to old and new connections."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from fastgate.certificates import CertificateError
from fastgate.config import CertificateConfig, TlsConfig
from fastgate.server.tls import TlsContexts
from tests.authority import Authority, Pair

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine to its end on each kind of loop."""

    def runner(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as loop:
            loop.run(main)

    return runner


def config(*pairs: Pair, **more: Any) -> TlsConfig:
    certificates = tuple(CertificateConfig(certificate=pair.certificate, key=pair.key) for pair in pairs)
    return TlsConfig(certificates=certificates, **more)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while line := await reader.readline():
            writer.write(line)
        writer.close()
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(contexts: TlsContexts) -> AsyncIterator[int]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=contexts.context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


class Client:
    """One TLS connection: what the handshake gave, and a line there and back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.tls: ssl.SSLObject = writer.get_extra_info("ssl_object")

    @property
    def names(self) -> list[str]:
        found = self.tls.getpeercert()
        assert found is not None
        return [str(entry[1]) for entry in found.get("subjectAltName", ())]

    async def echoes(self) -> bool:
        self.writer.write(b"hello\n")
        await self.writer.drain()
        return await self.reader.readline() == b"hello\n"

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def trusting(authority: Authority, **settings: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    context.check_hostname = False
    context.set_alpn_protocols(["h2", "http/1.1"])
    for name, value in settings.items():
        setattr(context, name, value)
    return context


async def connect(port: int, context: ssl.SSLContext, name: str | None) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or ""))


async def names_shown(port: int, context: ssl.SSLContext, name: str | None) -> list[str]:
    client = await connect(port, context, name)
    try:
        assert await client.echoes()
        return client.names
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("www.example.com", "exact"),
        ("WWW.EXAMPLE.com", "exact"),
        ("api.example.com", "wildcard"),
        ("a.b.example.com", "first"),  # a wildcard covers one label
        ("example.com", "first"),
        ("unknown.test", "first"),
        (None, "first"),
    ],
)
def test_the_server_name_picks_the_certificate(
    tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None], name: str | None, shown: str
) -> None:
    authority = Authority(tmp_path)
    pairs = {
        "first": authority.issue("first", ["first.test"]),
        "wildcard": authority.issue("wildcard", ["*.example.com"]),
        "exact": authority.issue("exact", ["www.example.com"]),
    }
    contexts = TlsContexts(config(*pairs.values()))
    expected = {"first": ["first.test"], "wildcard": ["*.example.com"], "exact": ["www.example.com"]}

    async def main() -> None:
        async with serving(contexts) as port:
            assert await names_shown(port, trusting(authority), name) == expected[shown]

    run(main())
    assert contexts.names() == ("*.example.com", "first.test", "www.example.com")


def test_http_1_1_is_negotiated(tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    authority = Authority(tmp_path)
    contexts = TlsContexts(config(authority.issue("www", ["www.test"])))

    async def main() -> None:
        async with serving(contexts) as port:
            client = await connect(port, trusting(authority), "www.test")

            assert client.tls.selected_alpn_protocol() == "http/1.1"
            assert client.tls.version() == "TLSv1.3"

            await client.close()

    run(main())


def test_a_lower_version_than_the_minimum_is_refused(
    tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("www", ["www.test"])
    old = trusting(authority, maximum_version=ssl.TLSVersion.TLSv1_2)

    async def main() -> None:
        async with serving(TlsContexts(config(pair))) as port:
            assert await names_shown(port, old, "www.test") == ["www.test"]
        async with serving(TlsContexts(config(pair, min_version="1.3"))) as port:
            with pytest.raises(OSError):  # an alert, or a reset that overtook it
                await connect(port, old, "www.test")

    run(main())


def test_changed_files_reach_new_handshakes_and_leave_open_connections_alone(
    tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    authority = Authority(tmp_path)
    contexts = TlsContexts(config(authority.issue("www", ["old.test"])))

    async def main() -> None:
        async with serving(contexts) as port:
            before = await connect(port, trusting(authority), "any.test")
            assert not contexts.changed()

            authority.issue("www", ["new.test"])
            assert contexts.changed()
            contexts.reload()

            assert not contexts.changed()
            assert await names_shown(port, trusting(authority), "any.test") == ["new.test"]
            assert await before.echoes()
            assert before.names == ["old.test"]
            await before.close()

    run(main())


def test_bad_new_files_keep_the_old_ones_and_are_reported_once(
    tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("www", ["old.test"])
    contexts = TlsContexts(config(pair))

    async def main() -> None:
        async with serving(contexts) as port:
            other = authority.issue("other", ["new.test"])
            Path(other.certificate).replace(pair.certificate)  # half of a renewal: the key comes later
            assert contexts.changed()
            with pytest.raises(CertificateError, match="not the key of"):
                contexts.reload()
            assert not contexts.changed()
            assert await names_shown(port, trusting(authority), "any.test") == ["old.test"]

            Path(other.key).replace(pair.key)
            assert contexts.changed()
            contexts.reload()
            assert await names_shown(port, trusting(authority), "any.test") == ["new.test"]

            Path(pair.key).unlink()
            assert contexts.changed()
            with pytest.raises(CertificateError, match="No such file"):
                contexts.reload()
            assert await names_shown(port, trusting(authority), "any.test") == ["new.test"]

    run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("mode", "shows", "accepted"),
    [
        ("required", "ours", True),
        ("required", "none", False),
        ("required", "foreign", False),
        ("optional", "ours", True),
        ("optional", "none", True),
        ("optional", "foreign", False),
        ("ignored", "foreign", True),
    ],
)
def test_client_certificates(
    tmp_path: Path,
    run: Callable[[Coroutine[Any, Any, None]], None],
    version: ssl.TLSVersion,
    mode: str,
    shows: str,
    accepted: bool,
) -> None:
    authority = Authority(tmp_path)
    foreign = Authority(tmp_path, "foreign")
    contexts = TlsContexts(
        config(
            authority.issue("first", ["first.test"]),
            authority.issue("www", ["www.test"]),
            client_ca=authority.certificate,
            client_certificate=mode,
        )
    )
    client_context = trusting(authority, maximum_version=version)
    if shows != "none":
        client_context.load_cert_chain(*(authority if shows == "ours" else foreign).issue("client", []))

    async def main() -> None:
        async with serving(contexts) as port:
            try:  # TLS 1.3 tells a refused client only after its own handshake ended
                shown = await names_shown(port, client_context, "www.test")
            except (OSError, AssertionError):
                shown = []
            assert shown == (["www.test"] if accepted else [])

    run(main())


def test_a_removed_client_authority_lets_nobody_in_by_an_old_session(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    clients = Authority(tmp_path, "clients")
    contexts = TlsContexts(
        config(
            authority.issue("www", ["www.test"]),
            client_ca=clients.certificate,
            client_certificate="required",
        )
    )
    client_context = trusting(authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    client_context.load_cert_chain(*clients.issue("client", []))

    session = handshake(contexts, client_context, None).session
    Authority(tmp_path, "clients")
    contexts.reload()

    with pytest.raises(ssl.SSLError):
        handshake(contexts, client_context, session)


def handshake(
    contexts: TlsContexts, client_context: ssl.SSLContext, session: ssl.SSLSession | None
) -> ssl.SSLObject:
    """A whole handshake in memory, so that a session can be offered again."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts.context.wrap_bio(up, down, server_side=True)
    client = client_context.wrap_bio(down, up, server_hostname="www.test", session=session)
    waiting = [client, server]
    while waiting:
        for side in list(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                waiting.remove(side)
    return client


def test_bad_files_at_the_start_are_named(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("www", ["www.test"])

    with pytest.raises(CertificateError, match=r"gone\.pem"):
        TlsContexts(config(pair._replace(certificate=str(tmp_path / "gone.pem"))))
    with pytest.raises(CertificateError, match="needs client_ca"):
        TlsContexts(config(pair, client_certificate="required"))
