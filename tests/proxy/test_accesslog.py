"""The access log: lines stay lines whatever a client sends, and no reader holds up a request."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, get, request
from tests.gateway import ROOT, Gateway
from tests.server.gateway_harness import until
from tests.upstream import Upstream, answer

COMMON = re.compile(
    r'(\S+) - - \[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000)\] ("(?:[^"\\]|\\.)*") (\d{3}|0) (\d+)'
    r' ("(?:[^"\\]|\\.)*") ("(?:[^"\\]|\\.)*")'
)
KEYS = [
    "time", "request_id", "client", "method", "host", "target", "protocol", "status", "route", "consumer",
    "cache", "upstream", "upstream_status", "attempts", "duration_ms", "upstream_ms", "bytes_received",
    "bytes_sent", "reason", "user_agent",
]  # fmt: skip


def config(output: str, form: str = "json", **extra: Any) -> dict[str, Any]:
    return {
        "access_log": {"output": output, "format": form},
        "routes": [
            {"name": 'fixed "one"', "path": "/{rest...}", "respond": {"status": 200, "body": "hello"}}
        ],
        **extra,
    }


def lines_of(file: Path, count: int) -> list[str]:
    """All lines of the file, once there are so many; a line that is not ended is none."""
    found = until(
        lambda: (at := file.read_text("ascii")).count("\n") >= count and at, f"{count} lines in {file}"
    )
    assert found.endswith("\n")
    lines = found.split("\n")[:-1]
    assert len(lines) == count, lines
    return list(lines)


@pytest.fixture(scope="module", params=["json", "common"])
def logged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    file = tmp_path_factory.mktemp("log") / "access.log"
    with Gateway(config(str(file), request.param)) as gateway:
        yield gateway, file, request.param


HOSTILE = [
    b'GET /"quoted" HTTP/1.1\r\nHost: a\r\nUser-Agent: "x\\"\r\nReferer: \\"\r\n\r\n',
    b"GET /back\\slash\\ HTTP/1.1\r\nHost: a\r\nUser-Agent: \\\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: a\xe9\xff\x80z\r\nReferer: a\xa0b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: a\tb\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: </script>,{}\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: %00%0a\r\n\r\n",
    b"GET /" + b"x" * 7000 + b" HTTP/1.1\r\nHost: a\r\nUser-Agent: " + b'"' * 7000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: " + b'"' * 300 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"G\xe9T / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: x\x00\n y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: x\ny: z\r\n\r\n",
    b'{"status":200}\r\n\r\n',
    b"GET http://a/%22 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
]


def test_hostile_input_makes_one_valid_line_each(logged: tuple[Gateway, Path, str]) -> None:
    gateway, file, form = logged
    before = file.read_text("ascii").count("\n")
    statuses = []
    for data in HOSTILE:
        with Client(gateway.port) as client:
            client.send(data)
            statuses.append(client.read_response().status)

    lines = lines_of(file, before + len(HOSTILE))[before:]

    if form == "json":
        records = [json.loads(line) for line in lines]
        assert all(list(record) == KEYS for record in records)
        assert [record["status"] for record in records] == statuses
        assert records[0]["target"] == '/"quoted"'
        assert records[0]["user_agent"] == '"x\\"'
        assert records[0]["route"] == 'fixed "one"'
        assert records[1]["target"] == "/back\\slash\\"
        assert records[2]["user_agent"] == "a\xe9\xff\x80z"
        assert records[3]["user_agent"] == "a\tb"
        assert records[6]["target"] == "/" + "x" * 7000
        assert records[6]["user_agent"] == '"' * 7000
        assert records[15]["protocol"] == "HTTP/1.0"
        return
    matches = [COMMON.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    assert [int(match[4]) for match in matches if match] == statuses
    first = matches[0]
    assert first is not None
    assert json.loads(first[3]) == 'GET /"quoted" HTTP/1.1'
    assert (json.loads(first[6]), json.loads(first[7])) == ('\\"', '"x\\"')


def test_every_byte_of_a_field_comes_back(logged: tuple[Gateway, Path, str]) -> None:
    gateway, file, form = logged
    before = file.read_text("ascii").count("\n")
    agent = "a" + "".join(chr(c) for c in [9, *range(32, 127), *range(128, 256)]) + "z"

    get(gateway.port, "/", f"User-Agent: {agent}")

    (line,) = lines_of(file, before + 1)[before:]
    found = COMMON.fullmatch(line) if form == "common" else None
    assert (json.loads(found[7]) if found else json.loads(line)["user_agent"]) == agent


def test_a_line_tells_the_request(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    with Upstream(answer(b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nnone")) as upstream:
        routes = [{"name": "orders", "path": "/o/{id}", "upstream": upstream.url, "max_body": "10B"}]
        with Gateway(config(str(file), routes=routes, trusted_proxies=["127.0.0.0/8"])) as gateway:
            fields = ("X-Forwarded-For: 10.1.2.3", "X-Request-ID: abc-1")
            get(gateway.port, "/o/1?q=2", *fields, method="POST", body=b"hello")
            get(gateway.port, "/o/1", method="POST", body=b"x" * 11)
            get(gateway.port, "/nowhere")
            first, second, third = (json.loads(line) for line in lines_of(file, 3))

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert 0 < first.pop("upstream_ms") <= first.pop("duration_ms") < 60_000
    assert first.pop("bytes_sent") > 4
    assert first == {
        "request_id": "abc-1", "client": "10.1.2.3", "method": "POST", "host": "gateway.test",
        "target": "/o/1?q=2", "protocol": "HTTP/1.1", "status": 404, "route": "orders",
        "upstream": upstream.url.removeprefix("http://"), "upstream_status": 404, "attempts": 1,
        "bytes_received": 5, "reason": None, "user_agent": None, "consumer": None, "cache": None,
    }  # fmt: skip
    assert (second["status"], second["reason"], second["upstream"]) == (413, "body_too_large", None)
    assert (third["status"], third["reason"], third["route"]) == (404, "no_route", None)


def test_lines_are_written_without_further_requests(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    with Gateway(config(str(file))) as gateway:
        get(gateway.port)
        lines_of(file, 1)


def test_what_is_buffered_is_written_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    with Gateway(config(str(file)), workers=2) as gateway:
        for i in range(200):
            get(gateway.port, f"/{i}")

    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(int(record["target"][1:]) for record in records) == list(range(200))


def test_a_moved_file_is_opened_anew_and_no_line_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    sent = 0
    over = threading.Event()

    def ask() -> None:
        nonlocal sent
        with Client(gateway.port) as client:
            while not over.is_set():
                client.send(request(f"/{sent}"))
                assert client.read_response().status == 200
                sent += 1

    with Gateway(config(str(file)), workers=2) as gateway:
        traffic = threading.Thread(target=ask)
        traffic.start()
        for turn in range(5):
            until(lambda: file.exists() and file.stat().st_size > 0, "lines")
            file.rename(tmp_path / f"access.log.{turn}")
            gateway.process.send_signal(signal.SIGUSR1)
            until(file.exists, "a new file")
        over.set()
        traffic.join()

    files = sorted(tmp_path.iterdir())
    assert len(files) == 6
    targets = [json.loads(line)["target"] for path in files for line in path.read_text().splitlines()]
    assert sorted(targets) == sorted(f"/{i}" for i in range(sent))


def test_off_writes_nothing(tmp_path: Path) -> None:
    with Gateway(config("off")) as gateway:
        get(gateway.port)
        gateway.process.send_signal(signal.SIGUSR1)
        get(gateway.port)
        assert "gateway.test" not in gateway.stderr_text


class Piped:
    """A gateway whose stdout is a pipe that nobody reads until asked to."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.path = directory / "gateway.json"
        self.path.write_text(json.dumps(settings))

    def __enter__(self) -> Piped:
        ready_read, ready_write = os.pipe()
        self.errors = (self.path.parent / "stderr").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastgate", "run", "-c", str(self.path), "--ready-fd", str(ready_write)],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            pass_fds=[ready_write],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        os.close(ready_write)
        with open(ready_read, "rb") as ready:
            self.ready = json.loads(ready.readline())
        assert self.process.stdout is not None
        self.reading = self.process.stdout
        fcntl.fcntl(self.reading, fcntl.F_SETPIPE_SZ, 65536)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.rest = self.reading.read()
        assert self.process.wait(60) == 0
        self.reading.close()
        self.errors.close()
        assert "Traceback" not in (self.path.parent / "stderr").read_text()

    @property
    def port(self) -> int:
        return int(self.ready["listen"][0].rpartition(":")[2])

    def dropped(self) -> int:
        host, _, port = self.ready["admin"].rpartition(":")
        with Client(int(port)) as client:
            client.send(request("/metrics", host=host))
            text = client.read_response().body.decode()
        return sum(
            int(line.split()[-1])
            for line in text.splitlines()
            if line.startswith("fastgate_access_log_dropped_total ")
        )


