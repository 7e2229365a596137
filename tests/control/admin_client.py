"""Calls to the admin API of a running gateway, and a reader of its metrics."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Answer", "call", "scrape", "scrape_idle"]

SAMPLE = re.compile(r"^(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>[-+0-9.e]+|NaN)$")
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"(?:,|$)')


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    address: str,
    path: str,
    method: str = "GET",
    host: str | None = None,
    body: Any = None,
    **headers: str,
) -> Answer:
    """One call; `host` replaces the Host header, underscores in the names of `headers` stand for hyphens.
    `body` is sent as JSON, bytes as they are.
    """
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    name, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(name, int(port), timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", address if host is None else host)
        for field, value in headers.items():
            connection.putheader(field.replace("_", "-"), value)
        if data is not None:
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def scrape(address: str, **headers: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of /metrics by name and labels. Fails on a line, an order or a type that Prometheus
    refuses.
    """
    answer = call(address, "/metrics", **headers)
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    types: dict[str, str] = {}
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    closed: set[str] = set()
    current = ""
    for line in answer.body.decode().splitlines():
        if line.startswith("# HELP "):
            closed.add(current)
            current = line.split()[2]
            assert current not in closed, f"{current} is told of in two places"
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == current
            types[name] = kind
            continue
        found = SAMPLE.match(line)
        assert found, f"not a sample: {line!r}"
        family = found["name"]
        if types[current] == "histogram":
            family = re.sub("_(bucket|sum|count)$", "", family)
        assert family == current
        labels = frozenset(LABEL.findall(found["labels"] or ""))
        assert (found["name"], labels) not in samples, f"twice: {line}"
        samples[found["name"], labels] = float(found["value"])
    return samples


def scrape_idle(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples once no request is under way: a request is counted after its response was sent."""
    deadline = time.monotonic() + 60
    while True:
        if value(scrape(address), "fastgate_requests_active") == 0:
            # Not that scrape: it may have read other counters before the last request was counted.
            return scrape(address)
        assert time.monotonic() < deadline, "a request is still under way"
        time.sleep(0.01)


def value(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    """The sum of the samples with this name and at least these labels."""
    wanted = set(labels.items())
    return sum(number for (found, has), number in samples.items() if found == name and wanted <= has)
