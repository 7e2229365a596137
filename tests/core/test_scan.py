"""The head scanner beside llhttp: what it takes, httptools must take and read the same.

The scanner leaves framing to its caller: heads with Transfer-Encoding go to the parser after all, and a
Content-Length that is not one decimal number is refused. Such heads are not compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser
from hypothesis import example, given
from hypothesis import strategies as st

from fastgate._core.http.scan import runs, scan_request, scan_response

METHODS = [b"GET", b"PUT", b"POST", b"HEAD", b"PATCH", b"DELETE", b"OPTIONS"]
MUTATIONS = 40  # of one generated head in one example
ODD = b'\x00\t\n\x0b\x0c\r "#%,/:;?@[\\]{|}\x7f\x80\x85\xa0\xff0aAHTP1.'
SNIPPETS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\r\n ",
    b": ",
    b" :",
    b" HTTP/1.1",
    b" HTTP/1.0",
    b"HTTP/1.1 ",
    b"Host: a\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length : 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, Upgrade\r\n",
    b"Proxy-Connection: x\r\n",
    b"http://a/",
    b"//",
    b"#f",
]


class Head(NamedTuple):
    """What a parser says about the head at the start of some bytes."""

    length: int
    first: bytes | int  # the method, or the status
    second: bytes  # the target, or the phrase
    fields: list[tuple[bytes, bytes]]


class Collected:
    """The callbacks of httptools."""

    def __init__(self) -> None:
        self.url = self.phrase = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_status(self, phrase: bytes) -> None:
        self.phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.is_complete = True


def by_httptools(data: bytes, *, request: bool) -> Head | None:
    """The head as llhttp reads it, fed byte by byte so that its length is known; None when it is refused."""
    found = Collected()
    parser = HttpRequestParser(found) if request else HttpResponseParser(found)
    for length in range(1, len(data) + 1):
        try:
            parser.feed_data(data[length - 1 : length])
        except HttpParserUpgrade:
            assert found.is_complete
        except HttpParserError:
            if not found.is_complete:  # else it is about what follows: a 101 without Upgrade
                return None
        if found.is_complete:
            assert parser.get_http_version() == "1.1"
            first = parser.get_method() if isinstance(parser, HttpRequestParser) else parser.get_status_code()
            return Head(length, first, found.url if request else found.phrase, found.fields)
    return None


def leaves_framing_open(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """True if the caller does not believe the scanner alone: see the top of this file."""
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    return (
        any(name.lower() == b"transfer-encoding" for name, _ in fields)
        or len(lengths) > 1
        or any(not (value.isdigit() and len(value) <= 18) for value in lengths)
    )


def compare_request(data: bytes) -> bool:
    """True if the scanner takes the head; fails unless httptools then says the same."""
    found = scan_request(data)
    if found is None:
        return False
    if not leaves_framing_open(found[3]):
        assert Head(*found) == by_httptools(data, request=True)
    return True


def compare_response(data: bytes) -> bool:
    found = scan_response(data)
    if found is None:
        return False
    if not leaves_framing_open(found[3]):
        assert Head(*found) == by_httptools(data, request=False)
    return True


def mutated(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(out) + 1)
        kind = chance.randrange(6)
        if kind == 0 and at < len(out):
            out[at] = chance.choice(ODD)
        elif kind == 1:
            out.insert(at, chance.choice(ODD))
        elif kind == 2:
            del out[at : at + chance.choice((1, 1, 2, 5))]
        elif kind == 3:
            out[at:at] = chance.choice(SNIPPETS)
        elif kind == 4:
            end = at + chance.randrange(1, 20)
            out[at:at] = out[at:end]
        elif at < len(out):
            out[at] ^= 1 << chance.randrange(8)
    return bytes(out)


token = st.text(alphabet="!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12).map(str.encode)
text = st.binary(max_size=20).map(lambda raw: bytes(c for c in raw if c == 9 or 32 <= c != 127))
name = st.one_of(
    token, st.sampled_from([b"Host", b"Content-Length", b"connection", b"X-A", b"Upgrade", b"Via"])
)
value = st.one_of(
    text, st.sampled_from([b"5", b"0", b"close", b"keep-alive", b"upgrade", b"a, b", b"x" * 300])
)
blanks = st.sampled_from([b"", b" ", b"\t", b"  \t "])
line = st.tuples(name, blanks, value, blanks).map(
    lambda parts: parts[0] + b":" + b"".join(parts[1:]) + b"\r\n"
)
lines = st.lists(line, max_size=6).map(b"".join)
target = st.text(alphabet=[chr(c) for c in range(33, 127)], max_size=20).map(
    lambda text: b"/" + text.encode()
)
rest = st.sampled_from([b"", b"x", b"GET / HTTP/1.1\r\n\r\n", b"\r\n"])
request_head = st.tuples(st.sampled_from(METHODS), target, lines, rest).map(
    lambda parts: parts[0] + b" " + parts[1] + b" HTTP/1.1\r\n" + parts[2] + b"\r\n" + parts[3]
)
phrase = st.text(alphabet=[chr(c) for c in range(32, 127)], max_size=15).map(str.encode)
response_head = st.tuples(st.integers(100, 999), phrase, lines, rest).map(
    lambda parts: b"HTTP/1.1 %d " % parts[0] + parts[1] + b"\r\n" + parts[2] + b"\r\n" + parts[3]
)


@given(request_head, st.integers(0, 2**32))
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0)
def test_accepted_requests_are_read_as_llhttp_reads_them(data: bytes, seed: int) -> None:
    chance = random.Random(seed)

    compare_request(data)
    for _ in range(MUTATIONS):
        compare_request(mutated(data, chance))


@given(response_head, st.integers(0, 2**32))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 0)
def test_accepted_responses_are_read_as_llhttp_reads_them(data: bytes, seed: int) -> None:
    chance = random.Random(seed)

    compare_response(data)
    for _ in range(MUTATIONS):
        compare_response(mutated(data, chance))


def test_runs_are_the_same_by_every_width() -> None:
    """Every byte at every place of blocks of 8 and 16 bytes; a run is never longer than it is, and at most 7
    bytes shorter, at the end.
    """
    letters = b"abcdefghijklmnopqrstuvwxyz-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for length in range(41):
        for at in range(length):
            for byte in range(256):
                data = bytearray(letters[:length])
                data[at] = byte
                (plain, plain_words), (name, name_words) = runs(bytes(data))
                ends = length if byte >= 32 and byte != 127 else at
                assert plain == plain_words == (ends if ends < length - length % 8 else length - length % 8)
                ends = length if byte in letters else at
                assert name == name_words == (ends if ends < length - length % 8 else length - length % 8)


@given(
    st.sampled_from(METHODS),
    target,
    st.lists(st.tuples(token, st.sampled_from([b"", b"v", b"a b"])), max_size=5),
)
def test_plain_requests_are_taken(method: bytes, path: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    head = (
        method + b" " + path + b" HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in fields) + b"\r\n"
    )

    assert scan_request(head + b"rest") == (len(head), method, path, fields)


USUAL = (
    b"GET /orders/42?full=1 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: curl/8.5.0\r\n"
    b"Accept: */*\r\nX-Empty:\r\n\r\n"
)


def test_the_usual_request_is_taken_with_its_fields() -> None:
    assert scan_request(USUAL) == (
        len(USUAL),
        b"GET",
        b"/orders/42?full=1",
        [
            (b"Host", b"api.example.com"),
            (b"User-Agent", b"curl/8.5.0"),
            (b"Accept", b"*/*"),
            (b"X-Empty", b""),
        ],
    )
    assert compare_request(USUAL)


def test_no_prefix_of_a_head_is_taken() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\n"

    assert [n for n in range(len(USUAL)) if scan_request(USUAL[:n]) is not None] == []
    assert [n for n in range(len(answer)) if scan_response(answer[:n]) is not None] == []


@pytest.mark.parametrize("at", range(len(USUAL)))
def test_every_byte_at_every_place_is_read_as_llhttp_does(at: int) -> None:
    for byte in range(256):
        compare_request(USUAL[:at] + bytes([byte]) + USUAL[at + 1 :])


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\tfolded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \x85a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\xa0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\xa0 \r\n\r\n",
        b"GET / HTTP/1.1\r\n: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\nH\xf6st: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nH(st): a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\rX",
        b"",
        b"GET ",
        b"GET /",
    ],
)
def test_what_is_not_plain_is_left_to_the_parser(head: bytes) -> None:
    assert scan_request(head) is None


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\nX: y\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nX: y\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200\r\nX: y\r\n\r\n",
        b"HTTP/1.1  200 OK\r\nX: y\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\nX: y\n\n",
        b"HTTP/1.1 200 \xd6K\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 O\tK\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\x01\r\n\r\n",
        b"http/1.1 200 OK\r\nX: y\r\n\r\n",
        b"ICY 200 OK\r\nX: y\r\n\r\n",
        b"",
    ],
)
def test_answers_that_are_not_plain_are_left_to_the_parser(head: bytes) -> None:
    assert scan_response(head) is None


def test_more_fields_than_asked_for_are_left_to_the_parser() -> None:
    head = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10 + b"\r\n"

    assert scan_request(head, 10) is not None
    assert scan_request(head, 9) is None


def test_more_fields_than_a_table_holds_are_left_to_the_parser() -> None:
    assert scan_request(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 512 + b"\r\n", 1000) is not None
    assert scan_request(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 513 + b"\r\n", 1000) is None
    assert scan_response(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 513 + b"\r\n") is None


def test_two_heads_in_one_buffer_are_read_one_by_one() -> None:
    first = scan_request(USUAL + USUAL)
    assert first is not None

    assert first[0] == len(USUAL)
    assert scan_request((USUAL + USUAL)[first[0] :]) == first
