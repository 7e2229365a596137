"""`fastgate demo` as a newcomer meets it: what it prints works, and it leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.client import Client

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60


class Demo(NamedTuple):
    process: subprocess.Popen[str]
    printed: str

    @property
    def commands(self) -> list[str]:
        return re.findall(r"^  (curl .*)$", self.printed, re.MULTILINE)

    def url(self, containing: str) -> str:
        """The URL of the printed command about this."""
        (command,) = (command for command in self.commands if containing in command)
        found = re.search(r"http://[^' ]+", command)
        assert found is not None
        return found[0]


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    words = [
        sys.executable,
        "-m",
        "fastgate",
        "demo",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if "Ctrl-C" in line:
                break
        try:
            yield Demo(process, printed)
        finally:
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, printed + rest
    assert "Traceback" not in printed + rest


def fetch(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, body, timeout=WAIT_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_five_commands_are_printed(demo: Demo) -> None:
    assert len(demo.commands) == 5, demo.printed


def test_the_echo_command_shows_what_the_service_sees(demo: Demo) -> None:
    status, body = fetch(demo.url("/echo"), b'{"name": "you"}')

    seen = json.loads(body)
    assert (status, seen["path"], seen["body"]) == (200, "/hello", {"name": "you"})
    assert seen["headers"]["X-Forwarded-For"] == "127.0.0.1"


def test_the_events_command_gets_its_events(demo: Demo) -> None:
    status, body = fetch(demo.url("/events"))

    assert (status, body.count(b"event: tick")) == (200, 5)


def test_the_slow_command_is_told_why_it_failed(demo: Demo) -> None:
    status, body = fetch(demo.url("/slow"))

    assert status == 504
    assert json.loads(body)["error"] == "Upstream took too long to respond"


def test_the_stream_command_gets_every_byte(demo: Demo) -> None:
    status, body = fetch(demo.url("/stream").replace("mb=500", "mb=50"))

    assert (status, len(body)) == (200, 50_000_000)


def test_the_metrics_command_counts_over_all_workers(demo: Demo) -> None:
    fetch(demo.url("/echo"))

    _, body = fetch(demo.url("/metrics"))

    assert re.search(rb'fastgate_requests_total\{[^}]*route="echo"[^}]*\} [1-9]', body)


def test_the_routes_of_the_example_do_what_its_comments_say(demo: Demo) -> None:
    home = demo.url("/echo").removesuffix("/echo/hello")

    assert set(json.loads(fetch(f"{home}/")[1])) >= {"echo", "slow", "flaky", "websocket"}
    order = json.loads(fetch(f"{home}/orders/7")[1])
    assert (order["path"], order["headers"]["X-Shop"]) == ("/v2/orders/7", "demo")
    assert fetch(f"{home}/orders/7", b"")[0] == 405
    assert json.loads(fetch(f"{home}/old/way")[1])["path"] == "/way"
    assert sorted(fetch(f"{home}/flaky", b"x")[0] for _ in range(5)) == [200, 200, 200, 502, 503]


def test_a_websocket_passes(demo: Demo) -> None:
    port = int(demo.url("/echo").split(":")[2].partition("/")[0])
    with Client(port) as client:
        client.send(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        head = client.read_until(b"\r\n\r\n")
        client.send(b"\x81\x82\0\0\0\0hi")
        frame = client.read_exactly(4)

    assert head.startswith(b"HTTP/1.1 101 ")
    assert frame == b"\x81\x02hi"
