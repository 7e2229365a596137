"""Pools through real sockets: their bounds, what is reused, and which target is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.authority import Authority
from tests.client import Client, get, request
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.strict import Message
from tests.upstream import OK, Peer, Upstream, answer
from tests.upstreams.test_tls import server_context

NEVER = "60s"  # a limit that no test here reaches
CLOSED = "http://127.0.0.1:1"


class Harness:
    """One gateway with an upstream for each kind of pool, all of them on the same raw server."""

    def __init__(self, gateway: Gateway, upstreams: dict[str, Upstream]) -> None:
        self.gateway = gateway
        self.upstreams = upstreams
        self.upstream = upstreams["plain"]

    def gauge(self, name: str) -> int:
        """A figure of /metrics, which may be half a second old."""
        host, _, port = self.gateway.admin.rpartition(":")
        with Client(int(port)) as client:
            client.send(request("/metrics", host=host))
            text = client.read_response().body.decode()
        return sum(int(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))

    def send(self, *targets: str, method: str = "GET", body: bytes = b"") -> list[Client]:
        """A client for each target, its request sent."""
        clients = [Client(self.gateway.port) for _ in targets]
        for client, target in zip(clients, targets, strict=True):
            client.send(request(target, method, body=body))
        return clients

    def get(self, target: str) -> Message:
        return get(self.gateway.port, target)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    directory = tmp_path_factory.mktemp("pool")
    authority = Authority(directory)
    tls = server_context(authority.issue("www", ["orders.internal"]))
    with ExitStack() as stack:
        upstreams = {
            "plain": Upstream(),
            "second": Upstream(),
            "unix": Upstream(path=str(directory / "up.sock")),
            "tls": Upstream(tls=tls),
        }
        for upstream in upstreams.values():
            stack.enter_context(upstream)
        url = {name: upstream.url for name, upstream in upstreams.items()}

        def pool(**settings: Any) -> dict[str, Any]:
            return {"targets": [url["plain"]], "pool": {"queue_timeout": NEVER, **settings}}

        def secure(**settings: Any) -> dict[str, Any]:
            return {"targets": [url["tls"]], "tls": settings, "pool": {"max_requests": 1}}

        kinds: dict[str, dict[str, Any]] = {
            "two": pool(max_connections=2, max_queue=2),
            "impatient": pool(max_connections=1, queue_timeout="100ms"),
            "queueless": pool(max_connections=1, max_queue=0),
            "one": pool(max_connections=1),
            "one-idle": pool(max_idle=1),
            "no-idle": pool(max_idle=0),
            "brief": pool(idle_timeout="50ms"),
            "three-requests": pool(max_requests=3),
            "short-lived": pool(max_lifetime="50ms"),
            "weighted": {
                "targets": [{"url": url["plain"], "weight": 3}, url["second"], {"url": CLOSED, "weight": 0}]
            },
            "half-dead": {"targets": [CLOSED, url["plain"]], "pool": {"max_requests": 1}},
            "mostly-dead": {
                "targets": [{"url": CLOSED, "weight": 5}, "http://127.0.0.1:2", url["plain"]],
                "pool": {"max_requests": 1},
            },
            "dead": {"targets": [CLOSED, "http://127.0.0.1:2"]},
            "unix": {"targets": [url["unix"]]},
            "trusted": secure(ca=authority.certificate, server_name="orders.internal"),
            "misnamed": secure(ca=authority.certificate, server_name="other.internal"),
            "unnamed": secure(ca=authority.certificate),
            "foreign": secure(server_name="orders.internal"),
            "unverified": secure(verify=False),
        }
        config = {
            "upstreams": kinds,
            "routes": [{"name": kind, "path": f"/{kind}/{{rest...}}", "upstream": kind} for kind in kinds],
        }
        with Gateway(config, allow="upstream_tls_failed|upstream_connect_failed") as gateway:
            yield Harness(gateway, upstreams)


@pytest.fixture
def harness(running: Harness) -> Iterator[Harness]:
    for upstream in running.upstreams.values():
        upstream.forget()
        upstream.script = answer()
    assert running.gateway.leaks() == []

    yield running

    for upstream in running.upstreams.values():
        failures = upstream.failures
        upstream.forget()
        assert failures == []
    assert running.gateway.complaints() == []
    assert running.gateway.leaks() == []


class Held:
    """A script that answers nothing until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def __call__(self, peer: Peer) -> None:
        while True:
            peer.read_request()
            assert self.let_go.wait(60)
            peer.send(OK)


