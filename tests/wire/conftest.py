"""One gateway and one raw upstream for all wire tests, and the three ways in which every case is delivered.

Upstream connections are used once here (`max_requests: 1`), so that a test's script meets exactly its own
requests; reuse has its own gateway in test_reuse.py. After each test the gateway must be as it was: same
worker, nothing on stderr, no connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import h11
import pytest

from tests.client import Client, request
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Script, Upstream, echo

NEXT = request("/next")
DELIVERIES = ["whole", "bytewise", "trailing"]


@pytest.fixture(params=DELIVERIES)
def delivery(request: pytest.FixtureRequest) -> str:
    """How the bytes of a case arrive: at once, one at a time, or with the next request right behind them."""
    return str(request.param)


@dataclass
class Wire:
    """A gateway between a raw client and a raw upstream."""

    gateway: Gateway
    upstream: Upstream

    def client(self) -> Client:
        """A new connection to the gateway."""
        return Client(self.gateway.port)

    def passes(
        self,
        data: bytes,
        delivery: str = "whole",
        script: Script = echo,
        method: str = "GET",
        *,
        closes: bool = False,
    ) -> tuple[Message, Message]:
        """The client's answer and the upstream's request, for bytes that make one good request.

        What reached the upstream is one request, the same to two parsers, and not a byte more. With trailing
        bytes, the next request is answered after it; `closes` says that the gateway ends the connection
        after this answer instead.
        """
        self.upstream.script = script
        with self.client() as client:
            client.send(data + NEXT if delivery == "trailing" else data, bytewise=delivery == "bytewise")
            response = client.read_response(method)
            if closes:
                assert client.read_to_end() == b""
            elif delivery == "trailing":
                client.read_response()
        expected = 2 if delivery == "trailing" and not closes else 1
        assert len(self.upstream.requests) == expected, [message.raw for message in self.upstream.requests]
        if expected == 2:
            assert self.upstream.requests[1].target == b"/next"
        for peer in self.upstream.peers:
            assert bytes(peer.received) == b"".join(message.raw for message in peer.requests)
        for message in self.upstream.requests:
            same_to_h11(message)
        return response, self.upstream.requests[0]

    def refuses(self, data: bytes, delivery: str, *statuses: int) -> Message:
        """The refusal for bytes that must not reach the upstream as a whole request, nor anything behind
        them.
        """
        self.upstream.script = echo
        with self.client() as client:
            client.send(data + NEXT if delivery == "trailing" else data, bytewise=delivery == "bytewise")
            response = client.read_response()
            assert response.status in statuses, (response.status, response.body)
            assert client.read_to_end() == b""
        assert [message.raw for message in self.upstream.requests] == []
        assert b"close" in response.listed("connection")
        is_plain_refusal(response)
        return response


def is_plain_refusal(response: Message) -> None:
    """Fails unless the answer is the gateway's own: JSON with an error text."""
    assert response.get("content-type") == b"application/json"
    document = json.loads(response.body)
    assert isinstance(document["error"], str)
    assert "Traceback" not in document["error"]


def same_to_h11(message: Message) -> None:
    """Fails unless h11 reads exactly the same single request from the bytes of this one."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(message.raw)
    head = connection.next_event()
    assert isinstance(head, h11.Request)
    assert (head.method, head.target) == (message.method, message.target)
    assert [(name.lower(), value) for name, value in message.headers] == list(head.headers)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert [(name.lower(), value) for name, value in message.trailers] == list(event.headers)
    assert body == message.body
    assert connection.trailing_data == (b"", False)


@pytest.fixture(scope="session")
def running() -> Iterator[Wire]:
    with Upstream(echo) as upstream:
        config = {
            "server": {"max_header": "32KB", "max_headers": 128, "max_target": "8KB"},
            "upstreams": {
                "origin": {"targets": [upstream.url], "pool": {"max_requests": 1}, "preserve_host": True},
            },
            "routes": [
                {"path": "/limited", "upstream": "origin", "max_body": "1KB"},
                {"path": "/post-only", "upstream": "origin", "methods": ["POST"]},
                {"host": "only.test", "path": "/only", "upstream": "origin"},
                {"path": "/streams", "upstream": "origin", "request_buffering": 0},
                {"path": "/{rest...}", "upstream": "origin"},
            ],
        }
        with Gateway(config) as gateway:
            yield Wire(gateway, upstream)


@pytest.fixture
def wire(running: Wire) -> Iterator[Wire]:
    before = running.gateway.complaints()
    workers = running.gateway.worker_pids()
    running.upstream.forget()

    yield running

    assert running.gateway.worker_pids() == workers, "the worker has died"
    assert running.gateway.complaints()[len(before) :] == []
    failures = running.upstream.failures
    running.upstream.forget()
    assert failures == []
    leaks = running.gateway.leaks()
    if leaks:
        running.gateway.settle()  # so that one leak fails one test
    assert leaks == []
