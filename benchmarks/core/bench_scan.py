"""The head scanner on a browser's request and a service's answer, beside the parser it spares.

Both get the whole head in one buffer and hand out every name and value: scan_request as a list, httptools to
callbacks that make the same list. In the gateway the scanner makes no object at all for a field."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

HEADS = """
short = b"GET /orders/42 HTTP/1.1\\r\\nHost: api.example.com\\r\\nAccept: */*\\r\\n\\r\\n"
browser = (
    b"GET /wp-content/uploads/2010/03/hello-kitty-darth-vader-pink.jpg HTTP/1.1\\r\\n"
    b"Host: www.kittyhell.com\\r\\n"
    b"User-Agent: Mozilla/5.0 (Macintosh; U; Intel Mac OS X 10.6; ja-JP-mac; rv:1.9.2.3) Gecko/20100401 "
    b"Firefox/3.6.3 Pathtraq/0.9\\r\\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\\r\\n"
    b"Accept-Language: ja,en-us;q=0.7,en;q=0.3\\r\\n"
    b"Accept-Encoding: gzip,deflate\\r\\n"
    b"Accept-Charset: Shift_JIS,utf-8;q=0.7,*;q=0.7\\r\\n"
    b"Keep-Alive: 115\\r\\n"
    b"Connection: keep-alive\\r\\n"
    b"Cookie: wp_ozh_wsa_visits=2; wp_ozh_wsa_visit_lasttime=xxxxxxxxxx; "
    b"__utma=xxxxxxxxx.xxxxxxxxxx.xxxxxxxxxx.xxxxxxxxxx.xxxxxxxxxx.x; "
    b"__utmz=xxxxxxxxx.xxxxxxxxxx.x.x.utmccn=(referral)|utmcsr=reader.livedoor.com|utmcct=/reader/|utmcmd=referral\\r\\n"
    b"\\r\\n"
)
answer = (
    b"HTTP/1.1 200 OK\\r\\nServer: nginx\\r\\nDate: Sat, 21 Nov 2026 00:00:00 GMT\\r\\n"
    b"Content-Type: application/json\\r\\n"
    b"Content-Length: 64\\r\\nConnection: keep-alive\\r\\nCache-Control: no-store\\r\\n\\r\\n"
)
"""
OURS = "from fastgate._core.http.scan import scan_request, scan_response\n"
THEIRS = """
from httptools import HttpRequestParser, HttpResponseParser
class Collect:
    def __init__(self):
        self.fields = []
    def on_header(self, name, value):
        self.fields.append((name, value))
"""


def cases(head: str, kind: str) -> list[Candidate]:
    parser = f"Http{kind.capitalize()}Parser"
    return [
        Candidate("fastgate", HEADS + OURS, f"scan_{kind}({head})", label=head),
        Candidate("httptools", HEADS + THEIRS, f"{parser}(Collect()).feed_data({head})", label=head),
    ]


CASES = [*cases("short", "request"), *cases("browser", "request"), *cases("answer", "response")]


@pytest.mark.benchmark(group="message heads", timer=virtual_s)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_scan(benchmark: Any, case: Candidate) -> None:
    race(benchmark, case)
