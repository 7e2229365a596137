"""The process log: whole lines, for people or for machines, and never a reason to fail."""

from __future__ import annotations

import json
import logging
import os

from fastgate.state.journal import Journal, JournalHandler, Throttle


def written(human: bool) -> str:
    read_end, write_end = os.pipe()
    Journal("worker 3", write_end, human=human).warning("worker died", status="SIGKILL", slot=3)
    os.close(write_end)
    with open(read_end) as reader:
        return reader.read()


def test_machines_get_one_json_object_per_line() -> None:
    line = written(human=False)

    assert line.endswith("\n")
    record = json.loads(line)
    assert (record["level"], record["process"], record["event"]) == ("warning", "worker 3", "worker died")
    assert (record["status"], record["slot"], record["pid"]) == ("SIGKILL", 3, os.getpid())


def test_people_get_the_words() -> None:
    assert written(human=True).rstrip().endswith("warning worker 3: worker died status=SIGKILL slot=3")


def test_a_reader_that_went_away_does_not_matter() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)

    Journal("worker 3", write_end, human=False).info("still here")

    os.close(write_end)


def test_what_is_logged_otherwise_becomes_lines_too() -> None:
    read_end, write_end = os.pipe()
    log = logging.Logger("plugin")
    log.addHandler(JournalHandler(Journal("worker 3", write_end, human=False)))

    log.warning("upstream %s is gone", "orders")
    try:
        raise KeyError("tenant")
    except KeyError:
        log.exception("plugin failed")
    log.info("too quiet to be written")

    os.close(write_end)
    with open(read_end) as reader:
        lost, failed = [json.loads(line) for line in reader]
    assert (lost["level"], lost["process"], lost["event"]) == (
        "warning",
        "worker 3",
        "upstream orders is gone",
    )
    assert (failed["level"], failed["event"]) == ("error", "plugin failed")
    assert failed["traceback"].endswith("KeyError: 'tenant'\n")


def test_equal_messages_are_held_back_and_counted() -> None:
    throttle = Throttle(burst=3, period_s=10)

    assert [throttle.allow("a", 0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert throttle.allow("b", 1.0) == 0
    assert throttle.allow("a", 9.9) is None
    assert throttle.allow("a", 10.0) == 3  # and these were held back
    assert [throttle.allow("a", 11.0) for _ in range(3)] == [0, 0, None]


def test_no_more_keys_are_remembered_than_the_bound() -> None:
    throttle = Throttle(burst=1, period_s=10)

    for number in range(10 * Throttle.MOST_KEYS):
        assert throttle.allow(number, number / 1000) == 0

    assert len(throttle._seen) <= Throttle.MOST_KEYS


def test_a_flood_of_one_message_of_a_library_fills_no_disk() -> None:
    read_end, write_end = os.pipe()
    handler = JournalHandler(Journal("worker 3", write_end, human=False))
    for number in range(1000):
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "accept failed %d", (number,), None)
        handler.emit(record)
    os.close(write_end)
    with open(read_end) as reader:
        assert len(reader.readlines()) == Throttle.BURST
