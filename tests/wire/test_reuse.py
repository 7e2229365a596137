"""Kept connections to the upstream: one safe replay, nothing twice, and no answer for the wrong request."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.client import Client, get, request
from tests.gateway import Gateway
from tests.upstream import OK, Peer, Script, Upstream, answer
from tests.wire.conftest import Wire


@pytest.fixture(scope="module")
def keeping() -> Iterator[Wire]:
    with (
        Upstream(answer()) as upstream,
        Gateway(
            {"routes": [{"path": "/{rest...}", "upstream": upstream.url, "request_buffering": 0}]}
        ) as gateway,
    ):
        yield Wire(gateway, upstream)


@pytest.fixture
def kept(keeping: Wire) -> Iterator[Wire]:
    """A gateway that reuses upstream connections, without any from the test before."""
    keeping.upstream.forget()
    keeping.gateway.leaks()
    yield keeping
    failures = keeping.upstream.failures
    keeping.upstream.forget()
    assert failures == []
    assert keeping.gateway.complaints() == []


def then_fails(fail: Script) -> Script:
    """The first connection answers once and fails on its second request; later ones are good."""

    def script(peer: Peer) -> None:
        if peer.number > 0:
            answer()(peer)
        peer.read_request()
        peer.send(OK)
        fail(peer)

    return script


def read_and_close(peer: Peer) -> None:
    peer.read_request()
    peer.close()


def read_and_reset(peer: Peer) -> None:
    peer.read_request()
    peer.reset()


def test_connection_is_reused(kept: Wire) -> None:
    kept.upstream.script = answer()

    for _ in range(10):
        assert get(kept.gateway.port).status == 200

    assert len(kept.upstream.peers) == 1


def test_latest_connection_is_reused_first(kept: Wire) -> None:
    both = threading.Barrier(2, timeout=60)

    def script(peer: Peer) -> None:
        peer.read_request()
        both.wait()
        peer.send(OK)
        answer()(peer)

    kept.upstream.script = script
    clients = [Client(kept.gateway.port) for _ in range(2)]
    for client in clients:
        client.send(request("/"))
    for client in clients:
        client.read_response()
        client.close()
    for _ in range(5):
        get(kept.gateway.port)

    assert sorted(len(peer.requests) for peer in kept.upstream.peers) == [1, 6]


@pytest.mark.parametrize("fail", [read_and_close, read_and_reset])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_dead_reused_connection_is_replayed_once(kept: Wire, fail: Script, method: str) -> None:
    kept.upstream.script = then_fails(fail)
    get(kept.gateway.port, "/first")

    response = get(kept.gateway.port, "/second", method=method)

    assert response.status == 200
    assert [message.target for message in kept.upstream.requests] == [b"/first", b"/second", b"/second"]
    assert len(kept.upstream.peers) == 2


@pytest.mark.parametrize("fail", [read_and_close, read_and_reset])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_request_that_may_have_acted_is_not_replayed(kept: Wire, fail: Script, method: str) -> None:
    kept.upstream.script = then_fails(fail)
    get(kept.gateway.port, "/first")

    response = get(kept.gateway.port, "/second", method=method, body=b"pay 5")

    assert response.status == 502
    assert [message.target for message in kept.upstream.requests] == [b"/first", b"/second"]


def test_body_that_is_gone_is_not_replayed_in_part(kept: Wire) -> None:
    kept.upstream.script = then_fails(read_and_close)
    get(kept.gateway.port, "/first")

    response = get(kept.gateway.port, "/second", method="PUT", body=b"x" * 3_000_000)

    assert response.status in (200, 502)
    assert all(len(message.body) in (0, 3_000_000) for message in kept.upstream.requests)


def test_new_connection_that_dies_is_not_replayed(kept: Wire) -> None:
    kept.upstream.script = read_and_close

    assert get(kept.gateway.port).status == 502
    assert len(kept.upstream.requests) == 1


def test_replay_happens_at_most_once(kept: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        if peer.number == 0:
            peer.send(OK)
            peer.read_request()
        peer.close()

    kept.upstream.script = script
    get(kept.gateway.port, "/first")

    assert get(kept.gateway.port, "/second").status == 502
    assert len(kept.upstream.requests) == 3


def test_answer_begun_on_a_reused_connection_is_not_replayed(kept: Wire) -> None:
    def fail(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-")
        peer.close()

    kept.upstream.script = then_fails(fail)
    get(kept.gateway.port, "/first")

    assert get(kept.gateway.port, "/second").status == 502
    assert len(kept.upstream.requests) == 2


def test_connection_closed_while_idle_is_not_used(kept: Wire) -> None:
    let_go = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK)
        if peer.number == 0:
            peer.half_close()
            if peer.wait_closed():
                let_go.set()
        else:
            answer()(peer)

    kept.upstream.script = script
    get(kept.gateway.port, "/first")
    assert let_go.wait(60)

    assert get(kept.gateway.port, "/second", method="POST", body=b"pay 5").status == 200
    assert [message.target for message in kept.upstream.requests] == [b"/first", b"/second"]


POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


@pytest.mark.parametrize("extra", [POISON, b"x", b"0\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize(
    "first", [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
)
def test_bytes_behind_an_answer_are_nobodys(kept: Wire, first: bytes, extra: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(first + extra)
        assert peer.wait_closed()

    kept.upstream.script = script
    with Client(kept.gateway.port) as client:
        for _ in range(3):
            client.send(request("/"))
            assert client.read_response().body == b"ok"
        assert client.is_idle()

    assert len(kept.upstream.peers) == 3


@pytest.mark.parametrize(
    "first", [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
)
def test_empty_line_behind_an_answer_does_no_harm(kept: Wire, first: bytes) -> None:
    kept.upstream.script = answer(first + b"\r\n")

    with Client(kept.gateway.port) as client:
        for _ in range(5):
            client.send(request("/"))
            assert client.read_response().body == b"ok"
        assert client.is_idle()


@pytest.mark.parametrize("extra", [POISON, b"x"])
def test_bytes_on_an_idle_connection_end_it(kept: Wire, extra: bytes) -> None:
    ended = threading.Event()
    idle = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK)
        if peer.number == 0:
            assert idle.wait(60)
            peer.send(extra)
            if peer.wait_closed():
                ended.set()
        else:
            answer()(peer)

    kept.upstream.script = script
    assert get(kept.gateway.port).body == b"ok"
    idle.set()
    assert ended.wait(60)

    assert get(kept.gateway.port).body == b"ok"
    assert len(kept.upstream.peers) == 2


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_connection_the_upstream_will_close_is_not_kept(kept: Wire, response: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(response)
        assert peer.wait_closed()

    kept.upstream.script = script
    for _ in range(3):
        assert get(kept.gateway.port).body == b"ok"

    assert len(kept.upstream.peers) == 3


def test_connection_with_an_unfinished_request_is_not_kept(kept: Wire) -> None:
    def script(peer: Peer) -> None:
        head = peer.read_head()
        peer.send(OK)
        if head.method == b"POST":
            assert peer.wait_closed()
        else:
            answer()(peer)

    kept.upstream.script = script
    with Client(kept.gateway.port) as client:
        client.send(request("/early", "POST", "Content-Length: 100", body=b"x" * 50))
        assert client.read_response().body == b"ok"

    assert get(kept.gateway.port, "/after").body == b"ok"
    assert len(kept.upstream.peers) == 2


@pytest.mark.parametrize("moment", ["before the answer", "within the answer", "within the request"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_that_leaves_cancels_the_upstream(kept: Wire, moment: str, how: str) -> None:
    asked, cancelled = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        if moment == "within the answer":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        asked.set()
        if peer.wait_closed():
            cancelled.set()

    kept.upstream.script = script
    client = Client(kept.gateway.port)
    if moment == "within the request":
        client.send(request("/", "POST", "Content-Length: 100", body=b"half"))
    else:
        client.send(request("/"))
    assert asked.wait(60)
    if moment == "within the answer":
        client.read_until(b"begun")
    if how == "close":
        client.close()
    else:
        client.reset()

    assert cancelled.wait(60)
    kept.upstream.script = answer()
    assert get(kept.gateway.port).body == b"ok"


@pytest.fixture(scope="module", params=["abort", "allow"])
def half_closing(request: pytest.FixtureRequest) -> Iterator[tuple[str, Wire]]:
    with Upstream() as upstream:
        config = {
            "server": {"client_half_close": request.param},
            "routes": [{"path": "/{rest...}", "upstream": upstream.url}],
        }
        with Gateway(config) as gateway:
            yield str(request.param), Wire(gateway, upstream)


def test_half_closed_client_is_answered_only_where_allowed(half_closing: tuple[str, Wire]) -> None:
    mode, wire = half_closing
    asked, cancelled, answered = threading.Event(), threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        asked.set()
        if mode == "abort":
            if peer.wait_closed():
                cancelled.set()
        else:
            assert answered.wait(60)
            peer.send(OK)
            answer()(peer)

    wire.upstream.script = script
    with Client(wire.gateway.port) as client:
        client.send(request("/"))
        assert asked.wait(60)
        client.half_close()
        if mode == "abort":
            assert cancelled.wait(60)
            assert client.read_to_end() == b""
        else:
            assert client.is_idle()
            answered.set()
            assert client.read_response().body == b"ok"
            assert client.read_to_end() == b""


def test_half_close_within_a_request_never_makes_it_whole(half_closing: tuple[str, Wire]) -> None:
    _, wire = half_closing
    wire.upstream.forget()
    wire.upstream.script = answer()

    with Client(wire.gateway.port) as client:
        client.send(request("/", "POST", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"))
        client.half_close()
        client.read_to_end()

    assert wire.upstream.requests == []


def test_half_close_while_idle_closes(half_closing: tuple[str, Wire]) -> None:
    _, wire = half_closing
    wire.upstream.script = answer()

    with Client(wire.gateway.port) as client:
        client.send(request("/"))
        assert client.read_response().body == b"ok"
        client.half_close()
        assert client.read_to_end() == b""
