"""The log hook: last, and exactly once, however a request ends."""

from __future__ import annotations

import threading

import pytest

from tests.client import Client, request
from tests.plugins.conftest import Harness
from tests.upstream import OK, Peer


def never(peer: Peer) -> None:
    """Takes the request and never answers."""
    peer.read_request()
    peer.wait_closed()


def once(peer: Peer) -> None:
    peer.read_request()
    peer.send(OK)


def facts(harness: Harness) -> tuple[int, int, str | None]:
    seen = harness.logged()
    assert seen["finished"]
    return seen["status"], seen["upstream_status"], seen["reason"]


def test_an_answer_is_logged(harness: Harness) -> None:
    harness.ask("/chunks", method="POST", body=b"x" * 100_000)

    assert facts(harness) == (200, 200, None)
    assert harness.notes()[-1][1] == "log"


def test_a_local_answer_is_logged(harness: Harness) -> None:
    harness.ask("/fixed")

    assert facts(harness) == (200, 0, None)
    assert [note[:2] for note in harness.notes()] == [
        ["Root", "decide"], ["R", "response"], ["Root", "log"], ["L", "log"],
    ]  # fmt: skip


def test_a_refusal_is_logged(harness: Harness) -> None:
    harness.ask("/order", "X-D: request=refuse:rate_limited")

    assert facts(harness) == (429, 0, "rate_limited")


def test_a_refusal_before_any_plugin_is_logged(harness: Harness) -> None:
    harness.ask("/small", method="POST", body=b"more than ten bytes")

    assert facts(harness) == (413, 0, "body_too_large")
    assert [note[:2] for note in harness.notes()] == [["Root", "log"], ["L", "log"]]


def test_an_upstream_that_cannot_be_reached_is_logged(harness: Harness) -> None:
    harness.ask("/gone")

    assert facts(harness) == (502, 0, "upstream_connect_failed")


def test_a_time_limit_is_logged(harness: Harness) -> None:
    harness.upstream.script = never

    assert harness.ask("/slow").status == 504
    assert facts(harness) == (504, 0, "upstream_first_byte_timeout")


def test_an_answer_the_upstream_cuts_is_logged(harness: Harness) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        peer.close()

    harness.upstream.script = script
    with Client(harness.gateway.port) as client:
        client.send(request("/slow"))
        client.read_until(b"half")
        client.read_to_end()

    assert facts(harness) == (200, 200, "upstream_truncated")


@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_client_that_leaves_is_logged(harness: Harness, moment: str) -> None:
    asked = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        if moment == "within":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        asked.set()
        peer.wait_closed()

    harness.upstream.script = script
    with Client(harness.gateway.port) as client:
        client.send(request("/chunks"))
        assert asked.wait(60)
        if moment == "within":
            client.read_until(b"half")

    expected = (200, 200) if moment == "within" else (0, 0)
    assert facts(harness) == (*expected, "client_closed")


@pytest.mark.parametrize("first", ["client", "upstream"])
def test_a_tunnel_is_logged_when_it_ends(harness: Harness, first: str) -> None:
    opened, over = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
        assert peer.read_exactly(5) == b"hello"
        opened.set()
        if first == "upstream":
            peer.close()
        else:
            peer.wait_closed()
        over.set()

    harness.upstream.script = script
    with Client(harness.gateway.port) as client:
        client.send(request("/small", "GET", "Connection: Upgrade", "Upgrade: raw"))
        assert client.read_response().status == 101
        client.send(b"hello")
        assert opened.wait(60)
        assert harness.notes("log") == []
        if first == "upstream":
            client.read_to_end()

    assert over.wait(60)
    assert facts(harness) == (101, 101, None)


def test_a_failing_log_hook_harms_nobody(harness: Harness) -> None:
    with Client(harness.gateway.port) as client:
        for _ in range(2):
            client.send(request("/order", "GET", "X-L: log=raise"))
            assert client.read_response().status == 200

    harness.complaint("plugin tests.plugins.probes:Logger", "failed in log")
    assert len(harness.noted(8, "log")) == 8


def test_pipelined_requests_are_logged_one_by_one(harness: Harness) -> None:
    harness.upstream.script = once
    with Client(harness.gateway.port) as client:
        client.send(request("/chunks") * 5)
        for _ in range(5):
            assert client.read_response().status == 200

    assert len(harness.noted(10, "log")) == 10