def piped_config() -> dict[str, Any]:
    return {**config("stdout"), "listen": "127.0.0.1:0", "admin": {"listen": "127.0.0.1:0"}, "workers": 2}


def test_a_reader_that_stops_holds_up_no_request_and_tears_no_line(tmp_path: Path) -> None:
    sent = 0
    with Piped(tmp_path, piped_config()) as gateway:
        clients = [Client(gateway.port) for _ in range(8)]

        def ask() -> bool:
            nonlocal sent
            for client in clients:
                agent = "User-Agent: " + "u" * 300
                client.send(b"".join(request(f"/{sent + i}", "GET", agent) for i in range(50)))
                for _ in range(50):
                    assert client.read_response().status == 200
                sent += 50
            return gateway.dropped() > 0

        until(ask, "lines that are dropped")
        for client in clients:
            client.close()
        seen: list[int] = []

        def is_settled() -> bool:
            seen.append(gateway.dropped())
            threading.Event().wait(0.3)  # /metrics may be half a second old
            return len(seen) > 4 and len(set(seen[-4:])) == 1

        until(is_settled, "a count that stays")
        dropped = seen[-1]

    lines = gateway.rest.decode("ascii").splitlines()
    records = [json.loads(line) for line in lines]
    assert all(list(record) == KEYS for record in records)
    targets = [record["target"] for record in records]
    assert len(set(targets)) == len(targets)
    assert len(targets) + dropped == sent


