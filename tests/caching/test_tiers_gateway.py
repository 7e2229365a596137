"""The tiers through the real gateway: shared by workers, kept over restarts, purged everywhere at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.caching.redis_server import RedisServer
from tests.caching.test_exchange import Origin, answer
from tests.client import Client, get, request
from tests.control.admin_client import call, scrape, value
from tests.gateway import Gateway
from tests.upstream import Upstream


@contextmanager
def gateway(origin: Origin, *, workers: int = 1, allow: str | None = None, **store: Any) -> Iterator[Gateway]:
    with Upstream(origin.script) as upstream:
        config = {
            "cache_store": store,
            # By name: what is stored outlives a restart, also when the origin comes back on another port.
            "upstreams": {"origin": {"targets": [upstream.url]}},
            "routes": [
                {"path": "/*", "name": "all", "upstream": "origin", "cache": {"coalesce_wait": "60s"}},
            ],
        }
        with Gateway(config, workers=workers, allow=allow, check_descriptors=False) as running:
            yield running


def ask(running: Gateway, target: str, host: str = "here.example") -> bytes:
    with Client(running.port) as client:
        client.send(request(target, host=host))
        return client.read_response().body


def admin(running: Gateway) -> str:
    return str(running.ready["admin"])


def tier(running: Gateway, name: str, event: str) -> float:
    return value(scrape(admin(running)), "fastgate_cache_tier_total", tier=name, event=event)


def until(what: Any, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def written(running: Gateway, origin: Origin) -> None:
    """Waits until every answer of the origin has been stored on the disk, or not been taken."""
    events = ("stored", "refused", "dropped")
    until(lambda: sum(tier(running, "disk", event) for event in events) >= len(origin.asked))


def ready(running: Gateway, port_path: str = "/ready") -> None:
    """Waits until the disk tier is open: an answer is stored in it."""
    number = 0

    def stored() -> bool:
        nonlocal number
        number += 1
        get(running.port, f"{port_path}?{number}")
        time.sleep(0.05)
        return tier(running, "disk", "stored") > 0

    until(stored)


def test_what_one_worker_stored_is_a_hit_in_the_others(tmp_path: Path) -> None:
    origin = Origin()
    with gateway(origin, workers=2, disk={"path": str(tmp_path / "c"), "size": "16MiB"}) as running:
        ready(running)
        get(running.port, "/a")
        written(running, origin)
        asked = len(origin.asked)

        bodies = {get(running.port, "/a").body for _ in range(20)}

        assert bodies == {b"one"}
        assert len(origin.asked) == asked
        until(lambda: tier(running, "disk", "hit") >= 1)


def test_answers_outlive_a_restart_and_a_purge_does_too(tmp_path: Path) -> None:
    origin = Origin()
    disk = {"path": str(tmp_path / "c"), "size": "16MiB"}
    origin.say = lambda asked: answer(
        asked.target, "Cache-Control: max-age=600", "Surrogate-Key: " + asked.target[1:2].decode()
    )
    # The key holds the address of the gateway, which is another one after the restart: say it.
    with gateway(origin, disk=disk) as running:
        ready(running)
        for path in ("/a", "/b", "/c"):
            ask(running, path)
        written(running, origin)
        told = call(admin(running), "/api/cache/purge", "POST", body={"tag": "b"}).json
        assert told["purged"] == 1
        assert told["disk"] is True
    seen = len(origin.asked)

    with gateway(origin, disk=disk) as running:
        ready(running)
        after = len(origin.asked)
        assert ask(running, "/a") == b"/a"
        assert ask(running, "/c") == b"/c"
        assert len(origin.asked) == after
        ask(running, "/b")
        assert len(origin.asked) == after + 1
    assert after > seen


@pytest.mark.parametrize(
    "body",
    [
        {"all": True},
        {"url": "URL"},
        {"pattern": "/a*"},
        {"prefix": "http://"},
        {"tag": ["other", "letter-a"]},
    ],
)
def test_when_a_purge_is_answered_no_worker_serves_it(tmp_path: Path, body: dict[str, Any]) -> None:
    origin = Origin()
    fields = ("Cache-Control: max-age=600", "Surrogate-Key: letter-a", "Vary: Accept-Language")
    origin.reply = answer(b"old", *fields)
    with gateway(origin, workers=2, disk={"path": str(tmp_path / "c"), "size": "16MiB"}) as running:
        body = {name: "http://gateway.test/a?x=1" if text == "URL" else text for name, text in body.items()}
        for number in range(10):
            origin.reply = answer(b"old %d" % number, *fields)
            for _ in range(6):
                for language in ("en", "de"):
                    get(running.port, "/a?x=1", f"Accept-Language: {language}")
            new = b"new %d" % number
            origin.reply = answer(new, *fields)

            told = call(admin(running), "/api/cache/purge", "POST", body=body)

            assert told.status == 200, told
            for _ in range(4):
                for language in ("en", "de"):
                    assert get(running.port, "/a?x=1", f"Accept-Language: {language}").body == new
            call(admin(running), "/api/cache/purge", "POST", body={"all": True})


@pytest.mark.parametrize("size", [3, 1_500_000], ids=["small", "read in a thread"])
def test_many_requests_at_once_are_one_for_the_origin_across_workers(tmp_path: Path, size: int) -> None:
    origin = Origin()
    body = os.urandom(size)
    origin.reply = answer(body, "Cache-Control: max-age=600")
    with gateway(origin, workers=2, disk={"path": str(tmp_path / "c"), "size": "64MiB"}) as running:
        ready(running)
        before = len(origin.asked)
        origin.gate.clear()
        bodies: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: bodies.append(get(running.port, "/slow").body)) for _ in range(24)
        ]
        for thread in threads:
            thread.start()
        until(lambda: value(scrape(admin(running)), "fastgate_requests_active") == 24)
        origin.gate.set()
        for thread in threads:
            thread.join()

        assert set(bodies) == {body}
        assert len(bodies) == 24
        assert len(origin.asked) - before == 1


def test_a_killed_worker_leaves_a_store_that_works(tmp_path: Path) -> None:
    origin = Origin()
    origin.say = lambda asked: answer(asked.target * 100, "Cache-Control: max-age=600")
    disk = {"path": str(tmp_path / "c"), "size": "16MiB"}
    with gateway(origin, workers=2, allow=".*", disk=disk) as running:
        ready(running)
        for round_ in range(2):
            workers = call(admin(running), "/api/gateway/status").json["workers"]
            for number in range(50):
                get(running.port, f"/{round_}/{number}")
            os.kill(workers[0]["pid"], signal.SIGKILL)
            until(
                lambda workers=workers: all(
                    worker["state"] == "ready" and worker["pid"] != workers[0]["pid"]
                    for worker in call(admin(running), "/api/gateway/status").json["workers"]
                )
            )
            for number in range(50):
                target = f"/{round_}/{number}"
                assert get(running.port, target).body == target.encode() * 100
        assert tier(running, "disk", "rebuilt") == 0


def test_redis_serves_another_gateway_and_hears_its_purges(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    one, two = Origin(), Origin()
    two.reply = answer(b"two", "Cache-Control: max-age=60")
    settings = {"url": redis.url, "timeout": "10s"}
    try:
        with (
            gateway(one, allow=r"Redis at", redis={**settings, "machine": "one"}) as first,
            gateway(two, allow=r"Redis at", redis={**settings, "machine": "two"}) as second,
        ):
            for running in (first, second):
                until(lambda running=running: value(scrape(admin(running)), "fastgate_redis_up") == 1)
            until(
                lambda: (
                    (ask(first, "/a") and tier(first, "redis", "stored") > 0)
                    or call(admin(first), "/api/cache/purge", "POST", body={"all": True}) is None
                )
            )

            assert ask(second, "/a") == b"one"
            assert len(two.asked) == 0

            told = call(admin(first), "/api/cache/purge", "POST", body={"all": True}).json
            assert told["redis"] is True
            until(lambda: ask(second, "/a") == b"two")

            redis.stop()
            for number in range(20):
                assert get(second.port, f"/{number}").body == b"two"
    finally:
        redis.stop()


def test_statistics_tell_of_routes_and_tiers(tmp_path: Path) -> None:
    with gateway(Origin(), disk={"path": str(tmp_path / "c"), "size": "16MiB"}) as running:
        ready(running)
        get(running.port, "/a")
        get(running.port, "/a")

        told = call(admin(running), "/api/cache").json

        assert told["routes"]["all"]["hit"] == 1, told
        assert 0 < told["routes"]["all"]["hit_ratio"] < 1
        assert told["tiers"]["disk"]["bytes"] > 0
        until(lambda: call(admin(running), "/api/cache").json["fills"]["under_way"] == 0)


@pytest.mark.parametrize(
    "body",
    [
        {"url": "http://here.example:80/%7euser/%c3%a9?q=1"},
        {"url": "HTTP://HERE.example./x/../~user//%C3%A9?q=1"},
        {"prefix": "http://Here.example:80//%7euser/"},
        {"key": "http://here.example./%7Euser/%c3%a9?q=1"},
        {"pattern": "/%7euser/%c3%a9*"},
        {"pattern": "http://HERE.example/~us*"},
    ],
)
def test_a_purge_finds_a_url_in_any_spelling(one_gateway: Gateway, body: dict[str, Any]) -> None:
    def is_hit() -> bool:
        with Client(one_gateway.port) as client:
            client.send(request("/~user/%C3%A9?q=1", host="here.example"))
            return b"; hit" in (client.read_response().get("cache-status") or b"")

    until(is_hit)

    call(admin(one_gateway), "/api/cache/purge", "POST", body=body)

    assert not is_hit()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"url": "not a url"}, 400),
        ({"url": "http://[::1"}, 400),
        ({"pattern": "[a"}, 400),
        ({"tag": ""}, 400),
        ({"tag": "x" * 1025}, 400),
        ({"tag": [str(i) for i in range(501)]}, 413),
        ({"tags": "x"}, 400),
        ({"url": "http://a/%7"}, 400),
        ({"prefix": "http://a/%7"}, 400),
        ({"pattern": "/%zz*"}, 400),
        ({"prefix": "/a"}, 400),  # of no host: it would purge nothing
        ({"key": "/a"}, 400),
    ],
)
def test_purges_that_make_no_sense_are_refused(
    one_gateway: Gateway, body: dict[str, Any], status: int
) -> None:
    told = call(admin(one_gateway), "/api/cache/purge", "POST", body=body)

    assert told.status == status, told
    assert told.json["error"]


@pytest.fixture(scope="module")
def one_gateway() -> Iterator[Gateway]:
    with gateway(Origin()) as running:
        yield running
