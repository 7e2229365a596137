"""Passwords: hashed off the loop, bounded, and no telling who exists."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from fastgate._core.pipeline.identity import Identity
from fastgate.auth import passwords
from fastgate.auth.basic import BasicScheme
from fastgate.auth.passwords import hash_password, password_checker
from fastgate.auth.scheme import LATER, REJECTED, Unavailable
from fastgate.auth.settings import BasicConfig
from tests.auth.requests import Counts, request, resolve
from tests.plan_context import PlanContext, run


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "N", 1024)
    monkeypatch.setattr(passwords, "P", 1)


def pair(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


class Harness:
    def __init__(self, consumers: dict[str, str], **more: Any) -> None:
        self.counts = Counts()
        self.scheme = BasicScheme(BasicConfig(**more), consumers, resolve, self.counts)

    async def ask(self, credential: str) -> Any:
        ctx = request(("Authorization", f"Basic {credential}"))
        said = self.scheme.verify(ctx)
        return await self.scheme.verify_later(ctx) if said is LATER else said


def scenario(body: Callable[[Harness], Awaitable[None]], consumers: dict[str, str], **more: Any) -> None:
    async def whole(context: PlanContext) -> None:
        harness = Harness(consumers, **more)
        await harness.scheme.start()
        try:
            await body(harness)
        finally:
            await harness.scheme.close()

    run(whole)


def test_the_right_password_lets_in() -> None:
    async def body(harness: Harness) -> None:
        for user, password in (("alice", "pass:word"), ("bob", "geheim äöü")):
            said = await harness.ask(pair(user, password))
            assert isinstance(said, Identity)
            assert (said.consumer, said.method, said.tier) == (user, "basic", "free")

    scenario(
        body, {"alice": hash_password("pass:word")}, users={"bob": hash_password("geheim äöü")}, tier="free"
    )


def test_argon2_hashes_are_read() -> None:
    phc = Argon2id(
        salt=b"0123456789abcdef", length=32, iterations=1, lanes=1, memory_cost=64
    ).derive_phc_encoded(b"pw")

    async def body(harness: Harness) -> None:
        assert isinstance(await harness.ask(pair("alice", "pw")), Identity)
        assert await harness.ask(pair("alice", "pW")) is REJECTED

    scenario(body, {"alice": phc})


def test_wrong_passwords_and_unknown_users_are_refused_alike() -> None:
    async def body(harness: Harness) -> None:
        for user, password in (
            ("alice", "wrong"),
            ("alice", ""),
            ("ALICE", "right"),
            ("mallory", "right"),
            ("", "right"),
        ):
            assert await harness.ask(pair(user, password)) is REJECTED
        assert harness.counts.outcomes() == {"password": 2, "unknown": 3}

    scenario(body, {"alice": hash_password("right")})


def test_an_unknown_user_takes_as_long_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "N", 1 << 14)

    async def body(harness: Harness) -> None:
        took: dict[str, list[float]] = {"alice": [], "mallory": []}
        for _ in range(7):
            for user, times in took.items():
                began = time.process_time()  # of all threads: what a loaded machine adds does not count
                await harness.ask(pair(user, "wrong"))
                times.append(time.process_time() - began)
        known, unknown = min(took["alice"]), min(took["mallory"])
        assert 0.6 < unknown / known < 1.6

    scenario(body, {"alice": hash_password("right")})


@pytest.mark.parametrize(
    "credential",
    [
        "",
        "!!!",
        "YWxpY2U=",
        "YWxpY2U6cA",
        "YWxp Y2U6cA==",
        "YWxpY2U6cA===",
        "/////w==",
        pair("al\nice", "p"),
        pair("a", "p\0q"),
        "A" * 3000,
    ],
)
def test_malformed_credentials_are_refused_without_hashing(credential: str) -> None:
    async def body(harness: Harness) -> None:
        assert harness.scheme.verify(request(("Authorization", f"Basic {credential}"))) is REJECTED
        assert harness.counts.outcomes() == {"malformed": 1}

    scenario(body, {"alice": hash_password("p")})


def test_passwords_that_wait_are_bounded() -> None:
    async def body(harness: Harness) -> None:
        said = await asyncio.gather(
            *(harness.ask(pair("alice", str(n))) for n in range(50)), return_exceptions=True
        )
        assert sum(one is REJECTED for one in said) == 4
        assert sum(isinstance(one, Unavailable) for one in said) == 46
        assert await harness.ask(pair("alice", "right"))

    scenario(body, {"alice": hash_password("right")}, max_waiting=4)


def test_hashing_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "N", 1 << 15)
    monkeypatch.setattr(passwords, "P", 4)

    async def body(harness: Harness) -> None:
        asking = asyncio.create_task(harness.ask(pair("alice", "wrong")))
        turns = 0
        while not asking.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 10

    scenario(body, {"alice": hash_password("right")})


@pytest.mark.parametrize(
    "text",
    [
        "password",
        "",
        "scrypt$1$8$1$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAA",
        "scrypt$1000$8$1$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAA",
        "scrypt$4194304$64$64$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAA",
        "scrypt$1024$8$1$AA==$AAAAAAAAAAAAAAAAAAAAAAAA",
        "scrypt$1024$8$1$AAAAAAAAAAAAAAAA$",
        "scrypt$1024$8$1$!$!",
        "$argon2id$v=19$m=9999999,t=3,p=1$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAA",
        "$argon2id$v=19$m=64,t=0,p=1$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAA",
        "$2b$12$abcdefghijklmnopqrstuv",
    ],
)
def test_hashes_that_are_none_or_too_dear(text: str) -> None:
    with pytest.raises(ValueError, match=r"scrypt|argon2id|salt"):
        password_checker(text)
