"""The demo services, asked directly. The demo as a whole is in tests/packaging."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from fastgate.cli.demo import CONFIG, Services

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_example_is_the_packaged_config() -> None:
    assert (ROOT / "examples/demo.yaml").read_text() == CONFIG.read_text()


def test_the_config_takes_the_address_of_every_service_from_its_environment() -> None:
    async def ask() -> set[str]:
        async with Services() as services:
            return set(services.environ)

    text = CONFIG.read_text()

    assert all(f"${{{variable}:-" in text for variable in asyncio.run(ask()))


async def exchange(address: str, sent: bytes) -> bytes:
    """Everything that comes back until the service closes, after sending and closing our half."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    writer.write_eof()
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    return received


def ask(service: str, sent: bytes) -> bytes:
    async def main() -> bytes:
        async with Services() as services:
            return await exchange(services.environ[service], sent)

    return asyncio.run(main())


def body_of(answer: bytes) -> object:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_echo_tells_what_arrived() -> None:
    answer = ask("DEMO_ECHO_2", b'POST /a/b?c=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"d": "e"}')

    assert body_of(answer) == {
        "instance": "echo-2",
        "method": "POST",
        "path": "/a/b",
        "query": {"c": ["1"]},
        "headers": {"Host": "x", "Content-Length": "10"},
        "body": {"d": "e"},
    }


def test_echo_reads_chunked_bodies_and_keeps_the_connection() -> None:
    chunked = (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: 1\r\n\r\n"
    )

    answer = ask("DEMO_ECHO_1", chunked + b"GET /second HTTP/1.1\r\n\r\n")

    first, second = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert b'"body": "abc"' in first
    assert b'"path": "/second"' in second


def test_slow_waits_as_long_as_it_is_told() -> None:
    assert body_of(ask("DEMO_SERVICES", b"GET /slow?s=0 HTTP/1.1\r\n\r\n")) == {
        "service": "slow",
        "seconds": 0,
    }


def test_flaky_fails_in_a_fixed_order() -> None:
    async def main() -> list[bytes]:
        async with Services() as services:
            request = b"GET /flaky HTTP/1.1\r\n\r\n"
            return [await exchange(services.environ["DEMO_SERVICES"], request) for _ in range(6)]

    statuses = [answer[9:12] for answer in asyncio.run(main())]

    assert statuses == [b"200", b"200", b"503", b"200", b"", b"503"]


def test_stream_sends_what_it_announced() -> None:
    head, _, body = ask("DEMO_SERVICES", b"GET /stream?mb=0.3 HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")

    assert b"Content-Length: 300000" in head
    assert len(body) == 300_000


def test_events_are_numbered_and_end() -> None:
    answer = ask("DEMO_SERVICES", b"GET /events?count=3&every=0 HTTP/1.1\r\n\r\n")

    assert [answer.count(b"id: %d\n" % number) for number in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert answer.endswith(b"\r\n0\r\n\r\n")


def masked(first: int, payload: bytes) -> bytes:
    mask = b"\x11\x22\x33\x44"
    hidden = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    length = (
        bytes((0x80 | len(payload),))
        if len(payload) < 126
        else b"\xfe" + len(payload).to_bytes(2, "big")
        if len(payload) < 1 << 16
        else b"\xff" + len(payload).to_bytes(8, "big")
    )
    return bytes((first,)) + length + mask + hidden


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_a_websocket_echoes_frames_of_every_length_and_closes() -> None:
    long, longer = b"l" * 300, b"L" * 70_000
    sent = b"".join(
        (
            masked(0x81, b"hello"),
            masked(0x89, b"ping"),
            masked(0x82, long),
            masked(0x82, longer),
            masked(0x88, b"\x03\xe8"),
        )
    )

    head, _, frames = ask("DEMO_SERVICES", UPGRADE + sent).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455 §1.3
    assert frames == (
        b"\x81\x05hello\x8a\x04ping"
        + b"\x82\x7e\x01\x2c"
        + long
        + b"\x82\x7f\x00\x00\x00\x00\x00\x01\x11\x70"
        + longer
        + b"\x88\x02\x03\xe8"
    )


def test_a_websocket_frame_without_a_mask_ends_the_connection() -> None:
    _, _, frames = ask("DEMO_SERVICES", UPGRADE + b"\x81\x02hi").partition(b"\r\n\r\n")

    assert frames == b""


def test_nonsense_and_unknown_paths_do_no_harm() -> None:
    odd = (
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\n\r\n",
    )

    async def main() -> list[bytes]:
        async with Services() as services:
            return [await exchange(services.environ["DEMO_SERVICES"], sent) for sent in odd]

    nonsense, huge, nowhere = asyncio.run(main())

    assert (nonsense, huge) == (b"", b"")
    assert nowhere.startswith(b"HTTP/1.1 404 ")