def reason_of(response: Message) -> tuple[int, str]:
    return response.status, json.loads(response.body)["error"]


# Bounds


def test_connections_and_queue_are_bounded_and_served_in_order(harness: Harness) -> None:
    harness.upstream.script = held = Held()
    working = harness.send("/two/1", "/two/2")
    harness.upstream.wait_for_peers(2)
    waiting = [*harness.send("/two/3"), *harness.send("/two/4")]
    until(lambda: harness.gauge("fastgate_upstream_queue") == 2, "two that wait")

    refused = harness.get("/two/5")
    held.let_go.set()

    assert reason_of(refused) == (503, "Too many requests are waiting for upstream")
    for client in [*working, *waiting]:
        assert client.read_response().status == 200
        client.close()
    assert len(harness.upstream.peers) == 2
    assert sorted(message.target for message in harness.upstream.requests) == [
        b"/two/%d" % i for i in range(1, 5)
    ]
    until(lambda: harness.gauge("fastgate_upstream_queue") == 0, "no request waits")


def test_waiting_has_a_time_limit(harness: Harness) -> None:
    harness.upstream.script = held = Held()
    (working,) = harness.send("/impatient/1")
    harness.upstream.wait_for_peers(1)

    refused = harness.get("/impatient/2")
    held.let_go.set()

    assert reason_of(refused) == (503, "No upstream connection became free in time")
    assert working.read_response().status == 200
    working.close()
    assert harness.get("/impatient/3").status == 200
    assert len(harness.upstream.requests) == 2


def test_without_a_queue_nobody_waits(harness: Harness) -> None:
    harness.upstream.script = held = Held()
    (working,) = harness.send("/queueless/1")
    harness.upstream.wait_for_peers(1)

    assert harness.get("/queueless/2").status == 503
    held.let_go.set()
    assert working.read_response().status == 200
    working.close()


def test_a_client_that_leaves_gives_up_its_place(harness: Harness) -> None:
    harness.upstream.script = held = Held()
    (working,) = harness.send("/two/1")
    (other,) = harness.send("/two/2")
    harness.upstream.wait_for_peers(2)
    leaving = [*harness.send("/two/3"), *harness.send("/two/4")]
    until(lambda: harness.gauge("fastgate_upstream_queue") == 2, "two that wait")

    for client in leaving:
        client.close()

    until(lambda: harness.gauge("fastgate_upstream_queue") == 0, "the places are free")
    held.let_go.set()
    for client in (working, other):
        assert client.read_response().status == 200
        client.close()
    assert harness.get("/two/5").status == 200
    assert sorted(message.target for message in harness.upstream.requests) == [
        b"/two/1",
        b"/two/2",
        b"/two/5",
    ]


@pytest.mark.parametrize("connections", [1, 20])
def test_everyone_who_waits_is_served(harness: Harness, connections: int) -> None:
    once = OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    harness.upstream.script = answer(OK if connections == 1 else once)
    clients = harness.send(*[f"/one/{i}" for i in range(20)])

    assert [client.read_response().status for client in clients] == [200] * 20
    for client in clients:
        client.close()
    assert len(harness.upstream.peers) == connections


# What is kept


@pytest.mark.parametrize(("kind", "kept"), [("one-idle", 1), ("no-idle", 0)])
def test_only_so_many_idle_connections_are_kept(harness: Harness, kind: str, kept: int) -> None:
    together = threading.Barrier(3, timeout=60)

    def script(peer: Peer) -> None:
        peer.read_request()
        if peer.number < 3:
            together.wait()
        peer.send(OK)
        answer()(peer)

    harness.upstream.script = script
    for client in harness.send(*[f"/{kind}/{i}" for i in range(3)]):
        assert client.read_response().status == 200
        client.close()

    until(
        lambda: sum(peer.ended.is_set() for peer in harness.upstream.peers) == 3 - kept,
        "the others are closed",
    )
    assert harness.get(f"/{kind}/again").status == 200
    assert len(harness.upstream.peers) == (3 if kept else 4)


