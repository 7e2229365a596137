"""SseParser against a plain reading of the WHATWG rules, cut at every border."""

from __future__ import annotations

import gc
import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastgate._core import SseEventTooLarge, SseParser
from fastgate._core.http import sse

Fields = tuple[bytes, bytes, bytes, int | None]


def oracle(stream: bytes) -> list[Fields]:
    """WHATWG HTML §9.2.6, line by line, on the whole stream."""
    if stream.startswith(b"\xef\xbb\xbf"):
        stream = stream[3:]
    lines = re.split(rb"\r\n|\n|\r", stream)[:-1]
    events: list[Fields] = []
    data: list[bytes] = []
    name = last_id = b""
    retry: int | None = None
    for line in lines:
        if line == b"":
            if data:
                events.append((name or b"message", b"\n".join(data), last_id, retry))
            data, name, retry = [], b"", None
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"id" and b"\0" not in value:
            last_id = value
        elif field == b"retry" and re.fullmatch(rb"[0-9]{1,18}", value):
            retry = int(value)
    return events


def parsed(chunks: list[bytes], parser: SseParser | None = None) -> list[Fields]:
    parser = parser or SseParser()
    return [(e.event, e.data, e.id, e.retry) for chunk in chunks for e in parser.feed(chunk)]


def cut(stream: bytes, borders: list[int]) -> list[bytes]:
    places = [0, *sorted({b % (len(stream) + 1) for b in borders}), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(places)]


LINES = st.sampled_from(
    [
        b"data: x",
        b"data:x",
        b"data:  two spaces",
        b"data",
        b"data:",
        b"datax: no",
        b"event: update",
        b"event",
        b"event:",
        b"id: 7",
        b"id",
        b"id: a\0b",
        b"retry: 3000",
        b"retry: 3s",
        b"retry:",
        b"retry: 9999999999999999999999",
        b": comment",
        b":",
        b"",
        b"",
        b"",
        b"\xef\xbb\xbfdata: late mark",
        b"\xff\xfe",
        b" data: x",
        b'data: {"choices":[{"delta":{"content":"hello"}}]}',
    ]
)
STREAMS = st.builds(
    lambda mark, pairs: mark + b"".join(line + end for line, end in pairs),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb", b"\xef"]),
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=30),
) | st.lists(st.sampled_from([b"data", b":", b" ", b"\r", b"\n", b"a", b"id", b"event"]), max_size=40).map(
    b"".join
)


@given(stream=STREAMS, borders=st.lists(st.integers(0, 2000), max_size=12))
@example(stream=b"data: a\r\n\r\ndata: b\r\r", borders=[8, 9, 10])
@example(stream=b"\xef\xbb\xbfdata: a\n\n", borders=[1, 2, 3])
def test_any_cut_gives_the_events_of_the_whole_stream(stream: bytes, borders: list[int]) -> None:
    expected = oracle(stream)

    assert parsed([stream]) == expected
    assert parsed([stream[i : i + 1] for i in range(len(stream))]) == expected
    assert parsed(cut(stream, borders)) == expected


def test_every_pair_of_borders_of_a_mixed_stream() -> None:
    stream = b"\xef\xbb\xbfevent: a\rid: 1\r\ndata: x\ndata: y\r\n\r\n: ping\n\nretry: 5\ndata: z\n\n"
    expected = oracle(stream)
    assert len(expected) == 2

    for i in range(len(stream) + 1):
        for j in range(i, len(stream) + 1):
            assert parsed([stream[:i], stream[i:j], b"", stream[j:]]) == expected


def test_last_event_id_and_retry_outlive_a_reset() -> None:
    parser = SseParser()
    parser.feed(b"id: 41\ndata: x\n\nid: 42\nretry: 100\n\nid: 43\ndata: unfinished")

    assert parser.pending
    parser.reset()

    assert not parser.pending
    assert (parser.last_event_id, parser.retry) == (b"42", 100)
    assert parsed([b"\xef\xbb\xbfdata: y\n\n"], parser) == [(b"message", b"y", b"42", None)]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 100,
        b": " + b"x" * 100,
        b"data: 123456789\n" * 10,
        b"event: 1234567890\ndata: 1234567\n\n",
    ],
)
def test_too_large_an_event_is_refused_wherever_it_is_cut(size: int, stream: bytes) -> None:
    parser = SseParser(max_event_bytes=16)
    stream = b"data: first\n\n" + stream
    seen: list[bytes] = []

    with pytest.raises(SseEventTooLarge, match="16") as caught:
        for i in range(0, len(stream), size):
            seen += [e.data for e in parser.feed(stream[i : i + size])]

    assert [*seen, *(e.data for e in caught.value.events)] == [b"first"]
    with pytest.raises(SseEventTooLarge, match="reset"):
        parser.feed(b"data: x\n\n")
    parser.reset()
    assert parsed([b"data: 1234567890\n\n"], parser) == [(b"message", b"1234567890", b"", None)]


def test_an_event_of_exactly_the_bound_passes_wherever_it_is_cut() -> None:
    stream = b"data: 1234567890\ndata: 12345\n\n"  # a line of 16 bytes, and 10 + 1 + 5 bytes of data

    for size in range(1, len(stream) + 1):
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert [e[1] for e in parsed(chunks, SseParser(max_event_bytes=16))] == [b"1234567890\n12345"]


@pytest.mark.parametrize(
    ("bad", "error"), [(15, ValueError), (-1, ValueError), (2**80, ValueError), (1e6, TypeError)]
)
def test_a_bad_bound_is_named(bad: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_event_bytes"):
        SseParser(bad)  # type: ignore[arg-type]


def test_text_is_refused_and_any_buffer_is_taken() -> None:
    parser = SseParser()

    with pytest.raises(TypeError):
        parser.feed("data: x\n\n")  # type: ignore[arg-type]
    assert [e.data for e in parser.feed(bytearray(b"data: x\n\n"))] == [b"x"]
    assert [e.data for e in parser.feed(memoryview(b"data: y\n\n"))] == [b"y"]


def test_feeding_from_a_destructor_is_refused_and_harmless() -> None:
    parser = SseParser()
    outcomes: list[str] = []

    class Reentrant:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            try:
                outcomes.append(str(len(parser.feed(b"data: inner\n\n"))))
            except RuntimeError as error:
                outcomes.append(str(error))

    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        total = 0
        for _ in range(200):
            Reentrant()
            total += len(parser.feed(b"data: outer\n\n" * 3))
    finally:
        gc.set_threshold(*threshold)
        gc.collect()

    assert total == 600
    assert set(outcomes) <= {"1", "feed() inside feed()"}


def test_parsers_and_events_are_freed() -> None:
    before = sse.live_objects()

    for _ in range(100):
        parser = SseParser()
        parser.feed(b"data: x\n\ndata: unfinished")
    del parser

    assert sse.live_objects() == before
