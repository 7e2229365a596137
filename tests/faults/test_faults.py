"""A network that fails between the gateway and an upstream, and peers that are too slow: each fault has its
own reason.

Time limits are set short in the config instead of waiting for long ones; no test measures how long anything
took. A test that something is in time has a limit of TIMED or more, far above what a loaded machine needs.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.client import Client, get, request
from tests.control.admin_client import scrape, value
from tests.faults.proxy import FaultProxy, deaf_listener
from tests.faults.refusals import refusals
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.strict import Malformed, Message
from tests.upstream import OK, Peer, Upstream, answer

NEVER = "60s"  # a limit that no test here reaches
SOON = "200ms"
TIMED, TIMED_S = "2s", 2.0


@dataclass
class Harness:
    """A gateway whose link to its upstream can be broken."""

    gateway: Gateway
    upstream: Upstream
    link: FaultProxy

    def queues(self, expected: int) -> None:
        """Returns once so many requests wait for an upstream connection."""
        until(
            lambda: value(scrape(self.gateway.admin), "fastgate_upstream_queue") == expected,
            f"{expected} requests in the queue",
        )

    def count(self, reason: str) -> int:
        return refusals(self.gateway).get(reason, 0)

    def counts_up_to(self, reason: str, expected: int) -> None:
        """Fails unless the reason is counted so often, now or soon (after its answer)."""
        deadline = time.monotonic() + 60
        while self.count(reason) < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.count(reason) == expected, refusals(self.gateway)


@pytest.fixture(scope="module")
def running() -> Iterator[Harness]:
    with Upstream() as upstream, FaultProxy(upstream.port) as link, deaf_listener() as deaf:
        once = {"max_requests": 1}  # each test's script meets its own connection
        limits = {"connect": NEVER, "first_byte": NEVER, "between_bytes": NEVER}
        narrow = {"max_connections": 1, "max_queue": 1, "queue_timeout": NEVER}
        impatient = {**narrow, "queue_timeout": SOON}
        targets = [link.url]
        config = {
            "server": {"header_timeout": NEVER, "body_timeout": NEVER, "idle_timeout": NEVER},
            "upstreams": {
                "plain": {"targets": targets, "pool": once, "timeouts": limits},
                "first": {"targets": targets, "pool": once, "timeouts": {**limits, "first_byte": SOON}},
                "between": {"targets": targets, "pool": once, "timeouts": {**limits, "between_bytes": SOON}},
                "timed": {
                    "targets": targets,
                    "pool": once,
                    "timeouts": {**limits, "first_byte": TIMED, "between_bytes": TIMED},
                },
                "total": {"targets": targets, "pool": once, "timeouts": {**limits, "total": SOON}},
                "narrow": {"targets": [upstream.url], "pool": narrow, "timeouts": limits},
                "impatient": {"targets": [upstream.url], "pool": impatient, "timeouts": limits},
                "deaf": {"targets": [f"http://127.0.0.1:{deaf}"], "timeouts": {**limits, "connect": SOON}},
                "half_deaf": {
                    "targets": [f"http://127.0.0.1:{deaf}", f"http://127.0.0.1:{upstream.port}"],
                    "timeouts": {**limits, "connect": TIMED},  # when the pool itself gives up
                },
                "closed": {"targets": ["http://127.0.0.1:1"]},
                "nowhere": {"targets": ["http://no-such-host.invalid"]},
                "untrusted": {"targets": [f"https://127.0.0.1:{upstream.port}"]},
                "socketless": {"targets": ["unix:/nonexistent/fastgate.sock"]},
            },
            "routes": [
                {"path": f"/{name}/{{rest...}}", "upstream": name}
                for name in (
                    "plain",
                    "first",
                    "between",
                    "timed",
                    "total",
                    "narrow",
                    "impatient",
                    "deaf",
                    "closed",
                    "nowhere",
                    "untrusted",
                    "socketless",
                )
            ]
            + [{"path": "/half_deaf/{rest...}", "upstream": "half_deaf", "timeouts": {"connect": SOON}}],
        }
        with Gateway(config) as gateway:
            yield Harness(gateway, upstream, link)


@pytest.fixture(scope="module")
def running_hurried() -> Iterator[Harness]:
    with Upstream() as upstream, FaultProxy(upstream.port) as link:
        config = {
            "server": {"header_timeout": "1s", "body_timeout": "1s", "idle_timeout": "1s"},
            "routes": [{"path": "/plain/{rest...}", "upstream": upstream.url}],
        }
        with Gateway(config) as gateway:
            yield Harness(gateway, upstream, link)


@pytest.fixture
def harness(running: Harness) -> Iterator[Harness]:
    yield from checked(running)


@pytest.fixture
def hurried(running_hurried: Harness) -> Iterator[Harness]:
    """A gateway that gives its clients little time."""
    yield from checked(running_hurried)


def checked(running: Harness) -> Iterator[Harness]:
    """Fails when the test left something behind."""
    running.link.heal()
    running.upstream.forget()
    running.upstream.script = answer()
    workers = running.gateway.worker_pids()

    yield running

    running.link.heal()
    running.upstream.forget()
    assert running.gateway.worker_pids() == workers
    assert running.gateway.complaints() == []
    assert running.gateway.leaks() == []


def refused(harness: Harness, target: str, status: int, reason: str, method: str = "GET") -> Message:
    """The answer of the gateway, after checking that the reason was counted exactly once."""
    before = harness.count(reason)
    response = get(harness.gateway.port, target, method=method)
    assert response.status == status, (response.status, response.body)
    assert isinstance(json.loads(response.body)["error"], str)
    harness.counts_up_to(reason, before + 1)
    return response


def cut_answer(harness: Harness, target: str) -> None:
    """Fails unless the answer at this target begins and does not end."""
    with Client(harness.gateway.port) as client:
        client.send(request(target))
        client.read_until(b"\r\n\r\n")
        before = client.read_to_end()
        assert len(before) < 1000, "the answer was whole"
        assert client.closed


def begun(peer: Peer) -> None:
    peer.read_request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 100)
    peer.wait_closed()


def silent(peer: Peer) -> None:
    peer.read_request()
    peer.wait_closed()


def test_refused_connection_is_502(harness: Harness) -> None:
    refused(harness, "/closed/a", 502, "upstream_connect_failed")


def test_unknown_host_is_502(harness: Harness) -> None:
    refused(harness, "/nowhere/a", 502, "upstream_connect_failed")


def test_missing_unix_socket_is_502(harness: Harness) -> None:
    refused(harness, "/socketless/a", 502, "upstream_connect_failed")


def test_connecting_for_too_long_is_504(harness: Harness) -> None:
    refused(harness, "/deaf/a", 504, "upstream_connect_timeout")


def test_connecting_for_too_long_is_tried_at_the_next_target(harness: Harness) -> None:
    """By the time-out of the route, which is not that of the pool. Nothing was sent: a POST is tried too."""
    for _ in range(2):  # whichever target the balancer picks first
        assert get(harness.gateway.port, "/half_deaf/a", method="POST").status == 200


def test_one_that_waited_for_too_long_fails_no_other(harness: Harness) -> None:
    """Each has a connection of its own that is being opened."""
    limit_s = float(SOON.removesuffix("ms")) / 1000
    with Client(harness.gateway.port) as first, Client(harness.gateway.port) as second:
        first.send(request("/deaf/a"))
        time.sleep(limit_s * 0.7)
        second.send(request("/deaf/b"))
        began = time.monotonic()
        assert first.read_response().status == 504
        assert second.read_response().status == 504
        assert time.monotonic() - began > limit_s * 0.9


def test_a_connection_that_is_opened_for_one_that_left_fails_no_other() -> None:
    with deaf_listener() as deaf:
        upstream = {
            "targets": [f"http://127.0.0.1:{deaf}"],
            "timeouts": {"connect": "1s"},
            "pool": {"max_connections": 1},
        }
        config = {"upstreams": {"deaf": upstream}, "routes": [{"path": "/*", "upstream": "deaf"}]}
        with Gateway(config) as gateway:
            with Client(gateway.port) as first:
                first.send(request("/a"))
                until(lambda: connections(gateway) == 1, "the first is connecting")
                time.sleep(0.6)
                first.reset()
            with Client(gateway.port) as second:
                second.send(request("/b"))
                began = time.monotonic()
                assert second.read_response().status == 504
                assert time.monotonic() - began > 0.9


def connections(gateway: Gateway) -> float:
    return value(scrape(gateway.admin), "fastgate_upstream_connections")


def test_plain_text_where_tls_was_expected_is_502(harness: Harness) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        peer.wait_closed()

    harness.upstream.script = script

    refused(harness, "/untrusted/a", 502, "upstream_tls_failed")


def test_no_first_byte_in_time_is_504(harness: Harness) -> None:
    harness.upstream.script = silent

    refused(harness, "/first/a", 504, "upstream_first_byte_timeout")


def test_late_upload_is_no_late_first_byte(harness: Harness) -> None:
    """The clock for the first byte starts when the request is out, not while the client still sends."""
    with Client(harness.gateway.port) as client:
        client.send(request("/timed/a", "POST", "Content-Length: 4", body=b"a"))
        for byte in (b"b", b"c", b"d"):
            assert client.is_idle(TIMED_S * 0.4)  # together longer than the limit
            client.send(byte)
        assert client.read_response().body == b"ok"


def test_stalled_link_is_a_late_first_byte(harness: Harness) -> None:
    harness.link.stall()

    refused(harness, "/first/a", 504, "upstream_first_byte_timeout")


def test_half_a_head_is_a_late_answer_too(harness: Harness) -> None:
    harness.link.stall(after=20)

    response = get(harness.gateway.port, "/first/a")

    assert response.status == 504


def test_stall_within_the_body_cuts_the_answer(harness: Harness) -> None:
    harness.upstream.script = begun
    before = harness.count("upstream_between_bytes_timeout")

    cut_answer(harness, "/between/a")

    harness.counts_up_to("upstream_between_bytes_timeout", before + 1)


def test_bytes_that_keep_coming_never_time_out(harness: Harness) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        pause = threading.Event()
        for _ in range(6):
            pause.wait(TIMED_S * 0.2)  # together longer than the limit
            peer.send(b"x")
        peer.wait_closed()

    harness.upstream.script = script

    assert get(harness.gateway.port, "/timed/a").body == b"xxxxxx"


def test_client_that_does_not_read_is_not_the_upstreams_stall(harness: Harness) -> None:
    body = b"x" * 8_000_000

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        peer.wait_closed()

    harness.upstream.script = script
    before = harness.count("upstream_between_bytes_timeout")
    with Client(harness.gateway.port, window=16384) as client:
        client.send(request("/timed/a"))
        client.read_until(b"\r\n\r\n")
        threading.Event().wait(TIMED_S * 1.2)
        client.unread = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + client.unread
        assert client.read_response().body == body
    assert harness.count("upstream_between_bytes_timeout") == before


def test_request_over_its_total_time_is_504(harness: Harness) -> None:
    harness.upstream.script = silent

    refused(harness, "/total/a", 504, "total_timeout")


def test_answer_over_its_total_time_is_cut(harness: Harness) -> None:
    harness.upstream.script = begun
    before = harness.count("total_timeout")

    cut_answer(harness, "/total/a")

    harness.counts_up_to("total_timeout", before + 1)


def test_cancelled_request_is_cancelled_upstream(harness: Harness) -> None:
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        if peer.wait_closed():
            ended.set()

    harness.upstream.script = script

    assert get(harness.gateway.port, "/first/a").status == 504
    assert ended.wait(60)


@pytest.mark.parametrize("how", ["cut", "reset"])
@pytest.mark.parametrize("after", [0, 1, 16, 36])
def test_link_that_breaks_within_the_head_is_502(harness: Harness, how: str, after: int) -> None:
    getattr(harness.link, how)(after=after)

    response = get(harness.gateway.port, "/plain/a", method="POST", body=b"x")

    assert response.status == 502
    assert len(harness.upstream.requests) <= 1


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_link_that_breaks_within_the_body_cuts_the_answer(harness: Harness, how: str) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
        peer.wait_closed()

    harness.upstream.script = script
    getattr(harness.link, how)(after=200)

    with Client(harness.gateway.port) as client:
        client.send(request("/plain/a"))
        try:
            response = client.read_response()
        except Malformed:
            assert client.closed
        else:
            assert response.status == 502


def test_link_that_heals_serves_again(harness: Harness) -> None:
    harness.link.reset()
    assert get(harness.gateway.port, "/plain/a", method="POST").status == 502

    harness.link.heal()

    assert get(harness.gateway.port, "/plain/a", method="POST").body == b"ok"


def test_slow_link_delivers_everything(harness: Harness) -> None:
    harness.link.delay(0.05)

    assert get(harness.gateway.port, "/plain/a").body == b"ok"


def test_host_that_vanished_is_a_late_first_byte(harness: Harness) -> None:
    assert get(harness.gateway.port, "/plain/a").body == b"ok"
    harness.link.black_hole()

    assert get(harness.gateway.port, "/first/b").status == 504


def test_full_pool_queues_and_then_refuses(harness: Harness) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        release.wait(60)
        peer.send(OK)
        peer.wait_closed()

    harness.upstream.script = script
    before = refusals(harness.gateway)
    holder, waiter = Client(harness.gateway.port), Client(harness.gateway.port)
    with holder, waiter:
        holder.send(request("/narrow/a"))
        harness.upstream.wait_for_peers(1)
        waiter.send(request("/narrow/b"))
        harness.queues(1)

        assert get(harness.gateway.port, "/narrow/c").status == 503
        waiter.close()
        release.set()
        assert holder.read_response().body == b"ok"

    release.clear()
    with Client(harness.gateway.port) as holder:
        holder.send(request("/impatient/a"))
        harness.upstream.wait_for_peers(2)
        assert get(harness.gateway.port, "/impatient/b").status == 503
        release.set()
        assert holder.read_response().body == b"ok"

    for reason in ("upstream_queue_full", "upstream_queue_timeout"):
        harness.counts_up_to(reason, before.get(reason, 0) + 1)
    assert len(harness.upstream.peers) == 2


def test_queued_request_gets_the_connection_that_becomes_free(harness: Harness) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        release.wait(60)
        peer.send(OK)
        answer()(peer)

    harness.upstream.script = script
    first, second = Client(harness.gateway.port), Client(harness.gateway.port)
    with first, second:
        first.send(request("/narrow/a"))
        harness.upstream.wait_for_peers(1)
        second.send(request("/narrow/b"))
        harness.queues(1)
        release.set()
        assert first.read_response().body == b"ok"
        assert second.read_response().body == b"ok"

    assert len(harness.upstream.peers) == 1


def test_client_that_leaves_the_queue_gives_its_place_up(harness: Harness) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        release.wait(60)
        peer.send(OK)
        answer()(peer)

    harness.upstream.script = script
    holder = Client(harness.gateway.port)
    with holder:
        holder.send(request("/narrow/a"))
        harness.upstream.wait_for_peers(1)
        with Client(harness.gateway.port) as leaver:
            leaver.send(request("/narrow/left"))
            harness.queues(1)
        harness.queues(0)
        with Client(harness.gateway.port) as client:
            client.send(request("/narrow/b"))
            harness.queues(1)
            release.set()
            assert holder.read_response().body == b"ok"
            assert client.read_response().body == b"ok"

    assert [message.target for message in harness.upstream.requests] == [b"/narrow/a", b"/narrow/b"]


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: one\r\n"])
def test_slow_header_is_408(hurried: Harness, sent: bytes) -> None:
    before = hurried.count("header_timeout")

    with Client(hurried.gateway.port) as client:
        client.send(sent)
        assert client.read_response().status == 408
        assert client.read_to_end() == b""

    hurried.counts_up_to("header_timeout", before + 1)


def test_header_that_drips_is_408(hurried: Harness) -> None:
    """The limit is for the whole header: a byte now and then does not extend it (slowloris)."""
    with Client(hurried.gateway.port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        for _ in range(20):
            if not client.is_idle(0.05):
                break
            client.send(b"X-A: b\r\n")
        assert client.read_response().status == 408


def test_second_header_on_a_connection_is_timed_too(hurried: Harness) -> None:
    with Client(hurried.gateway.port) as client:
        client.send(request("/plain/a"))
        assert client.read_response().body == b"ok"
        client.send(b"GET /plain/b HTTP/1.1\r\n")
        assert client.read_response().status == 408


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_slow_body_is_408(hurried: Harness, framing: str) -> None:
    before = hurried.count("body_timeout")

    with Client(hurried.gateway.port) as client:
        client.send(request("/plain/a", "POST", framing, body=b"5\r\nhello\r\n"))
        assert client.read_response().status == 408
        assert client.read_to_end() == b""

    hurried.counts_up_to("body_timeout", before + 1)
    assert hurried.upstream.requests == []


def test_idle_connection_is_closed_without_a_word(hurried: Harness) -> None:
    with Client(hurried.gateway.port) as client:
        client.send(request("/plain/a"))
        assert client.read_response().body == b"ok"
        assert client.read_to_end() == b""
        assert not client.was_reset


def test_connection_that_never_speaks_is_closed(hurried: Harness) -> None:
    with Client(hurried.gateway.port) as client:
        data = client.read_to_end()
        assert data == b"" or data.startswith(b"HTTP/1.1 408 ")


def test_waiting_for_the_answer_is_not_being_idle(hurried: Harness) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        release.wait(60)
        peer.send(OK)
        peer.wait_closed()

    hurried.upstream.script = script
    with Client(hurried.gateway.port) as client:
        client.send(request("/plain/a"))
        assert client.is_idle(1.5)  # longer than the limit for idle connections
        release.set()
        assert client.read_response().body == b"ok"


def test_upstream_with_a_certificate_of_nobody_is_502(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("upstream", ["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)

    with (
        Upstream(tls=context) as upstream,
        Gateway({"routes": [{"path": "/{rest...}", "upstream": upstream.url}]}) as gateway,
    ):
        response = get(gateway.port)
        counted = refusals(gateway)

    assert response.status == 502
    assert counted == {"upstream_tls_failed": 1}


def test_deadline_is_told_to_the_upstream() -> None:
    with Upstream() as upstream:
        timeouts = {"total": "5s", "deadline_header": "X-Deadline-Ms"}
        upstreams = {"origin": {"targets": [upstream.url], "timeouts": timeouts}}
        with Gateway(
            {"upstreams": upstreams, "routes": [{"path": "/{rest...}", "upstream": "origin"}]}
        ) as gateway:
            get(gateway.port)
        told = upstream.requests[0].get("x-deadline-ms")

    assert told is not None
    assert 0 < float(told.rstrip(b"ms")) <= 5000


def test_clients_over_the_connection_limit_are_turned_away() -> None:
    with Upstream() as upstream:
        config = {
            "server": {"max_connections": 4},
            "routes": [{"path": "/{rest...}", "upstream": upstream.url}],
        }
        with Gateway(config) as gateway:
            clients = [Client(gateway.port) for _ in range(4)]
            for client in clients:
                client.send(request("/"))
                assert client.read_response().status == 200
            with Client(gateway.port) as late:
                late.send(request("/"))
                try:
                    assert late.read_response().status == 503
                except Malformed:
                    assert late.closed
            for client in clients:
                client.close()
