"""What warming reads, and what it asks for."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator

import pytest

from fastgate.cli import warm as warming
from fastgate.cli.warm import Client, Outcome, SourceError, Wanted, read_source, warm


def test_list_of_urls_and_paths() -> None:
    text = "# what to warm\n\n/a?b=1\nhttps://shop.example/x y\n"
    with pytest.raises(SourceError, match="line 4: expected a URL or a path"):
        read_source(text.encode())

    found = read_source(b"/a?b=1#top\nhttp://shop.example:81/x\n/a?b=1\nhttps://shop.example")

    assert found == [Wanted("/a?b=1"), Wanted("/x", "shop.example:81"), Wanted("/", "shop.example")]


@pytest.mark.parametrize(
    "line", ["ftp://x/y", "nonsense", "http://", "http://user:pw@host/", "/a\x0bb", "http://[::1/", "/ä"]
)
def test_list_with_what_cannot_be_asked_for(line: str) -> None:
    with pytest.raises(SourceError):
        read_source(line.encode())


def test_access_log_in_json_most_asked_first() -> None:
    lines = [
        '{"method":"GET","host":"a.example","target":"/once","status":200}',
        '{"method":"GET","host":"a.example","target":"/often","status":200}',
        '{"method":"GET","host":"a.example","target":"/often","status":304}',
        '{"method":"POST","host":"a.example","target":"/post","status":200}',
        '{"method":"GET","host":"a.example","target":"/missing","status":404}',
        '{"method":"GET","host":"a\\r\\nb","target":"/odd","status":200}',
        '{"method":"GET","target":7,"status":200}',
        "[1]",
        '{"method":"GET","host":"a.exam',
    ]

    found = read_source("\n".join(lines).encode())

    assert found == [Wanted("/often", "a.example"), Wanted("/once", "a.example"), Wanted("/odd")]


def test_rotated_log_in_several_gzip_members() -> None:
    assert read_source(gzip.compress(b"/a\n") + gzip.compress(b"/b\n")) == [Wanted("/a"), Wanted("/b")]


def test_access_log_in_common_and_combined_format() -> None:
    lines = [
        '10.0.0.1 - - [20/Nov/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200 12 "-" "curl"',
        '10.0.0.1 - - [20/Nov/2026:10:00:00 +0000] "GET /b?x HTTP/1.0" 200 12',
        '10.0.0.1 - - [20/Nov/2026:10:00:00 +0000] "GET /b?x HTTP/1.1" 206 12',
        '10.0.0.1 - - [20/Nov/2026:10:00:00 +0000] "GET /gone HTTP/1.1" 404 12',
        '10.0.0.1 - - [20/Nov/2026:10:00:00 +0000] "PUT /a HTTP/1.1" 200 12',
        "half a li",
    ]

    assert read_source("\n".join(lines).encode()) == [Wanted("/b?x"), Wanted("/a")]


SITEMAP = b"""<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:i="http://www.google.com/schemas/sitemap-image/1.1">
  <url><loc> https://shop.example/a&amp;b </loc><lastmod>2026-01-01</lastmod>
    <i:image><i:loc>https://shop.example/picture</i:loc></i:image></url>
  <url><loc>https://shop.example/c</loc></url>
</urlset>"""


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_sitemap(pack: type[bytes]) -> None:
    assert read_source(pack(SITEMAP)) == [Wanted("/a&b", "shop.example"), Wanted("/c", "shop.example")]


def test_index_of_sitemaps_is_followed_through_the_gateway_once_each() -> None:
    index = (
        b'<sitemapindex xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        b"<sitemap><loc>https://shop.example/one.xml</loc></sitemap>"
        b"<sitemap><loc>https://shop.example/loop.xml</loc></sitemap></sitemapindex>"
    )
    asked = []

    def fetch(wanted: Wanted) -> bytes:
        asked.append(wanted.target)
        return index if wanted.target == "/loop.xml" else gzip.compress(SITEMAP)

    assert len(read_source(index, fetch)) == 2
    assert sorted(asked) == ["/loop.xml", "/one.xml"]


@pytest.mark.parametrize(
    "data",
    [
        b"<html><body>no</body></html>",
        b"<urlset><url><loc>/a</loc>",
        b'<!DOCTYPE u [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><urlset>&b;</urlset>',
        gzip.compress(b"/a\n")[:-12],
        gzip.compress(b"/a\n") + b"rest",
        gzip.compress(bytes(2_000_000)),
    ],
    ids=["page", "cut", "entities", "cut gzip", "damaged gzip", "gzip bomb"],
)
def test_what_is_no_source(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "MAX_UNPACKED_BYTES", 1_000_000)

    with pytest.raises(SourceError):
        read_source(data)


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.headers["Host"], self.path))  # type: ignore[attr-defined]
        status = 500 if self.path == "/bad" else 200
        self.send_response(status)
        cache = {"/new": "fastgate; fwd=miss; stored", "/old": "fastgate; hit; ttl=3"}.get(self.path, "")
        if cache:
            self.send_header("Cache-Status", cache)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    found.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_warming_asks_once_each_and_counts_what_came(server: http.server.ThreadingHTTPServer) -> None:
    base = f"http://127.0.0.1:{server.server_port}"
    wanted = [Wanted("/new", "shop.example"), Wanted("/old"), Wanted("/plain"), Wanted("/bad")]
    reported: list[int] = []

    def report(outcome: Outcome) -> None:
        reported.append(outcome.asked)

    outcome = warm(wanted, lambda: Client(base), connections=2, report=report)

    assert (outcome.stored, outcome.already, outcome.not_stored, outcome.failed) == (1, 1, 1, 1)
    assert outcome.bytes_received == 8
    assert outcome.errors == ["/bad: status 500"]
    assert reported == [1, 2, 3, 4]
    assert sorted(server.seen) == sorted(  # type: ignore[attr-defined]
        [("shop.example", "/new")]
        + [(base.removeprefix("http://"), path) for path in ("/old", "/plain", "/bad")]
    )


def test_warming_a_gateway_that_is_not_there_counts_failures() -> None:
    outcome = warm([Wanted("/a"), Wanted("/b")], lambda: Client("127.0.0.1:1"), connections=1)

    assert outcome.failed == 2
    assert "refused" in outcome.errors[0]


@pytest.mark.parametrize("base", ["ftp://x", "http://", ""])
def test_base_that_is_no_url(base: str) -> None:
    with pytest.raises(ValueError, match="expected a URL"):
        Client(base)
