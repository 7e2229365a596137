"""Keys from an issuer over a real socket: fetched behind the traffic, rotated, and never hammered."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fastgate._core.pipeline.identity import Identity
from fastgate.auth import jwks
from fastgate.auth.jwt import JwtScheme
from fastgate.auth.scheme import LATER, REJECTED, Unavailable
from fastgate.auth.settings import JwksConfig, JwtConfig, JwtIssuerConfig
from fastgate.upstream.fetch import Fetcher
from tests.auth.issuer import Issuer, Key
from tests.auth.requests import Counts, request, resolve
from tests.clock import Clock
from tests.plan_context import PlanContext, run, until

MS = 1_000_000
HOUR = 3_600_000 * MS


class Harness:
    """A scheme that fetches its keys from an issuer."""

    def __init__(self, context: PlanContext, *, issuer: str, **more: Any) -> None:
        self.counts = Counts()
        self.fetcher = Fetcher(context)
        settings = JwksConfig(**{"timeout_ns": 60_000 * MS, **more.pop("jwks", {})})
        config = JwtConfig(issuers=(JwtIssuerConfig(issuer=issuer, jwks=settings, **more),))
        self.scheme = JwtScheme(config, resolve, fetcher=lambda: self.fetcher, counter=self.counts)

    async def forward(self, clock: Clock, seconds: float) -> None:
        """Lets so much time pass, and what is due then happen."""
        clock.forward(seconds)
        for issuer in self.scheme._issuers.values():
            issuer.keys._woken.set()
        for _ in range(5):  # turns of the loop: it looks at the time, and begins a fetch or waits on
            await asyncio.sleep(0)
        await self.fetched()

    async def fetched(self) -> None:
        """Returns once the first fetch has begun, and none is under way."""
        sources = [issuer.keys for issuer in self.scheme._issuers.values()]
        await until(lambda: all(keys._begun_ns and keys._fetch is None for keys in sources))

    async def ask(self, token: str) -> Any:
        """As the gate asks."""
        ctx = request(("Authorization", f"Bearer {token}"))
        said = self.scheme.verify(ctx)
        return await self.scheme.verify_later(ctx) if said is LATER else said


def scenario(
    issuer: str, body: Callable[[Harness], Awaitable[None]], *, start: bool = True, **more: Any
) -> None:
    async def whole(context: PlanContext) -> None:
        harness = Harness(context, issuer=issuer, **more)
        if start:
            await harness.scheme.start()
        try:
            await body(harness)
        finally:
            await harness.scheme.close()
            await harness.fetcher.close()

    run(whole)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time as the keys see it."""
    made = Clock()
    monkeypatch.setattr(jwks, "time", made)
    return made


@pytest.fixture(scope="module")
def keys() -> tuple[Key, Key, Key]:
    return Key("ES256", "one"), Key("ES256", "two"), Key("EdDSA", "three")


def test_keys_are_fetched_before_anybody_asks_and_once(keys: tuple[Key, ...]) -> None:
    async def body(harness: Harness) -> None:
        said = await asyncio.gather(*(harness.ask(keys[0].sign(issuer.claims(n=n))) for n in range(50)))
        assert all(isinstance(one, Identity) for one in said)
        assert harness.scheme.verify(request(("Authorization", "Bearer " + keys[0].sign(issuer.claims()))))

    with Issuer(*keys) as issuer:
        scenario(issuer.url, body, jwks_url=issuer.keys_url)
    assert issuer.fetches == 1


def test_discovery_finds_the_keys(keys: tuple[Key, ...]) -> None:
    async def body(harness: Harness) -> None:
        assert isinstance(await harness.ask(keys[2].sign(issuer.claims())), Identity)

    with Issuer(*keys) as issuer:
        scenario(issuer.url, body, discovery=True)


@pytest.mark.parametrize("document", [{"issuer": "https://other.example"}, {}, [], {"jwks_uri": 3}])
def test_a_discovery_document_of_somebody_else_is_not_believed(keys: tuple[Key, ...], document: Any) -> None:
    async def body(harness: Harness) -> None:
        with pytest.raises(Unavailable):
            await harness.ask(keys[0].sign(issuer.claims()))

    with Issuer(*keys) as issuer:
        if isinstance(document, dict):
            document = {"jwks_uri": issuer.keys_url, **document}
        text = json.dumps(document).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text)

        def script(peer: Any) -> None:
            while True:
                peer.read_request()
                peer.send(head + text)

        issuer.script = script
        scenario(issuer.url, body, discovery=True)


