"""A handler in the process as an upstream: the request path treats it as any other."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastgate._core.http.headers import Headers
from fastgate.config.load import check
from fastgate.plan.freeze import freeze_now
from fastgate.proxy.dataplane import DataPlane
from fastgate.state.memory import HostMemory
from fastgate.upstream.local_stream import LocalRequest, LocalTarget
from tests.client import Client, get, request
from tests.server.gateway_harness import until
from tests.strict import Malformed

WAIT_S = 60


class Served:
    """A data plane in a thread of its own, with a handler in place of the target of its one upstream."""

    def __init__(self, handler: Callable[[LocalRequest], AsyncIterator[Any]], route: dict[str, Any]) -> None:
        self.handler = handler
        self.route = route
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.over = asyncio.Event()
        memory = HostMemory.private()
        tree = {
            "listen": ["127.0.0.1:0"],
            "upstreams": {"local": {"targets": ["http://127.0.0.1:1"], "pool": {"max_connections": 2}}},
            "routes": [{"path": "/{rest...}", "upstream": "local", **self.route}],
            "access_log": "off",
        }
        config, errors = check(json.dumps(tree), "json")
        assert config is not None, errors
        self.plane = DataPlane(self.loop, memory, 0)
        plan = freeze_now(config, self.plane)
        upstream = plan.upstreams["local"]
        self.target = LocalTarget(upstream, self.handler, "test")
        upstream.set_targets([self.target], upstream.balance)
        self.plane.install(plan)
        server = await self.loop.create_server(
            lambda: self.plane.connection(config.listen[0]), "127.0.0.1", 0
        )
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self.over.wait()
        server.close()
        self.plane.abort()
        self.plane.close()

    def __enter__(self) -> Served:
        self.thread.start()
        assert self.ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


@contextmanager
def served(handler: Callable[[LocalRequest], AsyncIterator[Any]], **route: Any) -> Iterator[Served]:
    with Served(handler, route) as running:
        yield running
        until(lambda: running.target.active == 0, "every request of the handler is over")


def field(asked: LocalRequest, name: str) -> str | None:
    values = asked.headers.get_all(name)
    assert len(values) < 2
    return values[0] if values else None


async def greet(asked: LocalRequest) -> AsyncIterator[Any]:
    yield 200, [("Content-Type", "text/plain")]
    yield b"hello "
    yield b"world"


async def echo(asked: LocalRequest) -> AsyncIterator[Any]:
    yield 200, [("X-Method", asked.method), ("X-Target", asked.target)]
    async for piece in asked.body:
        yield piece


def test_a_response_in_pieces() -> None:
    with served(greet) as running:
        response = get(running.port, "/a")

        assert (response.status, response.body) == (200, b"hello world")
        assert response.get("content-type") == b"text/plain"
        assert response.get("transfer-encoding") == b"chunked"


def test_the_request_is_what_an_upstream_would_see() -> None:
    seen: list[LocalRequest] = []

    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        seen.append(asked)
        yield 204, []

    with served(handler, rewrite={"strip_prefix": "/api"}) as running, Client(running.port) as client:
        client.send(request("/api/a?b=1", "GET", "X-Mine: 1", "Connection: X-Hop", "X-Hop: secret"))
        assert client.read_response().status == 204

    (asked,) = seen
    assert (asked.method, asked.target) == ("GET", "/a?b=1")
    assert field(asked, "host") == "test"
    assert field(asked, "x-mine") == "1"
    assert field(asked, "x-hop") is None
    assert field(asked, "x-forwarded-for") == "127.0.0.1"


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_a_body_passes_both_ways(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    with served(echo) as running, Client(running.port) as client:
        client.send(request("/a", "POST", body=body[:size]))
        response = client.read_response()

        assert response.get("x-method") == b"POST"
        assert response.body == body[:size]


def test_a_chunked_body_with_trailers() -> None:
    trailers: list[str | None] = []

    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        body = b"".join([piece async for piece in asked.body])
        trailers.append(asked.body.trailers.get("x-sum") if asked.body.trailers is not None else None)
        yield 200, []
        yield body
        yield Headers([("X-Sum", "7")])

    with served(handler) as running, Client(running.port) as client:
        head = request("/a", "POST", "Transfer-Encoding: chunked", "Trailer: X-Sum")
        client.send(head + b"3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n")
        raw = client.read_until(b"0\r\nX-Sum: 7\r\n\r\n")

    assert b"abc" in raw
    assert trailers == ["6"]


def test_a_handler_that_does_not_read_pauses_the_client() -> None:
    size = 32 * 1024 * 1024
    waiting: list[int] = []

    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        while asked.body.size <= 65536:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)  # more would have come
        waiting.append(asked.body.size)
        total = 0
        async for piece in asked.body:
            total += len(piece)
        yield 200, []
        yield str(total).encode()

    with served(handler, max_body="100MB") as running, Client(running.port) as client:
        client.send(request("/a", "POST", f"Content-Length: {size}"))
        client.send(b"x" * size)
        assert client.read_response().body == str(size).encode()

    assert waiting[0] <= 65536 + 262144  # the bound, and a read


def test_a_client_that_does_not_read_pauses_the_handler() -> None:
    made: list[int] = []

    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        yield 200, []
        for _ in range(4096):
            made.append(1)
            yield b"x" * 65536

    with served(handler) as running, Client(running.port) as client:
        client.send(request("/a"))
        client.read_until(b"\r\n\r\n")
        before = -1
        while len(made) != before:  # what the buffers of the kernel take of 256 MiB, and not more
            before = len(made)
            time.sleep(1)
        assert len(made) < 2048


def test_a_client_that_goes_away_ends_the_handler() -> None:
    ended = threading.Event()

    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        try:
            yield 200, []
            yield b"first"
            await asyncio.Event().wait()
        finally:
            ended.set()

    with served(handler) as running:
        with Client(running.port) as client:
            client.send(request("/a"))
            client.read_until(b"first")
        assert ended.wait(WAIT_S)


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_handler_that_fails(where: str) -> None:
    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        if where == "before":
            raise RuntimeError("before the head")
        yield 200, []
        yield b"first"
        raise RuntimeError("in the body")

    with served(handler) as running, Client(running.port) as client:
        client.send(request("/a"))
        if where == "before":
            assert client.read_response().status == 500
        else:
            raw = client.read_to_end()
            assert b"first" in raw
            assert not raw.endswith(b"0\r\n\r\n")  # cut, so that no client takes it for complete


@pytest.mark.parametrize(
    "parts",
    [
        [b"no head"],
        [],
        [(200, []), (200, [])],
        [(99, [])],
        [(101, [])],
        [(200, [("Content-Length", "3")]), b"four"],
        [(200, [("Content-Length", "3")]), b"2"],
        [(200, [("Content-Length", "x")])],
        [(204, []), b"a body"],
        ["text"],
    ],
)
def test_a_handler_that_breaks_the_rules_gives_no_whole_response(parts: list[Any]) -> None:
    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        for part in parts:
            yield part

    with served(handler) as running, Client(running.port) as client:
        client.send(request("/a"))
        try:
            status = client.read_response().status
        except Malformed:
            return  # cut

    assert status == 500 or parts[0] == (204, [])


def test_head_and_interim_responses() -> None:
    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        yield 103, [("Link", "</style.css>; rel=preload")]
        yield 200, [("Content-Length", "5")]
        yield b"hello"

    with served(handler) as running, Client(running.port) as client:
        client.send(request("/a"))
        early = client.read_until(b"\r\n\r\n")
        assert early.startswith(b"HTTP/1.1 103 ")
        assert client.read_response().body == b"hello"
        client.send(request("/a", "HEAD"))
        head = client.read_response("HEAD")
        assert (head.status, head.get("content-length")) == (200, b"5")


def test_more_requests_than_the_upstream_takes_are_refused() -> None:
    go = asyncio.Event()

    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        await go.wait()
        yield 200, []

    with served(handler) as running:
        waiting = [Client(running.port) for _ in range(2)]
        for client in waiting:
            client.send(request("/a"))
        until(lambda: running.target.active == 2, "both are with the handler")

        assert get(running.port, "/a").status == 503

        running.loop.call_soon_threadsafe(go.set)
        for client in waiting:
            assert client.read_response().status == 200
            client.close()


def test_a_handler_that_fails_when_it_is_called() -> None:
    def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        raise RuntimeError("no generator")

    with served(handler) as running:
        assert get(running.port, "/a").status == 500


def test_a_body_that_ends_early_does_not_end_as_a_whole_one() -> None:
    ended: list[object] = []
    over = threading.Event()

    async def read(asked: LocalRequest) -> None:
        try:
            async for _ in asked.body:
                pass
            ended.append("whole")
        except ConnectionResetError as error:
            ended.append(error)
        over.set()

    async def handler(asked: LocalRequest) -> AsyncIterator[Any]:
        await asyncio.shield(asyncio.create_task(read(asked)))  # outlives the handler
        yield 200, []

    with served(handler) as running:
        with Client(running.port) as client:
            client.send(request("/a", "POST", "Content-Length: 100000", body=b"x" * 70_000))
            until(lambda: running.target.active == 1, "the request is with the handler")
        assert over.wait(WAIT_S)

    assert isinstance(ended[0], ConnectionResetError)
