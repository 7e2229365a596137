"""The small client: whole answers or one kind of error, whatever the other side does, and never a hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastgate.upstream.fetch import Fetched, Fetcher, FetchError, check_url
from fastgate.upstream.settings import UpstreamTlsConfig
from tests.authority import Authority
from tests.plan_context import PlanContext, run, until
from tests.upstream import OK, Peer, Upstream, answer
from tests.upstreams.test_tls import server_context


def fetch(url: str, *, tls: UpstreamTlsConfig | None = None, times: int = 1, **options: Any) -> list[Fetched]:
    async def scenario(context: PlanContext) -> list[Fetched]:
        fetcher = Fetcher(context, tls)
        method = options.pop("method", "GET")
        try:
            return [await fetcher.request(method, url, **options) for _ in range(times)]
        finally:
            await fetcher.close()

    return run(scenario)


def failure(script: Callable[[Peer], None], **options: Any) -> str:
    with Upstream(script) as upstream, pytest.raises(FetchError) as caught:
        fetch(upstream.url + "/x", **options)
    return caught.value.kind


def test_a_whole_answer_comes_back() -> None:
    with Upstream(
        answer(b"HTTP/1.1 404 Not Found\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\nabc")
    ) as upstream:
        got = fetch(upstream.url + "/p/q?r=s", headers=[("Accept", "text/plain")])[0]

    assert (got.status, got.body, got.headers.get_all("X-A")) == (404, b"abc", ["1", "2"])
    request = upstream.requests[0]
    assert (request.method, request.target) == (b"GET", b"/p/q?r=s")
    assert request.get("accept") == b"text/plain"
    assert request.get("host") == f"127.0.0.1:{upstream.port}".encode()


def test_a_body_is_sent_and_the_connection_is_kept() -> None:
    with Upstream() as upstream:
        got = fetch(upstream.url, method="POST", body=b"token=a", times=3)

    assert [one.body for one in got] == [b"ok"] * 3
    assert [request.body for request in upstream.requests] == [b"token=a"] * 3
    assert len(upstream.peers) == 1


def test_chunked_and_close_delimited_answers_are_read_whole() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    def until_close(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        peer.send(b"de")

    with Upstream(answer(chunked)) as one, Upstream(until_close) as other:
        assert fetch(one.url)[0].body == b"abcde"
        assert fetch(other.url)[0].body == b"abcde"


def test_an_answer_to_head_has_no_body() -> None:
    with Upstream(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")) as upstream:
        assert fetch(upstream.url, method="HEAD")[0].body == b""


def test_a_kept_connection_that_died_is_replaced_once() -> None:
    def one_each(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK)
        if peer.number == 0:
            peer.read_request()
            peer.close()
        else:
            answer()(peer)

    with Upstream(one_each) as upstream:
        assert [one.status for one in fetch(upstream.url, times=2)] == [200, 200]

    assert len(upstream.peers) == 2


def test_a_post_is_not_sent_twice_unless_it_may_be() -> None:
    def deaf(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK)
        peer.read_request()
        peer.close()

    assert failure(deaf, method="POST", body=b"x", times=2) == "closed"
    with Upstream(deaf) as upstream:
        assert len(fetch(upstream.url, method="POST", body=b"x", times=2, repeatable=True)) == 2


def silent(peer: Peer) -> None:
    peer.read_request()
    peer.wait_closed()


def drips(peer: Peer) -> None:
    peer.read_request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        peer.send(b"x")
        time.sleep(0.01)


def closes(peer: Peer) -> None:
    peer.read_request()
    peer.close()


def cuts(peer: Peer) -> None:
    peer.read_request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    peer.close()


def endless(peer: Peer) -> None:
    peer.read_request()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        peer.send(b"400\r\n" + b"x" * 1024 + b"\r\n")


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (silent, "timeout"),
        (drips, "timeout"),
        (closes, "closed"),
        (cuts, "closed"),
        (endless, "too_large"),
        (answer(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"), "too_large"),
        (answer(b"SSH-2.0-OpenSSH_9.7\r\n"), "bad_response"),
        (answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), "bad_response"),
    ],
)
def test_what_is_no_answer_is_one_kind_of_error(script: Callable[[Peer], None], kind: str) -> None:
    limit_ns = 300_000_000 if kind == "timeout" else 60_000_000_000

    assert failure(script, timeout_ns=limit_ns) == kind


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(FetchError) as caught:
        fetch("http://127.0.0.1:1/")
    assert caught.value.kind == "connect"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/",
        "http://",
        "/path",
        "http://a b/",
        "http://user:word@a/",
        "http://a/\r\nX: y",
        "http://a/ü",
        "http://a:99999/",
        "http://a/#b",
        "http://a\\b/",
        "http://a/{b}",
        "",
    ],
)
def test_an_odd_url_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_url(url)
    with pytest.raises(FetchError) as caught:
        fetch(url)
    assert caught.value.kind == "bad_url"


@pytest.mark.parametrize("field", [("Host", "b"), ("content-length", "3"), ("A", "b\r\nC: d"), ("a b", "c")])
def test_a_header_that_could_break_the_message_is_refused(field: tuple[str, str]) -> None:
    with Upstream() as upstream, pytest.raises(FetchError):
        fetch(upstream.url, headers=[field])


def test_redirects_stay_at_home() -> None:
    def moved(peer: Peer) -> None:
        while True:
            request = peer.read_request()
            to = b"/there" if request.target == b"/here" else b"http://169.254.169.254/latest"
            if request.target == b"/there":
                peer.send(OK)
            else:
                peer.send(b"HTTP/1.1 302 Found\r\nLocation: " + to + b"\r\nContent-Length: 0\r\n\r\n")

    with Upstream(moved) as upstream:
        assert fetch(upstream.url + "/here")[0].status == 302
        assert fetch(upstream.url + "/here", redirects=1)[0].status == 200
        with pytest.raises(FetchError) as caught:
            fetch(upstream.url + "/out", redirects=3)
    assert caught.value.kind == "redirect"


def test_https_is_verified(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = server_context(authority.issue("www", ["127.0.0.1.example", "localhost"]))
    with Upstream(tls=tls) as upstream:
        url = f"https://localhost:{upstream.port}/"
        assert fetch(url, tls=UpstreamTlsConfig(ca=authority.certificate))[0].body == b"ok"
        with pytest.raises(FetchError) as caught:
            fetch(url)
        assert caught.value.kind == "tls"
        with pytest.raises(FetchError) as caught:
            fetch(url, tls=UpstreamTlsConfig(ca=str(tmp_path / "gone")))
        assert caught.value.kind == "tls"


def test_many_at_once_share_few_connections() -> None:
    async def scenario(context: PlanContext) -> list[Fetched]:
        fetcher = Fetcher(context, max_connections=4)
        got = await asyncio.gather(*(fetcher.request("GET", url) for _ in range(100)))
        await fetcher.close()
        return got

    with Upstream() as upstream:
        url = upstream.url
        assert {one.status for one in run(scenario)} == {200}
    assert len(upstream.peers) <= 4


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    async def scenario(context: PlanContext) -> None:
        fetcher = Fetcher(context, max_connections=1)
        tasks = [asyncio.create_task(fetcher.request("GET", url)) for _ in range(3)]
        await until(lambda: upstream.requests)  # the first is out, the others wait
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(e, asyncio.CancelledError)
            for e in await asyncio.gather(*tasks, return_exceptions=True)
        )
        upstream.script = answer()
        assert (await fetcher.request("GET", url)).status == 200
        await fetcher.close()

    def waits(peer: Peer) -> None:
        peer.read_request()
        peer.wait_closed()

    with Upstream(waits) as upstream:
        url = upstream.url
        run(scenario)