def test_a_rotated_key_works_at_once(keys: tuple[Key, ...], clock: Clock) -> None:
    async def body(harness: Harness) -> None:
        assert isinstance(await harness.ask(keys[0].sign(issuer.claims())), Identity)
        issuer.keys = [keys[1]]
        await harness.forward(clock, 3700)
        assert isinstance(await harness.ask(keys[1].sign(issuer.claims())), Identity)
        assert await harness.ask(keys[0].sign(issuer.claims())) is REJECTED  # and the old one is gone

    with Issuer(keys[0], cache_control="max-age=86400") as issuer:
        jwks_settings = {"unknown_kid_ns": HOUR, "max_refresh_ns": 24 * HOUR}
        scenario(issuer.url, body, jwks_url=issuer.keys_url, jwks=jwks_settings)


def test_made_up_key_ids_cannot_hammer_the_issuer(keys: tuple[Key, ...]) -> None:
    async def body(harness: Harness) -> None:
        await harness.ask(keys[0].sign(issuer.claims()))
        for _ in range(3):
            tokens = [keys[0].sign(issuer.claims(), kid=f"made up {n}") for n in range(100)]
            assert set(await asyncio.gather(*map(harness.ask, tokens))) == {REJECTED}
        assert isinstance(await harness.ask(keys[0].sign(issuer.claims())), Identity)

    with Issuer(*keys) as issuer:
        scenario(issuer.url, body, jwks_url=issuer.keys_url)
    assert issuer.fetches == 1  # the interval counts from the first fetch


def test_made_up_key_ids_cause_one_fetch_per_interval(keys: tuple[Key, ...], clock: Clock) -> None:
    async def body(harness: Harness) -> None:
        await harness.ask(keys[0].sign(issuer.claims()))
        for fetches in (1, 1, 2, 2, 2, 3):  # at 0, 12 and 24 hours
            await harness.forward(clock, 4 * 3600)
            tokens = [keys[0].sign(issuer.claims(), kid=f"made up {n}") for n in range(20)]
            assert set(await asyncio.gather(*map(harness.ask, tokens))) == {REJECTED}
            assert issuer.fetches == fetches

    with Issuer(*keys, cache_control="max-age=999999999") as issuer:
        jwks_settings = {"unknown_kid_ns": 11 * HOUR, "max_refresh_ns": 1000 * HOUR}
        scenario(issuer.url, body, jwks_url=issuer.keys_url, jwks=jwks_settings)


@pytest.mark.parametrize(
    ("control", "interval_s"),
    [("max-age=0", 1000), ("no-store", 1000), ("public, max-age=3600", 3600), ("max-age=999999999", 20_000)],
)
def test_cache_control_is_honoured_within_bounds(
    keys: tuple[Key, ...], clock: Clock, control: str, interval_s: float
) -> None:
    async def body(harness: Harness) -> None:
        await harness.fetched()
        for fetches in (1, 2, 3):
            assert issuer.fetches == fetches
            await harness.forward(clock, interval_s * 0.85)  # give or take a tenth
            assert issuer.fetches == fetches
            await harness.forward(clock, interval_s * 0.3)

    bounds = {"min_refresh_ns": 1_000_000 * MS, "max_refresh_ns": 20_000_000 * MS}
    with Issuer(*keys, cache_control=control) as issuer:
        scenario(issuer.url, body, jwks_url=issuer.keys_url, jwks=bounds)


def broken(issuer: Issuer, how: str) -> None:
    if how == "mute":
        issuer.mute.set()
    elif how == "500":
        issuer.status = 500
    elif how == "slow":
        issuer.delay_s = 1.5
    else:
        issuer.body = {
            "html": b"<html>not found</html>",
            "empty": b"",
            "no keys": b'{"keys": []}',
            "list": b"[]",
            "text keys": b'{"keys": "abc"}',
            "twice": b'{"keys": [], "keys": []}',
            "bomb": b'{"keys": ' + b"[" * 200_000,
            "many": json.dumps({"keys": [{"kty": "oct"}] * 1000}).encode(),
            "large": b'{"keys": []}' + b" " * 2_000_000,
        }[how]


def in_time(how: str) -> dict[str, int]:
    """A time limit that is reached, where the test is about it."""
    return {"timeout_ns": 500 * MS} if how in ("mute", "slow") else {}


WAYS = [
    "mute",
    "500",
    "slow",
    "html",
    "empty",
    "no keys",
    "list",
    "text keys",
    "twice",
    "bomb",
    "many",
    "large",
]


@pytest.mark.parametrize("how", WAYS)
def test_without_keys_a_request_is_told_so_in_time(keys: tuple[Key, ...], how: str) -> None:
    async def body(harness: Harness) -> None:
        tokens = [keys[0].sign(issuer.claims(n=n)) for n in range(20)]
        said = await asyncio.gather(*map(harness.ask, tokens), return_exceptions=True)
        assert all(isinstance(one, Unavailable) for one in said)
        # while it fails, requests do not wait and do not make it fetch
        with pytest.raises(Unavailable):
            harness.scheme.verify(request(("Authorization", "Bearer " + tokens[0])))

    with Issuer(*keys) as issuer:
        broken(issuer, how)
        scenario(issuer.url, body, jwks_url=issuer.keys_url, jwks=in_time(how))
    assert issuer.fetches <= 2


