"""Which fault of a rejected head decides its reason."""

from __future__ import annotations

import pytest

from fastgate.errors import REASONS
from fastgate.proxy.h1_faults import fault_of

LINE = b"POST /a HTTP/1.1\r\n"

HEADS = {
    "no version": (b"GET /a\r\nHost: a\r\n\r\n", "bad_request_line"),
    "another protocol": (b"GET /a HTTQ/1.1\r\n", "bad_request_line"),
    "version of two digits": (b"GET /a HTTP/11.1\r\n", "bad_request_line"),
    "version without minor": (b"GET /a HTTP/1\r\n", "bad_request_line"),
    "space behind the version": (b"GET /a HTTP/1.1 \r\n", "bad_request_line"),
    "line ends without carriage return": (b"GET /a HTTP/1.1\nHost: a\r\n\r\n", "bad_request_line"),
    "line cut inside the version": (b"GET /a HTTP/1x", "bad_request_line"),
    "nothing": (b"", "bad_request_line"),
    "later version": (b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n", "version_not_supported"),
    "earlier version": (b"GET /a HTTP/0.9\r\n(", "version_not_supported"),
    "empty lines first": (b"\r\n\r\nGET /a HTTP/3.0", "version_not_supported"),
    "field without colon": (LINE + b"Host a\r\n\r\n", "bad_header"),
    "space before the colon": (LINE + b"Content-Length : 3\r\n\r\n", "bad_header"),
    "folded": (LINE + b"Content-Length: 3\r\n more\r\n\r\n", "bad_header"),
    "control character": (LINE + b"X-A: a\x00b\r\n\r\n", "bad_header"),
    "carriage return inside a value": (LINE + b"X-A: a\rb\r\n\r\n", "bad_header"),
    "field ends without carriage return": (LINE + b"X-A: a\nX-B: b\r\n\r\n", "bad_header"),
    "no fault found": (LINE + b"X-A: a\r\n\r\n", "bad_header"),
    "length is no number": (LINE + b"Content-Length: 3x\r\n\r\n", "bad_framing"),
    "length with a sign": (LINE + b"content-length: +3\r\n\r\n", "bad_framing"),
    "empty length": (LINE + b"Content-Length:\r\n\r\n", "bad_framing"),
    "length cut inside its value": (LINE + b"Content-Length: 3,", "bad_framing"),
    "two lengths": (LINE + b"Content-Length: 3\r\nX-A: a\r\nCONTENT-LENGTH: 3\r\n\r\n", "bad_framing"),
    "length and coding": (LINE + b"Content-Length: 3\r\nTransfer-Encoding:", "bad_framing"),
    "coding and length": (LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", "bad_framing"),
    "unknown coding": (LINE + b"Transfer-Encoding: gzip\r\nHost: a\r\n\r\n", "bad_framing"),
    "length beyond 63 bits": (LINE + b"Content-Length: 9223372036854775808\r\n\r\n", "bad_framing"),
    "length of many digits": (LINE + b"Content-Length: " + b"9" * 30_000 + b"\r\n\r\n", "bad_framing"),
    # Any part of the pattern that could match blanks twice would take hours here.
    "many blanks": (LINE + b"X-A: a" + b" \t" * 500_000 + b"b\r\nX B: c\r\n\r\n", "bad_header"),
    "many blanks before a control character": (LINE + b"X-A:" + b" " * 1_000_000 + b"\0", "bad_header"),
    "many spaces in the request line": (b"GET /a" + b" " * 1_000_000 + b"x", "bad_request_line"),
    "many empty lines": (b"\r\n" * 500_000 + b"GET", "bad_request_line"),
    "the first of two faults": (LINE + b"X A: b\r\nContent-Length: x\r\n\r\n", "bad_header"),
}


@pytest.mark.parametrize(("head", "reason"), HEADS.values(), ids=HEADS)
def test_the_first_fault_decides(head: bytes, reason: str) -> None:
    assert fault_of(head) == reason
    assert REASONS[reason].status in (400, 505)
