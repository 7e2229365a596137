"""Slow clients hold nothing that others need: bodies are collected before a connection to the upstream is
taken, both directions have a minimum rate, and no client, route or listener alone takes a whole pool.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, get, request
from tests.faults.refusals import refusals
from tests.gateway import Gateway, descriptors, rss_bytes
from tests.upstream import OK, Peer, Upstream, answer, echo

MIB = 1 << 20
WAIT_S = 60  # far above what a loaded machine needs: it only ever ends a hang


def until(holds: Callable[[], Any], what: str) -> Any:
    """The first true value of `holds`; AssertionError when it never comes."""
    deadline = time.monotonic() + WAIT_S
    while not (value := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


def admin_get(gateway: Gateway, path: str) -> str:
    """What the admin listener says."""
    host, _, port = gateway.admin.rpartition(":")
    with Client(int(port)) as admin:
        admin.send(request(path, host=host))
        return admin.read_response().body.decode()


def metric(gateway: Gateway, name: str) -> float:
    """The sum of a metric over its labels."""
    text = admin_get(gateway, "/metrics")
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


def counted(gateway: Gateway, reason: str) -> bool:
    return refusals(gateway).get(reason, 0) > 0


@contextlib.contextmanager
def gateway_to(upstream: Upstream, *, allow: str | None = None, **settings: Any) -> Iterator[Gateway]:
    """A gateway with one route to this upstream. settings: of the route, or `server`, `pool`, `listen`,
    `routes`.
    """
    origin = {"targets": [upstream.url], "pool": settings.pop("pool", {})}
    routes = settings.pop("routes", None)
    config: dict[str, Any] = {
        "server": settings.pop("server", {}),
        "upstreams": {"origin": origin},
        **({"listen": listen} if (listen := settings.pop("listen", None)) else {}),
    }
    config["routes"] = routes or [{"path": "/{rest...}", "upstream": "origin", **settings}]
    with Gateway(config, allow=allow) as gateway:
        yield gateway


def held(release: threading.Event) -> Callable[[Peer], None]:
    """Takes requests, and answers when it is told to."""

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            assert release.wait(WAIT_S)
            peer.send(OK)

    return script


# Request bodies


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_slow_uploads_hold_no_connection_to_the_upstream(framing: str) -> None:
    with Upstream(echo) as upstream, gateway_to(upstream, pool={"max_connections": 2}) as gateway:
        slow = [Client(gateway.port) for _ in range(20)]
        for client in slow:
            client.send(request("/slow", "POST", framing))
            client.send(b"5\r\nhello\r\n" if "chunked" in framing else b"hello")
        until(
            lambda: metric(gateway, "fastgate_request_bodies_collecting") == 20, "twenty bodies are collected"
        )
        assert upstream.peers == []

        assert get(gateway.port).status == 200

        for client in slow:
            client.send(b"0\r\n\r\n" if "chunked" in framing else b"x" * 95)
            assert client.read_response().body.startswith(b"hello")
            client.close()
        until(
            lambda: metric(gateway, "fastgate_request_bodies_collecting") == 0,
            "no body is collected any more",
        )


@pytest.mark.parametrize("end", ["close", "reset"])
def test_client_that_leaves_while_its_body_is_collected_leaves_nothing_behind(end: str) -> None:
    with Upstream(echo) as upstream, gateway_to(upstream) as gateway:
        client = Client(gateway.port)
        client.send(request("/", "POST", "Content-Length: 100", body=b"half"))
        until(lambda: metric(gateway, "fastgate_request_bodies_collecting") == 1, "the body is collected")
        client.close() if end == "close" else client.reset()

        until(lambda: metric(gateway, "fastgate_request_bodies_collecting") == 0, "the request is over")
        until(lambda: counted(gateway, "client_closed"), "it is counted, which follows the response")
        assert upstream.peers == []


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_larger_body_streams_once_the_bound_is_reached(framing: str) -> None:
    reached = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.read_exactly(4096)
        reached.set()
        if framing == "length":
            peer.read_exactly(100_000 - 4096)
        else:
            peer.read_until(b"0\r\n\r\n")
        peer.send(OK)
        peer.wait_closed()

    with (
        Upstream(script) as upstream,
        gateway_to(upstream, request_buffering="4096B") as gateway,
        Client(gateway.port) as client,
    ):
        if framing == "length":
            client.send(request("/", "POST", "Content-Length: 100000"))
            client.send(b"x" * 4095)
            assert client.is_idle(0.2)
            assert upstream.peers == []
            client.send(b"x")
            assert reached.wait(WAIT_S)
            client.send(b"x" * (100_000 - 4096))
        else:
            client.send(request("/", "POST", "Transfer-Encoding: chunked"))
            client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            assert reached.wait(WAIT_S)
            client.send(b"0\r\n\r\n")
        assert client.read_response().body == b"ok"


def test_body_of_any_length_is_whole_for_the_upstream() -> None:
    with Upstream(echo) as upstream, gateway_to(upstream) as gateway, Client(gateway.port) as client:
        for size in (1, 65_535, 65_536, 65_537, 300_000):
            body = bytes(range(256)) * (size // 256 + 1)
            client.send(request("/", "POST", f"Content-Length: {size}"))
            for at in range(0, size, 20_000):
                client.send(body[at : min(size, at + 20_000)])
            assert client.read_response().body == body[:size]


def test_pipelined_requests_behind_a_slow_body_keep_their_order() -> None:
    with Upstream(echo) as upstream, gateway_to(upstream) as gateway, Client(gateway.port) as client:
        client.send(request("/", "POST", "Content-Length: 5", body=b"ab"))
        client.send(b"cde" + request("/", "POST", "Content-Length: 3", body=b"xyz"))

        assert [client.read_response().body for _ in range(2)] == [b"abcde", b"xyz"]


def test_trickled_body_below_the_minimum_rate_is_408() -> None:
    server = {"min_upload_rate": "1KB", "rate_grace": "300ms"}
    with (
        Upstream(echo) as upstream,
        gateway_to(upstream, server=server) as gateway,
        Client(gateway.port) as client,
    ):
        client.send(request("/", "POST", "Content-Length: 100000"))
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.02) and client.send(b"x"):
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert client.read_response().status == 408
        finally:
            stop.set()
            thread.join()
        until(lambda: counted(gateway, "body_too_slow"), "it is counted, which follows the response")


def test_trickled_body_is_also_ended_when_it_streams() -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.wait_closed()

    server = {"min_upload_rate": "1KB", "rate_grace": "300ms"}
    with (
        Upstream(script) as upstream,
        gateway_to(upstream, server=server, request_buffering=0) as gateway,
        Client(gateway.port) as client,
    ):
        client.send(request("/", "POST", "Transfer-Encoding: chunked"))
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.02) and client.send(b"1\r\nx\r\n"):
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert client.read_response().status == 408
        finally:
            stop.set()
            thread.join()
        until(lambda: counted(gateway, "body_too_slow"), "it is counted, which follows the response")


def test_upstream_that_reads_slowly_is_not_the_clients_fault() -> None:
    """The client is paused far longer than its grace, and has sent what it could."""
    go_on = threading.Event()
    size = 8 * MIB

    def script(peer: Peer) -> None:
        peer.read_head()
        assert go_on.wait(WAIT_S)
        peer.read_exactly(size)
        peer.send(OK)
        peer.wait_closed()

    server = {"min_upload_rate": "1MB", "rate_grace": "1s", "body_timeout": "10s"}
    with (
        Upstream(script) as upstream,
        gateway_to(upstream, server=server) as gateway,
        Client(gateway.port) as client,
    ):
        client.sock.settimeout(WAIT_S)
        sender = threading.Thread(
            target=client.send, args=(request("/", "POST", f"Content-Length: {size}") + bytes(size),)
        )
        sender.start()
        time.sleep(3)  # what is measured: three times the grace
        go_on.set()
        sender.join()
        assert client.read_response().status == 200


def test_steady_upload_at_mobile_speed_passes_with_the_defaults() -> None:
    """100 kB at 50 kB/s, in pieces, with a pause in between."""
    with Upstream(echo) as upstream, gateway_to(upstream) as gateway, Client(gateway.port) as client:
        client.send(request("/", "POST", "Content-Length: 100000"))
        for _ in range(20):
            client.send(b"x" * 5000)
            time.sleep(0.1)
        assert client.read_response().body == b"x" * 100_000


# Responses


def large(size: int) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))

    return script


def test_small_response_is_taken_off_the_upstream_though_the_client_does_not_read() -> None:
    with Upstream(large(60_000)) as upstream, gateway_to(upstream, pool={"max_connections": 1}) as gateway:
        slow = [Client(gateway.port, window=4096) for _ in range(5)]
        for client in slow:
            client.send(request("/"))

        assert len(get(gateway.port).body) == 60_000

        for client in slow:
            assert len(client.read_response().body) == 60_000
            client.close()


def test_stalled_readers_cost_bounded_memory() -> None:
    with Upstream(large(MIB)) as upstream, gateway_to(upstream) as gateway:
        (worker,) = gateway.worker_pids()
        assert len(get(gateway.port).body) == MIB
        before = rss_bytes(worker)
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                client = stack.enter_context(Client(gateway.port, window=4096))
                client.send(request("/"))
            upstream.wait_for_peers(100)
            time.sleep(1)  # more would be read in this time
            growth = rss_bytes(worker) - before

        assert (
            growth < 100 * 220_000
        )  # 64 kB of them bodies, the rest two connections each and what malloc keeps


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_its_bytes() -> None:
    release = threading.Event()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    upload = head + 30_000 * b"2\r\nab\r\n" + b"0\r\n\r\n"
    with Upstream(held(release)) as upstream, gateway_to(upstream) as gateway:
        (worker,) = gateway.worker_pids()
        before = rss_bytes(worker)
        with contextlib.ExitStack() as stack:
            stack.callback(release.set)
            for _ in range(40):
                stack.enter_context(Client(gateway.port)).send(upload)
            until(lambda: len(upstream.requests) == 40, "the upstream has all uploads")
            growth = rss_bytes(worker) - before

        assert {request.body for request in upstream.requests} == {30_000 * b"ab"}
        # 2.4 MB of bodies, and two connections each; an object for each chunk would take 67 MB
        assert growth < 30 * MIB


@pytest.mark.parametrize("tail", ["", "Connection: close"])
def test_stalled_reader_is_cut_once_its_time_is_over(tail: str) -> None:
    """Not after a second time-out for what the gateway still holds of the response."""
    fields = [tail] if tail else []
    to_origin = [{"path": "/", "upstream": "origin"}]
    with (
        Upstream(large(8 * MIB)) as upstream,
        gateway_to(
            upstream, server={"body_timeout": "3s"}, routes=[*to_origin, {"path": "/here", "respond": {}}]
        ) as gateway,
        Client(gateway.port, window=4096) as client,
        Client(gateway.port) as other,
    ):
        (worker,) = gateway.worker_pids()
        client.send(request("/", "GET", *fields))
        until(lambda: counted(gateway, "client_stalled"), "the reader is given up")
        for _ in range(3):  # as many turns of the worker, at least
            other.send(request("/here"))
            assert other.read_response().status == 200

        assert descriptors(worker, gateway.ports).clients == 1


def test_reader_below_the_minimum_rate_is_cut() -> None:
    server = {"min_download_rate": "10MB", "rate_grace": "500ms", "body_timeout": "20s"}
    with (
        Upstream(large(64 * MIB)) as upstream,
        gateway_to(upstream, server=server) as gateway,
        Client(gateway.port, window=4096) as client,
    ):
        client.send(request("/"))
        stop = threading.Event()

        def sip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    client.sock.recv(1000)

        thread = threading.Thread(target=sip)
        thread.start()
        try:
            until(lambda: counted(gateway, "client_too_slow"), "the reader is given up")
        finally:
            stop.set()
            thread.join()


# Shares of a pool


def test_default_pool_serves_as_many_at_once_as_come() -> None:
    release = threading.Event()
    with (
        Upstream(held(release)) as upstream,
        gateway_to(upstream) as gateway,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client(gateway.port)) for _ in range(400)]
        for client in clients:
            client.send(request("/"))
        upstream.wait_for_peers(400, WAIT_S)
        release.set()
        assert [client.read_response().status for client in clients] == [200] * 400
        assert metric(gateway, "fastgate_upstream_limited_total") == 0


def from_address(gateway: Gateway, address: str) -> Client:
    """A client that connects from another loopback address."""
    client = Client.__new__(Client)
    client.sock = socket.create_connection(("127.0.0.1", gateway.port), WAIT_S, source_address=(address, 0))
    client.closed = client.was_reset = False
    client.unread = b""
    return client


def test_one_client_leaves_a_reserve_of_the_pool_to_others() -> None:
    release = threading.Event()
    pool = {"max_connections": 10, "reserve": 3, "queue_timeout": "60s"}
    with Upstream(held(release)) as upstream, gateway_to(upstream, pool=pool) as gateway:
        greedy = [Client(gateway.port) for _ in range(15)]
        for client in greedy:
            client.send(request("/greedy"))
        until(lambda: metric(gateway, "fastgate_upstream_queue") == 8, "eight requests wait")
        until(lambda: len(upstream.requests) >= 7, "seven are in flight")
        assert len(upstream.requests) == 7

        others = [from_address(gateway, f"127.0.0.{number}") for number in (2, 3)]
        for client in others:
            client.send(request("/other"))
        until(
            lambda: sum(r.target == b"/other" for r in upstream.requests) == 2,
            "the others are served meanwhile",
        )

        release.set()
        for client in [*greedy, *others]:
            assert client.read_response().status == 200
            client.close()
        assert metric(gateway, "fastgate_upstream_limited_total") > 0
        assert "connection limit reached" in gateway.stderr_text


def test_one_route_leaves_a_reserve_of_the_pool_to_others() -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        while True:
            if peer.read_request().target == b"/slow":
                assert release.wait(WAIT_S)
            peer.send(OK)

    pool = {"max_connections": 4, "reserve": 1, "queue_timeout": "60s"}
    routes = [{"path": "/slow", "upstream": "origin"}, {"path": "/fast", "upstream": "origin"}]
    with Upstream(script) as upstream, gateway_to(upstream, pool=pool, routes=routes) as gateway:
        slow = [from_address(gateway, f"127.0.0.{number}") for number in range(2, 10)]
        for client in slow:
            client.send(request("/slow"))
        until(lambda: metric(gateway, "fastgate_upstream_queue") == 5, "five requests wait")

        for _ in range(5):
            assert get(gateway.port, "/fast").status == 200

        release.set()
        for client in slow:
            assert client.read_response().status == 200
            client.close()


def test_one_client_leaves_places_of_the_queue_to_others() -> None:
    release = threading.Event()
    pool = {"max_connections": 10, "max_queue": 10, "queue_timeout": "60s"}
    with Upstream(held(release)) as upstream, gateway_to(upstream, pool=pool) as gateway:
        other = from_address(gateway, "127.0.0.2")
        more = from_address(gateway, "127.0.0.3")
        other.send(request("/other"))
        until(lambda: upstream.requests, "the other is first")
        greedy = [Client(gateway.port) for _ in range(25)]
        for client in greedy:
            client.send(request("/greedy"))
        until(
            lambda: refusals(gateway).get("upstream_queue_full", 0) == 7,
            "what the queue cannot take is refused",
        )
        more.send(request("/more"))
        until(
            lambda: metric(gateway, "fastgate_upstream_queue") == 10,
            "the queue has a place for another client",
        )

        release.set()
        assert sorted(client.read_response().status for client in greedy) == [200] * 18 + [503] * 7
        assert other.read_response().status == more.read_response().status == 200
        for client in [*greedy, other, more]:
            client.close()


def test_one_listener_leaves_connections_to_the_others(tmp_path: Path) -> None:
    listen = ["127.0.0.1:0", f"unix:{tmp_path}/gateway"]
    with (
        Upstream(answer()) as upstream,
        gateway_to(upstream, server={"max_connections": 20}, listen=listen) as gateway,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client(gateway.port)) for _ in range(20)]
        for client in clients:
            client.send(request("/"))
        assert sorted(client.read_response().status for client in clients) == [200] * 18 + [503] * 2
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(WAIT_S)
            other.connect(f"{tmp_path}/gateway")
            other.sendall(request("/"))
            assert other.recv(12) == b"HTTP/1.1 200"


def test_status_tells_that_a_pool_is_the_limit() -> None:
    release = threading.Event()
    with (
        Upstream(held(release)) as upstream,
        gateway_to(upstream, pool={"max_connections": 1, "queue_timeout": "60s"}) as gateway,
    ):
        clients = [Client(gateway.port) for _ in range(3)]
        for client in clients:
            client.send(request("/"))

        def status() -> dict[str, Any]:
            return dict(json.loads(admin_get(gateway, "/api/gateway/status")))

        until(lambda: status()["upstream_waiting"] == 2, "two requests wait")
        assert (status()["upstream_limited"], status()["upstream_connections"]) == (2, 1)
        release.set()
        for client in clients:
            assert client.read_response().status == 200
            client.close()
