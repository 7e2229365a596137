"""The parser that judges the gateway is itself strict: it takes what the grammar allows and nothing else."""

from __future__ import annotations

import pytest

from tests.strict import Malformed, parse_request, parse_response

HOST = b"Host: a\r\n"


@pytest.mark.parametrize(
    ("data", "body", "rest"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"", b""),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nokmore", b"ok", b"more"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nok\r\n0\r\nA:b\r\n\r\nX",
            b"ok",
            b"X",
        ),
    ],
)
def test_good_requests_are_read_to_their_end(data: bytes, body: bytes, rest: bytes) -> None:
    parsed = parse_request(data)

    assert parsed is not None
    assert (parsed[0].body, parsed[1]) == (body, rest)
    assert parsed[0].raw + rest == data


@pytest.mark.parametrize("cut", range(1, 70, 3))
def test_incomplete_requests_are_waited_for(cut: int) -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"

    assert cut >= len(data) or parse_request(data[:cut]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: b\nC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: \xa0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +2\r\n\r\nok",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok!\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n",
    ],
)
def test_bad_requests_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_request(data)


def test_close_delimited_answer_ends_with_the_connection() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nhello"

    assert parse_response(data) is None
    parsed = parse_response(data, closed=True)
    assert parsed is not None
    assert parsed[0].body == b"hello"


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
def test_cut_answers_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_response(data, closed=True)


def test_interim_answers_come_with_the_final_one() -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    parsed = parse_response(data)

    assert parsed is not None
    assert [message.status for message in parsed[0].interim] == [103]
