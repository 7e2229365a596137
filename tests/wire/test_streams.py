"""Bodies of any size in bounded memory: backpressure both ways, and events relayed as they come.

What the gateway holds is measured, not timed: bytes the sender's kernel has let go of, less what has arrived
and what the kernel's queues hold (/proc/net/tcp), is what sits in the gateway's memory.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client import Client, request
from tests.gateway import Gateway, rss_bytes
from tests.upstream import Disconnected, Peer, Upstream
from tests.wire.conftest import Wire

MIB = 1 << 20
SIZE = 1024 * MIB
BLOCK = bytes(range(256)) * 256
GROWTH_BYTES = 20 * MIB  # of a worker's resident set
AHEAD_BYTES = MIB  # what the gateway may hold for a client that reads slowly


@pytest.fixture(scope="module")
def streaming() -> Iterator[Wire]:
    with Upstream() as upstream:
        origin = {"targets": [upstream.url], "pool": {"max_requests": 1}}
        route = {"path": "/{rest...}", "upstream": "origin", "request_buffering": 0}
        config = {"upstreams": {"origin": origin}, "routes": [route]}
        with Gateway(config) as gateway:
            yield Wire(gateway, upstream)


def worker(wire: Wire) -> int:
    return wire.gateway.worker_pids()[0]


def queued_bytes(ports: set[int]) -> int:
    """What the kernel holds in the queues of the connections at these ports, both ends."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == "0A":
            continue
        if {int(columns[1].rpartition(":")[2], 16), int(columns[2].rpartition(":")[2], 16)} & ports:
            sent, received = columns[4].split(":")
            total += int(sent, 16) + int(received, 16)
    return total


