"""Messages between processes: whole, in order, with their descriptor, and never waiting."""

from __future__ import annotations

import os

import pytest

from fastgate.state.channel import (
    Channel,
    ChannelClosed,
    Commit,
    Drain,
    Prepare,
    Prepared,
    Problem,
    Ready,
)


def test_messages_arrive_whole_and_in_order() -> None:
    ours, theirs = Channel.pair()
    problem = Problem(text="$.a: expected 1, got 2", path="$.a", found="2", expected="1")
    sent = [Commit(1), Prepared(2, [problem]), Drain(5, [0, 2])]

    assert all(ours.send(message) for message in sent)

    assert [theirs.receive() for _ in range(4)] == [(message, None) for message in sent] + [None]
    ours.close()
    theirs.close()


def test_a_descriptor_travels_with_its_message() -> None:
    ours, theirs = Channel.pair()
    read_end, write_end = os.pipe()

    ours.send(Prepare(1, 10), write_end)
    ours.send(Ready(1))
    os.close(write_end)
    received = theirs.receive()

    assert received is not None
    message, fd = received
    assert (message, theirs.receive()) == (Prepare(1, 10), (Ready(1), None))
    assert fd is not None
    os.write(fd, b"x")
    assert os.read(read_end, 1) == b"x"
    for number in (fd, read_end):
        os.close(number)
    ours.close()
    theirs.close()


def test_the_other_ends_death_is_told_after_its_last_words() -> None:
    ours, theirs = Channel.pair()
    ours.send(Ready(7))
    ours.close()

    assert theirs.receive() == (Ready(7), None)
    with pytest.raises(ChannelClosed):
        theirs.receive()
    assert theirs.send(Ready(1)) is False
    theirs.close()


def test_a_peer_that_does_not_read_never_blocks_the_sender() -> None:
    ours, theirs = Channel.pair()

    sent = 0
    while ours.send(Ready(sent)):
        sent += 1
        assert sent < 1_000_000

    assert sent > 10
    ours.close()
    theirs.close()


def test_the_largest_answer_fits_one_message() -> None:
    ours, theirs = Channel.pair()
    long = "x" * 400
    message = Prepared(1, [Problem(long, long, long, long, long, long)] * 50)

    assert ours.send(message)

    assert theirs.receive() == (message, None)
    ours.close()
    theirs.close()