@pytest.mark.parametrize("how", WAYS)
def test_the_last_good_keys_stay_while_the_issuer_fails(keys: tuple[Key, ...], how: str) -> None:
    async def body(harness: Harness) -> None:
        assert isinstance(await harness.ask(keys[0].sign(issuer.claims())), Identity)
        broken(issuer, how)
        await until(lambda: harness.counts.of("failed") >= 1)
        assert isinstance(await harness.ask(keys[0].sign(issuer.claims())), Identity)

    with Issuer(*keys, cache_control="max-age=0") as issuer:
        jwks_settings = {"min_refresh_ns": 50 * MS, **in_time(how)}
        scenario(issuer.url, body, jwks_url=issuer.keys_url, jwks=jwks_settings)


def test_keys_that_are_too_old_are_dropped(keys: tuple[Key, ...]) -> None:
    async def body(harness: Harness) -> None:
        assert isinstance(await harness.ask(keys[0].sign(issuer.claims())), Identity)
        issuer.status = 500
        await until(lambda: harness.counts.of("failed") >= 1)
        with pytest.raises(Unavailable):
            await harness.ask(keys[0].sign(issuer.claims()))

    with Issuer(*keys, cache_control="max-age=0") as issuer:
        jwks_settings = {"min_refresh_ns": 50 * MS, "max_stale_ns": 10 * MS}
        scenario(issuer.url, body, jwks_url=issuer.keys_url, jwks=jwks_settings)


def test_failures_make_the_pauses_longer(
    keys: tuple[Key, ...], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FIRST_RETRY_S", 1000.0)
    monkeypatch.setattr(jwks, "LAST_RETRY_S", 100_000.0)

    async def body(harness: Harness) -> None:
        await harness.fetched()
        for fetches, pause_s in enumerate((1000, 2000, 4000, 8000), 1):
            assert issuer.fetches == fetches
            await harness.forward(clock, pause_s * 0.85)  # give or take a tenth
            assert issuer.fetches == fetches
            issuer.status = 503 if fetches < 4 else 200
            await harness.forward(clock, pause_s * 0.3)
        assert isinstance(await harness.ask(keys[0].sign(issuer.claims())), Identity)

    with Issuer(*keys) as issuer:
        issuer.status = 503
        scenario(issuer.url, body, jwks_url=issuer.keys_url)


def test_nobody_there_is_no_hang(keys: tuple[Key, ...]) -> None:
    async def body(harness: Harness) -> None:
        with pytest.raises(Unavailable):
            await harness.ask(
                keys[0].sign({"iss": "https://issuer.example", "sub": "a", "exp": time.time() + 60})
            )

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/keys"
        scenario("https://issuer.example", body, jwks_url=url)


def test_a_secret_has_no_place_at_a_url(keys: tuple[Key, ...]) -> None:
    async def body(harness: Harness) -> None:
        with pytest.raises(Unavailable):
            await harness.ask(keys[0].sign(issuer.claims()))

    with Issuer(*keys) as issuer:
        issuer.body = json.dumps({"keys": [{"kty": "oct", "kid": "one", "k": "A" * 64}]}).encode()
        scenario(issuer.url, body, jwks_url=issuer.keys_url)


def test_a_request_that_goes_away_does_not_end_the_fetch_of_others(keys: tuple[Key, ...]) -> None:
    async def body(harness: Harness) -> None:
        leaver = asyncio.create_task(harness.ask(keys[0].sign(issuer.claims())))
        stayer = asyncio.create_task(harness.ask(keys[0].sign(issuer.claims(n=1))))
        await until(lambda: issuer.fetches)
        leaver.cancel()
        issuer.gate.set()
        assert isinstance(await stayer, Identity)

    with Issuer(*keys) as issuer:
        issuer.gate.clear()
        scenario(issuer.url, body, jwks_url=issuer.keys_url)
    assert issuer.fetches == 1


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(
    keys: tuple[Key, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jwks, "FILE_LOOK_S", 0.02)
    path = tmp_path / "keys.json"
    claims = {"iss": "i", "sub": "a", "exp": time.time() + 60}

    async def body(harness: Harness) -> None:
        assert isinstance(await harness.ask(keys[0].sign(claims)), Identity)
        path.write_text("{")
        await until(lambda: "the previous ones stay in use" in caplog.text)
        assert isinstance(await harness.ask(keys[0].sign(claims)), Identity)
        path.write_text(json.dumps({"keys": [keys[1].jwk]}))
        while await harness.ask(keys[1].sign(claims)) is REJECTED:
            await asyncio.sleep(0.001)
        assert isinstance(await harness.ask(keys[1].sign(claims)), Identity)
        assert await harness.ask(keys[0].sign(claims)) is REJECTED

    path.write_text(json.dumps({"keys": [keys[0].jwk]}))
    scenario("i", body, jwks_file=str(path))
