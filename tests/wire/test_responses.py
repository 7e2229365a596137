"""Answers of the upstream: good ones relayed in every framing, bad ones a 502 or a visibly cut body, never a
clean end.
"""

from __future__ import annotations

import threading

import pytest

from tests.client import request
from tests.strict import Malformed
from tests.upstream import OK, Disconnected, Peer, Script, answer
from tests.wire.conftest import Wire, is_plain_refusal

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EXTRA = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
SENDINGS = ["whole", "bytewise", "trailing"]


@pytest.fixture(params=SENDINGS)
def sending(request: pytest.FixtureRequest) -> str:
    """How the upstream's bytes arrive: at once, one at a time, or with a second answer right behind them."""
    return str(request.param)


def once(response: bytes, sending: str, *, close: bool = False) -> Script:
    """A script that answers one request so. Bytes behind a close-delimited answer would be part of it."""

    def script(peer: Peer) -> None:
        peer.read_request()
        if sending == "bytewise":
            peer.send_bytewise(response)
        else:
            peer.send(response + EXTRA if sending == "trailing" and not close else response)
        if close:
            peer.close()
        else:
            peer.wait_closed()

    return script


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (HEAD + b"Content-Length: 0\r\n\r\n", b""),
        (HEAD + b"content-length:5\r\n\r\nhello", b"hello"),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (CHUNKED + b"1\r\nh\r\n4;x=y\r\nello\r\n0\r\n\r\n", b"hello"),
        (CHUNKED + b"0\r\n\r\n", b""),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 299 Fine by \xe9t\xe9 me\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ],
)
def test_good_answer_is_relayed(wire: Wire, sending: str, response: bytes, body: bytes) -> None:
    wire.upstream.script = once(response, sending)

    with wire.client() as client:
        client.send(request("/a"))
        seen = client.read_response()
        assert client.is_idle()
        client.send(request("/b"))
        again = client.read_response()

    assert (seen.body, again.body) == (body, body)
    assert len(wire.upstream.peers) == 2


@pytest.mark.parametrize("response", [HEAD + b"\r\nhello", b"HTTP/1.0 200 OK\r\n\r\nhello"])
def test_close_delimited_answer_is_relayed(wire: Wire, sending: str, response: bytes) -> None:
    wire.upstream.script = once(response, sending, close=True)

    with wire.client() as client:
        client.send(request("/a"))
        seen = client.read_response()

    assert seen.body == b"hello"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_bodyless_answer_leaves_the_connection_usable(wire: Wire, sending: str, response: bytes) -> None:
    wire.upstream.script = once(response, sending)

    with wire.client() as client:
        client.send(request("/a") + request("/b"))
        statuses = [client.read_response().status for _ in range(2)]
        assert client.is_idle()

    assert statuses == [int(response[9:12])] * 2


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n",
    ],
)
def test_body_of_a_bodyless_answer_goes_nowhere(wire: Wire, sending: str, response: bytes) -> None:
    wire.upstream.script = once(response, sending)

    with wire.client() as client:
        client.send(request("/a"))
        first = client.read_response()
        assert first.status in (204, 304, 502)
        assert client.is_idle() or client.closed
        assert b"poison" not in client.unread


def test_body_of_a_head_answer_goes_nowhere(wire: Wire, sending: str) -> None:
    wire.upstream.script = once(EXTRA, sending)

    with wire.client() as client:
        client.send(request("/a", "HEAD"))
        assert client.read_response("HEAD").status in (200, 502)
        assert client.is_idle() or client.closed
        assert b"poison" not in client.unread


def test_response_trailers_are_relayed(wire: Wire, sending: str) -> None:
    response = HEAD + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n"
    wire.upstream.script = once(response, sending)

    with wire.client() as client:
        client.send(request("/a", "GET", "TE: trailers"))
        seen = client.read_response()

    assert [(name.lower(), value) for name, value in seen.trailers] == [(b"x-sum", b"9")]


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 Own"])
def test_interim_answers_are_relayed(wire: Wire, sending: str, interim: bytes) -> None:
    hints = b"HTTP/1.1 " + interim + b"\r\nLink: </a.css>; rel=preload\r\n\r\n"
    wire.upstream.script = once(hints + hints + OK, sending)

    with wire.client() as client:
        client.send(request("/a"))
        seen = client.read_response()

    assert seen.body == b"ok"
    # An unasked 100 says nothing to anybody (RFC 9110 §15.2.1 lets a proxy drop it); the others carry fields.
    assert len(seen.interim) == 2 or (interim.startswith(b"100") and not seen.interim)
    assert all(message.get("link") == b"</a.css>; rel=preload" for message in seen.interim)


