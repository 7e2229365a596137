"""The supervisor's loop: timers in order, readiness, signals, and no call after unwatch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fastgate.server.reactor import Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGCHLD)}
    errors: list[Exception] = []
    loop = Reactor(errors.append)
    yield loop
    assert [str(error) for error in errors] in ([], ["expected"])
    loop.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_timers_run_in_order_and_cancelled_ones_do_not(reactor: Reactor) -> None:
    calls: list[str] = []
    reactor.after(3_000_000, reactor.stop)
    reactor.after(2_000_000, lambda: calls.append("second"))
    reactor.after(1_000_000, lambda: calls.append("first"))
    cancelled = reactor.after(1_500_000, lambda: calls.append("never"))
    cancelled.cancel()
    cancelled.cancel()

    reactor.run()

    assert calls == ["first", "second"]


def test_a_call_that_raises_does_not_end_the_loop(reactor: Reactor) -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("failed")
        raise ValueError("expected")

    reactor.after(0, fail)
    reactor.after(1_000_000, reactor.stop)

    reactor.run()

    assert calls == ["failed"]


def test_a_signal_becomes_a_call(reactor: Reactor) -> None:
    seen: list[signal.Signals] = []

    def note(number: signal.Signals) -> None:
        seen.append(number)
        reactor.stop()

    reactor.on_signals([signal.SIGUSR2], note)
    os.kill(os.getpid(), signal.SIGUSR2)

    reactor.run()

    assert seen == [signal.SIGUSR2]


def test_what_was_unwatched_in_the_same_turn_is_not_called(reactor: Reactor) -> None:
    pipes = [os.pipe() for _ in range(2)]
    calls: list[int] = []

    def read(index: int) -> None:
        calls.append(index)
        other = pipes[1 - index][0]
        reactor.unwatch(other)
        os.close(other)
        reactor.stop()

    for index, (read_end, write_end) in enumerate(pipes):
        os.write(write_end, b"x")
        reactor.watch(read_end, lambda index=index: read(index))  # type: ignore[misc]

    reactor.run()

    assert len(calls) == 1
    os.close(pipes[calls[0]][0])
    for _, write_end in pipes:
        os.close(write_end)
