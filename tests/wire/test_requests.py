"""Good requests in every framing: what the client sends is what the upstream gets, in order, exactly once."""

from __future__ import annotations

import threading

import pytest

from tests.client import get, request
from tests.upstream import OK, Peer, answer, echo
from tests.wire.conftest import Wire

CHUNKED = "Transfer-Encoding: chunked"


def test_get_keeps_the_connection(wire: Wire, delivery: str) -> None:
    response, seen = wire.passes(request("/a?b=c"), delivery, answer())

    assert (response.status, response.body) == (200, b"ok")
    assert (seen.method, seen.target, seen.body, seen.framing) == (b"GET", b"/a?b=c", b"", "none")
    assert response.keeps_alive


def test_hundred_requests_on_one_connection(wire: Wire) -> None:
    wire.upstream.script = echo

    with wire.client() as client:
        for number in range(100):
            body = b"%d" % number
            client.send(request("/", "POST", body=body))
            assert client.read_response().body == body
        assert client.is_idle()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_method_and_length_framed_body_are_relayed(wire: Wire, delivery: str, method: str) -> None:
    response, seen = wire.passes(request("/x", method, body=b"hello world"), delivery)

    assert response.body == b"hello world"
    assert (seen.method, seen.body, seen.framing) == (method.encode(), b"hello world", "length")


def test_empty_length_framed_body_keeps_its_length(wire: Wire, delivery: str) -> None:
    _, seen = wire.passes(request("/x", "POST", "Content-Length: 0"), delivery)

    assert seen.get("content-length") == b"0"


@pytest.mark.parametrize(
    ("body", "plain"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
        (b"000005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b'5;name=value;other="q;u"\r\nhello\r\n0;last\r\n\r\n', b"hello"),
        (b"0\r\n\r\n", b""),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    ],
)
def test_chunked_request(wire: Wire, delivery: str, body: bytes, plain: bytes) -> None:
    response, seen = wire.passes(request("/x", "POST", CHUNKED, body=body), delivery)

    assert response.body == plain
    assert (seen.body, seen.framing) == (plain, "chunked")
    assert seen.values("content-length") == []


def test_request_trailers_are_relayed(wire: Wire, delivery: str) -> None:
    body = b"3\r\nabc\r\n0\r\nX-Check: 1\r\nX-Other: two\r\n\r\n"

    _, seen = wire.passes(request("/x", "POST", CHUNKED, "Trailer: X-Check", body=body), delivery)

    assert [(name.lower(), value) for name, value in seen.trailers] == [
        (b"x-check", b"1"),
        (b"x-other", b"two"),
    ]


@pytest.mark.parametrize(
    "trailer",
    [
        "Content-Length: 9",
        "Host: evil",
        "Transfer-Encoding: chunked",
        "Authorization: x",
        "Connection: close",
    ],
)
def test_trailers_never_carry_framing_or_routing(wire: Wire, delivery: str, trailer: str) -> None:
    body = f"3\r\nabc\r\n0\r\n{trailer}\r\n\r\n".encode()
    wire.upstream.script = echo

    with wire.client() as client:
        client.send(request("/x", "POST", CHUNKED, body=body), bytewise=delivery == "bytewise")
        response = client.read_response()

    assert response.status in (200, 400)
    assert all(message.trailers == [] for message in wire.upstream.requests)


def test_pipelined_requests_are_answered_in_order(wire: Wire) -> None:
    wire.upstream.script = echo
    many = b"".join(request("/", "POST", body=b"body %d" % number) for number in range(20))

    with wire.client() as client:
        client.send(many)
        bodies = [client.read_response().body for _ in range(20)]

    assert bodies == [b"body %d" % number for number in range(20)]


def test_pipelined_requests_wait_for_a_slow_first_one(wire: Wire) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        target = peer.read_request().target
        if target == b"/0":
            assert release.wait(60)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target))

    wire.upstream.script = script
    with wire.client() as client:
        client.send(b"".join(request(f"/{number}") for number in range(4)))
        wire.upstream.wait_for_peers(1)
        assert client.is_idle()
        release.set()
        bodies = [client.read_response().body for _ in range(4)]

    assert bodies == [b"/0", b"/1", b"/2", b"/3"]


