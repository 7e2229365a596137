"""What cannot be stored is not stored: it never delays or fails a request, and one URL's responses never take
the place of everybody's.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.caching.test_exchange import Harness, Origin, answer, status_of
from tests.caching.test_tiers_gateway import gateway, ready, tier, until
from tests.client import Client, get, request
from tests.control.admin_client import scrape, value
from tests.gateway import Gateway
from tests.upstream import Peer, Upstream

LIVES = "Cache-Control: max-age=600"


def test_a_flood_of_variants_empties_no_other_workers_memory() -> None:
    with Harness(workers=2) as harness:
        harness.origin.say = lambda asked: answer(
            asked.target, LIVES, *(["Vary: X-Bomb"] if asked.target == b"/bomb" else [])
        )
        for _ in range(24):  # until both workers have it
            harness.get("/kept")
        asked = harness.asked
        with Client(harness.gateway.port) as client:
            for number in range(1200):
                client.send(request("/bomb", "GET", f"X-Bomb: {number}"))
                assert client.read_response().body == b"/bomb"
        assert harness.asked == asked + 1200

        for _ in range(24):
            assert harness.get("/kept").get("age") is not None

        page = scrape(str(harness.gateway.ready["admin"]))
        assert value(page, "fastgate_cache_variants_evicted_total") == 1200 - 64


def test_the_oldest_variants_go_from_the_disk_too(tmp_path: Path) -> None:
    origin = Origin()
    origin.reply = answer(b"one", LIVES, "Vary: X-Bomb")
    store = {"memory": "0B", "disk": {"path": str(tmp_path / "c"), "size": "16MiB"}}
    with gateway(origin, **store) as running:
        ready(running)
        before = tier(running, "disk", "stored")
        for number in range(100):
            get(running.port, "/bomb", f"X-Bomb: {number}")

        until(lambda: tier(running, "disk", "stored") >= before + 100)
        until(lambda: tier(running, "disk", "evicted") == 100 - 64)


def read_nothing(port: int, target: str) -> Client:
    """A client that asks for what is larger than any buffer, and reads only its beginning."""
    client = Client(port, window=4096)
    client.send(request(target))
    client.read_until(b"\r\n\r\n")
    return client


@pytest.mark.parametrize("workers", [1, 2])
def test_a_leader_that_reads_slowly_holds_up_nobody(tmp_path: Path, workers: int) -> None:
    body = b"x" * 12_000_000
    store = {"cache_store": {"disk": {"path": str(tmp_path / "c"), "size": "1GB"}}}
    with Harness(root=store, workers=workers, coalesce_wait="1h") as harness:  # who is held up stays so
        harness.origin.reply = answer(body, LIVES)
        leader = read_nothing(harness.gateway.port, "/large")
        try:
            followers = [
                threading.Thread(target=lambda: sizes.append(len(harness.get("/large").body)))
                for _ in range(4)
            ]
            sizes: list[int] = []
            for follower in followers:
                follower.start()
            for follower in followers:
                follower.join(60)
            served = len(sizes)
        finally:
            leader.close()
        for follower in followers:
            follower.join()

        assert served == 4
        assert sizes == [len(body)] * 4


def test_a_failing_upstream_of_a_cached_route_has_a_cache_status() -> None:
    with Harness() as harness:
        harness.origin.say = lambda _: None

        broken = harness.get()

        assert broken.status == 502
        assert status_of(broken) == "fwd=uri-miss"
        stored_only = harness.get("/", "Cache-Control: only-if-cached")
        assert stored_only.status == 504
        assert status_of(stored_only) == "detail=not-cached"


@pytest.mark.parametrize("range_", ["bytes=0-0", "bytes=0-", "bytes=-1", "bytes=5-9", "bytes=0-0,2-3"])
def test_a_range_of_nothing_is_all_of_it(range_: str) -> None:
    with Harness() as harness:
        harness.origin.reply = answer(b"", LIVES)
        harness.get()

        ranged = harness.get("/", f"Range: {range_}")

        assert (ranged.status, ranged.body, harness.asked) == (200, b"", 1)
        assert ranged.get("content-range") is None


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"x", b"\0" * 9])
def test_what_an_upstream_says_beyond_its_response_is_stored_under_no_key(extra: bytes) -> None:
    """The framed response is whole and may be stored, as in nginx; the rest ends the connection."""
    bodies = iter(range(1000))

    def script(peer: Peer) -> None:
        peer.read_request()
        body = b"%03d" % next(bodies)
        head = f"HTTP/1.1 200 OK\r\n{LIVES}\r\nContent-Length: 3\r\n\r\n".encode()
        peer.send(head + body + extra)
        peer.wait_closed()

    with Upstream(script) as upstream:
        config: dict[str, Any] = {"routes": [{"path": "/*", "upstream": upstream.url, "cache": {}}]}
        with Gateway(config) as running:
            seen = [get(running.port, path).body for path in ("/a", "/b", "/a", "/b", "/c")]

    assert seen == [b"000", b"001", b"000", b"001", b"002"]


def test_a_smaller_disk_size_is_no_damage(tmp_path: Path) -> None:
    origin = Origin()
    body = os.urandom(200_000)
    origin.say = lambda _: answer(body, LIVES)
    disk = {"path": str(tmp_path / "c"), "size": "64MiB"}
    with gateway(origin, disk=disk) as running:
        ready(running)
        for number in range(160):
            get(running.port, f"/filler-{number:03}")
        until(lambda: tier(running, "disk", "stored") >= 150)

    with gateway(origin, allow="disk.size is smaller", disk={**disk, "size": "16MiB"}) as running:
        ready(running)
        said = running.stderr_text
        assert tier(running, "disk", "damaged") == 0
        assert "damaged" not in said
        assert "disk.size is smaller" in said