@pytest.mark.parametrize("kind", ["brief", "short-lived"])
def test_an_idle_connection_is_closed_when_its_time_is_over(harness: Harness, kind: str) -> None:
    assert harness.get(f"/{kind}/1").status == 200

    assert harness.upstream.peers[0].ended.wait(60)
    assert harness.get(f"/{kind}/2").status == 200
    assert len(harness.upstream.peers) == 2


def test_a_connection_past_its_lifetime_is_not_used_again_however_busy(harness: Harness) -> None:
    def ask() -> bool:
        assert harness.get("/short-lived/x").status == 200
        return len(harness.upstream.peers) == 3

    until(ask, "the third connection")
    assert all(peer.ended.wait(60) for peer in harness.upstream.peers[:2])


def test_a_connection_carries_only_so_many_requests(harness: Harness) -> None:
    for i in range(7):
        assert harness.get(f"/three-requests/{i}").status == 200

    assert [len(peer.requests) for peer in harness.upstream.peers] == [3, 3, 1]


# Targets


def test_weights_are_kept_smoothly(harness: Harness) -> None:
    second = harness.upstreams["second"]
    turns = []
    for _ in range(40):
        before = len(second.requests)
        assert harness.get("/weighted/x").status == 200
        turns.append(len(second.requests) - before)

    assert (len(harness.upstream.requests), len(second.requests)) == (30, 10)
    assert [sum(turns[at : at + 4]) for at in range(37)] == [1] * 37


@pytest.mark.parametrize("kind", ["half-dead", "mostly-dead"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_target_that_cannot_be_reached_is_passed_over(harness: Harness, kind: str, method: str) -> None:
    body = b"pay 5" if method == "POST" else b""
    clients = harness.send(*[f"/{kind}/{i}" for i in range(30)], method=method, body=body)

    assert [client.read_response().status for client in clients] == [200] * 30
    for client in clients:
        client.close()
    assert sorted(message.target for message in harness.upstream.requests) == sorted(
        b"/%s/%d" % (kind.encode(), i) for i in range(30)
    )
    assert all(message.body == body for message in harness.upstream.requests)


def test_every_target_is_tried_before_giving_up(harness: Harness) -> None:
    assert reason_of(harness.get("/dead/x")) == (502, "Could not connect to upstream")

    said = harness.gateway.stderr_text
    assert "127.0.0.1:1:" in said
    assert "127.0.0.1:2:" in said


def test_a_unix_socket_is_a_target(harness: Harness) -> None:
    unix = harness.upstreams["unix"]

    assert [harness.get("/unix/x").body for _ in range(3)] == [b"ok"] * 3
    assert len(unix.peers) == 1
    assert unix.requests[0].get("host") == b"localhost"


# TLS


@pytest.mark.parametrize("kind", ["trusted", "unverified"])
def test_a_tls_target_is_asked(harness: Harness, kind: str) -> None:
    assert harness.get(f"/{kind}/x").body == b"ok"
    assert len(harness.upstreams["tls"].requests) == 1


@pytest.mark.parametrize("kind", ["misnamed", "unnamed", "foreign"])
def test_a_tls_target_that_cannot_be_verified_is_not(harness: Harness, kind: str) -> None:
    assert reason_of(harness.get(f"/{kind}/x")) == (502, "TLS handshake with upstream failed")
    assert harness.upstreams["tls"].requests == []


# Counts


def test_counts_of_what_is_open_return_to_zero(harness: Harness) -> None:
    harness.upstream.script = held = Held()
    clients = harness.send("/two/1", "/two/2", "/two/3")
    until(lambda: harness.gauge("fastgate_upstream_connections") == 2, "two connections")
    held.let_go.set()
    for client in clients:
        assert client.read_response().status == 200
        client.close()

    for upstream in harness.upstreams.values():
        upstream.forget()

    until(lambda: harness.gauge("fastgate_upstream_connections") == 0, "no connection")
    assert harness.gauge("fastgate_upstream_queue") == 0
    until(lambda: harness.gauge("fastgate_requests_active") == 0, "no request")


def test_an_unusable_socket_path_is_told(tmp_path: Path) -> None:
    config = {"routes": [{"path": "/", "upstream": f"unix:{tmp_path}/gone.sock"}]}

    with Gateway(config, allow="upstream_connect_failed") as gateway:
        assert reason_of(get(gateway.port)) == (502, "Could not connect to upstream")
