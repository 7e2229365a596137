"""Hooks that see bodies: whole ones within their bound, and pieces with `last` exactly once."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.client import Client, request
from tests.plugins.conftest import BOUND, Harness
from tests.strict import Malformed
from tests.upstream import Peer, answer


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def post(harness: Harness, path: str, body: bytes, framing: str, *fields: str) -> Any:
    with Client(harness.gateway.port) as client:
        if framing == "length":
            client.send(request(path, "POST", *fields, body=body))
        elif framing == "chunked":
            client.send(request(path, "POST", "Transfer-Encoding: chunked", *fields) + chunked(body, 700))
        elif framing == "bytewise":
            client.send(request(path, "POST", *fields, body=body), bytewise=True)
        else:
            client.send(
                request(path, "POST", f"Content-Length: {len(body)}", "Expect: 100-continue", *fields)
            )
            assert client.read_exactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(body)
        return client.read_response()


def whole(size: int) -> bytes:
    return bytes(range(97, 123)) * (size // 26) + b"z" * (size % 26)


# The whole request body


@pytest.mark.parametrize(
    ("framing", "size"),
    [
        *((framing, size) for framing in ("length", "chunked", "continue") for size in (1, BOUND)),
        ("bytewise", 1500),
    ],
)
def test_request_sees_the_whole_body(harness: Harness, framing: str, size: int) -> None:
    response = post(harness, "/whole", whole(size), framing)

    assert (response.status, response.body) == (200, whole(size))
    assert harness.notes("request") == [["W", "request", size]]
    assert harness.notes("upstream_request")[0][-1] is True


def test_a_request_without_body_has_an_empty_one(harness: Harness) -> None:
    assert harness.ask("/whole").status == 200
    assert harness.notes("request") == [["W", "request", 0]]
    assert harness.upstream.requests[0].framing == "none"


@pytest.mark.parametrize("framing", ["length", "chunked", "bytewise"])
def test_a_body_beyond_the_bound_is_refused(harness: Harness, framing: str) -> None:
    response = post(harness, "/whole", whole(BOUND + 1), framing)

    assert response.status == 413
    assert json.loads(response.body)["error"] == "Request body too large"
    assert harness.notes("request") == []
    assert harness.upstream.requests == []
    assert harness.logged()["reason"] == "body_too_large"


def test_a_length_beyond_the_bound_is_refused_before_the_body(harness: Harness) -> None:
    with Client(harness.gateway.port) as client:
        client.send(request("/whole", "POST", f"Content-Length: {BOUND + 1}", "Expect: 100-continue"))
        assert client.read_response().status == 413


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("fresh", ["new body", ""])
@pytest.mark.parametrize("path", ["/whole", "/whole-chunks"])
def test_a_replaced_body_goes_upstream_with_its_own_length(
    harness: Harness, framing: str, fresh: str, path: str
) -> None:
    response = post(harness, path, b"the old one", framing, f"X-W: request=replace:{fresh}")

    assert (response.status, response.body) == (200, fresh.encode())
    (sent,) = harness.upstream.requests
    assert sent.body == fresh.encode()
    if path == "/whole":
        assert sent.get("content-length") == str(len(fresh)).encode()


def test_upstream_request_replaces_a_held_body(harness: Harness) -> None:
    assert post(harness, "/whole", b"old", "length", "X-U: upstream_request=body:newer").body == b"newer"


def test_replace_body_needs_a_held_body(harness: Harness) -> None:
    assert harness.ask("/order", "X-B: request=replace:x", method="POST", body=b"y").status == 500


def test_the_next_request_is_read_behind_a_held_body(harness: Harness) -> None:
    with Client(harness.gateway.port) as client:
        client.send(request("/whole", "POST", body=b"one") + request("/whole", "POST", body=b"two"))
        assert [client.read_response().body for _ in range(2)] == [b"one", b"two"]


@pytest.mark.parametrize("action", ["refuse", "raise"])
def test_a_refused_body_does_not_harm_the_next_request(harness: Harness, action: str) -> None:
    with Client(harness.gateway.port) as client:
        client.send(request("/whole", "POST", f"X-W: request={action}", body=b"one") + request("/whole"))
        assert client.read_response().status in (403, 500)
        assert client.read_response().status == 200


# Pieces


def pieces(harness: Harness, phase: str, label: str = "K") -> list[tuple[int, bool]]:
    return [(note[2], note[3]) for note in harness.notes(phase) if note[0] == label]


def ends_once(found: list[tuple[int, bool]]) -> bool:
    return [last for _, last in found] == [False] * (len(found) - 1) + [True]


@pytest.mark.parametrize(
    ("framing", "size"),
    [("length", 1), ("length", 300_000), ("chunked", 1), ("chunked", 300_000), ("bytewise", 1500)],
)
def test_every_piece_of_a_request_passes_the_hook(harness: Harness, framing: str, size: int) -> None:
    response = post(harness, "/chunks", whole(size), framing, "X-K: request_chunk=upper")

    assert (response.status, response.body) == (200, whole(size).upper() + b"!")
    assert harness.upstream.requests[0].framing == "chunked"
    found = pieces(harness, "request_chunk")
    assert ends_once(found)
    assert sum(length for length, _ in found) == size


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_every_piece_of_an_answer_passes_the_hook(harness: Harness, framing: str, size: int) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        if framing == "chunked":
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(whole(size), 900))
        elif framing == "length":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + whole(size))
        else:
            peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + whole(size))

    harness.upstream.script = script
    response = harness.ask("/chunks", "X-K: response_chunk=upper")

    assert (response.status, response.body) == (200, whole(size).upper() + b"!")
    assert response.framing == "chunked"
    found = pieces(harness, "response_chunk")
    assert ends_once(found)
    assert sum(length for length, _ in found) == size


def test_a_request_without_body_has_no_pieces(harness: Harness) -> None:
    assert harness.ask("/chunks").status == 200
    assert pieces(harness, "request_chunk") == []
    assert harness.upstream.requests[0].framing == "none"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_head_tells_no_length_that_hooks_would_change(harness: Harness, method: str) -> None:
    harness.upstream.script = answer(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + b"ok" * (method == "GET")
    )

    with Client(harness.gateway.port) as client:
        for _ in range(2):
            client.send(request("/chunks", method))
            assert client.read_response(method).get("content-length") is None


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_body_stay_without(harness: Harness, status: int) -> None:
    harness.upstream.script = answer(b"HTTP/1.1 %d X\r\n\r\n" % status)

    with Client(harness.gateway.port) as client:
        for _ in range(2):
            client.send(request("/chunks", "GET", "X-K: response_chunk=upper"))
            response = client.read_response()
            assert (response.status, response.framing) == (status, "none")


@pytest.mark.parametrize("direction", ["request_chunk", "response_chunk"])
def test_hooks_may_hold_back_and_say_all_at_the_end(harness: Harness, direction: str) -> None:
    collected = harness.ask("/chunks", f"X-K: {direction}=collect:all", method="POST", body=whole(200_000))
    dropped = harness.ask("/chunks", f"X-K: {direction}=drop", method="POST", body=whole(200_000))

    assert (collected.body, dropped.body) == (b"all", b"")


def test_several_hooks_pass_pieces_on_in_listed_order(harness: Harness) -> None:
    response = harness.ask(
        "/two-chunks", "X-K: response_chunk=upper", "X-M: response_chunk=upper", method="POST", body=b"ab"
    )

    assert response.body == b"AB!!"
    assert ends_once(pieces(harness, "request_chunk", "K"))
    assert ends_once(pieces(harness, "request_chunk", "M"))


@pytest.mark.parametrize("action", ["raise", "none", "failatend"])
def test_a_failing_request_hook_is_an_error_upstream_never_takes_for_whole(
    harness: Harness, action: str
) -> None:
    cut = threading.Event()

    def script(peer: Peer) -> None:
        peer.wait_closed()
        cut.set()

    harness.upstream.script = script
    body = chunked(whole(200_000), 5000)
    with Client(harness.gateway.port) as client:
        client.send(request("/chunks", "POST", "Transfer-Encoding: chunked", f"X-K: request_chunk={action}"))
        client.send(body)
        assert client.read_response().status == 500

    assert cut.wait(60)
    assert harness.logged()["reason"] == "plugin_error"
    harness.complaint("plugin tests.plugins.probes:Chunker", "failed in request_chunk")
    assert all(b"\r\n0\r\n\r\n" not in bytes(peer.received) for peer in harness.upstream.peers)


@pytest.mark.parametrize("action", ["raise", "none", "failatend"])
def test_a_failing_response_hook_cuts_the_answer_visibly(harness: Harness, action: str) -> None:
    with pytest.raises(Malformed):
        harness.ask("/chunks", f"X-K: response_chunk={action}", method="POST", body=whole(5000))
    assert harness.logged()["reason"] == "plugin_error"
    harness.complaint("plugin tests.plugins.probes:Chunker", "failed in response_chunk")


# The whole answer


@pytest.mark.parametrize("size", [0, 1, 5000, BOUND])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_the_whole_answer_is_edited(harness: Harness, size: int, framing: str) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        if framing == "chunked":
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(whole(size), 900))
        else:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + whole(size))

    harness.upstream.script = script
    response = harness.ask("/answer", "X-H: upstream_response=upper", "X-H: response=edit")

    assert response.body == whole(size).upper() + b"!"
    assert response.get("content-length") == str(size + 1).encode()
    assert response.get("x-edited") == b"H"
    assert harness.notes("upstream_response") == [["H", "upstream_response", size]]


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_longer_answer_passes_unread(harness: Harness, framing: str) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        body = whole(BOUND + 1)
        if framing == "chunked":
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, 900))
        else:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    harness.upstream.script = script
    response = harness.ask("/answer")

    assert response.body == whole(BOUND + 1)
    assert harness.notes("upstream_response") == [["H", "upstream_response", None]]


@pytest.mark.parametrize("action", ["bodynone", "bodytext", "raise"])
def test_a_held_answer_made_unusable_is_a_bad_gateway(harness: Harness, action: str) -> None:
    response = harness.ask("/answer", f"X-H: upstream_response={action}", method="POST", body=b"x")

    assert response.status == 502


@pytest.mark.parametrize("action", ["bodynone", "bodytext", "raise"])
def test_a_held_answer_survives_a_failing_response_hook(harness: Harness, action: str) -> None:
    response = harness.ask("/answer", f"X-H: response={action}", method="POST", body=b"as it was")

    assert (response.status, response.body) == (200, b"as it was")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("HEAD", 304), ("GET", 204), ("GET", 304)])
def test_held_answers_without_body(harness: Harness, method: str, status: int) -> None:
    harness.upstream.script = answer(
        b"HTTP/1.1 %d X\r\n%s\r\n" % (status, b"Content-Length: 7\r\n" * (status == 200))
    )

    with Client(harness.gateway.port) as client:
        for _ in range(2):
            client.send(request("/answer", method))
            assert client.read_response(method).status == status


def test_an_answer_cut_while_held_is_refused_instead(harness: Harness) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        peer.close()

    harness.upstream.script = script
    response = harness.ask("/answer")

    assert response.status == 502
    assert harness.logged()["reason"] == "upstream_truncated"