def test_early_hints_arrive_before_the_answer(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
        assert seen_hints.wait(60)
        peer.send(OK)

    seen_hints = threading.Event()
    wire.upstream.script = script
    with wire.client() as client:
        client.send(request("/a"))
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 103 ")
        seen_hints.set()
        assert client.read_response().body == b"ok"


def test_http_1_0_client_gets_no_interim_answer(wire: Wire, sending: str) -> None:
    wire.upstream.script = once(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + OK, sending)

    with wire.client() as client:
        client.send(request("/a", version="1.0"))
        seen = client.read_response()

    assert (seen.status, seen.interim) == (200, [])


def test_status_and_fields_are_relayed_unharmed(wire: Wire, sending: str) -> None:
    fields = (
        b'Set-Cookie: a=1; Path=/\r\nset-cookie: b=2\r\nETag: "x,y"\r\nX-Empty:\r\nX-Eight: caf\xe9 x\r\n'
    )
    wire.upstream.script = once(
        b"HTTP/1.1 418 I'm a teapot\r\n" + fields + b"Content-Length: 2\r\n\r\nok", sending
    )

    with wire.client() as client:
        client.send(request("/a"))
        seen = client.read_response()

    assert (seen.status, seen.phrase) == (418, b"I'm a teapot")
    assert seen.values("set-cookie") == [b"a=1; Path=/", b"b=2"]
    assert (seen.get("etag"), seen.get("x-empty"), seen.get("x-eight")) == (b'"x,y"', b"", b"caf\xe9 x")


BAD_HEADS = {
    "garbage": b"garbage\r\n\r\n",
    "binary": b"\x00\x01\x02\x03\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "unknown version": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\nok",
    "short status": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "long status": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
    "status 000": b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok",
    "signed status": b"HTTP/1.1 +20 OK\r\nContent-Length: 2\r\n\r\nok",
    "length and chunked": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked and length": HEAD
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "unequal lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "lengths in a list": HEAD + b"Content-Length: 2, 3\r\n\r\nok!",
    "negative length": HEAD + b"Content-Length: -2\r\n\r\nok",
    "signed length": HEAD + b"Content-Length: +2\r\n\r\nok",
    "length of letters": HEAD + b"Content-Length: two\r\n\r\nok",
    "overflowing length": HEAD + b"Content-Length: 18446744073709551618\r\n\r\nok",
    "empty length": HEAD + b"Content-Length:\r\n\r\nok",
    "unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked with a comma": HEAD + b"Transfer-Encoding: ,chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "coding in a 1.0 answer": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "obs-fold": HEAD + b"X-A: one\r\n two\r\nContent-Length: 2\r\n\r\nok",
    "space before the colon": HEAD + b"X-A : one\r\nContent-Length: 2\r\n\r\nok",
    "NUL in a value": HEAD + b"X-A: o\x00ne\r\nContent-Length: 2\r\n\r\nok",
    "bare CR in a value": HEAD + b"X-A: o\rne\r\nContent-Length: 2\r\n\r\nok",
    "bare LF": HEAD + b"X-A: one\nX-B: two\r\nContent-Length: 2\r\n\r\nok",
    "bare LF and an empty line": b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n",
    "bare LF after the status line": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    "empty name": HEAD + b": x\r\nContent-Length: 2\r\n\r\nok",
    "no colon": HEAD + b"X-A\r\nContent-Length: 2\r\n\r\nok",
    "header section too large": HEAD + b"X-A: " + b"v" * 300_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "101 nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}

CUT_HEADS = {
    "nothing": b"",
    "one byte": b"H",
    "status line": b"HTTP/1.1 200 OK\r\n",
    "half a head": HEAD + b"Content-Len",
    "head without its end": HEAD + b"Content-Length: 2\r\n",
    "head but for one byte": HEAD + b"Content-Length: 2\r\n\r",
    "only an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
}

CUT_BODIES = {
    "no byte of the body": HEAD + b"Content-Length: 10\r\n\r\n",
    "half a body": HEAD + b"Content-Length: 10\r\n\r\nhello",
    "no chunk": CHUNKED,
    "half a size line": CHUNKED + b"5",
    "half a chunk": CHUNKED + b"5\r\nhel",
    "chunk without its end": CHUNKED + b"5\r\nhello",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "half of the last chunk": CHUNKED + b"5\r\nhello\r\n0\r\n",
    "half a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nX-A: on",
}

BAD_CHUNKS = {
    "junk": CHUNKED + b"5\r\nhello\r\nzz\r\n",
    "negative": CHUNKED + b"5\r\nhello\r\n-1\r\n",
    "overflow": CHUNKED + b"5\r\nhello\r\n" + b"f" * 17 + b"\r\n",
    "too long": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "LF": CHUNKED + b"5\nhello\n0\n\n",
    "no size": CHUNKED + b"5\r\nhello\r\n\r\n0\r\n\r\n",
    "bad trailer": CHUNKED + b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    "trailer flood": CHUNKED + b"5\r\nhello\r\n0\r\n" + b"X-T: value\r\n" * 30_000 + b"\r\n",
}


def table(rows: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "response", list(rows.values()), ids=[name.replace(" ", "-") for name in rows]
    )


def read_failure(wire: Wire, method: str = "GET", *, version: str = "1.1", refused: bool = False) -> None:
    """Fails unless the client sees a 502 of the gateway's own, or (unless `refused`) an answer that is
    visibly cut.
    """
    with wire.client() as client:
        client.send(request("/a", method, version=version))
        try:
            response = client.read_response(method)
        except Malformed:
            assert client.closed
            assert client.unread or client.was_reset or not refused, "closed without an answer"
            assert not refused
            return
        if version == "1.0" and response.status == 200:
            assert client.was_reset, "a truncated close-delimited body ended cleanly"
            return
        assert response.status == 502
        is_plain_refusal(response)
        assert b"poison" not in client.unread


@table(BAD_HEADS)
def test_malformed_answer_is_502(wire: Wire, sending: str, response: bytes) -> None:
    long = len(response) > 10_000
    wire.upstream.script = once(response, "whole" if long else sending, close=b"\r\n\r\n" not in response)

    read_failure(wire, refused=True)


def test_control_character_in_the_phrase_is_not_relayed(wire: Wire, sending: str) -> None:
    wire.upstream.script = once(b"HTTP/1.1 200 O\x01K\r\nContent-Length: 2\r\n\r\nok", sending)

    with wire.client() as client:
        client.send(request("/a"))
        assert client.read_response().status in (200, 502)  # the parser of the tests refuses the byte itself


@table(CUT_HEADS)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_answer_cut_within_its_head_is_502(wire: Wire, how: str, response: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(response)
        if how == "close":
            peer.close()
        else:
            peer.reset()

    wire.upstream.script = script

    read_failure(wire, "POST", refused=True)


@table(CUT_BODIES)
@pytest.mark.parametrize("how", ["close", "reset", "bytewise"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_truncated_answer_is_never_a_clean_end(wire: Wire, how: str, version: str, response: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        if how == "bytewise":
            peer.send_bytewise(response)
        else:
            peer.send(response)
        if how == "reset":
            peer.reset()
        else:
            peer.close()

    wire.upstream.script = script

    read_failure(wire, version=version)


@table(BAD_CHUNKS)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_malformed_chunk_is_never_a_clean_end(
    wire: Wire, sending: str, version: str, response: bytes
) -> None:
    wire.upstream.script = once(response, "whole" if len(response) > 10_000 else sending)

    read_failure(wire, version=version)


def test_flood_of_interim_answers_is_ended(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        for _ in range(200):
            peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" * 100)
        peer.send(OK)

    wire.upstream.script = script
    with wire.client() as client:
        client.send(request("/a"))
        try:
            response = client.read_response()
        except Malformed:
            return
        assert response.status == 502
        assert len(response.interim) < 20_000


def test_answer_before_the_request_body_is_finished(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        peer.half_close()
        peer.wait_closed()

    wire.upstream.script = script
    with wire.client() as client:
        client.send(request("/streams", "POST", "Content-Length: 1000000", body=b"x" * 1000))
        response = client.read_response()
        assert (response.status, response.body) == (413, b"big")
        client.send(b"y" * 1000)
        # The rest of the body was never read as a request.
        assert b"HTTP/1." not in client.read_to_end() or not response.keeps_alive


def test_answer_before_the_request_body_is_finished_by_an_upstream_that_reads_on(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(OK)
        peer.wait_closed()

    wire.upstream.script = script
    with wire.client() as client:
        client.send(request("/streams", "POST", body=b"x" * 1000)[:-500])
        assert client.read_response().body == b"ok"
        client.send(b"x" * 500)
        client.send(request("/b", "POST"))
        if not client.closed:
            try:
                assert client.read_response().status == 200
            except Malformed:
                assert client.closed


def test_answer_before_the_request_is_502_or_ignored(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.send(EXTRA)
        try:
            peer.read_request()
        except Disconnected:
            return
        peer.send(OK)
        peer.wait_closed()

    wire.upstream.script = script
    with wire.client() as client:
        client.send(request("/a", "POST"))
        # The connection is new, so this is an answer too early, not one to somebody else; what counts is
        # that only one of the two answers is taken for this request and the other one for none.
        assert client.read_response().status in (200, 502)
        assert client.is_idle() or client.closed
        assert client.unread == b""


def test_connection_close_of_the_upstream_is_not_the_clients(wire: Wire, sending: str) -> None:
    wire.upstream.script = once(HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", sending)

    with wire.client() as client:
        client.send(request("/a"))
        response = client.read_response()
        assert client.is_idle()

    assert response.keeps_alive


def test_answer_after_a_failed_one_is_good(wire: Wire) -> None:
    wire.upstream.script = answer(b"garbage\r\n\r\n")

    with wire.client() as client:
        client.send(request("/a"))
        assert client.read_response().status == 502
        wire.upstream.script = answer()
        client.send(request("/b"))
        assert client.read_response().status == 200