def test_long_lines_on_a_pipe_stay_whole_and_never_block(tmp_path: Path) -> None:
    settings = piped_config()
    agent = '"' * 6000  # 12 kB in the log: more than a pipe takes in one piece
    with Piped(tmp_path, settings) as gateway, Client(gateway.port) as client:
        for i in range(40):
            client.send(request(f"/{i}/" + "t" * 6000, "GET", f"User-Agent: {agent}"))
            assert client.read_response().status == 200

    for line in gateway.rest.decode("ascii").splitlines():
        record = json.loads(line)
        assert list(record) == KEYS
        assert len(line) < 4096
        assert (len(record["request_id"]), record["client"]) == (32, "127.0.0.1")
        assert record["target"].startswith("/")
        assert set(record["user_agent"].removesuffix("...")) == {'"'}


def test_a_key_in_the_query_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    settings = config(str(file))
    settings["auth"] = {"api_key": {"query": "api_key"}}
    settings["routes"] = [{"path": "/*", "respond": "hi", "auth": ["api_key"]}]
    with Gateway(settings) as gateway:
        for target in ("/a?x=1&api_key=fg_secret&y=2", "/a?%61pi_key=fg_secret"):
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
            connection.request("GET", target)
            assert connection.getresponse().status == 401
            connection.close()
        first, second = (json.loads(line) for line in lines_of(file, 2))

    assert first["target"] == "/a?x=1&api_key=***&y=2"
    assert second["target"] == "/a?%61pi_key=***"
