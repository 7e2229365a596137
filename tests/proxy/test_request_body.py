"""A request body in memory: cursors read all of it, and nothing is held for longer than needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastgate.proxy.request_body import BodyCursor, RequestBody


def joined(pieces: list[bytes] | None) -> bytes:
    return b"".join(pieces or [])


def test_without_a_cursor_all_is_held() -> None:
    body = RequestBody()
    for piece in (b"one", b"two", b"three"):
        body.add(piece)

    assert body.held_bytes == body.unread_bytes() == 11
    assert body.whole() == b"onetwothree"
    assert body.held_bytes == 11


def test_what_every_cursor_has_read_is_let_go() -> None:
    body = RequestBody()
    fast, slow = body.begin(), body.begin()
    assert fast is not None and slow is not None
    body.add(b"x" * 1000)

    assert joined(fast.take()) == b"x" * 1000
    assert body.held_bytes == body.unread_bytes() == 1000
    assert joined(slow.take()) == b"x" * 1000
    assert (body.held_bytes, body.unread_bytes(), body.begin()) == (0, 0, None)


def test_a_cursor_that_closes_holds_nothing_up() -> None:
    body = RequestBody()
    fast, slow = body.begin(), body.begin()
    assert fast is not None and slow is not None
    body.add(b"x" * 1000)
    fast.take()

    slow.close()

    assert body.held_bytes == 0


def test_a_short_body_is_kept_for_a_later_cursor() -> None:
    body = RequestBody()
    body.keep(100)
    first = body.begin()
    assert first is not None
    body.add(b"a" * 60)
    assert joined(first.take()) == b"a" * 60
    body.add(b"b" * 40)
    assert joined(first.take()) == b"b" * 40
    first.close()

    again = body.begin()

    assert again is not None
    assert joined(again.take()) == b"a" * 60 + b"b" * 40


def test_a_body_beyond_what_is_kept_cannot_be_read_again() -> None:
    body = RequestBody()
    body.keep(100)
    cursor = body.begin()
    assert cursor is not None
    body.add(b"a" * 60)
    cursor.take()
    body.add(b"b" * 41)
    assert joined(cursor.take()) == b"b" * 41

    assert body.held_bytes == 0
    assert body.begin() is None


def test_keeping_ends_when_the_response_has_begun() -> None:
    body = RequestBody()
    body.keep(100)
    cursor = body.begin()
    assert cursor is not None
    body.add(b"a" * 60)
    cursor.take()

    body.keep(0)

    assert (body.held_bytes, body.begin()) == (0, None)


def test_another_body_takes_the_place_of_the_one_received() -> None:
    body = RequestBody()
    body.keep(100)
    body.add(b"received")
    first = body.begin()
    assert first is not None
    first.take()
    first.close()

    body.replace(b"made by a plugin")

    again = body.begin()
    assert again is not None
    assert joined(again.take()) == b"made by a plugin"


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=40))
def test_small_pieces_are_joined_and_nothing_changes(pieces: list[bytes]) -> None:
    body = RequestBody()
    for piece in pieces:
        body.add(piece)

    assert body.held_bytes == sum(map(len, pieces))
    assert body.whole() == b"".join(pieces)


def test_small_pieces_that_are_kept_are_joined() -> None:
    body = RequestBody()
    body.keep(65536)
    cursor = body.begin()
    assert cursor is not None
    for _ in range(20_000):
        body.add(b"abc")
        assert joined(cursor.take()) == b"abc"
    cursor.close()
    again = body.begin()
    assert again is not None

    pieces = again.take()

    assert joined(pieces) == b"abc" * 20_000
    assert len(pieces or ()) <= 60_000 // 1024 + 1


class Reading(RuleBasedStateMachine):
    """Any number of cursors beside an oracle that keeps the whole body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = RequestBody()
        self.sent = b""
        self.cursors: list[tuple[BodyCursor, int]] = []

    @rule(piece=st.binary(min_size=1, max_size=400))
    def add(self, piece: bytes) -> None:
        self.body.add(piece)
        self.sent += piece

    @rule(most=st.sampled_from([0, 50, 500]))
    def keep(self, most: int) -> None:
        self.body.keep(most)

    @rule()
    def begin(self) -> None:
        cursor = self.body.begin()
        if cursor is None:
            assert self.body.first > 0
        else:
            self.cursors.append((cursor, 0))

    @precondition(lambda self: self.cursors)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.cursors) - 1))
        cursor, position = self.cursors[at]
        taken = joined(cursor.take())
        assert taken == self.sent[position:]
        self.cursors[at] = (cursor, len(self.sent))

    @precondition(lambda self: self.cursors)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        cursor, _ = self.cursors.pop(data.draw(st.integers(0, len(self.cursors) - 1)))
        cursor.close()

    @invariant()
    def what_is_unread_is_held(self) -> None:
        slowest = min((position for _, position in self.cursors), default=len(self.sent))
        assert self.body.held_bytes >= len(self.sent) - slowest
        if self.cursors:
            assert self.body.unread_bytes() == len(self.sent) - slowest


TestReading = Reading.TestCase
