"""The reader of messages in the benchmarks: every framing, in any pieces, and every mismatch."""

from __future__ import annotations

import pytest

from benchmarks.gateway.message import Message

BODY = b"0123456789" * 3
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAMINGS = {
    "length": HEAD + BODY,
    "one chunk": CHUNKED_HEAD + b"1e\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunks": CHUNKED_HEAD + b"0A;x=1\r\n%b\r\n14\r\n%b\r\n0\r\n\r\n" % (BODY[:10], BODY[10:]),
}


def test_a_message_without_a_body_ends_with_its_head() -> None:
    message = Message()

    assert message.feed(b"GET /streams/7 HTTP/1.1\r\nHost: a\r\n\r\n") == b""
    assert message.is_complete
    assert message.start == b"GET /streams/7 HTTP/1.1"
    assert message.fields == {b"host": b"a"}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_message_is_read_in_any_pieces(framing: str, size: int) -> None:
    message, whole = Message(BODY), FRAMINGS[framing]

    for start in range(0, len(whole), size):
        assert not message.is_complete
        assert message.feed(memoryview(whole)[start : start + size]) == b""

    assert message.is_complete
    assert message.body_bytes == 30


@pytest.mark.parametrize("framing", FRAMINGS)
def test_what_follows_a_message_is_returned(framing: str) -> None:
    message = Message(BODY)

    assert message.feed(FRAMINGS[framing] + b"HTTP/1.1 ") == b"HTTP/1.1 "
    assert message.is_complete


@pytest.mark.parametrize(
    ("arrives", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n" + BODY[:29], "29 of 30 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\n" + BODY + b"0", "byte 0 of the body"),
        (HEAD + BODY[:20] + b"x" * 10, "byte 0 of the body"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "0 of 30 bytes"),
        (CHUNKED_HEAD + b"1d\r\n" + BODY[:29] + b"\r\n0\r\n\r\n", "29 of 30 bytes"),
        (CHUNKED_HEAD + b"1e\r\n" + BODY + b"\r\n1\r\nx\r\n0\r\n\r\n", "byte 30 of the body"),
        (CHUNKED_HEAD + b"one\r\n", "no size of a chunk"),
    ],
)
def test_other_bytes_than_were_sent_are_refused(arrives: bytes, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        Message(BODY).feed(arrives)
