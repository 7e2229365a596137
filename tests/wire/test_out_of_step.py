"""Upstreams whose bytes do not fit their heads, and responses that come together with a reset: nothing of one
response becomes the next, what is whole is delivered whole, and no verdict depends on how the bytes were
split into packets.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, request
from tests.faults.refusals import refusals
from tests.gateway import Gateway
from tests.strict import Malformed
from tests.upstream import OK, Disconnected, Peer, Script, Upstream, answer
from tests.wire.conftest import Wire

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
WAIT_S = 60


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
    """A gateway that reuses connections to its upstream, without any from the test before."""
    keeping.upstream.forget()
    keeping.gateway.leaks()
    yield keeping
    failures = keeping.upstream.failures
    keeping.upstream.forget()
    assert failures == []
    assert keeping.gateway.complaints() == []


def first_then_good(response: bytes, extra: bytes, pause_s: float, sent: threading.Event) -> Script:
    """The first request gets a response and then bytes nobody asked for; every other one `ok`."""

    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.read_request()
            peer.send(response)
            time.sleep(pause_s)
            peer.send(extra)
            sent.set()
        answer()(peer)

    return script


COMPLETE = {
    "head": ("HEAD", HEAD + b"Content-Length: 53\r\n\r\n"),
    "head-chunked": ("HEAD", CHUNKED),
    "head-without-length": ("HEAD", HEAD + b"X-A: b\r\n\r\n"),
    "304": ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 53\r\n\r\n'),
    "304-without-length": ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 53\r\n\r\n"),
    "length": ("GET", OK),
    "empty": ("GET", HEAD + b"Content-Length: 0\r\n\r\n"),
    "chunked": ("GET", CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),
    "trailers": ("GET", CHUNKED + b"2\r\nok\r\n0\r\nX-A: b\r\n\r\n"),
    "after-interim": ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK),
}


TELL_A_BODY = {"head", "head-chunked", "304", "204"}


@pytest.mark.parametrize("pause_s", [0, 0.002, 0.02])
@pytest.mark.parametrize("kind", COMPLETE)
def test_bytes_behind_a_response_never_become_the_next(kept: Wire, kind: str, pause_s: float) -> None:
    """Not even when the next request is sent at once, where the head tells of a body that may still come."""
    method, response = COMPLETE[kind]
    sent = threading.Event()
    kept.upstream.script = first_then_good(response, POISON, pause_s, sent)

    with Client(kept.gateway.port) as client:
        client.send(request("/first", method))
        client.read_response(method)
        if kind not in TELL_A_BODY:
            assert sent.wait(WAIT_S)
        bodies = []
        for _ in range(3):
            client.send(request("/next"))
            bodies.append(client.read_response().body)

    assert bodies == [b"ok"] * 3


@pytest.mark.parametrize("extra", [b"\r\n", b"x", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize(("method", "response"), COMPLETE.values(), ids=COMPLETE)
def test_connection_with_any_byte_behind_a_response_is_closed(
    kept: Wire, method: str, response: bytes, extra: bytes
) -> None:
    closed = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        if peer.number:
            peer.send(OK)
            answer()(peer)
        peer.send(response + extra)
        if peer.wait_closed():
            closed.set()

    kept.upstream.script = script
    with Client(kept.gateway.port) as client:
        client.send(request("/first", method))
        client.read_response(method)
        assert closed.wait(WAIT_S)
        client.send(request("/next"))
        assert client.read_response().body == b"ok"


def test_waiting_request_does_not_get_a_connection_whose_head_told_a_body() -> None:
    first = threading.Event()

    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.read_request()
            assert first.wait(WAIT_S)
            peer.send(HEAD + b"Content-Length: 53\r\n\r\n")
            peer.send(POISON)
        answer()(peer)

    with Upstream(script) as upstream:
        origin = {"targets": [upstream.url], "pool": {"max_connections": 1, "queue_timeout": "30s"}}
        config = {"upstreams": {"origin": origin}, "routes": [{"path": "/*", "upstream": "origin"}]}
        with Gateway(config) as gateway, Client(gateway.port) as one, Client(gateway.port) as two:
            one.send(request("/one", "HEAD"))
            upstream.wait_for_peers(1)
            two.send(request("/two"))
            time.sleep(0.2)  # it waits
            first.set()
            assert one.read_response("HEAD").status == 200
            assert two.read_response().body == b"ok"


# The bound on heads


def sized(head: bytes, size: int) -> bytes:
    """The head, filled up to so many bytes with fields of 1 kB."""
    fields = b""
    left = size - len(head) - 2
    while left:
        take = left if left < 2000 else 1000
        fields += b"X-F: " + b"v" * (take - 7) + b"\r\n"
        left -= take
    return head + fields + b"\r\n"


def in_pieces(data: bytes, size: int) -> Script:
    def script(peer: Peer) -> None:
        try:
            peer.read_request()
            for at in range(0, len(data), size):
                peer.send(data[at : at + size])
                if size < len(data):
                    time.sleep(0.001)
            answer()(peer)
        except Disconnected:
            return

    return script


@pytest.mark.parametrize("piece", [1 << 20, 20_000, 3000])
@pytest.mark.parametrize("framing", [b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize(("size", "status"), [(65_536, 200), (65_537, 502), (100_000, 502)])
def test_bound_on_heads_does_not_depend_on_packets(
    wire: Wire, size: int, status: int, framing: bytes, piece: int
) -> None:
    body = b"ok" if b"Length" in framing else b"2\r\nok\r\n0\r\n\r\n"
    wire.upstream.script = in_pieces(sized(HEAD + framing, size) + body, piece)

    with wire.client() as client:
        client.send(request("/a"))
        assert client.read_response().status == status


@pytest.mark.parametrize("piece", [1 << 20, 3000])
def test_interim_heads_count_against_the_same_bound(wire: Wire, piece: int) -> None:
    hints = sized(b"HTTP/1.1 103 Early Hints\r\n", 5000)
    wire.upstream.script = in_pieces(hints * 20 + OK, piece)

    with wire.client() as client:
        client.send(request("/a"))
        assert client.read_response().status == 502


def test_chunk_extensions_without_end_are_refused(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(CHUNKED + b"5\r\nhello\r\n")
        try:
            peer.send(b"5;")
            for _ in range(200):
                peer.send(b"x" * 1000)
        except Disconnected:
            return

    wire.upstream.script = script
    with wire.client() as client:
        client.send(request("/a"))
        with pytest.raises(Malformed):
            client.read_response()


# Fields that frame


@pytest.mark.parametrize("cuts", [(), (0,), (1,), (2,), (3,), (6,), (0, 1, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize(
    "trailer",
    [
        b"Content-Length: 5",
        b"Content-Length: abc",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Transfer-Encoding: gzip",
        b"Connection: close",
        b"X-Sum: 1\r\nContent-Length: 9",
    ],
)
def test_framing_fields_among_trailers_leave_the_response_whole(
    kept: Wire, trailer: bytes, cuts: tuple[int, ...]
) -> None:
    before, behind = CHUNKED + b"5\r\nhello\r\n", b"0\r\n" + trailer + b"\r\n\r\n"
    at = [0, *(len(before) + cut for cut in cuts), len(before + behind)]
    pieces = [(before + behind)[start:end] for start, end in pairwise(at)]

    def script(peer: Peer) -> None:
        if peer.number:
            answer()(peer)
        peer.read_request()
        for piece in pieces:
            peer.send(piece)
            time.sleep(0.02)
        answer()(peer)

    kept.upstream.script = script
    with Client(kept.gateway.port) as client:
        client.send(request("/a", "GET", "TE: trailers"))
        response = client.read_response()
        assert response.body == b"hello"
        assert {name.lower() for name, _ in response.trailers} <= {b"x-sum"}
        client.send(request("/next"))
        assert client.read_response().body == b"ok"


SAME_TWICE = HEAD + b"Content-Length: 2\r\nX-A: b\r\ncontent-length: 2\r\n\r\nok"


@pytest.mark.parametrize("piece", [1 << 20, 30, 1])
def test_same_length_twice_is_one_length(wire: Wire, piece: int) -> None:
    wire.upstream.script = in_pieces(SAME_TWICE, piece)

    with wire.client() as client:
        client.send(request("/a"))
        response = client.read_response()

    assert response.body == b"ok"
    assert response.values("content-length") == [b"2"]


@pytest.mark.parametrize("piece", [1 << 20, 30])
@pytest.mark.parametrize("lengths", [(b"2", b"3"), (b"2", b"+2"), (b"2", b""), (b"2", b"2, 3")])
def test_different_lengths_are_refused(wire: Wire, lengths: tuple[bytes, bytes], piece: int) -> None:
    fields = b"".join(b"Content-Length: %b\r\n" % length for length in lengths)
    wire.upstream.script = in_pieces(HEAD + fields + b"\r\nok", piece)

    with wire.client() as client:
        client.send(request("/a"))
        assert client.read_response().status == 502


@pytest.mark.parametrize("piece", [1 << 20, 20])
@pytest.mark.parametrize("status", [b"103 Early Hints", b"100 Continue", b"102 Processing"])
def test_length_in_an_interim_response_is_ignored(wire: Wire, status: bytes, piece: int) -> None:
    """It has no body whatever it says (RFC 9110 §15.2)."""
    wire.upstream.script = in_pieces(
        b"HTTP/1.1 " + status + b"\r\nContent-Length: 9\r\nLink: </a>\r\n\r\n" + OK, piece
    )

    with wire.client() as client:
        client.send(request("/a"))
        response = client.read_response()

    assert (response.status, response.body) == (200, b"ok")
    assert [interim.values("content-length") for interim in response.interim] == [[]]


# Responses and resets


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [300_000, 20_000_000])
def test_refusal_of_an_upload_reaches_the_client_though_the_upstream_closes(
    kept: Wire, size: int, framing: str
) -> None:
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong"

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(refusal)
        peer.sock.close()  # with unread bytes: a reset

    kept.upstream.script = script
    statuses = []
    for _ in range(15):
        with Client(kept.gateway.port) as client:
            if framing == "length":
                client.send(request("/", "POST", f"Content-Length: {size}") + bytes(size))
            else:
                client.send(request("/", "POST", "Transfer-Encoding: chunked"))
                block = b"10000\r\n" + bytes(65536) + b"\r\n"
                for _ in range(size // 65536):
                    if not client.send(block):
                        break
                client.send(b"0\r\n\r\n")
            try:
                statuses.append(client.read_response().status)
            except Malformed:  # the client itself was still sending when the gateway closed
                statuses.append(0)

    assert 502 not in statuses
    assert refusals(kept.gateway).get("upstream_closed", 0) == 0
    kept.upstream.failures.clear()


@pytest.mark.parametrize("behind", [b"\r\n", b"GET /more HTTP/1.1\r\nHost: a\r\n\r\n", b"x" * 200_000])
@pytest.mark.parametrize("at_once", [True, False])
def test_bytes_behind_a_last_request_do_not_cost_its_response(behind: bytes, at_once: bool) -> None:
    body = bytes(300_000)
    asked, sent = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            asked.set()
            assert sent.wait(WAIT_S)
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with (
        Upstream(script) as upstream,
        Gateway({"routes": [{"path": "/*", "upstream": upstream.url}]}) as gateway,
    ):
        for _ in range(5):
            asked.clear()
            sent.clear()
            with Client(gateway.port) as client:
                last = request("/", "GET", "Connection: close")
                client.send(last + behind if at_once else last)
                assert asked.wait(WAIT_S)
                if not at_once:
                    client.send(behind)
                sent.set()
                time.sleep(0.05)
                client.send(b"y" * 1000)
                assert client.read_response().body == body
                assert client.read_to_end() == b""
                assert not client.was_reset


# Times


def records(path: Path, count: int) -> list[dict[str, Any]]:
    """The lines of the access log, once there are so many."""
    deadline = time.monotonic() + WAIT_S
    while True:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return [json.loads(line) for line in lines]
        assert time.monotonic() < deadline, lines
        time.sleep(0.02)


REFUSED_HEADS = {
    "garbage": b"\x00\x01\x02\r\n\r\n",
    "method": b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "version": b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
    "target-too-long": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "header-without-colon": b"GET / HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n",
    "header-byte": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: \x00\r\n\r\n",
    "too-many-headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 200 + b"\r\n",
    "header-too-large": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"v" * 60_000 + b"\r\n\r\n",
    "no-host": b"GET / HTTP/1.1\r\n\r\n",
    "two-lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "chunk": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


def test_no_request_takes_as_long_as_the_machine_runs(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with Upstream(answer()) as upstream:
        config = {
            "access_log": {"output": str(log)},
            "routes": [{"path": "/{rest...}", "upstream": upstream.url}],
        }
        with Gateway(config) as gateway:
            for data in REFUSED_HEADS.values():
                for prefix in (b"", request("/before")):
                    with Client(gateway.port) as client:
                        client.send(prefix + data)
                        client.half_close()
                        client.read_to_end()
            lines = records(log, len(REFUSED_HEADS))
            host, _, port = gateway.admin.rpartition(":")
            with Client(int(port)) as admin:
                admin.send(request("/metrics", host=host))
                text = admin.read_response().body.decode()

    assert max(line["duration_ms"] for line in lines) < 20_000
    sums = re.findall(r"^fastgate_\w*duration_seconds_sum\S* (\S+)$", text, re.M)
    assert sums
    assert sum(map(float, sums)) < 60


def test_time_of_a_pipelined_request_upstream_begins_when_it_is_sent(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    def script(peer: Peer) -> None:
        while True:
            if peer.read_request().target == b"/slow":
                time.sleep(4)
            peer.send(OK)

    with Upstream(script) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "timeouts": {"first_byte": "30s"}}
        config = {
            "access_log": {"output": str(log)},
            "routes": [{**route, "path": "/slow"}, {**route, "timeouts": {"first_byte": "3800ms"}}],
        }
        with Gateway(config) as gateway, Client(gateway.port) as client:
            client.send(request("/slow") + request("/quick"))
            assert [client.read_response().status for _ in range(2)] == [200, 200]
            slow, quick = records(log, 2)

    assert (slow["target"], quick["target"]) == ("/slow", "/quick")
    assert quick["upstream_ms"] < slow["upstream_ms"]


def test_duration_of_a_tunnel_lasts_until_its_end(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    def switch(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        peer.wait_closed()

    with Upstream(switch) as upstream:
        config = {"access_log": {"output": str(log)}, "routes": [{"path": "/*", "upstream": upstream.url}]}
        with Gateway(config) as gateway:
            with Client(gateway.port) as client:
                client.send(request("/", "GET", "Connection: Upgrade", "Upgrade: x"))
                client.read_until(b"\r\n\r\n")
                time.sleep(0.5)  # what is measured
            (line,) = records(log, 1)

    assert line["duration_ms"] >= 500


def test_flood_of_interim_responses_is_ended(wire: Wire) -> None:
    wire.upstream.script = in_pieces(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + OK, 1 << 20)

    with wire.client() as client:
        client.send(request("/a"))
        assert client.read_response().status == 502
