"""One gateway with the probes of probes.py on routes of every kind, for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, request
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.strict import Message
from tests.upstream import Upstream, echo

PROBES = "tests.plugins.probes"
BOUND = 100_000  # of the routes that hold whole bodies
# What the gateway itself says only when something went wrong that no plugin was told to do
BROKEN = (
    "while handling",
    "while reading",
    "while giving up",
    "Fatal error",
    "Segmentation",
    "while relaying",
)


@dataclass
class Harness:
    """The gateway, its upstream, and what the probes noted."""

    gateway: Gateway
    upstream: Upstream
    record: Path

    def ask(self, path: str, *fields: str, method: str = "GET", body: bytes = b"") -> Message:
        """The answer, on a connection of its own."""
        with Client(self.gateway.port) as client:
            client.send(request(path, method, *fields, body=body))
            return client.read_response(method)

    def notes(self, *phases: str) -> list[list[Any]]:
        """What was noted so far, without the request ids; of these phases only, when some are given."""
        return [[line[0], line[1], *line[3:]] for line in self.lines() if not phases or line[1] in phases]

    def noted(self, count: int, *phases: str) -> list[list[Any]]:
        """The notes of these phases, once there are so many; fails when there are more."""
        found = until(lambda: len(at := self.notes(*phases)) >= count and at, f"{count} notes of {phases}")
        assert len(found) == count, found
        return list(found)

    def logged(self) -> dict[str, Any]:
        """What the Logger saw of the one request of this test."""
        notes = until(lambda: [note for note in self.notes("log") if note[0] == "L"], "the log hook")
        assert len(notes) == 1, notes
        return dict(notes[0][2])

    def lines(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def complaint(self, *words: str) -> str:
        """The first line on stderr that holds all the words, once it is there."""
        return str(
            until(
                lambda: next(
                    (
                        line
                        for line in self.gateway.stderr_text.splitlines()
                        if all(word in line for word in words)
                    ),
                    "",
                ),
                f"{words} on stderr",
            )
        )


def use(kind: str, label: str, record: Path, **settings: Any) -> dict[str, Any]:
    """A plugin of probes.py as the config names it."""
    return {"use": f"{PROBES}:{kind}", "label": label, "record": str(record), **settings}


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    record = tmp_path_factory.mktemp("plugins") / "record"
    record.touch()
    edits = {"set": {"X-Route": "edited"}}

    def route(path: str, *plugins: dict[str, Any], **settings: Any) -> dict[str, Any]:
        action = (
            settings
            if "respond" in settings or "redirect" in settings
            else {"upstream": "origin", **settings}
        )
        return {"path": path, "plugins": list(plugins), **action}

    with Upstream(echo) as upstream:
        config = {
            "plugins": [use("Decider", "Root", record)],
            "upstreams": {
                "origin": {"targets": [upstream.url], "pool": {"max_requests": 1}, "preserve_host": True},
                "gone": {"targets": ["http://127.0.0.1:1"]},
            },
            "routes": [
                route(
                    "/order",
                    use("Decider", "A", record),
                    use("Waiter", "B", record),
                    use("Decider", "C", record),
                    use("Waiter", "D", record),
                    use("Logger", "L", record),
                ),
                route("/shadow", use("Decider", "D", record, enforce=False),
                      use("Waiter", "W", record, enforce=False)),
                route("/fixed", use("Responder", "R", record), use("Logger", "L", record),
                      respond={"status": 200, "body": "fixed"}),
                route("/fixed-decide", use("Decider", "A", record), use("Responder", "R", record),
                      respond={"status": 200, "body": "fixed"}, response_headers=edits),
                route("/moved", use("Waiter", "W", record), use("Responder", "R", record),
                      redirect={"to": "https://elsewhere.test/", "status": 307}),
                route("/up/{rest...}", use("Upstreamer", "U", record), use("Upstreamer", "V", record),
                      use("Responder", "R", record), use("Logger", "L", record), response_headers=edits),
                route("/whole", use("Waiter", "W", record, bound=f"{BOUND}B"),
                      use("Upstreamer", "U", record), use("Logger", "L", record)),
                route("/whole-chunks", use("Waiter", "W", record, bound=f"{BOUND}B"),
                      use("Chunker", "K", record)),
                route("/answer", use("Whole", "H", record, bound=f"{BOUND}B"), use("Logger", "L", record)),
                route("/chunks", use("Chunker", "K", record), use("Logger", "L", record)),
                route("/two-chunks", use("Chunker", "K", record), use("Chunker", "M", record)),
                route("/small", use("Logger", "L", record), max_body="10B"),
                route("/gone", use("Logger", "L", record), use("Responder", "R", record), upstream="gone"),
                route("/block", use("Decider", "A", record), use("Upstreamer", "U", record),
                      use("Logger", "L", record), timeouts={"first_byte": "3s", "between_bytes": "3s"}),
                route("/patience", use("Waiter", "W", record), use("Logger", "L", record),
                      timeouts={"total": "300ms"}),
                route("/slow", use("Logger", "L", record), timeouts={"first_byte": "100ms"}),
            ],
        }  # fmt: skip
        with Gateway(config, allow=".") as gateway:
            yield Harness(gateway, upstream, record)


@pytest.fixture
def harness(running: Harness) -> Iterator[Harness]:
    workers = running.gateway.worker_pids()
    running.upstream.forget()
    running.upstream.script = echo
    running.record.write_text("")
    before = len(running.gateway.stderr_text)

    yield running

    assert running.gateway.worker_pids() == workers, "the worker has died"
    said = running.gateway.stderr_text[before:]
    assert not any(word in said for word in BROKEN), said
    failures = running.upstream.failures
    running.upstream.forget()
    assert failures == []
    assert running.gateway.leaks() == []
