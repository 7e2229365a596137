"""Opaque tokens and a server that knows them, over a real socket: cached, bounded, and never a hang."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import pytest

from fastgate._core.pipeline.identity import Identity
from fastgate.auth import introspection
from fastgate.auth.introspection import IntrospectionScheme
from fastgate.auth.scheme import LATER, REJECTED, Unavailable
from fastgate.auth.settings import IntrospectionConfig
from fastgate.upstream.fetch import Fetcher
from tests.auth.requests import Counts, request, resolve
from tests.clock import Clock
from tests.plan_context import PlanContext, run, until
from tests.upstream import Peer, Upstream

MS = 1_000_000


class Server(Upstream):
    """An authorization server: what it says of each token."""

    def __init__(self, **tokens: Any) -> None:
        super().__init__(self._serve)
        self.tokens = tokens
        self.asked: list[str] = []
        self.delay_s = 0.0
        self.status = 200
        self.body: bytes | None = None
        self.mute = threading.Event()
        self.gate = threading.Event()  # answers wait until it is set
        self.gate.set()

    def _serve(self, peer: Peer) -> None:
        while True:
            asked = peer.read_request()
            form = parse_qs(asked.body.decode())
            self.asked.append(form["token"][0])
            if self.mute.is_set():
                peer.wait_closed()
                return
            self.gate.wait(60)
            time.sleep(self.delay_s)
            body = self.body
            if body is None:
                body = json.dumps(self.tokens.get(form["token"][0], {"active": False})).encode()
            peer.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (self.status, len(body)) + body)


class Harness:
    def __init__(self, context: PlanContext, url: str, **more: Any) -> None:
        self.counts = Counts()
        config = IntrospectionConfig(
            **{
                "url": url + "/introspect",
                "client_id": "gate:way",
                "client_secret": "s e",
                "timeout_ns": 60_000 * MS,
            }
            | more
        )
        self.scheme = IntrospectionScheme(config, resolve, Fetcher(context), ("gold",), self.counts)

    async def ask(self, token: str) -> Any:
        ctx = request(("Authorization", f"Bearer {token}"))
        said = self.scheme.verify(ctx)
        return await self.scheme.verify_later(ctx) if said is LATER else said


def scenario(server: Server, body: Callable[[Harness], Awaitable[None]], **more: Any) -> None:
    async def whole(context: PlanContext) -> None:
        harness = Harness(context, server.url, **more)
        try:
            await body(harness)
        finally:
            await harness.scheme.close()

    run(whole)


def test_an_active_token_says_who_it_is() -> None:
    exp = int(time.time()) + 60

    async def body(harness: Harness) -> None:
        said = await harness.ask("good")
        assert isinstance(said, Identity)
        assert (said.consumer, said.method, said.scopes) == ("app", "introspection", {"a", "b"})
        assert said.expires_ns == exp * 10**9
        assert (await harness.ask("user")).consumer == "bob"

    active = {"active": True, "client_id": "app", "scope": "a b", "exp": exp}
    with Server(good=active, user={"active": True, "sub": "bob"}) as server:
        scenario(server, body)
    sent = server.requests[0]
    assert sent.get("authorization") == b"Basic " + base64.b64encode(b"gate%3Away:s+e")
    assert parse_qs(sent.body.decode())["token_type_hint"] == ["access_token"]


def test_the_secret_can_be_sent_in_the_form() -> None:
    async def body(harness: Harness) -> None:
        await harness.ask("a&client_id=evil")

    with Server() as server:
        scenario(server, body, client_auth="post")
    form = parse_qs(server.requests[0].body.decode())
    assert (form["client_id"], form["client_secret"]) == (["gate:way"], ["s e"])
    assert form["token"] == ["a&client_id=evil"]


def test_an_inactive_token_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(harness: Harness) -> None:
        for _ in range(20):
            assert await harness.ask("bad") is REJECTED
        assert harness.counts.outcomes() == {"inactive": 1, "asked": 1, "remembered": 19}
        clock.forward(3700)
        assert await harness.ask("bad") is REJECTED

    clock = Clock()
    monkeypatch.setattr(introspection, "time", clock)
    with Server() as server:
        scenario(server, body, negative_cache_ns=3_600_000 * MS)
    assert server.asked == ["bad", "bad"]


def test_what_is_remembered_is_bounded() -> None:
    async def body(harness: Harness) -> None:
        for n in range(64):
            await harness.ask(f"bad{n}")
        assert len(harness.scheme._inactive) == 16

    with Server() as server:
        scenario(server, body, cache_entries=16)


def test_one_question_for_many_requests_with_one_token() -> None:
    async def body(harness: Harness) -> None:
        asked = [asyncio.create_task(harness.ask("good")) for _ in range(50)]
        await until(lambda: server.asked)
        server.gate.set()
        assert all(isinstance(one, Identity) for one in await asyncio.gather(*asked))

    with Server(good={"active": True, "sub": "a"}) as server:
        server.gate.clear()
        scenario(server, body)
    assert len(server.asked) == 1


def test_questions_under_way_are_bounded() -> None:
    async def body(harness: Harness) -> None:
        asked = [asyncio.create_task(harness.ask(f"t{n}")) for n in range(20)]
        await until(lambda: sum(task.done() for task in asked) == 16)
        server.gate.set()
        said = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(one, Unavailable) for one in said) == 16
        assert harness.counts.of("too_many") == 16

    with Server() as server:
        server.gate.clear()
        scenario(server, body, max_waiting=4)


def test_a_request_that_goes_away_leaves_the_question_to_others() -> None:
    async def body(harness: Harness) -> None:
        leaver, stayer = (asyncio.create_task(harness.ask("good")) for _ in range(2))
        await until(lambda: server.asked)
        leaver.cancel()
        server.gate.set()
        assert isinstance(await stayer, Identity)
        assert harness.scheme._asking == {}

    with Server(good={"active": True, "sub": "a"}) as server:
        server.gate.clear()
        scenario(server, body)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"active": True, "sub": "a", "exp": 1, "aud": "api"}, "expired"),
        ({"active": True, "sub": "a", "exp": "never", "aud": "api"}, "claims"),
        ({"active": True, "sub": "a", "nbf": 9_999_999_999, "aud": "api"}, "not_yet"),
        ({"active": True, "sub": "a", "iss": "https://other"}, "issuer"),
        ({"active": True, "sub": "a", "aud": "other"}, "audience"),
        ({"active": True, "sub": "a"}, "audience"),
        ({"active": True, "aud": "api"}, "consumer"),
        ({"active": True, "sub": "a\r\nb", "aud": "api"}, "consumer"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(said: dict[str, Any], why: str) -> None:
    async def body(harness: Harness) -> None:
        assert await harness.ask("t") is REJECTED
        assert harness.counts.of(why) == 1

    with Server(t=said) as server:
        scenario(server, body, issuer="https://issuer", audience=("api",))


@pytest.mark.parametrize(
    "body_bytes",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"active": "true"}',
        b'{"active": 1}',
        b'{"active":false,"active":true}',
        b"x" * 99999,
    ],
)
def test_an_answer_that_is_none_lets_nobody_in(body_bytes: bytes) -> None:
    async def body(harness: Harness) -> None:
        with pytest.raises(Unavailable):
            await harness.ask("t")

    with Server() as server:
        server.body = body_bytes
        scenario(server, body)


@pytest.mark.parametrize("how", ["mute", "401", "500", "slow", "away"])
def test_a_server_that_does_not_answer_is_no_hang(how: str) -> None:
    async def body(harness: Harness) -> None:
        said = await asyncio.gather(*(harness.ask(f"t{n}") for n in range(10)), return_exceptions=True)
        assert all(isinstance(one, Unavailable) for one in said)

    with Server() as server:
        if how == "mute":
            server.mute.set()
        elif how == "slow":
            server.delay_s = 1.0
        elif how == "away":
            server.stop_listening()
        else:
            server.status = int(how)
        scenario(server, body, **({"timeout_ns": 400 * MS} if how in ("mute", "slow") else {}))


@pytest.mark.parametrize("token", ["", "a b", "x" * 5000])
def test_what_is_no_token_is_never_asked_about(token: str) -> None:
    async def body(harness: Harness) -> None:
        assert await harness.ask(token) is REJECTED

    with Server() as server:
        scenario(server, body)
    assert server.asked == []