def test_pipelined_refusal_comes_after_the_answers_before_it(wire: Wire) -> None:
    wire.upstream.script = echo

    with wire.client() as client:
        client.send(
            request("/", "POST", body=b"first") + b"GET / HTTP/1.1\r\nHost : x\r\n\r\n" + request("/never")
        )
        assert client.read_response().body == b"first"
        assert client.read_response().status == 400
        assert client.read_to_end() == b""

    assert [message.target for message in wire.upstream.requests] == [b"/"]


def test_empty_lines_before_a_request_are_skipped(wire: Wire, delivery: str) -> None:
    response, _ = wire.passes(b"\r\n" + request("/a"), delivery, answer())

    assert response.status == 200


def test_connection_close_is_honoured(wire: Wire, delivery: str) -> None:
    response, _ = wire.passes(request("/a", "GET", "Connection: close"), delivery, answer(), closes=True)

    assert (response.status, response.keeps_alive) == (200, False)


def test_head_answer_has_no_body(wire: Wire, delivery: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"

    def script(peer: Peer) -> None:
        peer.send(head if peer.read_request().method == b"HEAD" else OK)

    response, seen = wire.passes(request("/a", "HEAD"), delivery, script, "HEAD")

    assert (response.get("content-length"), seen.method) == (b"10", b"HEAD")


def test_head_answer_that_would_be_chunked_has_no_body(wire: Wire, delivery: str) -> None:
    def script(peer: Peer) -> None:
        peer.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            if peer.read_request().method == b"HEAD"
            else OK
        )

    response, _ = wire.passes(request("/a", "HEAD"), delivery, script, "HEAD")

    assert response.status == 200


def test_http_1_0_without_keep_alive_closes(wire: Wire, delivery: str) -> None:
    response, seen = wire.passes(request("/a", version="1.0"), delivery, answer(), closes=True)

    assert (response.body, seen.version) == (b"ok", 1)
    assert len(seen.values("host")) == 1


def test_http_1_0_without_host_is_answered(wire: Wire, delivery: str) -> None:
    response, seen = wire.passes(request("/a", host=None, version="1.0"), delivery, answer(), closes=True)

    assert response.body == b"ok"
    assert len(seen.values("host")) == 1


def test_http_1_0_with_keep_alive_stays_and_is_told_so(wire: Wire, delivery: str) -> None:
    response, _ = wire.passes(
        request("/a", "GET", "Connection: keep-alive", version="1.0"), delivery, answer()
    )

    assert b"keep-alive" in response.listed("connection")


@pytest.mark.parametrize("fields", [(), ("Connection: keep-alive",)])
def test_http_1_0_client_gets_a_chunked_answer_close_delimited(
    wire: Wire, delivery: str, fields: tuple[str, ...]
) -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
    )

    response, _ = wire.passes(
        request("/a", "GET", *fields, version="1.0"), delivery, answer(chunked), closes=True
    )

    assert (response.body, response.framing) == (b"abcde", "close")
    assert response.values("transfer-encoding") == []
    assert b"keep-alive" not in response.listed("connection")


def test_http_1_0_post_has_its_body(wire: Wire, delivery: str) -> None:
    response, seen = wire.passes(request("/a", "POST", body=b"body", version="1.0"), delivery, closes=True)

    assert (response.body, seen.body) == (b"body", b"body")


def test_absolute_form_becomes_origin_form(wire: Wire, delivery: str) -> None:
    data = request("http://gateway.test/a/b?c=d", host="gateway.test")

    _, seen = wire.passes(data, delivery, answer())

    assert (seen.target, seen.get("host")) == (b"/a/b?c=d", b"gateway.test")


def test_absolute_form_without_a_path_asks_for_the_root(wire: Wire, delivery: str) -> None:
    _, seen = wire.passes(request("http://gateway.test", host="gateway.test"), delivery, answer())

    assert seen.target == b"/"


def test_absolute_form_wins_over_host_or_is_refused(wire: Wire, delivery: str) -> None:
    wire.upstream.script = answer()

    with wire.client() as client:
        client.send(request("http://only.test/only", host="gateway.test"), bytewise=delivery == "bytewise")
        response = client.read_response()

    assert response.status in (200, 400)
    assert all(message.get("host") == b"only.test" for message in wire.upstream.requests)
    assert len(wire.upstream.requests) == (response.status == 200)


