"""`fastgate bench`: what it counts is what was answered."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastgate.cli.bench import Load, main, run
from tests.upstream import OK, Peer, Upstream, answer


def test_every_answer_is_counted_once() -> None:
    with Upstream(answer()) as upstream:
        report = run(Load(url=f"{upstream.url}/a?b=c", connections=4, duration_s=0.2))

    assert report.requests == report.statuses[200] == len(report.latencies_ns) > 0
    assert report.failed == 0
    assert 0 <= len(upstream.requests) - report.requests <= 4  # those in flight at the end
    assert {message.target for message in upstream.requests} == {b"/a?b=c"}
    assert len(upstream.peers) == 4


def test_a_rate_is_kept() -> None:
    with Upstream(answer()) as upstream:
        report = run(Load(url=upstream.url, connections=4, duration_s=0.5, rate_per_s=100))

    assert 0 < report.requests <= 51


def test_method_fields_and_body_are_sent() -> None:
    load = {"method": "PUT", "headers": (("X-A", "b"), ("Host", "other.test")), "body": b"hello"}

    with Upstream(answer()) as upstream:
        run(Load(url=upstream.url, connections=1, duration_s=0.1, **load))  # type: ignore[arg-type]

    seen = upstream.requests[0]
    assert (seen.method, seen.body, seen.get("x-a"), seen.get("host")) == (
        b"PUT",
        b"hello",
        b"b",
        b"other.test",
    )


def test_head_answers_have_no_body() -> None:
    with Upstream(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")) as upstream:
        report = run(Load(url=upstream.url, method="HEAD", connections=2, duration_s=0.1))

    assert report.requests > 2
    assert report.failed == 0


@pytest.mark.parametrize("response", [b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", b"garbage\r\n\r\n"])
def test_bad_answers_fail_the_command(response: bytes) -> None:
    text = io.StringIO()

    with Upstream(answer(response)) as upstream:
        status = main(Load(url=upstream.url, connections=1, duration_s=0.1), Console(file=text, width=200))

    assert status == 1
    assert "503" in text.getvalue() or "malformed response" in text.getvalue()


def test_closing_server_is_connected_to_again() -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    with Upstream(script) as upstream:
        report = run(Load(url=upstream.url, connections=1, duration_s=0.3))

    assert report.requests > 1
    assert report.failed == 0


def test_refused_connections_are_told() -> None:
    report = run(Load(url="http://127.0.0.1:1/", connections=2, duration_s=0.1))

    assert report.requests == 0
    assert report.failed >= 2


@pytest.mark.parametrize("url", ["ftp://a/", "http://", "//"])
def test_unfit_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected http"):
        run(Load(url=url))
