"""Expect: 100-continue, end to end: the upstream decides, the gateway relays (RFC 9110 §10.1.1)."""

from __future__ import annotations

import threading

from tests.client import request
from tests.upstream import OK, Peer, answer
from tests.wire.conftest import NEXT, Wire

EXPECT = request("/a", "POST", "Expect: 100-continue", "Content-Length: 5")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def continues(peer: Peer) -> None:
    head = peer.read_head()
    if head.values("expect"):
        peer.send(CONTINUE)
        peer.read_exactly(5)
    peer.send(OK)
    peer.wait_closed()


def test_continue_of_the_upstream_is_relayed_before_the_body(wire: Wire, delivery: str) -> None:
    wire.upstream.script = continues

    with wire.client() as client:
        client.send(EXPECT, bytewise=delivery == "bytewise")
        assert client.read_exactly(len(CONTINUE)) == CONTINUE
        client.send(b"hello" + NEXT if delivery == "trailing" else b"hello", bytewise=delivery == "bytewise")
        assert client.read_response().body == b"ok"
        if delivery == "trailing":
            assert client.read_response().body == b"ok"

    head = wire.upstream.requests[0]
    assert head.get("expect") == b"100-continue"
    assert head.get("content-length") == b"5"


def test_expectation_in_upper_case_is_the_same(wire: Wire) -> None:
    wire.upstream.script = continues

    with wire.client() as client:
        client.send(request("/a", "POST", "Expect: 100-CONTINUE", "Content-Length: 5"))
        assert client.read_exactly(len(CONTINUE)) == CONTINUE
        client.send(b"hello")
        assert client.read_response().body == b"ok"


def test_chunked_body_waits_for_the_continue_too(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(CONTINUE)
        assert peer.read_until(b"0\r\n\r\n").endswith(b"0\r\n\r\n")
        peer.send(OK)
        peer.wait_closed()

    wire.upstream.script = script
    with wire.client() as client:
        client.send(request("/a", "POST", "Expect: 100-continue", "Transfer-Encoding: chunked"))
        assert client.read_exactly(len(CONTINUE)) == CONTINUE
        client.send(b"5\r\nhello\r\n0\r\n\r\n")
        assert client.read_response().body == b"ok"


def test_refusal_of_the_upstream_comes_before_the_body(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        peer.wait_closed()

    wire.upstream.script = script
    with wire.client() as client:
        client.send(EXPECT)
        response = client.read_response()

        assert (response.status, response.body, response.interim) == (403, b"no", [])
        # Without its body the request is not over: the connection says close, or takes the body as a body.
        if response.keeps_alive:
            client.send(b"hello")
            client.send(request("/b"))
            assert client.read_response().status == 403


def test_body_sent_without_waiting_is_relayed(wire: Wire, delivery: str) -> None:
    wire.upstream.script = continues

    with wire.client() as client:
        client.send(EXPECT + b"hello" + NEXT, bytewise=delivery == "bytewise")
        assert client.read_response().body == b"ok"
        assert client.read_response().body == b"ok"


def test_upstream_that_never_continues_still_gets_the_body(wire: Wire) -> None:
    wire.upstream.script = answer()

    with wire.client() as client:
        client.send(EXPECT)
        wire.upstream.wait_for_peers(1)
        client.send(b"hello")
        assert client.read_response().body == b"ok"

    assert wire.upstream.requests[0].body == b"hello"


def test_http_1_0_client_gets_no_continue(wire: Wire) -> None:
    wire.upstream.script = continues

    with wire.client() as client:
        client.send(request("/a", "POST", "Expect: 100-continue", body=b"hello", version="1.0"))
        response = client.read_response()

    assert (response.status, response.interim) == (200, [])


def test_body_over_the_limit_is_413_without_a_continue(wire: Wire, delivery: str) -> None:
    data = request("/limited", "POST", "Expect: 100-continue", "Content-Length: 5000")

    response = wire.refuses(data, delivery, 413)

    assert response.interim == []


def test_client_that_leaves_instead_of_continuing_cancels_the_upstream(wire: Wire) -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(CONTINUE)
        if peer.wait_closed():
            left.set()

    wire.upstream.script = script
    with wire.client() as client:
        client.send(EXPECT)
        client.read_exactly(len(CONTINUE))

    assert left.wait(60)