def test_options_asterisk_is_answered(wire: Wire, delivery: str) -> None:
    wire.upstream.script = answer()

    with wire.client() as client:
        client.send(request("*", "OPTIONS"), bytewise=delivery == "bytewise")
        response = client.read_response("OPTIONS")

    assert 200 <= response.status < 300
    assert all((message.method, message.target) == (b"OPTIONS", b"*") for message in wire.upstream.requests)


def test_asterisk_is_only_for_options(wire: Wire, delivery: str) -> None:
    wire.refuses(request("*", "GET"), delivery, 400)


@pytest.mark.parametrize("target", ["gateway.test:443", "gateway.test:80", "/"])
def test_connect_is_refused(wire: Wire, delivery: str, target: str) -> None:
    answered = wire.refuses(request(target, "CONNECT"), delivery, 400, 405)

    assert answered.status == 400 or b"GET" in (answered.get("allow") or b"")


def test_method_outside_the_route_is_405_with_allow(wire: Wire, delivery: str) -> None:
    with wire.client() as client:
        client.send(request("/post-only"), bytewise=delivery == "bytewise")
        response = client.read_response()

    # The catch-all route of the fixture takes what the narrower one leaves.
    assert response.status in (200, 405)
    if response.status == 405:
        assert response.listed("allow") == [b"post"]


def test_target_reaches_the_upstream_unharmed(wire: Wire, delivery: str) -> None:
    target = "/a%20b/%E2%82%AC;p=1?q=%2F..%2f&x=a+b&y='()!*&empty="

    _, seen = wire.passes(request(target), delivery, answer())

    assert seen.target == target.encode()


def test_field_values_reach_the_upstream_unharmed(wire: Wire, delivery: str) -> None:
    fields = [
        "X-One: a b\tc",
        "X-Two: caf\xe9 au lait",
        "Cookie: name=Jos\xe9",
        "X-Utf8: " + "\u00e9t\u00e9 \u00df".encode().decode("latin-1"),
        'X-Three: "quoted, \\"text\\""',
        "X-Empty:",
        "X-Pad:  \t x \t ",
        "x-same: 1",
        "x-same: 2",
    ]

    _, seen = wire.passes(request("/a", "GET", *fields), delivery, answer())

    assert seen.get("x-one") == b"a b\tc"
    assert seen.get("x-two") == "caf\xe9 au lait".encode("latin-1")
    assert seen.get("x-three") == b'"quoted, \\"text\\""'
    assert seen.get("x-empty") == b""
    assert seen.get("x-pad") == b"x"
    assert seen.values("x-same") == [b"1", b"2"]


@pytest.mark.parametrize(
    "host", ["a", "a.b-c.d:8080", "[::1]", "[2001:db8::1]:80", "127.0.0.1", "A.Example", "xn--bcher-kva.test"]
)
def test_good_hosts_are_taken(wire: Wire, delivery: str, host: str) -> None:
    response, _ = wire.passes(request("/a", host=host), delivery, answer())

    assert response.status == 200


def test_largest_allowed_header_section_is_taken(wire: Wire, delivery: str) -> None:
    value = "v" * 30_000

    _, seen = wire.passes(request("/a", "GET", f"X-Long: {value}"), delivery, answer())

    assert seen.get("x-long") == value.encode()


def test_largest_allowed_target_is_taken(wire: Wire, delivery: str) -> None:
    target = "/" + "t" * 7999

    _, seen = wire.passes(request(target), delivery, answer())

    assert seen.target == target.encode()


def test_body_at_the_limit_is_taken(wire: Wire, delivery: str) -> None:
    response, _ = wire.passes(request("/limited", "POST", body=b"x" * 1000), delivery)

    assert response.status == 200


def test_large_body_arrives_whole(wire: Wire) -> None:
    body = bytes(range(256)) * 8192

    wire.upstream.script = echo
    response = get(wire.gateway.port, "/big", method="POST", body=body)

    assert response.body == body
