"""What a hostile or careless peer may do: the worker lives on, and what it held is let go."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.client import Client, get
from tests.gateway import Gateway, descriptors, rss_bytes
from tests.upstream import Peer, Upstream
from tests.wire.conftest import Wire

OK_ROUTE = {"path": "/*", "respond": {"status": 200, "body": "ok"}}
CHUNKED_UPGRADE = (
    b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhi\r\n0\r\n\r\n"
)


def until(condition: Callable[[], bool]) -> bool:
    """Waits, as long as any test may take, for something the gateway does by itself."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_chunked_request_with_upgrade_is_passed_on(wire: Wire, delivery: str) -> None:
    _, seen = wire.passes(CHUNKED_UPGRADE, delivery)

    assert seen.body == b"hi"


def answers_until_close(client: Client, count: int) -> int:
    """How many answers came, all of them good. A read that ends between a head and its body has the request
    answered before the body is there: that answer, and only such a one, may close the connection.
    """
    for number in range(1, count + 1):
        answer = client.read_until(b"\r\n\r\nok")
        assert answer.startswith(b"HTTP/1.1 200 ")
        if b"\r\nConnection: close\r\n" in answer:
            return number
    return count


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx",
        CHUNKED_UPGRADE,
    ],
    ids=["plain", "h2c", "h2c with a body", "chunked"],
)
def test_thousands_of_pipelined_requests_in_one_piece(request_bytes: bytes) -> None:
    count = 5000
    with Gateway({"routes": [OK_ROUTE]}) as gateway:
        (worker,) = gateway.worker_pids()
        before = rss_bytes(worker)
        answered = 0
        while answered < count:
            with Client(gateway.port) as client:
                sender = threading.Thread(target=client.send, args=(request_bytes * (count - answered),))
                sender.start()
                answered += answers_until_close(client, count - answered)
                if answered < count:
                    client.read_to_end()
                sender.join()
        assert gateway.worker_pids() == [worker]
        assert rss_bytes(worker) - before < 50 << 20


def test_head_that_trickles_in_is_refused_in_time() -> None:
    config = {"server": {"header_timeout": "100ms"}, "routes": [OK_ROUTE]}
    with Gateway(config) as gateway, Client(gateway.port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        while client.is_idle(0.02):
            client.send(b"a")
        assert client.read_response().status == 408


@pytest.mark.parametrize("field", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("size", [400_000, 8_000_000])
def test_client_that_never_reads_is_dropped(field: bytes, size: int) -> None:
    def large(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))

    config = {"server": {"body_timeout": "200ms", "idle_timeout": "200ms"}}
    with (
        Upstream(large) as upstream,
        Gateway({**config, "routes": [{"path": "/*", "upstream": upstream.url}]}) as gateway,
        Client(gateway.port, window=4096) as client,
    ):
        (worker,) = gateway.worker_pids()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n")
        # The first byte says that the gateway has the connection and answers; it stays in the queue.
        assert client.sock.recv(1, socket.MSG_PEEK) == b"H"
        assert until(lambda: descriptors(worker, gateway.ports).clients == 0)


def test_drain_meets_a_websocket_whose_upstream_ended() -> None:
    def ends(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        peer.half_close()
        peer.wait_closed()

    with Upstream(ends) as upstream:
        routes = [{"path": "/ws", "upstream": upstream.url}, OK_ROUTE]
        with Gateway({"routes": routes}) as gateway, Client(gateway.port) as client:
            client.send(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert client.read_to_end().startswith(b"HTTP/1.1 101 ")
            assert get(gateway.port).status == 200
            gateway.terminate()
            assert gateway.process.wait(60) == 0
