"""Bad requests: a precise refusal, nothing complete at the upstream, and nothing behind them is served.

Each row is one way to make two parsers disagree, or to hold on to a connection. Sources: RFC 9112 §2.2, §3,
§5, §6.3, §7.1, RFC 9110 §5.5, and the request smuggling literature (CL.TE, TE.CL, TE.TE, chunk extensions,
bare LF).
"""

from __future__ import annotations

import json
import time

import pytest

from tests.client import request
from tests.faults.refusals import refusals
from tests.strict import Malformed
from tests.upstream import Peer, echo
from tests.wire.conftest import NEXT, Wire, is_plain_refusal

HEAD = b"POST / HTTP/1.1\r\nHost: gateway.test\r\n"
GET = b"GET / HTTP/1.1\r\nHost: gateway.test\r\n"


def framed(*fields: bytes, body: bytes = b"5\r\nhello\r\n0\r\n\r\n") -> bytes:
    """A POST with these framing fields as they are."""
    return HEAD + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


FRAMING = {
    "length and chunked": framed(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunked and length": framed(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "zero length and chunked": framed(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    "length and identity": framed(b"Content-Length: 5", b"Transfer-Encoding: identity", body=b"hello"),
    "equal lengths": framed(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    "unequal lengths": framed(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "lengths in a list": framed(b"Content-Length: 5, 5", body=b"hello"),
    "unequal lengths in a list": framed(b"Content-Length: 5,6", body=b"hello!"),
    "signed length": framed(b"Content-Length: +5", body=b"hello"),
    "negative length": framed(b"Content-Length: -5", body=b"hello"),
    "hexadecimal length": framed(b"Content-Length: 0x5", body=b"hello"),
    "length with letters": framed(b"Content-Length: 5a", body=b"hello"),
    "length with a space inside": framed(b"Content-Length: 1 0", body=b"0123456789"),
    "length with an underscore": framed(b"Content-Length: 1_0", body=b"0123456789"),
    "length with a point": framed(b"Content-Length: 5.0", body=b"hello"),
    "quoted length": framed(b'Content-Length: "5"', body=b"hello"),
    "empty length": framed(b"Content-Length:", body=b"hello"),
    "length of only spaces": framed(b"Content-Length:   ", body=b"hello"),
    "overflowing length": framed(b"Content-Length: 18446744073709551621", body=b"hello"),
    "length beyond 63 bits": framed(b"Content-Length: 9223372036854775808", body=b"hello"),
    "very long length": framed(b"Content-Length: " + b"9" * 100, body=b"hello"),
    "length with a vertical tab": framed(b"Content-Length: \x0b5", body=b"hello"),
    "length with a no-break space": framed(b"Content-Length: \xa05", body=b"hello"),
    "leading comma": framed(b"Transfer-Encoding: ,chunked"),
    "trailing comma": framed(b"Transfer-Encoding: chunked,"),
    "chunked twice": framed(b"Transfer-Encoding: chunked, chunked"),
    "chunked in two fields": framed(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "identity then chunked": framed(b"Transfer-Encoding: identity, chunked"),
    "chunked then identity": framed(b"Transfer-Encoding: chunked, identity"),
    "identity": framed(b"Transfer-Encoding: identity", body=b""),
    "unknown coding": framed(b"Transfer-Encoding: xchunked"),
    "prefix of chunked": framed(b"Transfer-Encoding: chunke"),
    "chunked with a parameter": framed(b"Transfer-Encoding: chunked;q=1"),
    "quoted chunked": framed(b'Transfer-Encoding: "chunked"'),
    "chunked with a vertical tab": framed(b"Transfer-Encoding: \x0bchunked"),
    "chunked with a NUL": framed(b"Transfer-Encoding: chunked\x00"),
    "chunked with a no-break space": framed(b"Transfer-Encoding: chunked\xa0"),
    "chunked split by a space": framed(b"Transfer-Encoding: chu nked"),
    "empty coding": framed(b"Transfer-Encoding:", body=b""),
    "folded coding": framed(b"Transfer-Encoding:\r\n chunked"),
    "space before the colon of the coding": framed(b"Transfer-Encoding : chunked"),
    "space before the colon of the length": framed(b"Content-Length : 5", body=b"hello"),
    "coding in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}

CODINGS = {
    "gzip then chunked": framed(b"Transfer-Encoding: gzip, chunked"),
    "gzip": framed(b"Transfer-Encoding: gzip", body=b""),
    "chunked then gzip": framed(b"Transfer-Encoding: chunked, gzip"),
}


def chunked(body: bytes) -> bytes:
    """A chunked POST with this body as it is."""
    return framed(b"Transfer-Encoding: chunked", body=body)


CHUNKS = {
    "size with a sign": chunked(b"+5\r\nhello\r\n0\r\n\r\n"),
    "negative size": chunked(b"-5\r\nhello\r\n0\r\n\r\n"),
    "size with 0x": chunked(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "size with junk": chunked(b"5g\r\nhello\r\n0\r\n\r\n"),
    "size with a leading space": chunked(b" 5\r\nhello\r\n0\r\n\r\n"),
    "size with an underscore": chunked(b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    "no size": chunked(b"\r\nhello\r\n0\r\n\r\n"),
    "only an extension": chunked(b";a=b\r\nhello\r\n0\r\n\r\n"),
    "size that overflows 64 bits": chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "size of many digits": chunked(b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n"),
    "size ended by LF": chunked(b"5\nhello\r\n0\r\n\r\n"),
    "size ended by CR": chunked(b"5\rhello\r\n0\r\n\r\n"),
    "chunk longer than its size": chunked(b"5\r\nhello!\r\n0\r\n\r\n"),
    "chunk shorter than its size": chunked(b"6\r\nhello\r\n0\r\n\r\n"),
    "chunk ended by LF": chunked(b"5\r\nhello\n0\r\n\r\n"),
    "chunk ended by nothing": chunked(b"5\r\nhello0\r\n\r\n"),
    "chunk ended by two other bytes": chunked(b"5\r\nhelloXX0\r\n\r\n"),
    "last chunk ended by LF": chunked(b"5\r\nhello\r\n0\n\r\n"),
    "body ended by LF": chunked(b"5\r\nhello\r\n0\r\n\n"),
    "extension with LF": chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "extension with CR": chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "extension with NUL": chunked(b"5;a\x00b\r\nhello\r\n0\r\n\r\n"),
    "folded trailer": chunked(b"5\r\nhello\r\n0\r\nX: 1\r\n 2\r\n\r\n"),
    "trailer with a space before its colon": chunked(b"5\r\nhello\r\n0\r\nX : 1\r\n\r\n"),
    "trailer without a colon": chunked(b"5\r\nhello\r\n0\r\nX\r\n\r\n"),
    "trailer with NUL": chunked(b"5\r\nhello\r\n0\r\nX: \x00\r\n\r\n"),
    "trailer with bare CR": chunked(b"5\r\nhello\r\n0\r\nX: a\rb\r\n\r\n"),
    "trailer ended by LF": chunked(b"5\r\nhello\r\n0\r\nX: a\n\r\n"),
}

FIELDS = {
    "obs-fold": GET + b"X-A: one\r\n two\r\n\r\n",
    "obs-fold with a tab": GET + b"X-A: one\r\n\ttwo\r\n\r\n",
    "fold before the first field": b"GET / HTTP/1.1\r\n Host: a\r\nHost: gateway.test\r\n\r\n",
    "bare CR in a value": GET + b"X-A: one\rtwo\r\n\r\n",
    "bare CR at the end of a value": GET + b"X-A: one\r\r\n\r\n",
    "CR that hides a field": GET + b"X-A: one\rTransfer-Encoding: chunked\r\n\r\n",
    "bare LF in a value": GET + b"X-A: one\nX-B: two\r\n\r\n",
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: gateway.test\r\n\r\n",
    "bare LF after every line": b"GET / HTTP/1.1\nHost: gateway.test\n\n",
    "bare LF at the end of the head": GET + b"X-A: one\r\n\n",
    "bare CR at the end of the head": GET + b"X-A: one\r\n\rX",
    "NUL in a value": GET + b"X-A: o\x00ne\r\n\r\n",
    "NUL in a name": GET + b"X-\x00A: one\r\n\r\n",
    "control character in a value": GET + b"X-A: o\x01ne\r\n\r\n",
    "escape in a value": GET + b"X-A: o\x1bne\r\n\r\n",
    "vertical tab in a value": GET + b"X-A: o\x0bne\r\n\r\n",
    "form feed at the front of a value": GET + b"X-A: \x0cone\r\n\r\n",
    "DEL in a value": GET + b"X-A: o\x7fne\r\n\r\n",
    "control character in a name": GET + b"X\x01A: one\r\n\r\n",
    "next line at the front of a value": GET + b"X-A: \x85one\r\n\r\n",
    "no-break space at the end of a value": GET + b"X-A: one\xa0\r\n\r\n",
    "next line at the end of a value": GET + b"X-A: one\x85\r\n\r\n",
    "no-break space as a value": GET + b"X-A: \xa0\r\n\r\n",
    "8-bit byte in a name": GET + b"X-\xc4: one\r\n\r\n",
    "space before the colon": GET + b"X-A : one\r\n\r\n",
    "tab before the colon": GET + b"X-A\t: one\r\n\r\n",
    "space in a name": GET + b"X A: one\r\n\r\n",
    "empty name": GET + b": one\r\n\r\n",
    "no colon": GET + b"X-A one\r\n\r\n",
    "parenthesis in a name": GET + b"X(A): one\r\n\r\n",
    "quote in a name": GET + b'X"A": one\r\n\r\n',
    "slash in a name": GET + b"X/A: one\r\n\r\n",
}

HOSTS = {
    "no host": b"GET / HTTP/1.1\r\nX-A: one\r\n\r\n",
    "no field at all": b"GET / HTTP/1.1\r\n\r\n",
    "two equal hosts": GET + b"Host: gateway.test\r\n\r\n",
    "two hosts": GET + b"Host: other.test\r\n\r\n",
    "space before the colon of the host": b"GET / HTTP/1.1\r\nHost : gateway.test\r\n\r\n",
    **{
        f"host {value!r}": b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n"
        for value in (
            b"a b", b"a/b", b"a@b", b"user:pass@a", b"a:b:c", b"a:port", b"a:80x", b"a:-1", b"a,b",
            b"http://a", b"a#b", b"a?b", b"a\tb", b"\x80a", b"a\xffb", b"[::1", b"::1", b"[::1]x", b"[zz]",
            b"a\\b", b"<a>", b"a\"b", b"a:99999", b"{a}", b"a^b", b"a|b", b":80",
        )
    },
    "absolute form without a host field": b"GET http://gateway.test/ HTTP/1.1\r\n\r\n",
    "absolute form with user info": b"GET http://user@gateway.test/ HTTP/1.1\r\nHost: gateway.test\r\n\r\n",
    "absolute form without an authority": b"GET http:///a HTTP/1.1\r\nHost: gateway.test\r\n\r\n",
    "absolute form with another scheme": b"GET ftp://gateway.test/ HTTP/1.1\r\nHost: gateway.test\r\n\r\n",
}  # fmt: skip

LINES = {
    "target with a space": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "target with a tab": b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
    "target with NUL": b"GET /a\x00b HTTP/1.1\r\nHost: a\r\n\r\n",
    "target with a control character": b"GET /a\x01b HTTP/1.1\r\nHost: a\r\n\r\n",
    "target with DEL": b"GET /a\x7fb HTTP/1.1\r\nHost: a\r\n\r\n",
    "target with CR": b"GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n",
    "target with an 8-bit byte": b"GET /a\xe9b HTTP/1.1\r\nHost: a\r\n\r\n",
    "query with an 8-bit byte": b"GET /a?q=\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "target with a fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "query with a fragment": b"GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n",
    "relative target": b"GET a/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "query alone as target": b"GET ?a HTTP/1.1\r\nHost: a\r\n\r\n",
    "broken percent encoding": b"GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n",
    "cut percent encoding": b"GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n",
    "encoded NUL": b"GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty target": b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab before the target": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "space before the method": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "space behind the version": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "junk behind the version": b"GET / HTTP/1.1x\r\nHost: a\r\n\r\n",
    "lower-case protocol": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "other protocol": b"GET / ICE/1.0\r\nHost: a\r\n\r\n",
    "RTSP": b"OPTIONS rtsp://a/ RTSP/1.0\r\nHost: a\r\n\r\n",
    "response instead of a request": b"HTTP/1.1 200 OK\r\nHost: a\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32 + b"\r\n\r\n",
    "NUL": b"\x00" * 16 + b"\r\n\r\n",
}


def table(rows: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("data", list(rows.values()), ids=[name.replace(" ", "-") for name in rows])


@table(FRAMING)
def test_ambiguous_framing_is_refused(wire: Wire, delivery: str, data: bytes) -> None:
    wire.refuses(data, delivery, 400)


@table(CODINGS)
def test_other_transfer_codings_are_refused(wire: Wire, delivery: str, data: bytes) -> None:
    wire.refuses(data, delivery, 400, 501)


@table(CHUNKS)
def test_bad_chunks_are_refused(wire: Wire, delivery: str, data: bytes) -> None:
    wire.refuses(data, delivery, 400)


@table(FIELDS)
def test_bad_fields_are_refused(wire: Wire, delivery: str, data: bytes) -> None:
    wire.refuses(data, delivery, 400)


@table(HOSTS)
def test_bad_hosts_are_refused(wire: Wire, delivery: str, data: bytes) -> None:
    wire.refuses(data, delivery, 400)


@table(LINES)
def test_bad_request_lines_are_refused(wire: Wire, delivery: str, data: bytes) -> None:
    wire.refuses(data, delivery, 400, 405, 505)


@pytest.mark.parametrize(
    "line",
    [b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET /../../etc/passwd HTTP/1.1", b"GET /a/./b/..//c HTTP/1.1"],
)
def test_odd_request_line_is_refused_or_made_even(wire: Wire, delivery: str, line: bytes) -> None:
    """RFC 9112 §3 lets a recipient be lenient about spaces; what goes upstream must not be."""
    wire.upstream.script = echo

    with wire.client() as client:
        client.send(line + b"\r\nHost: gateway.test\r\n\r\n", bytewise=delivery == "bytewise")
        response = client.read_response()

    assert response.status in (200, 400)
    for message in wire.upstream.requests:
        assert b" " not in message.target
        assert b"/." not in message.target


def test_chunk_extension_flood_is_refused(wire: Wire) -> None:
    wire.refuses(chunked(b"5;" + b"a" * 2_000_000 + b"\r\nhello\r\n0\r\n\r\n"), "whole", 400, 413)


def test_trailer_flood_is_refused(wire: Wire) -> None:
    wire.refuses(chunked(b"1\r\nx\r\n0\r\n" + b"X-T: value\r\n" * 20_000 + b"\r\n"), "whole", 400, 413, 431)


@pytest.mark.parametrize("method", ["BREW", "get", "GETT", "G", "PROPFIND2", "SECRET-METHOD"])
def test_unknown_method_is_501(wire: Wire, delivery: str, method: str) -> None:
    wire.refuses(request("/", method), delivery, 501)


@pytest.mark.parametrize("method", [b"G@T", b"GE(T", b"G\x00T", b"\xc7ET", b"{}", b"GET,"])
def test_method_that_is_no_token_is_refused(wire: Wire, delivery: str, method: bytes) -> None:
    wire.refuses(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n", delivery, 400)


@pytest.mark.parametrize("version", ["2.0", "0.9", "3.0", "1.5", "9.9"])
def test_unknown_version_is_505(wire: Wire, delivery: str, version: str) -> None:
    wire.refuses(request("/", version=version), delivery, 505)


@pytest.mark.parametrize("version", ["1", "1.", ".1", "1.1.1", "01.1", "1.01", "11.1", "1,1", "a.b"])
def test_malformed_version_is_refused(wire: Wire, delivery: str, version: str) -> None:
    wire.refuses(request("/", version=version), delivery, 400, 505)


def test_http_0_9_is_refused(wire: Wire) -> None:
    wire.refuses(b"GET /\r\n\r\n", "whole", 400, 505)


@pytest.mark.parametrize("value", ["9223372036854775808", "99999999999999999999999"])
def test_a_length_beyond_63_bits_is_bad_framing(wire: Wire, delivery: str, value: str) -> None:
    response = wire.refuses(request("/", "POST", f"Content-Length: {value}"), delivery, 400)
    assert json.loads(response.body)["code"] == "bad_framing"


@pytest.mark.parametrize("second", ["Content-Length: 3", "Transfer-Encoding: chunked"])
def test_two_framings_behind_a_chunked_request_are_bad_framing(wire: Wire, second: str) -> None:
    wire.upstream.script = echo
    good = request("/a", "POST", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"
    with wire.client() as client:
        client.send(good + request("/b", "POST", "Content-Length: 3", second) + b"abc")
        assert client.read_response().body == b"abc"
        assert json.loads(client.read_response().body)["code"] == "bad_framing"


def test_http_2_preface_is_505(wire: Wire, delivery: str) -> None:
    wire.refuses(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", delivery, 505)


def test_target_over_the_limit_is_414(wire: Wire, delivery: str) -> None:
    wire.refuses(request("/" + "t" * 9000), delivery, 414)


def test_target_over_every_limit_is_414(wire: Wire) -> None:
    wire.refuses(b"GET /" + b"t" * 200_000, "whole", 414)


def test_query_counts_towards_the_target(wire: Wire, delivery: str) -> None:
    wire.refuses(request("/?" + "q" * 9000), delivery, 414)


def test_header_section_over_the_limit_is_431(wire: Wire, delivery: str) -> None:
    wire.refuses(request("/", "GET", *(f"X-{number}: {'v' * 1000}" for number in range(40))), delivery, 431)


def test_one_field_over_the_limit_is_431(wire: Wire, delivery: str) -> None:
    wire.refuses(request("/", "GET", f"X-Long: {'v' * 40_000}"), delivery, 431)


def test_field_without_an_end_is_431(wire: Wire) -> None:
    wire.refuses(GET + b"X-Long: " + b"v" * 200_000, "whole", 431)


def test_name_without_an_end_is_431(wire: Wire) -> None:
    wire.refuses(GET + b"X" * 200_000, "whole", 431)


def test_too_many_fields_are_431(wire: Wire, delivery: str) -> None:
    wire.refuses(request("/", "GET", *(f"X-{number}: v" for number in range(200))), delivery, 431)


def test_declared_body_over_the_limit_is_413_before_it_is_sent(wire: Wire, delivery: str) -> None:
    wire.upstream.script = echo

    with wire.client() as client:
        client.send(request("/limited", "POST", "Content-Length: 5000"), bytewise=delivery == "bytewise")
        response = client.read_response()

    assert response.status == 413
    is_plain_refusal(response)
    assert wire.upstream.requests == []


def test_declared_body_over_the_limit_is_413_with_its_body(wire: Wire, delivery: str) -> None:
    rejects_body(wire, request("/limited", "POST", body=b"x" * 5000), delivery)


def test_chunked_body_over_the_limit_is_413(wire: Wire, delivery: str) -> None:
    body = b"100\r\n" + b"x" * 256 + b"\r\n"

    rejects_body(
        wire,
        request("/limited", "POST", "Transfer-Encoding: chunked", body=body * 20 + b"0\r\n\r\n"),
        delivery,
    )


def test_huge_chunk_over_the_limit_is_413_before_its_end(wire: Wire, delivery: str) -> None:
    body = b"fffffff\r\n" + b"x" * 2000
    wire.upstream.script = echo

    with wire.client() as client:
        client.send(
            request("/limited", "POST", "Transfer-Encoding: chunked", body=body),
            bytewise=delivery == "bytewise",
        )
        assert client.read_response().status == 413

    assert wire.upstream.requests == []


def rejects_body(wire: Wire, data: bytes, delivery: str) -> None:
    """Fails unless a whole request is answered 413 and its body is not taken for anything else.

    The gateway may close, or read on to the end of the body and keep the connection.
    """
    wire.upstream.script = echo

    with wire.client() as client:
        client.send(data + NEXT if delivery == "trailing" else data, bytewise=delivery == "bytewise")
        response = client.read_response()
        assert response.status == 413
        is_plain_refusal(response)
        if not response.keeps_alive:
            assert client.read_to_end() == b""
        elif delivery == "trailing":
            assert client.read_response().status == 200

    served = delivery == "trailing" and response.keeps_alive
    assert [message.target for message in wire.upstream.requests] == ([b"/next"] if served else [])


@pytest.mark.parametrize("value", ["200-ok", "100-continue-please", "100-continue, 200-ok", "x=y"])
def test_unknown_expectation_is_417(wire: Wire, delivery: str, value: str) -> None:
    wire.refuses(request("/", "POST", f"Expect: {value}", body=b"hello"), delivery, 417)


def test_refusal_is_counted_by_its_reason(wire: Wire) -> None:
    before = refusals(wire.gateway)
    wire.refuses(FRAMING["length and chunked"], "whole", 400)
    wire.refuses(FIELDS["NUL in a value"], "whole", 400)
    wire.refuses(HOSTS["no host"], "whole", 400)
    wire.refuses(request("/" + "t" * 9000), "whole", 414)
    deadline = time.monotonic() + 60  # the worker counts after it has answered
    while (after := refusals(wire.gateway)).get("target_too_long") == before.get("target_too_long"):
        assert time.monotonic() < deadline, after

    grown = {
        reason: after[reason] - before.get(reason, 0)
        for reason in after
        if after[reason] != before.get(reason, 0)
    }
    assert grown == {"bad_framing": 1, "bad_header": 1, "bad_host": 1, "target_too_long": 1}


def test_bad_second_request_leaves_the_first_one_whole(wire: Wire) -> None:
    def slow(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi")
        peer.send_bytewise(b"ne")

    wire.upstream.script = slow
    with wire.client() as client:
        client.send(request("/first"))
        client.send(b"\x00garbage\r\n\r\n")
        assert client.read_response().body == b"fine"
        try:
            assert client.read_response().status in (400, 405)
        except Malformed:
            assert client.closed
        assert client.read_to_end() == b""