def settled(value: Callable[[], int]) -> int:
    """The value once it has stopped changing."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.02)
        now = value()
        if now != last:
            last, since = now, time.monotonic()
    return last


def test_large_answer_streams_in_bounded_memory(streaming: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for _ in range(SIZE // len(BLOCK)):
            peer.send(BLOCK)
        peer.wait_closed()

    streaming.upstream.script = script
    before = rss_bytes(worker(streaming))
    peak = before
    with Client(streaming.gateway.port) as client:
        client.send(request("/"))
        client.read_until(b"\r\n\r\n")
        received = looked_at = len(client.unread)
        while received < SIZE:
            data = client.sock.recv(MIB)
            assert data
            received += len(data)
            if received - looked_at > 16 * MIB or received == SIZE:
                peak, looked_at = max(peak, rss_bytes(worker(streaming))), received

    assert peak - before < GROWTH_BYTES


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_large_request_streams_in_bounded_memory(streaming: Wire, framing: str) -> None:
    received = 0

    def script(peer: Peer) -> None:
        nonlocal received
        peer.read_head()
        tail = b""
        while (received < SIZE) if framing == "length" else (not tail.endswith(b"0\r\n\r\n")):
            data = peer.read_some(MIB)
            received += len(data)
            tail = (tail + data)[-5:]
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        peer.wait_closed()

    streaming.upstream.script = script
    before = rss_bytes(worker(streaming))
    with Client(streaming.gateway.port) as client:
        if framing == "length":
            client.send(request("/", "POST", f"Content-Length: {SIZE}"))
            for _ in range(SIZE // len(BLOCK)):
                client.send(BLOCK)
        else:
            client.send(request("/", "POST", "Transfer-Encoding: chunked"))
            chunk = b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK)
            for _ in range(SIZE // len(BLOCK)):
                client.send(chunk)
            client.send(b"0\r\n\r\n")
        assert client.read_response().body == b"ok"
        after = rss_bytes(worker(streaming))

    assert received >= SIZE
    assert after - before < GROWTH_BYTES


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_client_that_does_not_read_stops_the_upstream(streaming: Wire, framing: str) -> None:
    sent = 0

    def script(peer: Peer) -> None:
        nonlocal sent
        peer.read_request()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        fields = {
            "length": b"Content-Length: %d\r\n" % (256 * MIB),
            "chunked": b"Transfer-Encoding: chunked\r\n",
            "close": b"",
        }
        peer.send(b"HTTP/1.1 200 OK\r\n" + fields[framing] + b"\r\n")
        block = b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if framing == "chunked" else BLOCK
        try:
            for _ in range(256 * MIB // len(BLOCK)):
                peer.send(block)
                sent += len(block)
        except (Disconnected, TimeoutError):
            return

    streaming.upstream.script = script
    ports = {streaming.gateway.port, streaming.upstream.port}
    with Client(streaming.gateway.port, window=65536) as client:
        client.send(request("/"))
        head = client.read_until(b"\r\n\r\n")
        stopped = settled(lambda: sent)
        held = stopped - len(client.unread) - queued_bytes(ports)

        assert head.startswith(b"HTTP/1.1 200")
        assert stopped < 64 * MIB
        assert held <= AHEAD_BYTES


def test_upstream_that_does_not_read_stops_the_client(streaming: Wire) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        peer.read_head()
        release.wait(60)

    streaming.upstream.script = script
    ports = {streaming.gateway.port, streaming.upstream.port}
    sent = 0
    with Client(streaming.gateway.port) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        client.send(request("/", "POST", f"Content-Length: {256 * MIB}"))
        client.sock.settimeout(0.5)
        try:
            while sent < 256 * MIB:
                sent += client.sock.send(BLOCK)
        except TimeoutError:
            pass
        read = sum(len(peer.received) + 0 for peer in streaming.upstream.peers[-1:])
        held = sent - read - queued_bytes(ports)
        release.set()

    assert sent < 64 * MIB
    assert held <= AHEAD_BYTES


def test_slow_reader_gets_everything(streaming: Wire) -> None:
    size = 4 * MIB

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(BLOCK)):
            peer.send(BLOCK)
        peer.wait_closed()

    streaming.upstream.script = script
    with Client(streaming.gateway.port, window=16_384) as client:
        client.send(request("/"))
        assert client.read_response().body == BLOCK * (size // len(BLOCK))


def test_events_are_relayed_as_they_come(streaming: Wire) -> None:
    seen = threading.Semaphore(0)
    events = [b"data: %d\n\n" % number for number in range(50)]

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            peer.send(b"%x\r\n%b\r\n" % (len(event), event))
            assert seen.acquire(timeout=60), "the event before did not arrive"
        peer.send(b"0\r\n\r\n")
        peer.wait_closed()

    streaming.upstream.script = script
    with Client(streaming.gateway.port) as client:
        client.send(request("/events"))
        client.read_until(b"\r\n\r\n")
        for event in events:
            assert event in client.read_until(event)
            seen.release()
        assert client.read_until(b"0\r\n\r\n")


def test_half_an_event_is_relayed_as_it_comes(streaming: Wire) -> None:
    """Part of a chunk counts as something that came: nothing waits for the end of a line, an event or a
    chunk.
    """
    seen = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nda"
        )
        assert seen.wait(60)
        peer.send(b"ta: 1\n\r\n0\r\n\r\n")
        peer.wait_closed()

    streaming.upstream.script = script
    with Client(streaming.gateway.port) as client:
        client.send(request("/events"))
        client.read_until(b"\r\n\r\n")
        assert client.read_until(b"da")
        seen.set()
        client.read_until(b"0\r\n\r\n")


def test_request_body_is_relayed_as_it_comes(streaming: Wire) -> None:
    arrived = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.read_head()
        for _ in range(20):
            peer.read_exactly(5)
            arrived.release()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        peer.wait_closed()

    streaming.upstream.script = script
    with Client(streaming.gateway.port) as client:
        client.send(request("/", "POST", "Content-Length: 100"))
        for _ in range(20):
            client.send(b"hello")
            assert arrived.acquire(timeout=60), "the part before did not arrive"
        assert client.read_response().body == b"ok"


def test_answer_and_request_flow_at_the_same_time(streaming: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            data = peer.read_exactly(5)
            peer.send(b"5\r\n" + data + b"\r\n")
        peer.send(b"0\r\n\r\n")
        peer.wait_closed()

    streaming.upstream.script = script
    with Client(streaming.gateway.port) as client:
        client.send(request("/", "POST", "Content-Length: 100"))
        client.read_until(b"\r\n\r\n")
        for number in range(20):
            part = b"%05d" % number
            client.send(part)
            assert part in client.read_until(part)
        assert client.read_until(b"0\r\n\r\n")
